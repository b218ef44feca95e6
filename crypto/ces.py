"""Content extraction signatures: one signature over a record, from which anyone cuts verifiable extracts.

CommitVector of Steinfeld, Bull and Zheng ("Content Extraction Signatures", ICISC 2001). Every part is committed to under its own
random 32-byte tag, and one root stands for all commitments (`crypto.commitvector`); the doctor signs a header with that root in it.
An extract is the header, the signature, and in place of the removed parts just the hashes from which the root follows, so it
verifies without them and, as the tags hide them, says nothing about them, however few values they could have.

The header names the form of the root. Flat: one hash for each removed part, the paper's own form. Merkle, for records of many
parts: at most as many hashes, and for one part of n about log2(n) of them.

Invariants:
- A tag is as secret as its part and travels only with it, inside the sealed part: an `Extract` holds no tag at all, or whoever
  stores it could guess a short part (a gender, a birth date) by trial.
- Tags are fresh in every signature; two signatures over the same part cannot be linked by its hash.
- Extracts with the same header are over the same parts under the same tags, for the header has the root, besides the record's id,
  patient, doctor, time, number of parts and the doctor's extraction rules (`crypto.ceas`). So parts of two records, or of two
  versions of one, never pass for one record, and the digest of a header on chain stands for one content.
- The complete record is always allowed; the rules limit what may be cut from it, and every verifier enforces them.
- There is one extract for a selection: one cut from another extract is, byte for byte, the one cut from the whole.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Protocol

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from crypto.ceas import MAX_PARTS, PartSet, Rule, is_part_set, mask_of, members, part_set
from crypto.codec import Bytes16, Bytes32, Decoder, Short, UInt, Wire, encode
from crypto.commitvector import HASH_BYTES, TAG_BYTES, Form, commit, opening, root
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.sign import SigningKey, domain_tag, is_valid

RSA_PSS = "ces-rsa-pss-3072-sha256"
ED25519 = "ces-ed25519-sha256"
SUITES = (RSA_PSS, ED25519)

MERKLE_FROM = 32
"""Parts from which on a record is signed in Merkle form: there the tree costs some 20 us more than the flat root, and an extract
is smaller by up to 800 bytes."""
MAX_RULES = 256
MAX_HEADER = 512 << 10
MAX_OBJECT = 1 << 20
"""Bytes of an encoded full signature or extract; a header within its own limit never makes one larger."""

_DOMAIN = "ces"
_PSS = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)
_RSA_BITS = 3072
_RSA_EXPONENT = 65537

Opened = Mapping[int, tuple[bytes, bytes]]
"""Parts by index, each as its tag (32 bytes) and its message. Each is asked for once and none is kept, so that a mapping may read
them as they are asked for."""


class Header(Wire, frozen=True):
    """What the doctor signs: everything about the record, and the root over its `count` parts.

    Readable by everyone who may read any part, and by the cloud: nothing in it may be confidential.
    """

    suite: Short
    form: Form
    record: Bytes16
    patient: Bytes32
    doctor: Bytes32
    created_ms: UInt
    profile: Short
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTS)]
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=MAX_RULES)]
    root: Bytes32


class Signer(Protocol):
    """A doctor's record-signing key, wherever it lives (a key file, an HSM).

    `sign` signs `domain_tag("ces") ‖ payload` by the algorithm that `suite` names; `public` is the DER
    SubjectPublicKeyInfo of an RSA key or the 32 bytes of an Ed25519 key.
    """

    @property
    def suite(self) -> str: ...
    @property
    def public(self) -> bytes: ...
    def sign(self, payload: bytes) -> bytes: ...


class _SignerSecret(Wire, frozen=True):
    suite: Short
    key: bytes


_decode_signer = Decoder(_SignerSecret, "a record-signing key", 8 << 10)


class CesSigner:
    """A `Signer` with its private key in memory."""

    def __init__(self, key: SigningKey | rsa.RSAPrivateKey) -> None:
        self._key = key
        self.suite = ED25519 if isinstance(key, SigningKey) else RSA_PSS
        self.public = key.public if isinstance(key, SigningKey) else _rsa_public_bytes(key.public_key())

    @classmethod
    def generate(cls, suite: str) -> "CesSigner":
        """A new key; a 3072-bit RSA key takes some tenths of a second. `Malformed` for an unknown suite."""
        _check_suite(suite)
        if suite == ED25519:
            return cls(SigningKey.generate())
        return cls(rsa.generate_private_key(_RSA_EXPONENT, _RSA_BITS))

    def sign(self, payload: bytes) -> bytes:
        """64 bytes (Ed25519) or 384 bytes (RSA)."""
        if isinstance(self._key, SigningKey):
            return self._key.sign(_DOMAIN, payload)
        return self._key.sign(domain_tag(_DOMAIN) + payload, _PSS, SHA256())

    def to_bytes(self) -> bytes:
        """The secret for a key file: the suite with the Ed25519 seed or the PKCS#8 DER of the RSA key. Not
        encrypted."""
        if isinstance(self._key, SigningKey):
            key = self._key.seed
        else:
            key = self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return encode(_SignerSecret(self.suite, key))

    @classmethod
    def from_bytes(cls, data: bytes) -> "CesSigner":
        """The signer that wrote `data` by `to_bytes`, or `Malformed`."""
        secret = _decode_signer(data)
        _check_suite(secret.suite)
        try:
            if secret.suite == ED25519:
                return cls(SigningKey(secret.key))
            key = load_der_private_key(secret.key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Malformed(f"the record-signing key is damaged: it does not fit {secret.suite}") from None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise Malformed(f"the record-signing key is not an RSA key, as {secret.suite} needs")
        return cls(key)


class FullSignature(Wire, frozen=True):
    """The doctor's signature over all parts, with all tags one after another: for the patient only, never for the cloud."""

    header: Header
    tags: Annotated[bytes, msgspec.Meta(max_length=MAX_PARTS * TAG_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=1024)]

    def tag(self, index: int) -> bytes:
        """The tag of part `index`, 32 bytes."""
        return self.tags[index * TAG_BYTES : (index + 1) * TAG_BYTES]

    def commit(self, index: int, message: bytes) -> bytes:
        """The commitment to part `index`, 32 bytes: as binding as the part itself, and as secret as its tag. With those of all parts
        at hand, nothing else here needs their content."""
        return commit(self.header.record, index, self.tag(index), message)

    def commitments(self, messages: Iterable[bytes]) -> list[bytes]:
        """The commitments to all parts, from their `messages` in order, of which none is kept."""
        return [self.commit(i, message) for i, message in enumerate(messages)]

    def extract(self, commitments: Sequence[bytes], keep: Collection[int]) -> "Extract":
        """The signature over just the parts `keep` (at least one), with the `commitments` to all parts in order.

        Does not verify: what is cut from a false signature is false. Raises `Denied` if the doctor's rules forbid the selection,
        `Malformed` for an unknown or repeated index or a wrong number of commitments.
        """
        _check_counts(self, commitments)
        header = self.header
        kept = _allowed(header, keep, range(header.count))
        parts = {i: b"" if i in kept else commitment for i, commitment in enumerate(commitments)}
        return Extract(header, part_set(kept), opening(header.form, header.count, parts), self.signature)


class Extract(Wire, frozen=True):
    """The doctor's signature over the parts `selection`, with the hashes that stand in for the others (`commitvector.opening`)."""

    header: Header
    selection: Annotated[PartSet, msgspec.Meta(min_length=1)]
    hashes: Annotated[bytes, msgspec.Meta(max_length=MAX_PARTS * HASH_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=1024)]

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the parts that this extract is over, ascending."""
        return members(self.selection)

    def reduce(self, parts: Opened, keep: Collection[int]) -> "Extract":
        """The extract over `keep`, a selection of `kept`; `parts` must hold every part that goes.

        Equal to the one that `FullSignature.extract` makes for `keep`. Does not verify. Raises `Denied` if the doctor's rules
        forbid the selection, `Malformed` for an index that is repeated or not in this extract, or a missing part.
        """
        header = self.header
        _check_selection(self)
        kept = _allowed(header, keep, self.kept)
        if any(i not in kept and i not in parts for i in self.kept):
            raise Malformed("a part that is to be removed from the extract is missing: open it first")
        left = {i: b"" if i in kept else commit(header.record, i, *parts[i]) for i in self.kept}
        hashes = opening(header.form, header.count, left, self.hashes)
        return Extract(header, part_set(kept), hashes, self.signature)


decode_header = Decoder(Header, "a record header", MAX_HEADER)
decode_full = Decoder(FullSignature, "a full record signature", MAX_OBJECT)
decode_extract = Decoder(Extract, "an extracted signature", MAX_OBJECT)


def sign(
    messages: Collection[bytes],
    signer: Signer,
    *,
    record: bytes,
    patient: bytes,
    doctor: bytes,
    created_ms: int,
    profile: str,
    rules: Sequence[Rule] = (),
    form: Form | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> FullSignature:
    """The signature of `signer` over `messages` (1 up to `MAX_PARTS`) and a header with the other arguments, under fresh tags.

    The messages are gone through once, in order, and none is kept.
    `record` is a fresh random id of 16 bytes, `patient` and `doctor` are Ed25519 keys (32 bytes). Without a `form`, the number of
    parts decides. Raises `Malformed` for anything out of bounds or a rule that makes no sense.
    """
    count = len(messages)
    form = form or ("merkle" if count >= MERKLE_FROM else "flat")
    blank = Header(
        signer.suite,
        form,
        record,
        patient,
        doctor,
        created_ms,
        profile,
        count,
        tuple(rules),
        bytes(HASH_BYTES),
    )
    decode_header(encode(blank))  # a struct built in memory is not validated by its type
    _check_header(blank)
    unsigned = FullSignature(blank, random(count * TAG_BYTES), b"")
    commitments = unsigned.commitments(messages)
    _check_counts(unsigned, commitments)
    header = msgspec.structs.replace(blank, root=_root(blank, dict(enumerate(commitments))))
    return FullSignature(header, unsigned.tags, signer.sign(encode(header)))


def verify_full(signature: FullSignature, commitments: Sequence[bytes], suite: str, public: bytes) -> None:
    """Accept only what the holder of the `suite` key `public` signed: this header and exactly the parts that `commitments` are to.

    `FullSignature.commitments` makes them from the parts; those that somebody else made prove nothing of any part. Raises
    `Unauthentic` if anything differs, `Malformed` for a wrong number of commitments, an unknown suite or a bad key.
    """
    header = signature.header
    _check_header(header)
    _check_counts(signature, commitments)
    _check_signed(header, _root(header, dict(enumerate(commitments))), signature.signature, (suite, public))


def verify(extract: Extract, parts: Opened, suite_key: tuple[str, bytes]) -> None:
    """Accept only parts that the holder of `suite_key` (suite and public key) signed at these very indices.

    `parts` must be exactly the kept ones. Raises `Unauthentic` if a part, tag, hash, header field or the signature was changed or the
    key's suite is not the header's; `Malformed` for parts other than the kept ones, a bad structure or a bad key; `Denied` if the
    selection breaks a rule of the doctor.
    """
    _check_header(extract.header)
    _check_selection(extract)
    kept = extract.kept
    if len(parts) != len(kept) or any(i not in parts for i in kept):
        raise Malformed("the parts at hand are not exactly those that the extract is over")
    record = extract.header.record
    commitments = {i: commit(record, i, *parts[i]) for i in kept}
    found = _root(extract.header, commitments, extract.hashes)
    _check_signed(extract.header, found, extract.signature, suite_key)
    _check_rules(extract.header, mask_of(extract.selection))


def _root(header: Header, commitments: Mapping[int, bytes], hashes: bytes = b"") -> bytes:
    return root(header.form, header.count, commitments, hashes)


def _allowed(header: Header, keep: Collection[int], among: Collection[int]) -> frozenset[int]:
    """`keep` as a set, if it is a selection of the parts `among` that the doctor's rules allow."""
    kept = frozenset(keep)
    if not kept or len(kept) != len(keep) or not kept.issubset(among):
        raise Malformed("a selection must name one part or more, each once and each in the record or extract")
    _check_header(header)
    _check_rules(header, mask_of(part_set(kept)))
    return kept


def _check_suite(suite: str) -> None:
    if suite not in SUITES:
        raise Malformed(f"unknown signature suite {suite!r}; this version knows {' and '.join(SUITES)}")


def _check_header(header: Header) -> None:
    _check_suite(header.suite)
    for rule in header.rules:
        rule.check(header.count)


def _check_counts(signature: FullSignature, commitments: Sequence[bytes]) -> None:
    count = signature.header.count
    if len(signature.tags) != count * TAG_BYTES or len(commitments) != count:
        raise Malformed(
            f"the header has {count} parts, but there are {len(signature.tags)} bytes of tags and {len(commitments)} parts"
        )
    if any(len(commitment) != HASH_BYTES for commitment in commitments):
        raise Malformed(f"a commitment has {HASH_BYTES} bytes; commit to the parts first")


def _check_selection(extract: Extract) -> None:
    if not extract.selection or not is_part_set(extract.selection, extract.header.count):
        raise Malformed("the extract names no part, or one that the record does not have: get it again")


def _check_rules(header: Header, kept: int) -> None:
    for number, rule in enumerate(header.rules, 1):
        if not rule.allows(kept):
            raise Denied(
                f"extraction rule {number} of the doctor who signed the record forbids this selection of parts; "
                "choose another one or the whole record"
            )


def _check_signed(header: Header, found_root: bytes, signature: bytes, suite_key: tuple[str, bytes]) -> None:
    suite, public = suite_key
    _check_suite(suite)
    if header.suite != suite:
        raise Unauthentic(f"the record names {header.suite}, but the doctor's certified key is for {suite}")
    if found_root != header.root:
        raise Unauthentic(
            "the parts are not those that the header is over: a part, its tag or a hash was changed"
        )
    if suite == ED25519:
        valid = is_valid(public, _DOMAIN, encode(header), signature)
    else:
        valid = _rsa_is_valid(public, domain_tag(_DOMAIN) + encode(header), signature)
    if not valid:
        raise Unauthentic(
            "the doctor's signature on the record does not hold: the header was changed, or another key signed it"
        )


def _rsa_public_bytes(key: rsa.RSAPublicKey) -> bytes:
    if key.key_size != _RSA_BITS or key.public_numbers().e != _RSA_EXPONENT:
        raise Malformed(
            f"{RSA_PSS} needs an RSA key of {_RSA_BITS} bits with exponent {_RSA_EXPONENT}: make a new key"
        )
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _rsa_is_valid(public: bytes, data: bytes, signature: bytes) -> bool:
    try:
        _rsa_key(public).verify(signature, data, _PSS, SHA256())
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=64)
def _rsa_key(public: bytes) -> rsa.RSAPublicKey:
    """The key in canonical DER, kept at hand: to decode one takes as long as to verify with it."""
    try:
        key = load_der_public_key(public)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Malformed("the doctor's public key does not decode as a DER SubjectPublicKeyInfo") from None
    if not isinstance(key, rsa.RSAPublicKey) or _rsa_public_bytes(key) != public:
        raise Malformed(f"the doctor's public key is not an RSA key in canonical DER, as {RSA_PSS} needs")
    return key
