"""The doctor: turns a FHIR bundle into a signed record and hands it to the patient (paper section 6 step 1, eq. 1).

The record travels sealed to the patient's X25519 key, as a file or any other way; a digest of its signed header goes onto both chains first,
so that nobody can publish a record that no doctor has signed.
"""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Annotated, NamedTuple

import msgspec

from client.fhir import Label, Part, Profile, named, read_bundle, split
from client.session import Session
from client.sharing import check_signing
from client.web import now_ms
from crypto import ceas, ces
from crypto.codec import Decoder, Wire, encode
from crypto.errors import Denied, Malformed, NotFound
from crypto.parts import MAX_MESSAGE
from crypto.seal import OVERHEAD, SealKey, seal
from protocol.identity import ChainKind
from protocol.record import MAX_PARTS, digest
from protocol.tx import Attest

MAX_RECORD = 96 << 20
"""Bytes of a whole signed record."""
_SUITE = "diptych-record/x25519-sealedbox"


class SignedPart(Wire, frozen=True, tag="part/1"):
    """What the doctor signs and the patient seals as one message: who may not open it does not even see its label."""

    label: Label
    content: bytes


class Record(Wire, frozen=True, tag="signed-record/1"):
    """A signed record in the clear: the doctor's full signature and the parts it covers, in order."""

    signature: ces.FullSignature
    parts: Annotated[tuple[SignedPart, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]

    @property
    def messages(self) -> list[bytes]:
        return [encode(part) for part in self.parts]


class _Package(Wire, frozen=True):
    suite: Annotated[str, msgspec.Meta(max_length=64)]
    sealed: bytes


decode_part = Decoder(SignedPart, "a part of the record", MAX_MESSAGE)
_decode_record = Decoder(Record, "a signed record", MAX_RECORD)
_decode_package = Decoder(_Package, "a record package", MAX_RECORD + OVERHEAD + 256, _SUITE)


def header_digest(header: ces.Header) -> bytes:
    """What stands on chain for a record's signed header; the root in it binds the content, and its tags hide that."""
    return digest("ces-header", encode(header))


def open_package(data: bytes, patient: SealKey) -> Record:
    """The record in a package sealed to `patient`, its labels distinct; nothing about its signature is checked yet."""
    package = _decode_package(data)
    record = _decode_record(patient.open(package.sealed, "the record package"))
    if len({part.label for part in record.parts}) < len(record.parts):
        raise Malformed("the record has two parts with one label: ask its doctor to sign it again")
    return record


class Signed(NamedTuple):
    """A signed record before it is attested: its id, its patient's key, the digest of its header, the package for the patient."""

    record: bytes
    patient: bytes
    header: bytes
    package: bytes


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

        As `prepare`, then `attest`. Returns the record id (16 bytes), the package for the patient, and the parts.
        """
        signed, parts = self.prepare(bundle, patient, profile, rules, acknowledged)
        self.attest(signed)
        return signed.record, signed.package, parts

    def prepare(
        self,
        bundle: bytes,
        patient: bytes,
        profile: Profile,
        rules: Sequence[str] = (),
        acknowledged: Collection[str] = (),
    ) -> tuple[Signed, list[Part]]:
        """Slice, group and sign a FHIR bundle; nothing of it is on chain yet.

        `rules` say which selections of parts may be extracted, in the language of `crypto.ceas` over the labels of parts and
        groups; `acknowledged` are ids of findings in the parts that the profile shares (`client.fhir.lint`). Raises `Malformed` for a
        bad bundle or rule, `FindingsLeft` for findings not acknowledged, `NotFound` or `Denied` for a patient who is not certified.
        """
        session = self._session
        session.progress("reading and slicing the bundle")
        parts = split(read_bundle(bundle), profile)
        check_signing(parts, acknowledged)
        signed = tuple(SignedPart(p.label, p.content) for p in parts)
        return self.sign_parts(signed, patient, profile.name, rules), parts

    def sign_parts(
        self, signed: tuple[SignedPart, ...], patient: bytes, profile: str, rules: Sequence[str] = ()
    ) -> Signed:
        """Sign parts as one record and seal it to its patient; as `prepare`, which looks at them first."""
        session, home = self._session, self._session.home
        if home.ces is None:
            raise Denied("only a doctor's home can sign records; this one has no record-signing key")
        session.progress("signing the parts")
        messages = [encode(part) for part in signed]
        names = named([part.label for part in signed])
        record = os.urandom(16)
        signature = ces.sign(
            messages,
            home.ces,
            record=record,
            patient=patient,
            doctor=home.sign.public,
            created_ms=now_ms(),
            profile=profile,
            rules=[ceas.parse(rule, names, len(signed)) for rule in rules],
        )
        # The key may be in foreign hardware: nobody attests a signature that does not hold.
        ces.verify_full(signature, messages, home.ces.suite, home.ces.public)
        sealed_to = session.chains["storage"].credential(patient).seal_key
        package = encode(_Package(_SUITE, seal(sealed_to, encode(Record(signature, signed)))))
        return Signed(record, patient, header_digest(signature.header), package)

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
