"""The patient: verifies a signed record, seals and uploads it, publishes its index on both chains, and changes who may read what
(paper section 6 steps 2-4 and 10).

Every change makes a new version: new envelopes and views, the same data ciphertexts. A version is written down as *pending* before its
upload and becomes current when both chains have it; whatever interrupts, `resume` finishes it, and doing it twice is harmless.
"""

import os
from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec

from client.chain import now_ms
from client.doctor import MAX_RECORD, Record, header_digest, open_package
from client.fhir import PRIVATE, group_of, named
from client.session import KINDS, Session
from client.sharing import check_sharing
from crypto import ces
from crypto.abe import encapsulate
from crypto.codec import Bytes32, Decoder, UInt, Wire, encode
from crypto.epoch import EVERY_WEEK, in_week, week_at
from crypto.errors import Conflict, Denied, Malformed, NotFound, Unauthentic
from crypto.parts import seal_part, wrap_key
from crypto.policy import either, parse
from crypto.tdh2 import encrypt
from protocol.contract import Receipt
from protocol.identity import ChainKind, Purpose
from protocol.index_key import index_label
from protocol.record import (
    MAX_CLASSES,
    BlobRef,
    Envelope,
    Index,
    SealedPart,
    Upload,
    UploadBody,
    View,
    digest,
)
from protocol.tx import Publish, Rule

AccessClass = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[a-z][a-z0-9-]*\Z")]


class _Part(Wire, frozen=True):
    """Where a part stands: its class, its key, and its ciphertext with the version that it was sealed in."""

    access: AccessClass
    key: Bytes32
    sealed_in: UInt
    blob: BlobRef


class StoredRecord(Wire, frozen=True, tag="stored-record/1"):
    """A record as its patient keeps it; `version` 0 means not stored yet. In `policies`, `@week` stands for the week in
    which a version is made."""

    record: Record
    version: UInt
    parts: tuple[_Part, ...]
    policies: Annotated[tuple[tuple[AccessClass, str], ...], msgspec.Meta(max_length=MAX_CLASSES)]
    purposes: tuple[Purpose, ...]

    @property
    def header(self) -> ces.Header:
        return self.record.signature.header

    def policy_of(self, access: str) -> str | None:
        return dict(self.policies).get(access)

    @property
    def is_time_bound(self) -> bool:
        """Whether a policy says `@week`."""
        return any(in_week(text, "") != text for _, text in self.policies)

    @property
    def labels(self) -> list[str]:
        return [part.label for part in self.record.parts]

    def indices_of(self, name: str) -> tuple[int, ...]:
        """The part with this label, or all parts of this group; `NotFound` listing the groups there are."""
        found = named(self.labels).get(name)
        if found is None:
            groups = ", ".join(dict.fromkeys(map(group_of, self.labels)))
            raise NotFound(f"the record has no part {name!r}; its parts are {groups}")
        return found


class _Pending(Wire, frozen=True, tag="pending/1"):
    """A version on its way: everything needed to send it, again if need be."""

    stored: StoredRecord
    views: tuple[View, ...]
    blobs: tuple[bytes, ...]
    publications: tuple[tuple[ChainKind, Publish], ...]


_decode_stored = Decoder(StoredRecord, "a stored record", MAX_RECORD)
_decode_pending = Decoder(_Pending, "a pending version", 3 * MAX_RECORD)


def envelope_context(record: bytes, version: int, access: str, extract: bytes) -> bytes:
    """What binds a class key and its wraps to their place and to the encoded extracted signature beside them."""
    return encode((record, version, access, digest("extract", extract)))


class Patient:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._home = session.home

    def receive(self, package: bytes) -> StoredRecord:
        """Open and verify a doctor's package and keep it. `Unauthentic` when any hash, tag or signature does not hold."""
        self._session.progress("verifying the doctor's signature")
        record = open_package(package, self._home.seal)
        header = record.signature.header
        if header.patient != self._home.sign.public:
            raise Denied("the record was signed for another patient")
        doctor = self._session.chains["storage"].credential(header.doctor)
        if doctor.ces_key is None or doctor.role != "doctor":
            raise Unauthentic("the signer of the record is not certified as a doctor")
        ces.verify_full(record.signature, record.messages, doctor.ces_key.suite, doctor.ces_key.public)
        entry = self._session.chains["storage"].record(header.record)
        if entry.header != header_digest(header) or entry.doctor != header.doctor:
            raise Unauthentic("the record differs from what its doctor attested on chain")
        name = header.record.hex()
        if not self._home.has(f"record-{name}"):
            self._save(StoredRecord(record, 0, (), (), ()))
        return self.load(header.record)

    def records(self) -> list[bytes]:
        return [bytes.fromhex(name) for name in self._home.names("record")]

    def load(self, record: bytes) -> StoredRecord:
        name = f"record-{record.hex()}"
        if not self._home.has(name):
            raise NotFound("this home has no such record; list yours with: diptych record list")
        return _decode_stored(self._home.load(name))

    def store(
        self,
        record: bytes,
        access: Mapping[str, str],
        policies: Mapping[str, str],
        purposes: tuple[Purpose, ...],
        acknowledged: Collection[str] = (),
    ) -> StoredRecord:
        """First version of a record: each part (by label) in its access class, each class under its policy; uploaded once,
        indexed on both chains. `PolicyError` before anything is sent when a policy does not parse; here and below, `FindingsLeft` when
        parts that open for research hold findings that are not `acknowledged` (`client.sharing`)."""
        stored = self.resume(record) or self.load(record)
        if stored.version:
            raise Conflict(
                f"the record is stored already, in version {stored.version}; use record move or record policy"
            )
        labels = stored.labels
        if set(access) != set(labels):
            raise Malformed("every part of the record needs an access class")
        self._session.progress("encrypting the parts")
        parts, blobs = [], []
        for index, (label, message) in enumerate(zip(labels, stored.record.messages, strict=True)):
            key = os.urandom(32)
            blob = seal_part(key, record, index, 1, stored.record.signature.tag(index), message)
            parts.append(_Part(access[label], key, 1, BlobRef.of(blob)))
            blobs.append(blob)
        used = {p.access for p in parts}
        if missing := used - set(policies):
            raise Malformed(f"the access class {min(missing)!r} has no policy; give one")
        kept = tuple(sorted((name, str(parse(text))) for name, text in policies.items() if name in used))
        return self._advance(
            msgspec.structs.replace(stored, parts=tuple(parts), policies=kept, purposes=purposes),
            blobs,
            acknowledged,
        )

    def move(
        self,
        record: bytes,
        name: str,
        access: str,
        policy: str | None = None,
        acknowledged: Collection[str] = (),
    ) -> StoredRecord:
        """Put a part, or all parts of a group, into another access class by re-encrypting keys alone (eq. 19). A new class
        needs a policy. `Denied` if the doctor's rules forbid what the classes would then hold."""
        stored = self._stored(record)
        indices = stored.indices_of(name)
        if all(stored.parts[index].access == access for index in indices):
            raise Conflict(f"{name} is {access} already")
        known = stored.policy_of(access)
        if known is None and policy is None:
            raise Malformed(f"the record has no access class {access!r}; give it a policy, or use one of "
                            f"{', '.join(name for name, _ in stored.policies)}")  # fmt: skip
        if known is not None and policy is not None:
            raise Malformed(f"the access class {access!r} has a policy; change it with record policy")
        parts = list(stored.parts)
        for index in indices:
            parts[index] = msgspec.structs.replace(parts[index], access=access)
        policies = dict(stored.policies)
        if policy is not None:
            policies[access] = str(parse(policy))
        return self._advance(self._with(stored, parts, policies), [], acknowledged)

    def set_policies(
        self, record: bytes, policies: Mapping[str, str], acknowledged: Collection[str] = ()
    ) -> StoredRecord:
        """Change who may read classes of the record by re-encrypting keys alone (eqs. 20, 21)."""
        stored = self._stored(record)
        if unknown := set(policies) - {name for name, _ in stored.policies}:
            raise NotFound(f"the record has no access class {min(unknown)!r}")
        changed = dict(stored.policies) | {name: str(parse(text)) for name, text in policies.items()}
        return self._advance(self._with(stored, list(stored.parts), changed), [], acknowledged)

    def time_bound(self) -> list[bytes]:
        """The stored records with a policy that says `@week`."""
        return [
            record
            for record in self.records()
            if (found := self.load(record)).version and found.is_time_bound
        ]

    def renew(self, record: bytes) -> StoredRecord:
        """Re-encrypt the keys of a record whose policies say `@week` for this week: who was not certified since is left out."""
        stored = self._stored(record)
        if not stored.is_time_bound:
            raise Conflict(
                f"no policy of the record has a time-bound attribute such as status:active{EVERY_WEEK}, "
                "so there is nothing to renew; change one with record policy"
            )
        return self._advance(stored, [])

    def log(self, record: bytes) -> list[tuple[ChainKind, Receipt]]:
        """Every access request for the record on both chains, allowed or denied, oldest first."""
        found = self._session.on_chains(
            lambda kind: [(kind, r) for r in self._session.chains[kind].access_log(record)]
        )
        return sorted(
            (entry for chain in found for entry in chain),
            key=lambda e: (e[1].time_ms, e[1].height, e[1].position),
        )

    def resume(self, record: bytes) -> StoredRecord | None:
        """Finish a version that was interrupted; None if there is none."""
        name = f"pending-{record.hex()}"
        if not self._home.has(name):
            return None
        pending = _decode_pending(self._home.load(name))
        self._send(pending)
        return pending.stored

    # --- making a version -------------------------------------------------------------------------------------------------

    def _stored(self, record: bytes) -> StoredRecord:
        stored = self.resume(record) or self.load(record)
        if not stored.version:
            raise Conflict("the record is not stored yet; use record store first")
        return stored

    def _with(self, stored: StoredRecord, parts: list[_Part], policies: dict[str, str]) -> StoredRecord:
        used = {p.access for p in parts}
        kept = tuple(sorted((name, text) for name, text in policies.items() if name in used))
        return msgspec.structs.replace(stored, parts=tuple(parts), policies=kept)

    def _advance(
        self, stored: StoredRecord, new_blobs: list[bytes], acknowledged: Collection[str] = ()
    ) -> StoredRecord:
        """Build the next version of `stored`, write it down, send it."""
        for label in check_sharing(self.load(stored.header.record), stored, acknowledged):
            self._session.progress(
                f"warning: {label} holds what is marked as sensitive and leaves the private class"
            )
        stored = msgspec.structs.replace(stored, version=stored.version + 1)
        self._session.progress("encrypting the keys under the policies")
        week, messages = week_at(now_ms()), stored.record.messages
        policies = {access: str(parse(in_week(text, week))) for access, text in stored.policies}
        envelopes = {
            access: encode(self._envelope(stored, messages, access, policy))
            for access, policy in policies.items()
        }
        shared = {access: data for access, data in envelopes.items() if access != PRIVATE}
        if not shared:
            raise Malformed(
                "at least one part must stay outside the private class, or the sharing chain has nothing to index"
            )
        reach = {"storage": envelopes, "sharing": shared}
        views = {kind: self._view(kind, stored, reach[kind]) for kind in KINDS}
        publications = tuple((kind, self._publication(kind, stored, policies, views[kind])) for kind in KINDS)
        blobs = (*envelopes.values(), *new_blobs)
        pending = _Pending(stored, tuple(views.values()), blobs, publications)
        self._home.save(f"pending-{stored.header.record.hex()}", encode(pending))
        self._send(pending)
        return stored

    def _envelope(self, stored: StoredRecord, messages: list[bytes], access: str, policy: str) -> Envelope:
        record, version = stored.header.record, stored.version
        indices = [i for i, part in enumerate(stored.parts) if part.access == access]
        extract = encode(stored.record.signature.extract(messages, indices))
        context = envelope_context(record, version, access, extract)
        header, class_key = encapsulate(self._home.abe_public, policy, context)
        sealed = tuple(
            SealedPart(i, part.sealed_in, part.blob, wrap_key(class_key, context, i, part.key))
            for i in indices
            for part in (stored.parts[i],)
        )
        return Envelope(record, version, access, policy, header, sealed, extract)

    def _view(self, kind: ChainKind, stored: StoredRecord, envelopes: Mapping[str, bytes]) -> View:
        refs = tuple(BlobRef.of(envelopes[access]) for access in sorted(envelopes))
        chain_id = self._home.chains[kind].chain_id
        return View(
            chain_id, stored.header.record, stored.version, stored.header.patient, os.urandom(32), refs
        )

    def _publication(
        self, kind: ChainKind, stored: StoredRecord, policies: Mapping[str, str], view: View
    ) -> Publish:
        """The index entry, encrypted to the chain's key, with the rule by which the contract hands it out: on the storage chain who may
        read the private class, on the sharing chain who may read any other."""
        if kind == "storage" and PRIVATE in policies:
            policy = policies[PRIVATE]
        else:
            policy = either(*(text for name, text in policies.items() if name != PRIVATE))
        rule = Rule(policy, stored.purposes, None, ())
        label = index_label(view.chain_id, view.record, view.version, rule.digest)
        key = self._session.chains[kind].index_key().public
        sealed = encrypt(key, label, encode(Index.make(view, self._home.sign)))
        return Publish(view.record, view.version, view.commit, sealed, rule)

    def _send(self, pending: _Pending) -> None:
        """Upload, then publish on each chain that does not have this version yet, then make it current."""
        session, home = self._session, self._home
        refs = tuple(BlobRef.of(blob) for blob in pending.blobs)
        body = UploadBody(home.credential, pending.views, refs, now_ms())
        session.progress(f"uploading {sum(r.size for r in refs):,} bytes in one request")
        session.cloud.upload(
            Upload.make(body, home.sign), {r.hash: b for r, b in zip(refs, pending.blobs, strict=True)}
        )
        session.progress("publishing the index on both chains")
        publications = dict(pending.publications)
        session.on_chains(lambda kind: self._publish(kind, publications[kind]), publications)
        self._save(pending.stored)
        home.remove(f"pending-{pending.stored.header.record.hex()}")

    def _publish(self, kind: ChainKind, publish: Publish) -> None:
        chain = self._session.chains[kind]
        entry = chain.record(publish.record)
        if (entry.version, entry.commit) != (publish.version, publish.commit):
            chain.execute(self._home.sign, publish)

    def _save(self, stored: StoredRecord) -> None:
        self._home.save(f"record-{stored.header.record.hex()}", encode(stored))
