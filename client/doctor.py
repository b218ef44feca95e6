"""The doctor: turns a FHIR bundle, and files attached to it, into a signed record and hands it to the patient (paper section 6 step 1, eq. 1).

    package  =  4-byte length ‖ Package ‖ for each part: 4-byte length ‖ ciphertext

The record travels as a file or any other way. The head in the Package is sealed to the patient's X25519 key and has the signature, and a key for
each part; the parts follow sealed under these, so that both ends hold one part at a time. A digest of the signed header goes onto both chains
first, so that nobody can publish a record that no doctor has signed.
"""

import io
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from client import attach
from client.fhir import Label, Part, Profile, named, read_bundle, split
from client.session import Session
from client.sharing import check_signing
from client.web import now_ms
from crypto import ceas, ces
from crypto.codec import Bytes32, Decoder, Wire, encode
from crypto.errors import Denied, Malformed, NotFound, Unauthentic
from crypto.parts import MAX_MESSAGE, MAX_SEALED, open_part, seal_part
from crypto.seal import OVERHEAD, SealKey, seal
from protocol.identity import ChainKind
from protocol.record import MAX_PARTS, digest
from protocol.tx import Attest

MAX_RECORD = 17 << 30
"""Bytes of all parts of a record, unpacked: of a bundle with as many attached files as there can be parts."""
_MAX_HEAD = ces.MAX_OBJECT + MAX_PARTS * 128
_SUITE = "diptych-package/x25519-sealedbox"
_IN_PACKAGE = 0
"""The version that a part is sealed in on its way to the patient, who seals it anew for the first version on."""


class SignedPart(Wire, frozen=True, tag="part/1"):
    """What the doctor signs and the patient seals as one message: who may not open it does not even see its label."""

    label: Label
    content: bytes


class _Head(Wire, frozen=True, tag="package-head/1"):
    """The doctor's full signature, and by part its label and the key that it is sealed under in the package."""

    signature: ces.FullSignature
    parts: Annotated[tuple[tuple[Label, Bytes32], ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]


class _Package(Wire, frozen=True):
    suite: Annotated[str, msgspec.Meta(max_length=64)]
    sealed: bytes


decode_part = Decoder(SignedPart, "a part of the record", MAX_MESSAGE)
_decode_head = Decoder(_Head, "the head of a record package", _MAX_HEAD)
_decode_package = Decoder(_Package, "a record package", _MAX_HEAD + OVERHEAD + 256, _SUITE)


def header_digest(header: ces.Header) -> bytes:
    """What stands on chain for a record's signed header; the root in it binds the content, and its tags hide that."""
    return digest("ces-header", encode(header))


def write_package(
    signature: ces.FullSignature,
    labels: Sequence[str],
    messages: Iterator[bytes],
    patient: bytes,
    into: BinaryIO,
) -> list[bytes]:
    """The package for the holder of the X25519 key `patient`; returns the commitments to the messages that went into it."""
    keys = [os.urandom(32) for _ in labels]
    head = _Head(signature, tuple(zip(labels, keys, strict=True)))
    _write(into, encode(_Package(_SUITE, seal(patient, encode(head)))))
    commitments = []
    record = signature.header.record
    for index, (key, message) in enumerate(zip(keys, messages, strict=True)):
        commitments.append(signature.commit(index, message))
        _write(into, seal_part(key, record, index, _IN_PACKAGE, signature.tag(index), message))
    return commitments


def _write(into: BinaryIO, data: bytes) -> None:
    into.write(len(data).to_bytes(4, "big"))
    into.write(data)


class Package:
    """A package as its patient reads it: `signature` and `labels` from its head, which anybody can have written, then the messages."""

    def __init__(self, file: BinaryIO, patient: SealKey) -> None:
        """`Unauthentic` if it is sealed to another key than `patient`, `Malformed` if it is no package or uses a label twice."""
        self._file = file
        package = _decode_package(self._read(_MAX_HEAD + OVERHEAD + 256))
        head = _decode_head(patient.open(package.sealed, "the record package"))
        self.signature = head.signature
        self.labels = [label for label, _ in head.parts]
        self._keys = [key for _, key in head.parts]
        if len(set(self.labels)) < len(self.labels):
            raise Malformed("the record has two parts with one label: ask its doctor to sign it again")
        if len(self.labels) != self.signature.header.count:
            raise Malformed(
                "the package has other parts than its signature is over: ask its doctor for another one"
            )

    def messages(self) -> Iterator[bytes]:
        """What each part says, in order; nothing about the signature is checked. `Unauthentic` if a part does not open as it was sealed,
        `Malformed` if the package is cut short, goes on, or holds more than any record."""
        signature, size = self.signature, 0
        for index, (label, key) in enumerate(zip(self.labels, self._keys, strict=True)):
            sealed = self._read(MAX_SEALED)
            tag, message = open_part(key, signature.header.record, index, _IN_PACKAGE, sealed)
            if tag != signature.tag(index) or decode_part(message).label != label:
                raise Unauthentic("a part of the package is not the one that its head names")
            size += len(message)
            if size > MAX_RECORD:
                raise Malformed(f"the record has more than {MAX_RECORD} bytes: ask its doctor for several")
            yield message
        if self._file.read(1):
            raise Malformed("the package goes on after its last part: get it again")

    def _read(self, limit: int) -> bytes:
        start = self._file.read(4)
        size = int.from_bytes(start, "big")
        if size > limit:
            raise Malformed(
                f"the file is no record package, or has a piece of more than {limit} bytes: get it again"
            )
        data = self._file.read(size)
        if len(start) < 4 or len(data) < size:
            raise Malformed("the record package is cut short: get it again")
        return data


class Signed(NamedTuple):
    """A signed record before it is attested: its id, its patient's key, the digest of its header."""

    record: bytes
    patient: bytes
    header: bytes


class _Messages(Collection[bytes]):
    """The messages of a record that is about to be signed; attached files are read anew each time that it is gone through."""

    def __init__(self, parts: Sequence[Part], files: Sequence[attach.File], session: Session) -> None:
        self._parts, self._files, self._session = parts, files, session
        self.labels = [p.label for p in parts] + [label for file in files for label in file.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[bytes]:
        count = self._session.meter("reading attached files", sum(file.size for file in self._files))
        for part in self._parts:
            yield encode(SignedPart(part.label, part.content))
        for file in self._files:
            for label, content in zip(file.labels, file.contents(), strict=True):
                yield encode(SignedPart(label, content))
                count(len(content))

    def __contains__(self, message: object) -> bool:
        return any(message == each for each in self)


class Doctor:
    def __init__(self, session: Session) -> None:
        self._session = session

    def sign(
        self,
        bundle: bytes,
        patient: bytes,
        profile: Profile,
        rules: Sequence[str] = (),
        acknowledged: Collection[str] = (),
    ) -> tuple[bytes, bytes, list[Part]]:
        """Slice, group and sign a FHIR bundle for `patient` (public key) and attest it on both chains.

        As `prepare` in memory, then `attest`. Returns the record id (16 bytes), the package for the patient, and the parts.
        """
        package = io.BytesIO()
        signed, parts = self.prepare(bundle, patient, profile, package, rules, acknowledged)
        self.attest(signed)
        return signed.record, package.getvalue(), parts

    def prepare(
        self,
        bundle: bytes,
        patient: bytes,
        profile: Profile,
        package: BinaryIO,
        rules: Sequence[str] = (),
        acknowledged: Collection[str] = (),
        attachments: Sequence[Path] = (),
        record: bytes | None = None,
    ) -> tuple[Signed, list[Part]]:
        """Slice, group and sign a FHIR bundle with attached files, and write the package for the patient; nothing of it is on chain yet.

        `rules` say which selections of parts may be extracted, in the language of `crypto.ceas` over the labels of parts and
        groups; `acknowledged` are ids of findings in the parts that the profile shares (`client.fhir.lint`). Of an attached file, the
        part that says what it is stands among the parts returned. `record` is the id, 16 fresh random bytes. Raises `Malformed` for a
        bad bundle, rule or file, `FindingsLeft` for findings not acknowledged, `NotFound` or `Denied` for a patient who is not certified,
        `Conflict` or `Unauthentic` for a file that was changed meanwhile: then what was written of the package is good for nothing.
        """
        session = self._session
        session.progress("reading and slicing the bundle")
        parts = split(read_bundle(bundle), profile)
        check_signing(parts, acknowledged)
        return self.sign_parts(parts, patient, profile.name, package, rules, attachments, record)

    def sign_parts(
        self,
        parts: list[Part],
        patient: bytes,
        profile: str,
        package: BinaryIO,
        rules: Sequence[str] = (),
        attachments: Sequence[Path] = (),
        record: bytes | None = None,
    ) -> tuple[Signed, list[Part]]:
        """Sign parts that were looked at as one record; all else as `prepare`."""
        session, home = self._session, self._session.home
        if home.ces is None:
            raise Denied("only a doctor's home can sign records; this one has no record-signing key")
        files = attach.files(attachments, len(parts))
        messages = _Messages(parts, files, session)
        names = named(messages.labels)
        parsed = [ceas.parse(rule, names, len(messages)) for rule in rules]
        sealed_to = session.chains["storage"].credential(patient).seal_key
        session.progress("signing the parts")
        signature = ces.sign(
            messages,
            home.ces,
            record=record or os.urandom(16),
            patient=patient,
            doctor=home.sign.public,
            created_ms=now_ms(),
            profile=profile,
            rules=parsed,
        )
        found = write_package(signature, messages.labels, iter(messages), sealed_to, package)
        # The key may be in foreign hardware, and a file in somebody else's hands: nobody attests a signature that does not hold.
        try:
            ces.verify_full(signature, found, home.ces.suite, home.ces.public)
        except Unauthentic:
            if not files:
                raise
            raise Unauthentic(
                "the signature does not hold over what was sealed: an attached file was changed meanwhile, or the signer is broken; try again"
            ) from None
        header = signature.header
        return Signed(header.record, patient, header_digest(header)), parts + [file.part for file in files]

    def attest(self, signed: Signed) -> None:
        """State on both chains that this doctor has signed the record; safe to repeat. `Denied` by the chains."""
        session, doctor = self._session, self._session.home.sign
        session.progress("attesting the record on both chains")
        attest = Attest(signed.record, signed.patient, signed.header)

        def on(kind: ChainKind) -> None:
            chain = session.chains[kind]
            try:
                chain.execute(doctor, attest)
            except Denied:
                with suppress(NotFound):
                    entry = chain.verified_record(signed.record)
                    if (entry.doctor, entry.header) == (doctor.public, signed.header):
                        return  # by an earlier attempt
                raise

        session.on_chains(on)
