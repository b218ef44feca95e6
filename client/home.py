"""A person's folder: their keys, credential and records, and the network they pinned when they joined.

    master.key            key file (passphrase or plain) of a random key under which everything else is encrypted
    network.toml, …       the network file and genesis of both chains, as they were at `create`
    *.sealed              AES-256-GCM, bound to the file's name

Nothing in it is readable without the master key; file names carry record ids, never names of people.
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from configs.files import load_network, read, read_key, read_text, write, write_key
from crypto.abe import MAX_ATTRIBUTE_KEY_BYTES, AttributeKey, PublicKey
from crypto.ces import CesSigner
from crypto.codec import Bytes32, Decoder, Wire, encode
from crypto.errors import Conflict, NotFound, Unauthentic
from crypto.schemes import read_attributes, read_public
from crypto.seal import SealKey
from crypto.sign import SigningKey
from protocol.identity import SignedCredential

MAX_FILE = 256 << 20


class _Secrets(Wire, frozen=True):
    sign_seed: Bytes32
    seal_secret: Bytes32
    ces: bytes | None


class _Enrolled(Wire, frozen=True):
    credential: SignedCredential
    attribute_key: bytes
    abe_public: bytes


_decode_secrets = Decoder(_Secrets, "the secrets file", 64 << 10)
_decode_enrolled = Decoder(_Enrolled, "the enrolment file", MAX_ATTRIBUTE_KEY_BYTES + (64 << 10))


class Home:
    """An open home. `sign`, `seal` and (doctors) `ces` are its keys; what the authority issued follows once enrolled."""

    def __init__(self, path: Path, passphrase: bytes | None = None) -> None:
        """Open; `NotFound` if there is none, `Denied` for a wrong passphrase."""
        if not (path / "master.key").exists():
            raise NotFound(f"{path} is not a Diptych home; make one with: diptych init")
        self.path = path
        self._aead = AESGCM(read_key(path / "master.key", passphrase))
        self.network, self.chains = load_network(path / "network.toml")
        secrets = _decode_secrets(self.load("secrets"))
        self.sign, self.seal = SigningKey(secrets.sign_seed), SealKey(secrets.seal_secret)
        self.ces = CesSigner.from_bytes(secrets.ces) if secrets.ces else None
        self._enrolled = _decode_enrolled(self.load("enrolled")) if self.has("enrolled") else None

    @classmethod
    def create(
        cls, path: Path, network: Path, ces_suite: str | None, passphrase: bytes | None = None
    ) -> "Home":
        """Make keys and pin the network; `Conflict` if there is a home already. Doctors pass a CES suite."""
        if (path / "master.key").exists():
            raise Conflict(f"{path} holds keys already and is not overwritten; choose another folder")
        found, _ = load_network(network)
        write(path / "network.toml", read(network), mode=0o644, replace=True)
        for chain in found.chains.values():
            text = read_text(network.parent / chain.genesis)
            write(path / chain.genesis, text.encode(), mode=0o644, replace=True)
        secrets = _Secrets(
            os.urandom(32), os.urandom(32), CesSigner.generate(ces_suite).to_bytes() if ces_suite else None
        )
        master = os.urandom(32)
        write(path / "secrets.sealed", _sealed(AESGCM(master), "secrets", encode(secrets)), replace=True)
        write_key(path / "master.key", master, passphrase)  # last: a home exists only when it is whole
        return cls(path, passphrase)

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
        data = read(self._file(name), MAX_FILE)
        try:
            return self._aead.decrypt(data[:12], data[12:], name.encode())
        except InvalidTag:
            raise Unauthentic(
                f"{self._file(name)} was changed or belongs to another home; restore it from a backup"
            ) from None

    def remove(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def names(self, kind: str) -> list[str]:
        """The names `kind-…` of sealed files, without the prefix."""
        return sorted(f.name[len(kind) + 1 : -len(".sealed")] for f in self.path.glob(f"{kind}-*.sealed"))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.sealed"


def _sealed(aead: AESGCM, name: str, content: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + aead.encrypt(nonce, content, name.encode())
