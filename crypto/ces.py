"""Content extraction signatures: one signature over a record, from which anyone cuts verifiable extracts.

CommitVector of Steinfeld, Bull and Zheng ("Content Extraction Signatures", ICISC 2001), flat form. Every part
m_i is committed to as h_i = SHA-256(domain ‖ record ‖ i ‖ r_i ‖ |m_i| ‖ m_i) under its own random 32-byte tag
r_i; the signature covers the header and all h_i. An extract replaces each removed part by its h_i, so it
verifies without that part and, as r_i hides it, says nothing about it, however few values it could have.

Invariants:
- A tag is as secret as its part and travels only with it, inside the sealed part: an `Extract` holds no tag
  at all, or whoever stores it could guess a short part (a gender, a birth date) by trial.
- Tags are fresh in every signature; two signatures over the same part cannot be linked by its hash.
- The header binds record, patient, doctor, time, number of parts and the doctor's extraction rules (the CEAS
  of the paper above, which the double-blockchain paper leaves out), and names the suite, which fixes
  algorithm and form together.
- The complete record is always allowed; the rules limit what may be cut from it, and every verifier enforces
  them.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, Protocol

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

from crypto.codec import Bytes16, Bytes32, Decoder, Short, UInt, Wire, encode
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.sign import SigningKey, domain_tag, is_valid

RSA_PSS = "ces-rsa-pss-3072-sha256"
ED25519 = "ces-ed25519-sha256"
SUITES = (RSA_PSS, ED25519)

MAX_PARTS = 4096
MAX_RULES = 256
MAX_HEADER = 512 << 10
MAX_OBJECT = 1 << 20
"""Bytes of an encoded full signature or extract; a header within its own limit never makes one larger."""
TAG_BYTES = 32

_DOMAIN = "ces"
_PSS = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)
_RSA_BITS = 3072
_RSA_EXPONENT = 65537

PartIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARTS)]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Opened = Mapping[int, tuple[bytes, bytes]]
"""Parts by index, each as its tag (32 bytes) and its message."""


class Rule(Wire, frozen=True):
    """One sentence of the doctor about extracts, over `parts` (ascending indices).

    `together`: all of them or none. `never`: none of them in anything smaller than the whole record. `least`:
    at least `k` of them, 1 <= k <= len(parts). `k` is 0 in the other two kinds.
    """

    kind: Literal["together", "never", "least"]
    parts: Annotated[tuple[PartIndex, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]
    k: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARTS)]

    def allows(self, kept: Collection[int], count: int) -> bool:
        """Whether the parts `kept` (without repetition) of a record of `count` parts obey this rule."""
        hits = len(set(self.parts).intersection(kept))
        match self.kind:
            case "together":
                return hits in (0, len(self.parts))
            case "never":
                return hits == 0 or len(kept) == count
            case "least":
                return hits >= self.k


class Header(Wire, frozen=True):
    """What the doctor signs beside the parts; `labels` has one short name per part and so fixes their number.

    Readable by everyone who may read any part, and by the cloud: nothing in it may be confidential.
    """

    suite: Short
    record: Bytes16
    patient: Bytes32
    doctor: Bytes32
    created_ms: UInt
    labels: Annotated[tuple[Label, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]
    profile: Short
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=MAX_RULES)]


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
    """The doctor's signature over all parts, with all tags: for the patient only, never for the cloud."""

    header: Header
    tags: Annotated[tuple[Bytes32, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]
    signature: Annotated[bytes, msgspec.Meta(max_length=1024)]

    def extract(self, messages: Sequence[bytes], keep: Collection[int]) -> "Extract":
        """The signature over just the parts `keep` (at least one) of `messages` (all parts, in order).

        Does not verify: what is cut from a false signature is false. Raises `Denied` if the doctor's rules
        forbid the selection, `Malformed` for an unknown or repeated index or a wrong number of messages.
        """
        _check_header(self.header)
        _check_counts(self, messages)
        kept = _selection(keep, range(len(self.tags)))
        _check_rules(self.header, kept)
        removed = (i for i in range(len(self.tags)) if i not in kept)
        hashes = tuple((i, _commit(self.header, i, self.tags[i], messages[i])) for i in removed)
        return Extract(self.header, hashes, self.signature)


class Extract(Wire, frozen=True):
    """The doctor's signature over a selection of parts: the hashes of the removed ones in ascending order."""

    header: Header
    hashes: Annotated[tuple[tuple[PartIndex, Bytes32], ...], msgspec.Meta(max_length=MAX_PARTS)]
    signature: Annotated[bytes, msgspec.Meta(max_length=1024)]

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the parts that this extract is over, ascending."""
        removed = {i for i, _ in self.hashes}
        return tuple(i for i in range(len(self.header.labels)) if i not in removed)

    def reduce(self, parts: Opened, keep: Collection[int]) -> "Extract":
        """A smaller extract over `keep`, a selection of `kept`; `parts` must hold every part that goes.

        Does not verify. Raises `Denied` if the doctor's rules forbid the selection, `Malformed` for an index
        that is repeated or not in this extract, or a missing part.
        """
        _check_structure(self)
        kept = _selection(keep, self.kept)
        _check_rules(self.header, kept)
        removed = [i for i in self.kept if i not in kept]
        if not parts.keys() >= set(removed):
            raise Malformed("a part that is to be removed from the extract is missing: open it first")
        hashes = tuple((i, _commit(self.header, i, *parts[i])) for i in removed)
        return Extract(self.header, tuple(sorted(self.hashes + hashes)), self.signature)


decode_header = Decoder(Header, "a record header", MAX_HEADER)
decode_full = Decoder(FullSignature, "a full record signature", MAX_OBJECT)
decode_extract = Decoder(Extract, "an extracted signature", MAX_OBJECT)


def sign(
    header: Header, messages: Sequence[bytes], signer: Signer, random: Callable[[int], bytes] = os.urandom
) -> FullSignature:
    """The signature of `signer` over `header` and `messages`, one per label, under fresh tags from `random`.

    Raises `Malformed` for a header out of bounds, a rule that makes no sense, a signer of another suite than
    the header's, or a wrong number of messages.
    """
    decode_header(encode(header))  # a struct built in memory is not validated by its type
    _check_header(header)
    if header.suite != signer.suite:
        raise Malformed(f"the header names {header.suite}, the key is for {signer.suite}")
    tags = tuple(random(TAG_BYTES) for _ in header.labels)
    unsigned = FullSignature(header, tags, b"")
    _check_counts(unsigned, messages)
    return msgspec.structs.replace(unsigned, signature=signer.sign(_full_payload(unsigned, messages)))


def verify_full(signature: FullSignature, messages: Sequence[bytes], suite: str, public: bytes) -> None:
    """Accept only what the holder of the `suite` key `public` signed: this header and exactly these messages.

    Raises `Unauthentic` if anything differs, `Malformed` for a wrong number of messages, an unknown suite or
    a bad key.
    """
    _check_header(signature.header)
    _check_counts(signature, messages)
    _check_signature(
        signature.header, (suite, public), _full_payload(signature, messages), signature.signature
    )


def verify(extract: Extract, parts: Opened, suite_key: tuple[str, bytes]) -> None:
    """Accept only parts that the holder of `suite_key` (suite and public key) signed at these very indices.

    `parts` must be exactly the kept ones. Raises `Unauthentic` if a part, tag, hash, header field or the
    signature was changed or the key's suite is not the header's; `Malformed` for parts other than the kept
    ones, a bad structure or a bad key; `Denied` if the selection breaks a rule of the doctor.
    """
    _check_structure(extract)
    kept = extract.kept
    if parts.keys() != set(kept):
        raise Malformed("the parts at hand are not exactly those that the extract is over")
    removed = dict(extract.hashes)
    count = len(extract.header.labels)
    hashes = (removed[i] if i in removed else _commit(extract.header, i, *parts[i]) for i in range(count))
    _check_signature(extract.header, suite_key, _payload(extract.header, hashes), extract.signature)
    _check_rules(extract.header, kept)


def _commit(header: Header, index: int, tag: bytes, message: bytes) -> bytes:
    # Every field before the message has a fixed size, so no two different inputs run into the same bytes.
    if len(tag) != TAG_BYTES:
        raise Malformed(f"the tag of part {index} has {len(tag)} bytes instead of {TAG_BYTES}")
    fixed = domain_tag("ces-part") + header.record + index.to_bytes(4, "big") + tag
    commitment = hashlib.sha256(fixed + len(message).to_bytes(8, "big"))
    commitment.update(message)
    return commitment.digest()


def _payload(header: Header, hashes: Iterable[bytes]) -> bytes:
    return encode((header, tuple(hashes)))


def _full_payload(signature: FullSignature, messages: Sequence[bytes]) -> bytes:
    pairs = enumerate(zip(signature.tags, messages, strict=True))
    return _payload(signature.header, (_commit(signature.header, i, tag, m) for i, (tag, m) in pairs))


def _check_suite(suite: str) -> None:
    if suite not in SUITES:
        raise Malformed(f"unknown signature suite {suite!r}; this version knows {' and '.join(SUITES)}")


def _check_header(header: Header) -> None:
    _check_suite(header.suite)
    for number, rule in enumerate(header.rules, 1):
        ascending = all(a < b for a, b in pairwise(rule.parts))
        if not rule.parts or not ascending or rule.parts[-1] >= len(header.labels):
            raise Malformed(
                f"extraction rule {number} must list existing parts in ascending order, each once"
            )
        if not (1 <= rule.k <= len(rule.parts) if rule.kind == "least" else rule.k == 0):
            raise Malformed(
                f"extraction rule {number} ({rule.kind}) has an impossible k of {rule.k}: "
                "it must be 1 up to the number of parts for `least`, 0 for other kinds"
            )


def _check_counts(signature: FullSignature, messages: Sequence[bytes]) -> None:
    labels, tags = len(signature.header.labels), len(signature.tags)
    if tags != labels or len(messages) != labels:
        raise Malformed(
            f"the header has {labels} labels, but there are {tags} tags and {len(messages)} parts"
        )


def _check_structure(extract: Extract) -> None:
    _check_header(extract.header)
    removed = [i for i, _ in extract.hashes]
    count = len(extract.header.labels)
    if any(a >= b for a, b in pairwise(removed)) or (removed and removed[-1] >= count):
        raise Malformed("the removed parts of the extract are repeated, out of order or beyond the record")
    if len(removed) == count:
        raise Malformed("the extract keeps no part at all")


def _selection(keep: Collection[int], among: Collection[int]) -> frozenset[int]:
    kept = frozenset(keep)
    if not kept or len(kept) != len(keep) or not kept.issubset(among):
        raise Malformed("a selection must name one part or more, each once and each in the record or extract")
    return kept


def _check_rules(header: Header, kept: Collection[int]) -> None:
    for number, rule in enumerate(header.rules, 1):
        if not rule.allows(kept, len(header.labels)):
            raise Denied(
                f"extraction rule {number} ({rule.kind}) of the doctor who signed the record forbids "
                "this selection of parts; choose another one or the whole record"
            )


def _check_signature(header: Header, suite_key: tuple[str, bytes], payload: bytes, signature: bytes) -> None:
    suite, public = suite_key
    _check_suite(suite)
    if header.suite != suite:
        raise Unauthentic(f"the record names {header.suite}, but the doctor's certified key is for {suite}")
    if suite == ED25519:
        valid = is_valid(public, _DOMAIN, payload, signature)
    else:
        valid = _rsa_is_valid(public, domain_tag(_DOMAIN) + payload, signature)
    if not valid:
        raise Unauthentic(
            "the doctor's signature on the record does not hold: a part or the header was changed, "
            "or another key signed it"
        )


def _rsa_public_bytes(key: rsa.RSAPublicKey) -> bytes:
    if key.key_size != _RSA_BITS or key.public_numbers().e != _RSA_EXPONENT:
        raise Malformed(
            f"{RSA_PSS} needs an RSA key of {_RSA_BITS} bits with exponent {_RSA_EXPONENT}: make a new key"
        )
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _rsa_is_valid(public: bytes, data: bytes, signature: bytes) -> bool:
    try:
        key = load_der_public_key(public)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Malformed("the doctor's public key does not decode as a DER SubjectPublicKeyInfo") from None
    if not isinstance(key, rsa.RSAPublicKey) or _rsa_public_bytes(key) != public:
        raise Malformed(f"the doctor's public key is not an RSA key in canonical DER, as {RSA_PSS} needs")
    try:
        key.verify(signature, data, _PSS, SHA256())
    except InvalidSignature:
        return False
    return True
