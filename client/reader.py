"""The data user: asks the chain, fetches from the cloud, decrypts and verifies (paper section 6 steps 6-9, eqs. 14-18).

A reader believes nothing it has not checked: the ticket bears a quorum of node signatures, the view hashes to what the ticket commits
to, the index is signed by the record's patient, each part decrypts under its bound key, and the doctor's signature holds over exactly
the parts that were opened. All of that is checked once, going through the parts one after another, before anything is returned; on any
failure nothing is. What was opened stays sealed until it is looked at: a part is decrypted when it is asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from client.attach import of_bundle
from client.chain import ChainClient
from client.cloud import Blobs
from client.doctor import MAX_RECORD, decode_part, header_digest
from client.fhir import join
from client.patient import envelope_context
from client.session import Session
from crypto import ces
from crypto.abe import decapsulate
from crypto.codec import Bytes16, Bytes32, Decoder, Wire, encode
from crypto.errors import Denied, Malformed, NotFound, Unauthentic
from crypto.parts import open_part, unwrap_key
from crypto.seal import OVERHEAD, seal
from protocol.contract import Receipt, RecordEntry
from protocol.identity import ChainKind, Credential, Purpose, SignedTicket
from protocol.record import Envelope, Index
from protocol.tx import Emergency, Ground, Request

SMALL = 16 << 10
"""Bytes of a part that is not decrypted a second time."""
MAX_REASON = 2048 - OVERHEAD
"""Bytes of the reason for an emergency access."""


class _Request(Wire, frozen=True, tag="saved-request/1"):
    record: Bytes16
    tx: Bytes32


_decode_request = Decoder(_Request, "a saved request", 1 << 10)


class Parts(Mapping[str, bytes]):
    """Verified contents by label, each decrypted when it is asked for; `sizes` are their bytes."""

    def __init__(self, blobs: Blobs) -> None:
        self.sizes: dict[str, int] = {}
        self._opening: dict[str, tuple[_Opening, int]] = {}
        self.close = blobs.close

    def add(self, opening: "_Opening") -> None:
        """What was gone through of an envelope, once it was verified."""
        for index, (label, size) in opening.found.items():
            if label in self.sizes:
                raise Malformed("the record has two parts with one label: ask its doctor to sign it again")
            self.sizes[label], self._opening[label] = size, (opening, index)

    def __getitem__(self, label: str) -> bytes:
        opening, index = self._opening[label]
        return opening.kept.get(index) or decode_part(opening[index][1]).content

    def __contains__(self, label: object) -> bool:
        return label in self.sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


class _Opening(Mapping[int, tuple[bytes, bytes]]):
    """Tags and messages of an envelope's parts by index, decrypted when they are asked for; `found` is the label and size of each that
    was, `kept` the contents of small ones, of which a record may have thousands."""

    def __init__(self, envelope: Envelope, class_key: bytes, blobs: Blobs) -> None:
        context = _context(envelope)
        self._record, self._blobs = envelope.record, blobs
        self._parts = {
            part.index: (unwrap_key(class_key, context, part.index, part.wrapped_key), part)
            for part in envelope.parts
        }
        self.found: dict[int, tuple[str, int]] = {}
        self.kept: dict[int, bytes] = {}

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        key, part = self._parts[index]
        opened = open_part(key, self._record, index, part.sealed_in, self._blobs[part.blob.hash])
        signed = decode_part(opened[1])
        self.found[index] = (signed.label, len(signed.content))
        if len(signed.content) <= SMALL:
            self.kept[index] = signed.content
        return opened

    def __contains__(self, index: object) -> bool:
        return index in self._parts

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@dataclass(frozen=True)
class OpenedRecord:
    """What a reader could open: `parts` by label, each verified; `closed` names the access classes that stayed shut. A large record's
    ciphertext is in a temporary file until this is closed, or let go."""

    header: ces.Header
    version: int
    parts: Parts = field(repr=False)
    closed: tuple[str, ...]

    def bundle(self) -> bytes:
        """The FHIR bundle, token for token, when every part is open; `Denied` otherwise."""
        if self.closed:
            raise Denied(
                f"the whole bundle needs all parts; the access class {self.closed[0]!r} stayed closed"
            )
        return join(of_bundle(self.parts))

    def close(self) -> None:
        """Let the ciphertext go; nothing can be read any more."""
        self.parts.close()

    def __enter__(self) -> "OpenedRecord":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reader:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._home = session.home

    def request(self, record: bytes, kind: ChainKind, purpose: Purpose) -> Receipt:
        """Ask a chain for access; the receipt says whether it was allowed, refused or waits for a second person, and stands on chain
        in any case."""
        self._session.progress(f"requesting access on the {kind} chain")
        return self._ask(kind, Request(record, purpose))

    def break_glass(self, record: bytes, kind: ChainKind, ground: Ground, reason: str) -> Receipt:
        """Ask for a record in an emergency: waits for a second person who may break the glass too. The `reason` is sealed to the
        record's patient, the ground is for everyone to see."""
        chain = self._session.chains[kind]
        patient = chain.verified_record(record).patient
        note = reason.strip().encode()
        if not 0 < len(note) <= MAX_REASON:
            raise Malformed(f"say the reason in 1 to {MAX_REASON} bytes")
        self._session.progress(f"requesting access in an emergency on the {kind} chain")
        emergency = Emergency(ground, seal(chain.credential(patient).seal_key, note))
        return self._ask(kind, Request(record, "emergency", emergency))

    def who_decides(self, receipt: Receipt, kind: ChainKind) -> str:
        """A sentence about who can decide on a request that waits."""
        assert receipt.record is not None
        rule = self._session.chains[kind].verified_record(receipt.record).rule
        wanted = rule and (rule.emergency if receipt.purpose == "emergency" else rule.approval)
        others = f" or somebody else who satisfies {wanted}" if wanted else ""
        return f"the patient, a proxy of theirs who may decide{others}: diptych access approve {receipt.tx.hex()}"

    def _ask(self, kind: ChainKind, action: Request) -> Receipt:
        record = action.record
        receipt = self._session.chains[kind].send(self._home.sign, action)
        if receipt.ok:
            self._home.save(f"request-{kind}-{record.hex()}", encode(_Request(record, receipt.tx)))
        return receipt

    def open(self, record: bytes, kind: ChainKind) -> OpenedRecord:
        """Open what the last request for the record gives access to, once it is allowed."""
        name = f"request-{kind}-{record.hex()}"
        if not self._home.has(name):
            raise NotFound(
                "there is no allowed request for this record; make one with: diptych record request"
            )
        request = _decode_request(self._home.load(name))
        self._session.progress("collecting the index and a ticket from the nodes")
        chain = self._session.chains[kind]
        try:
            index, ticket = chain.release(request.tx, self._home.seal)
        except Denied:
            self._explain(chain.verified_receipt(request.tx).proof.receipt, kind)
            raise
        return self.open_index(record, index, ticket)

    def _explain(self, receipt: Receipt, kind: ChainKind) -> None:
        """`Denied` with what is known of a request that had to wait for a second person and is not granted."""
        if receipt.code != "waiting" or receipt.record is None:
            return
        words = [
            r
            for r in self._session.chains[kind].verified_log(receipt.record).receipts
            if r.request == receipt.tx
        ]
        if any(r.code == "declined" for r in words):
            raise Denied("the request was declined; the access log says by whom: diptych record log")
        if not any(r.ok for r in words):
            raise Denied(f"the request still waits for {self.who_decides(receipt, kind)}")

    def open_index(self, record: bytes, index: Index, ticket: SignedTicket | None) -> OpenedRecord:
        """Open a record whose index entry is at hand; without a ticket the cloud serves only the record's own patient."""
        session = self._session
        if index.record != record:
            raise Unauthentic("the index entry is for another record")
        chain = next((c for c in session.chains.values() if c.genesis.chain_id == index.chain_id), None)
        if chain is None:
            raise Unauthentic("the index entry is for another chain than those of this network")
        standing = session.aside(lambda: _standing(chain, record))
        session.progress("fetching keys and signatures from the cloud")
        head, envelopes, _ = session.cloud.fetch(index, ticket, self._home.sign)
        view = head.view
        if ticket is not None and view.commit != ticket.ticket.commit:
            raise Unauthentic(
                "the cloud's view is not the one that stands on chain: it may be an old version"
            )
        if (
            any((e.record, e.version) != (view.record, view.version) for e in envelopes)
            or view.record != record
        ):
            raise Unauthentic("an envelope belongs to another record or version")
        # While the chain answers; nothing of it counts before what it says was compared.
        keys = {e.access_class: key for e in envelopes if (key := self._class_key(e)) is not None}
        stands, doctor = standing.result()
        if (view.chain_id, stands.version, stands.commit) != (index.chain_id, view.version, view.commit):
            raise Unauthentic(
                "the index and the cloud's view are not of the version that stands on chain now"
            )
        opened = [e for e in envelopes if e.access_class in keys]
        if not opened:
            raise Denied("the attribute key of this home opens no part of the record")
        extracts = [ces.decode_extract(envelope.extract) for envelope in opened]
        header = extracts[0].header
        if any(extract.header != header for extract in extracts):
            raise Unauthentic("the envelopes carry signatures over different records")
        if (header.record, header.patient, header.doctor) != (record, view.patient, stands.doctor) or (
            header_digest(header) != stands.header
        ):
            raise Unauthentic("the record differs from what its doctor attested on chain")
        session.progress("fetching and decrypting the parts")
        wanted = [part.blob for envelope in opened for part in envelope.parts]
        fetched = session.meter("fetched", sum(ref.size for ref in wanted))
        _, _, blobs = session.cloud.fetch(index, ticket, self._home.sign, wanted, fetched)
        if doctor.ces_key is None or doctor.role != "doctor":
            raise Unauthentic("the record's signer is not certified as a doctor")
        parts = Parts(blobs)
        for envelope, extract in zip(opened, extracts, strict=True):
            opening = _Opening(envelope, keys[envelope.access_class], blobs)
            ces.verify(extract, opening, (doctor.ces_key.suite, doctor.ces_key.public))
            parts.add(opening)
            if sum(parts.sizes.values()) > MAX_RECORD:
                raise Malformed(f"the record has more than {MAX_RECORD} bytes: ask for several")
        closed = tuple(e.access_class for e in envelopes if e.access_class not in keys)
        return OpenedRecord(header, view.version, parts, closed)

    def _class_key(self, envelope: Envelope) -> bytes | None:
        """The class key, or None if the home's attributes do not satisfy the envelope's policy."""
        context = _context(envelope)
        try:
            return decapsulate(
                self._home.abe_public, self._home.attribute_key, envelope.policy, envelope.header, context
            )
        except Denied:
            return None


def _standing(chain: ChainClient, record: bytes) -> tuple[RecordEntry, Credential]:
    """A record as it stands on chain, and the doctor who attested it."""
    entry = chain.verified_record(record)
    return entry, chain.credential(entry.doctor)


def _context(envelope: Envelope) -> bytes:
    return envelope_context(envelope.record, envelope.version, envelope.access_class, envelope.extract)
