"""The patient: verifies a signed record, seals and uploads it, publishes its index on both chains, and changes who may read what
(paper section 6 steps 2-4 and 10).

Every change makes a new version: new envelopes and views, the same data ciphertexts. A version is written down as *pending* before its
upload and becomes current when both chains have it; whatever interrupts, `resume` finishes it, and doing it twice is harmless.
"""

import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import BinaryIO

import msgspec

from client.consequences import Change, Consequences, foresee, past_readers
from client.doctor import Package, decode_part, header_digest
from client.fhir import PRIVATE, is_attached
from client.fhir.lint import has_fields
from client.light import ProvedLog
from client.pack import new_pack, pieces
from client.session import Session
from client.sharing import check_sharing
from client.stored import (
    Contents,
    PendingVersion,
    Proxies,
    StoredPart,
    StoredRecord,
    Terms,
    decode_pending_version,
    decode_proxies,
    decode_stored,
)
from client.web import now_ms
from crypto import ces
from crypto.abe import encapsulate
from crypto.codec import encode
from crypto.epoch import EVERY_WEEK, week_at
from crypto.errors import Conflict, Denied, Malformed, NotFound, Unauthentic
from crypto.parts import seal_part, wrap_key
from crypto.policy import parse
from crypto.tdh2 import encrypt
from protocol.contract import Proxy, Receipt
from protocol.identity import ChainKind, Purpose
from protocol.index_key import index_label
from protocol.record import BlobRef, CloudEntry, Envelope, Index, SealedPart, Upload, UploadBody, View, digest
from protocol.tx import Power, Publish, Retire, SetProxy

NO_TERMS = Terms()
FIRST = 1
"""The first version of a record, which its parts are sealed in when they are received."""
Agree = Callable[[Consequences], None]
"""Called before a change is made; raises to leave everything as it is."""


def envelope_context(record: bytes, version: int, access: str, extract: bytes) -> bytes:
    """What binds a class key and its wraps to their place and to the encoded extracted signature beside them."""
    return encode((record, version, access, digest("extract", extract)))


def _with_policies(stored: StoredRecord, policies: Mapping[str, str]) -> StoredRecord:
    """The record with other policies for some of its classes; `PolicyError`, or `NotFound` for a class that it has not."""
    if unknown := set(policies) - {name for name, _ in stored.policies}:
        raise NotFound(f"the record has no access class {min(unknown)!r}")
    changed = dict(stored.policies) | {name: str(parse(text)) for name, text in policies.items()}
    return stored.with_parts(list(stored.parts), changed)


def _with_terms(
    stored: StoredRecord, purposes: tuple[Purpose, ...], terms: Terms, tags: Sequence[bytes]
) -> StoredRecord:
    """The record under other terms, in the form that the contract takes; `Malformed` if it would take none of them."""
    if not purposes or "emergency" in purposes:
        raise Malformed(
            "a record is open for at least one purpose; emergency is none of them, its policy says who may break the glass"
        )
    if terms.from_ms is not None and terms.until_ms is not None and terms.from_ms >= terms.until_ms:
        raise Malformed("the rule ends before it begins; give it a later end")
    terms = msgspec.structs.replace(
        terms,
        deny=tuple(sorted(set(terms.deny))),
        approval=None if terms.approval is None else str(parse(terms.approval)),
        emergency=None if terms.emergency is None else str(parse(terms.emergency)),
    )
    return msgspec.structs.replace(stored, purposes=purposes, terms=terms, tags=tuple(sorted(set(tags))))


def merged(logs: Sequence[tuple[ChainKind, ProvedLog]]) -> list[tuple[ChainKind, Receipt]]:
    """The receipts of several logs, oldest first."""
    found = [(kind, receipt) for kind, log in logs for receipt in log.receipts]
    return sorted(found, key=lambda e: (e[1].time_ms, e[1].height, e[1].position))


def _counted(content: Iterable[bytes], count: Callable[[int], None]) -> Iterator[bytes]:
    for piece in content:
        yield piece
        count(len(piece))


class Patient:
    """`agree` is told what each change leads to, before anything is written or sent."""

    def __init__(self, session: Session, agree: Agree | None = None) -> None:
        self._session, self._agree = session, agree
        self._home = session.home

    def receive(self, package: BinaryIO | bytes) -> StoredRecord:
        """Open and verify a doctor's package and keep it, its parts under keys of the patient's own; `package` is read a part at a time,
        and nothing of it is kept before all of it was verified. `Unauthentic` when any hash, tag or signature does not hold."""
        self._session.progress("verifying the doctor's signature")
        received = Package(io.BytesIO(package) if isinstance(package, bytes) else package, self._home.seal)
        signature = received.signature
        header = signature.header
        self._check_not_erased(header.record)
        if header.patient != self._home.sign.public:
            raise Denied("the record was signed for another patient")
        doctor = self._session.chains["storage"].credential(header.doctor)
        if doctor.ces_key is None or doctor.role != "doctor":
            raise Unauthentic("the signer of the record is not certified as a doctor")
        entry = self._session.chains["storage"].verified_record(header.record)
        if entry.header != header_digest(header) or entry.doctor != header.doctor:
            raise Unauthentic("the record differs from what its doctor attested on chain")
        if self._home.has(f"record-{header.record.hex()}"):
            commitments = signature.commitments(received.messages())
            ces.verify_full(signature, commitments, doctor.ces_key.suite, doctor.ces_key.public)
            return self.load(header.record)
        parts = []
        with new_pack(self._home.pack(header.record, FIRST)) as pack:
            count = self._session.meter("verifying the parts and encrypting them")
            for index, (label, message) in enumerate(zip(received.labels, received.messages(), strict=True)):
                key, tag = os.urandom(32), signature.tag(index)
                place = pack.add(seal_part(key, header.record, index, FIRST, tag, message))
                fields = not is_attached(label) and has_fields(decode_part(message).content)
                commitment = signature.commit(index, message)
                parts.append(StoredPart(label, commitment, fields, PRIVATE, key, FIRST, *place))
                count(len(message))
            stored = StoredRecord(signature, 0, tuple(parts), (), ())
            ces.verify_full(signature, stored.commitments, doctor.ces_key.suite, doctor.ces_key.public)
        self._save(stored)
        return stored

    def records(self) -> list[bytes]:
        """Those that are not about to be erased."""
        erased = set(self._home.names("erasure"))
        return [bytes.fromhex(name) for name in self._home.names("record") if name not in erased]

    def load(self, record: bytes) -> StoredRecord:
        self._check_not_erased(record)
        name = f"record-{record.hex()}"
        if not self._home.has(name):
            raise NotFound("this home has no such record; list yours with: diptych record list")
        return decode_stored(self._home.load(name))

    def store(
        self,
        record: bytes,
        access: Mapping[str, str],
        policies: Mapping[str, str],
        purposes: tuple[Purpose, ...],
        terms: Terms = NO_TERMS,
        tags: Sequence[bytes] = (),
        acknowledged: Collection[str] = (),
    ) -> StoredRecord:
        """First version of a record: each part (by label) in its access class, each class under its policy; uploaded once,
        indexed on both chains. What was interrupted is finished by doing the same again. `Malformed` before anything is sent when a policy does not parse or the terms make no rule; here and
        below, `FindingsLeft` when parts that open for research hold findings that are not `acknowledged` (`client.sharing`)."""
        resumed = self.resume(record)
        stored = resumed or self.load(record)
        if stored.version > (FIRST if resumed else 0):
            raise Conflict(
                f"the record is stored already, in version {stored.version}; use record move or record policy"
            )
        if set(access) != set(stored.labels):
            raise Malformed("every part of the record needs an access class")
        parts = [msgspec.structs.replace(part, access=access[part.label]) for part in stored.parts]
        used = {p.access for p in parts}
        if missing := used - set(policies):
            raise Malformed(f"the access class {min(missing)!r} has no policy; give one")
        normal = {name: str(parse(text)) for name, text in policies.items()}
        after = _with_terms(stored.with_parts(parts, normal), purposes, terms, tags)
        if resumed is None:
            return self._advance(stored, after, "store", acknowledged)
        if resumed != after:
            raise Conflict(
                "an earlier attempt to store the record under other terms is finished; see record show"
            )
        return resumed

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
        return self._advance(stored, stored.with_parts(parts, policies), "rewrap", acknowledged)

    def set_policies(
        self, record: bytes, policies: Mapping[str, str], acknowledged: Collection[str] = ()
    ) -> StoredRecord:
        """Change who may read classes of the record by re-encrypting keys alone (eqs. 20, 21)."""
        stored = self._stored(record)
        return self._advance(stored, _with_policies(stored, policies), "rewrap", acknowledged)

    def set_terms(
        self,
        record: bytes,
        purposes: tuple[Purpose, ...] | None = None,
        terms: Terms | None = None,
        tags: Sequence[bytes] | None = None,
        acknowledged: Collection[str] = (),
        policies: Mapping[str, str] | None = None,
    ) -> StoredRecord:
        """Change the conditions of the rule, and `policies` of classes with them, what is None staying as it is, by re-encrypting keys
        alone. `Malformed` if they make no rule, `Conflict` if that changes nothing."""
        stored = self._stored(record)
        after = _with_terms(
            _with_policies(stored, policies or {}),
            stored.purposes if purposes is None else purposes,
            stored.terms if terms is None else terms,
            stored.tags if tags is None else tags,
        )
        if after == stored:
            raise Conflict("the record has this very rule already")
        return self._advance(stored, after, "rewrap", acknowledged)

    def rekey(
        self,
        record: bytes,
        names: Sequence[str] = (),
        policies: Mapping[str, str] | None = None,
        acknowledged: Collection[str] = (),
    ) -> StoredRecord:
        """Encrypt parts or groups, by default all, under new keys, and upload the new ciphertexts with the new version; with `policies`
        of classes, under these from then on."""
        stored = self._stored(record)
        indices = sorted({i for name in names for i in stored.indices_of(name)}) or range(len(stored.parts))
        contents, parts, version = self.contents(stored), list(stored.parts), stored.version + 1
        count = self._session.meter("encrypting", sum(parts[index].blob.size for index in indices))
        with new_pack(self._home.pack(record, version)) as pack:
            for index in indices:
                key, tag, message = os.urandom(32), stored.signature.tag(index), contents.message(index)
                blob, offset = pack.add(seal_part(key, record, index, version, tag, message))
                count(parts[index].blob.size)
                parts[index] = msgspec.structs.replace(
                    parts[index], key=key, sealed_in=version, blob=blob, offset=offset
                )
        try:
            after = msgspec.structs.replace(_with_policies(stored, policies or {}), parts=tuple(parts))
            return self._advance(stored, after, "rekey", acknowledged)
        except BaseException:
            if not self._home.has(f"pending-{record.hex()}") and self.load(record).version < version:
                self._home.remove_packs(record, but={part.sealed_in for part in stored.parts})
            raise

    def contents(self, stored: StoredRecord) -> Contents:
        """The contents of a record's parts by label, each read when it is asked for."""
        return Contents(self._home, stored)

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
        return self._advance(stored, stored, "rewrap")

    def retire(self, record: bytes, replaced_by: bytes | None = None) -> StoredRecord:
        """End a record on both chains: nobody is granted it any more. Safe to repeat after a failure."""
        stored = self.load(record)
        if not stored.is_retired:
            stored = self.resume(record) or stored
            if replaced_by is not None:
                self._session.on_chains(lambda kind: self._check_own(kind, replaced_by))
            if self._agree:
                self._agree(self.foresee("retire", stored, None))
            # Written first: a version begun between the two chains' retirements could never be finished.
            stored = msgspec.structs.replace(stored, is_retired=True)
            self._save(stored)
        self._session.progress("retiring the record on both chains")
        self._session.on_chains(lambda kind: self._retire(kind, Retire(record, replaced_by)))
        return stored

    def _check_own(self, kind: ChainKind, record: bytes) -> None:
        other = self._session.chains[kind].verified_record(record)
        if other.patient != self._home.sign.public or other.status == "retired":
            raise Denied("a record is replaced by another live one of yours alone; this one is not")

    def _retire(self, kind: ChainKind, action: Retire) -> None:
        chain = self._session.chains[kind]
        if chain.verified_record(action.record).status not in ("retired", "erased"):
            chain.execute(self._home.sign, action)

    # --- proxies ----------------------------------------------------------------------------------------------------------

    def proxies(self) -> Proxies:
        """Who acts for this patient, as this home last said."""
        return decode_proxies(self._home.load("proxies")) if self._home.has("proxies") else Proxies()

    def set_proxy(self, proxy: bytes, powers: Sequence[Power], from_ms: int, until_ms: int) -> list[bytes]:
        """Let a certified person act for this patient within these times, or end it (no `powers`), on both chains; then encrypt the
        keys of every stored record so that exactly the proxies who may read open them. Safe to repeat after a failure, which does
        what is left to do. Returns the records that got a new version."""
        action = SetProxy(proxy, tuple(sorted(set(powers))), from_ms, until_ms)
        others = tuple(p for p in self.proxies().proxies if p.proxy != proxy)
        me = self._home.sign.public
        mine = (Proxy(me, proxy, action.powers, from_ms, until_ms),) if powers else ()
        self._session.progress("telling both chains who acts for you")
        for receipt in self._session.on_chains(
            lambda kind: self._session.chains[kind].send(self._home.sign, action)
        ):
            if not receipt.ok and receipt.code != "unknown-proxy":
                raise Denied(f"the contract refused: {receipt.reason} ({receipt.code})")
        self._home.save("proxies", encode(Proxies((*others, *mine))))
        return self.admit_proxies()

    def admit_proxies(self) -> list[bytes]:
        """Give every stored record whose envelopes let other proxies in than those who may read a new version."""
        reading, changed = self.proxies().reading(now_ms()), []
        for record in self.records():
            stored = self.resume(record) or self.load(record)
            if stored.version and not stored.is_retired and stored.proxies != reading:
                self._advance(stored, stored, None)
                changed.append(record)
        return changed

    def proved_logs(self, record: bytes) -> list[tuple[ChainKind, ProvedLog]]:
        """The record's log on each chain, with what proves that none of its receipts is missing."""
        return self._session.on_chains(lambda kind: (kind, self._session.chains[kind].verified_log(record)))

    def log(self, record: bytes) -> list[tuple[ChainKind, Receipt]]:
        """Every receipt that concerns the record on both chains, refusals too, oldest first; proved to be complete."""
        return merged(self.proved_logs(record))

    def cloud_log(self, record: bytes) -> list[CloudEntry]:
        """Every download of the record that the cloud has served or refused, oldest first; nothing for who is not its patient, or where
        the cloud holds nothing of it."""
        if not self._home.has(f"record-{record.hex()}"):
            return []
        try:
            return self._session.cloud.access_log(record, self._home.sign)
        except NotFound:
            return []

    def resume(self, record: bytes) -> StoredRecord | None:
        """Finish a version that was interrupted; None if there is none."""
        self._check_not_erased(record)
        name = f"pending-{record.hex()}"
        if not self._home.has(name):
            return None
        pending = decode_pending_version(self._home.load(name))
        self._send(pending)
        return pending.stored

    def _check_not_erased(self, record: bytes) -> None:
        if self._home.has(f"erasure-{record.hex()}"):
            raise Conflict("the record is erased, or about to be; see, or finish, with: diptych record erase")

    # --- making a version -------------------------------------------------------------------------------------------------

    def _stored(self, record: bytes) -> StoredRecord:
        stored = self.resume(record) or self.load(record)
        if not stored.version:
            raise Conflict("the record is not stored yet; use record store first")
        if stored.is_retired:
            raise Conflict(
                "the record is retired, or about to be (record retire finishes that); it gets no new version"
            )
        return stored

    def foresee(self, change: Change, before: StoredRecord, after: StoredRecord | None) -> Consequences:
        """What a change leads to for the people who are certified now."""
        self._session.progress("looking up who is certified and who has read")
        people = [p.signed.credential for p in self._session.chains["sharing"].people() if not p.is_revoked]
        past = past_readers(self.log(before.header.record)) - {self._home.sign.public}
        return foresee(change, before, after, people, past, now_ms())

    def _advance(
        self,
        before: StoredRecord,
        after: StoredRecord,
        change: Change | None,
        acknowledged: Collection[str] = (),
    ) -> StoredRecord:
        """Make the version after `before` out of `after`: have it agreed to, if it is a `change` of its own, write it down, send it.
        Parts that are sealed in it are in its pack already."""
        for label in check_sharing(before, after, self.contents(before), acknowledged):
            self._session.progress(
                f"warning: {label} holds what is marked as sensitive and leaves the private class"
            )
        stored = msgspec.structs.replace(
            after,
            version=before.version + 1,
            week=week_at(now_ms()),
            proxies=self.proxies().reading(now_ms()),
        )
        policies = stored.envelope_policies()
        if not set(policies) - {PRIVATE}:
            raise Malformed(
                "at least one part must stay outside the private class, or the sharing chain has nothing to index"
            )
        self._session.progress("encrypting the keys under the policies")
        envelopes = {
            access: encode(self._envelope(stored, access, policy)) for access, policy in policies.items()
        }
        if change and self._agree:
            self._agree(self.foresee(change, before, stored))
        views = {kind: self._view(kind, stored, reached) for kind, reached in self._reach(envelopes).items()}
        publications = tuple((kind, self._publication(kind, stored, view)) for kind, view in views.items())
        pending = PendingVersion(stored, tuple(views.values()), tuple(envelopes.values()), publications)
        self._home.save(f"pending-{stored.header.record.hex()}", encode(pending))
        self._send(pending)
        return stored

    def _reach(self, envelopes: Mapping[str, bytes]) -> dict[ChainKind, Mapping[str, bytes]]:
        """The envelopes, by access class, that the index on each chain leads to."""
        shared = {access: data for access, data in envelopes.items() if access != PRIVATE}
        return {"storage": envelopes, "sharing": shared}

    def _encapsulate(self, policy: str, context: bytes) -> tuple[bytes, bytes]:
        """The header of an envelope, and the class key that those who satisfy its policy find in it."""
        return encapsulate(self._home.abe_public, policy, context)

    def _envelope(self, stored: StoredRecord, access: str, policy: str) -> Envelope:
        record, version = stored.header.record, stored.version
        indices = [i for i, part in enumerate(stored.parts) if part.access == access]
        extract = encode(stored.signature.extract(stored.commitments, indices))
        context = envelope_context(record, version, access, extract)
        header, class_key = self._encapsulate(policy, context)
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

    def _publication(self, kind: ChainKind, stored: StoredRecord, view: View) -> Publish:
        """The index entry, encrypted to the chain's key, with the rule by which the contract hands it out."""
        rule = stored.rule(kind)
        label = index_label(view.chain_id, view.record, view.version, rule.digest)
        key = self._session.chains[kind].index_key().public
        sealed = encrypt(key, label, encode(Index.make(view, self._home.sign)))
        return Publish(view.record, view.version, view.commit, sealed, rule, stored.tags)

    def _send(self, pending: PendingVersion) -> None:
        """Upload, publish on each chain that does not have this version yet, then let the earlier ones go and make it current."""
        session, home, stored = self._session, self._home, pending.stored
        record = stored.header.record
        refs = (*map(BlobRef.of, pending.envelopes), *stored.fresh)
        body = UploadBody(session.cloud.key, home.credential, pending.views, refs, now_ms())
        size = sum(ref.size for ref in refs)
        session.progress(f"uploading {size:,} bytes in one request")
        parts = pieces(home.pack(record, stored.version), sum(ref.size for ref in stored.fresh))
        content = chain(pending.envelopes, parts if stored.fresh else ())
        session.cloud.upload(Upload.make(body, home.sign), _counted(content, session.meter("uploaded", size)))
        session.progress("publishing the index on both chains")
        publications = dict(pending.publications)
        session.on_chains(lambda kind: self._publish(kind, publications[kind]), publications)
        if stored.version > FIRST:
            session.progress("having the cloud delete what only earlier versions needed")
            session.cloud.delete(record, home.sign, before=stored.version)
        self._save(stored)
        if stored.fresh:
            home.remove_packs(record, but={part.sealed_in for part in stored.parts})
        home.remove(f"pending-{record.hex()}")

    def _publish(self, kind: ChainKind, publish: Publish) -> None:
        chain = self._session.chains[kind]
        entry = chain.verified_record(publish.record)
        if (entry.version, entry.commit) != (publish.version, publish.commit):
            chain.execute(self._home.sign, publish)

    def _save(self, stored: StoredRecord) -> None:
        self._home.save(f"record-{stored.header.record.hex()}", encode(stored))
