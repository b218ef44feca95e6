"""A person's folder: their keys, credential and records, and the network they pinned when they joined.

    master.key            key file (passphrase or plain) of the *root*, 32 random bytes from which the other keys are derived
    network.toml, …       the network file and genesis of both chains, as they were at `create`
    *.sealed              AES-256-GCM under a derived key, bound to the file's name
    RECORD-VERSION.pack   ciphertext of a record's parts, each under a key of its own in a sealed file (`client.pack`)

Signing and decryption key follow from the root, so whoever gives the root back (`crypto.guardians`) gives the person back; with a copy of the
sealed files, their records too. A doctor's record-signing key is in a sealed file. Keys may also be outside, behind a signer command; then
the home pins their public halves. Nothing in the folder but the network is readable without the root, and the network cannot be exchanged
without it, so a copy may lie with a stranger. File names carry record ids, never names of people.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from configs.files import destroy, load_network, read, read_key, read_text, write, write_key
from crypto import guardians
from crypto.abe import MAX_ATTRIBUTE_KEY_BYTES, AttributeKey, PublicKey
from crypto.ces import CesSigner
from crypto.ces import Signer as RecordSigner
from crypto.codec import Bytes32, Decoder, Wire, encode
from crypto.errors import Conflict, Denied, NotFound, Unauthentic
from crypto.schemes import read_attributes, read_public
from crypto.seal import SealKey
from crypto.sign import Ed25519Signer, SigningKey, domain_tag
from protocol.genesis import Genesis
from protocol.identity import CesKey, SignedCredential
from protocol.network import Network
from protocol.record import digest

MAX_FILE = 256 << 20


class _Secrets(Wire, frozen=True):
    """What does not follow from the root: which network the home is of, the record-signing key, or the public halves of keys that are
    outside."""

    suite: Literal["diptych-home/1"]
    network: Bytes32
    ces: bytes | None
    outside_sign: Bytes32 | None
    outside_ces: CesKey | None


class _Enrolled(Wire, frozen=True, tag="enrolled/1"):
    credential: SignedCredential
    attribute_key: bytes
    abe_public: bytes


class Outside(NamedTuple):
    """Keys that are not in the home (`configs.signer`)."""

    sign: Ed25519Signer | None = None
    ces: RecordSigner | None = None


_decode_secrets = Decoder(_Secrets, "the secrets file", 64 << 10)
_decode_enrolled = Decoder(_Enrolled, "the enrolment file", MAX_ATTRIBUTE_KEY_BYTES + (64 << 10))
_NONE_OUTSIDE = Outside()


class Home:
    """An open home. `sign`, `seal` and (doctors) `ces` are its keys; what the authority issued follows once enrolled."""

    sign: Ed25519Signer
    ces: RecordSigner | None

    def __init__(self, path: Path, passphrase: bytes | None = None, outside: Outside = _NONE_OUTSIDE) -> None:
        """Open; `NotFound` if there is none, `Denied` for a wrong passphrase or a missing outside key, `Conflict` for another one or
        another network."""
        if not (path / "master.key").exists():
            raise NotFound(f"{path} is not a Diptych home; make one with: diptych init")
        self.path = path
        self._root = read_key(path / "master.key", passphrase)
        self._aead = AESGCM(_derived(self._root, "files"))
        self.network, self.chains = load_network(path / "network.toml")
        secrets = _decode_secrets(self.load("secrets"))
        if secrets.network != _pin(self.network, self.chains):
            raise Conflict(
                f"the network and genesis files in {path} name other keys than those that the home was made with: "
                "somebody may have exchanged them; restore them from a backup"
            )
        self.seal = SealKey(_derived(self._root, "seal"))
        sign_key = outside.sign and outside.sign.public
        _check_pinned(secrets.outside_sign, sign_key, "signing key", "--signer-command")
        self.sign = outside.sign or SigningKey(_derived(self._root, "sign"))
        ces_key = outside.ces and CesKey(outside.ces.suite, outside.ces.public)
        _check_pinned(secrets.outside_ces, ces_key, "record-signing key", "--ces-signer-command")
        self.ces = outside.ces or (CesSigner.from_bytes(secrets.ces) if secrets.ces else None)
        self._enrolled = _decode_enrolled(self.load("enrolled")) if self.has("enrolled") else None

    @classmethod
    def create(
        cls,
        path: Path,
        network: Path,
        ces_suite: str | None,
        passphrase: bytes | None = None,
        outside: Outside = _NONE_OUTSIDE,
        root: bytes | None = None,
    ) -> "Home":
        """Make keys, or take them from a recovered `root`, and pin the network; `Conflict` if there is a home already.

        Doctors pass a CES suite, of which a key is made unless it is outside.
        """
        sealed = [file for file in path.glob("*.sealed") if file.name != "secrets.sealed"]
        if (
            path / "master.key"
        ).exists() or sealed:  # a lone secrets.sealed is of a `create` that was cut off
            raise Conflict(f"{path} holds a home already and is not overwritten; choose another folder")
        found, chains = load_network(network)
        write(path / "network.toml", read(network), mode=0o644, replace=True)
        for chain in found.chains.values():
            text = read_text(network.parent / chain.genesis)
            write(path / chain.genesis, text.encode(), mode=0o644, replace=True)
        secrets = _Secrets(
            "diptych-home/1",
            _pin(found, chains),
            CesSigner.generate(ces_suite).to_bytes() if ces_suite and not outside.ces else None,
            outside.sign.public if outside.sign else None,
            CesKey(outside.ces.suite, outside.ces.public) if outside.ces else None,
        )
        root = root or os.urandom(32)
        aead = AESGCM(_derived(root, "files"))
        write(path / "secrets.sealed", _sealed(aead, "secrets", encode(secrets)), replace=True)
        write_key(path / "master.key", root, passphrase)  # last: a home exists only when it is whole
        return cls(path, passphrase, outside)

    @staticmethod
    def restore(path: Path, root: bytes, passphrase: bytes | None) -> None:
        """Give a home whose master key or passphrase is lost its `root` back, under a new passphrase.

        `NotFound` without the sealed files, `Unauthentic`, and nothing is changed, if they are not sealed under this root.
        """
        if not (path / "secrets.sealed").exists():
            raise NotFound(
                f"{path} has no copy of the sealed files; give --network to start from the keys alone"
            )
        _opened(AESGCM(_derived(root, "files")), path, "secrets")
        write_key(path / "master.key", root, passphrase, replace=True)

    def split(self, labels: list[str], needed: int) -> list[guardians.Share]:
        """Shares of the root for guardians (`guardians.split_secret`)."""
        return guardians.split_secret(self._root, labels, needed)

    def enrol(self, credential: SignedCredential, attribute_key: bytes, abe_public: bytes) -> None:
        """Keep what the authority issued."""
        self._enrolled = _Enrolled(credential, attribute_key, abe_public)
        self.save("enrolled", encode(self._enrolled))

    @property
    def is_enrolled(self) -> bool:
        return self._enrolled is not None

    @property
    def credential(self) -> SignedCredential:
        return self._issued().credential

    @property
    def attribute_key(self) -> AttributeKey:
        return read_attributes(self._issued().attribute_key)

    @property
    def abe_public(self) -> PublicKey:
        return read_public(self._issued().abe_public)

    def _issued(self) -> _Enrolled:
        if self._enrolled is None:
            raise NotFound("this home is not enrolled; get an invitation and run: diptych init --invite …")
        return self._enrolled

    def has(self, name: str) -> bool:
        return self._file(name).exists()

    def save(self, name: str, content: bytes) -> None:
        """Write or replace the sealed file `name`, whole or not at all."""
        write(self._file(name), _sealed(self._aead, name, content), replace=True)

    def load(self, name: str) -> bytes:
        return _opened(self._aead, self.path, name)

    def remove(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def destroy(self, name: str) -> None:
        """Overwrite and remove the sealed file `name`, so that who gets the root later does not find it in what is left of it."""
        destroy(self._file(name))

    def names(self, kind: str) -> list[str]:
        """The names `kind-…` of sealed files, without the prefix."""
        return sorted(f.name[len(kind) + 1 : -len(".sealed")] for f in self.path.glob(f"{kind}-*.sealed"))

    def pack(self, record: bytes, version: int) -> Path:
        """The file of the parts of a record that were sealed in this version."""
        return self.path / f"{record.hex()}-{version}.pack"

    def remove_packs(self, record: bytes, but: Collection[int] = ()) -> None:
        """Remove the parts of a record that were sealed in other versions than these, and what a killed process has left of any."""
        kept = {self.pack(record, version) for version in but}
        for found in (
            *self.path.glob(f"{record.hex()}-*.pack"),
            *self.path.glob(f".{record.hex()}-*.pack.*.tmp"),
        ):
            if found not in kept:
                found.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.sealed"


def _derived(root: bytes, purpose: str) -> bytes:
    """32 bytes of HKDF-Expand (RFC 5869) from the uniform root."""
    return HKDFExpand(SHA256(), 32, domain_tag(f"home-{purpose}")).derive(root)


def _check_pinned(pinned: object, given: object, what: str, option: str) -> None:
    if pinned and not given:
        raise Denied(f"the {what} of this home is outside of it; give {option}")
    if given and not pinned:
        raise Conflict(f"this home was made without an outside {what}; leave {option} away")
    if given != pinned:
        raise Conflict(f"the outside {what} is not the one this home was made with; check {option}")


def _opened(aead: AESGCM, folder: Path, name: str) -> bytes:
    file = folder / f"{name}.sealed"
    data = read(file, MAX_FILE)
    try:
        return aead.decrypt(data[:12], data[12:], name.encode())
    except (InvalidTag, ValueError):
        raise Unauthentic(
            f"{file} was changed or belongs to another home; restore it from a backup"
        ) from None


def _sealed(aead: AESGCM, name: str, content: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + aead.encrypt(nonce, content, name.encode())


def _pin(network: Network, chains: Mapping[str, Genesis]) -> bytes:
    """Names what a home relies on in its network: the geneses and the keys of cloud and authorities. Addresses may change."""
    geneses = sorted(genesis.hash for genesis in chains.values())
    issuers = [service.key for _, service in network.issuers]
    return digest("home-network", encode((geneses, network.cloud.key, issuers, network.authority_threshold)))
