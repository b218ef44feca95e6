"""The offline audit of nodes' consensus databases: is there one history, and if not, who signed two.

It reads the files of `node.store` (`consensus.db`), which may come from a stranger, without changing them:

    meta(name, value)                                      'genesis': the 32-byte hash of the chain's genesis
    final(height, id, epoch, view, time_ms, certificate)   final blocks; a certificate is a Finalization of just this block
    epochs(epoch, height, handover)                        how each epoch ended, and who the members of the next are
    blocks(id, epoch, view, data)                          canonical `Block`; `txs` may be empty where a body was archived
    certificates(epoch, view, kind, data)                  what stands above the tip; notarizations of final blocks that have none;
                                                           what helped to finalize the last block of an epoch
    votes(epoch, view, kind, data)                         the node's own votes
    evidence(data)                                         pairs the node has seen live

A chain counts up to its highest certified block: from there hash links reach down to genesis. Two such chains that part make a fork, and
they part within one epoch, whose members both share. By the safety argument of docs/protocol.md some finalization of one meets in the other
either a different block of its view (E1 to E3, if a certificate of that block is stored) or a nullification that covers its view (E4). Every
vote comes from a certificate whose signatures were checked, so a pair found here convicts its signer before anyone who has the genesis.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, NamedTuple, Self

import msgspec

from crypto.codec import Bytes32, Decoder, Wire
from crypto.errors import Malformed, NotFound, Unauthentic
from protocol import merkle
from protocol.block import (
    Block,
    Certificate,
    Committee,
    Vote,
    decode_block,
    decode_certificate,
    decode_vote,
)
from protocol.epochs import Handover, decode_handover, follow
from protocol.evidence import Evidence, conflict, decode_evidence
from protocol.genesis import Genesis, Member

MAX_VALUE = 8 << 20
"""Bytes of one value read from a database."""
MAX_CERTIFICATES = 4096
"""Certificates taken from one chain above the fork, and rows from each other table: the proof lies at the fork's foot."""
MAX_FILE = 16 << 20
_COLUMNS = {
    "meta": ("name", "value"),
    "final": ("height", "id", "epoch", "view", "certificate"),
    "epochs": ("epoch", "handover"),
    "blocks": ("id", "data"),
    "certificates": ("epoch", "view", "data"),
    "votes": ("epoch", "data"),
    "evidence": ("data",),
}


class EvidenceFile(Wire, frozen=True):
    """Pairs of votes that convict their signers, for whoever holds the genesis named by its hash; `handovers`, each after those it
    builds on, lead from there to the members of the pairs' epochs."""

    format: Literal["diptych/evidence/2"]
    genesis: Bytes32
    handovers: Annotated[tuple[Handover, ...], msgspec.Meta(max_length=1024)]
    pairs: Annotated[tuple[Evidence, ...], msgspec.Meta(max_length=1024)]


_decode_file = Decoder(EvidenceFile, "an evidence file", MAX_FILE)


class Conviction(NamedTuple):
    """A pair of votes, and who they were signed by: the owner of `member.key` in the epoch of the pair."""

    member: Member
    pair: Evidence


@dataclass(frozen=True, slots=True)
class Report:
    """`heights` are the proved ones of the chains; `fork` is the first height at which some differ, or None, and `branches` says
    which: by their place, the databases with the same block there. `convictions` holds at most one of each kind for a member of an
    epoch, by members to whom `handovers` lead; in a fork it may be empty when the databases lack the certificates."""

    heights: tuple[int, ...]
    fork: int | None
    branches: tuple[tuple[int, ...], ...]
    convictions: tuple[Conviction, ...]
    handovers: tuple[Handover, ...]


class _Final(NamedTuple):
    """A proved block; `certificate` is its own finalization as stored, `after` the epoch and view that the next block builds on."""

    committee: Committee
    block: Block
    certificate: bytes | None
    after: tuple[int, int]


class Journal:
    """One consensus database, opened read-only. Raises `NotFound`, `Malformed` (not such a file, damaged) or `Unauthentic`
    (what it holds is not proved). Use as a context manager."""

    def __init__(self, path: Path, genesis: Genesis) -> None:
        if not path.is_file():
            raise NotFound(f"{path} is no file; name a node's consensus.db or a copy of it")
        self.path, self._genesis = path, genesis
        self.committees, self.handovers = [Committee(genesis)], list[Handover]()
        """By epoch; each handover leads to the next committee."""
        # Without a write-ahead log nobody has the file open: then not even SQLite's own side files are made.
        mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
        try:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise NotFound(f"{path} cannot be opened ({error}); check its permissions") from None
        try:
            self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")
            self._check_schema()
            self._db.execute("BEGIN")  # one state of a database that a node may be writing
            found = next(self._rows("SELECT value FROM meta WHERE name = 'genesis'"), (None,))[0]
            if found != genesis.hash:
                raise Malformed(f"{path} belongs to another chain than the genesis file; get the right pair")
            self._follow()
            self.height = self._proved_height()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def _rows(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        try:
            with closing(self._db.execute(query, values)) as cursor:
                yield from cursor
        except sqlite3.Error as error:
            raise Malformed(f"{self.path} is no consensus database or is damaged ({error})") from None

    def _check_schema(self) -> None:
        """Plain tables with plain columns only: a view or computed column would run its author's code in our queries."""
        for table, columns in _COLUMNS.items():
            kinds = list(self._rows("SELECT type FROM sqlite_master WHERE name = ?", table))
            found = {
                row[0]: row[1] for row in self._rows("SELECT name, hidden FROM pragma_table_xinfo(?)", table)
            }
            if kinds != [("table",)] or any(found.get(column) != 0 for column in columns):
                raise Malformed(
                    f"{self.path} is no consensus database: its table {table} is missing or different"
                )

    def _follow(self) -> None:
        for epoch, data in self._rows("SELECT epoch, handover FROM epochs ORDER BY epoch"):
            handover = decode_handover(self._blob(data))
            try:
                if epoch != len(self.handovers):
                    raise Unauthentic(f"the end of epoch {len(self.handovers)} is missing")
                self.committees.append(follow(self.committees[-1], handover))
            except Unauthentic as error:
                raise Unauthentic(f"{self.path}: {error}") from None
            self.handovers.append(handover)

    def _proved_height(self) -> int:
        """The highest block with a finalization of its own, which must hold, or handed over by its epoch."""
        ended = self.handovers[-1].header.height if self.handovers else 0
        query = (
            "SELECT height, epoch, id, view, certificate FROM final WHERE certificate IS NOT NULL ORDER BY height DESC"
            " LIMIT 1"
        )
        for height, epoch, *rest in self._rows(query):
            if not isinstance(height, int):
                raise Malformed(f"{self.path} is damaged: it holds a value of the wrong type")
            self._finalization(self.committee(epoch), height, *rest)
            return max(height, ended)
        return ended

    def committee(self, epoch: object) -> Committee:
        """`Unauthentic` if the database does not prove who the members of this epoch are."""
        if not isinstance(epoch, int) or not 0 <= epoch < len(self.committees):
            named = str(epoch)[:20]
            raise Unauthentic(
                f"{self.path} lacks what proves the members of epoch {named}; the file was changed"
            )
        return self.committees[epoch]

    def _finalization(
        self, committee: Committee, height: object, block_id: object, view: object, data: object
    ) -> Certificate:
        cert = decode_certificate(self._blob(data))
        is_of_block = (cert.kind, cert.view, cert.block) == ("finalize", view, block_id)
        if not is_of_block or not committee.is_valid_certificate(cert):
            raise Unauthentic(
                f"{self.path}: the finalization at height {height} does not hold; the file was changed"
            )
        return cert

    def _blob(self, value: object) -> bytes:
        if not isinstance(value, bytes):
            raise Malformed(f"{self.path} is damaged: it holds a value of the wrong type")
        return value

    def chain(self) -> Iterator[_Final]:
        """The proved blocks in height order, hash links and members checked from genesis on."""
        height, parent, place = 0, self._genesis.hash, (0, 0)
        query = (
            "SELECT f.height, f.id, f.epoch, f.view, f.certificate, b.data FROM final f LEFT JOIN blocks b ON b.id = f.id"
            " WHERE f.height <= ? ORDER BY f.height"
        )
        for row in self._rows(query, self.height):
            block, committee = decode_block(self._blob(row[5])), self.committee(place[0])
            header, view = block.header, place[1]
            is_linked = (header.height, header.parent, header.parent_view) == (height + 1, parent, view)
            is_own = header.chain_id == self._genesis.chain_id and header.view > view
            is_of_epoch = (header.epoch, header.validators_hash) == (place[0], committee.validators_hash)
            has_body = bool(block.txs) or not header.tx_count
            if (
                (header.height, header.id, header.epoch, header.view) != row[:4]
                or not (is_linked and is_own and is_of_epoch)
                or (has_body and header.tx_root != merkle.root(block.txs))
                or not committee.is_legal_parent(header.parent_view, header.view, block.skips)
                or not self._ends_rightly(committee, block)
            ):
                raise Unauthentic(
                    f"{self.path}: the block after height {height} does not belong there; the file was changed"
                )
            height, parent, place = header.height, header.id, (header.epoch, header.view)
            if header.next_validators_hash != header.validators_hash:
                place = (header.epoch + 1, 0)
            yield _Final(committee, block, row[4], place)
        if height != self.height or place[0] < len(self.handovers):
            raise Unauthentic(f"{self.path} lacks blocks below height {self.height}; the file was changed")

    def _ends_rightly(self, committee: Committee, block: Block) -> bool:
        """Whether a block that ends its epoch is the one that is handed over. Only a node that has halted over it holds no handover."""
        is_end = block.header.next_validators_hash != committee.validators_hash
        handed_over = self.handovers[committee.epoch : committee.epoch + 1]
        return not is_end or all(h.header == block.header for h in handed_over)

    def certificates(self, final: _Final) -> list[Certificate]:
        """The certificates stored with a block of `chain`; those that do not hold are `Unauthentic`."""
        header = final.block.header
        if not all(map(final.committee.is_valid_certificate, final.block.skips)):
            raise Unauthentic(
                f"{self.path}: a nullification at height {header.height} does not hold; the file was changed"
            )
        if final.certificate is None:
            return [*final.block.skips]
        own = self._finalization(final.committee, header.height, header.id, header.view, final.certificate)
        return [*final.block.skips, own]

    def loose_votes(self, foot: tuple[int, int]) -> Iterator[tuple[Committee, Vote]]:
        """The votes of the other tables, from certificates only those above the epoch and view of `foot`; each may be false."""
        above = (
            "SELECT epoch, data FROM certificates WHERE epoch > ? OR (epoch = ? AND view > ?)"
            " ORDER BY epoch, view LIMIT ?"
        )
        for epoch, data in self._rows(above, foot[0], *foot, MAX_CERTIFICATES):
            committee, certificate = self.committee(epoch), decode_certificate(self._blob(data))
            yield from ((committee, vote) for vote in committee.votes_of(certificate))
        for epoch, data in self._rows("SELECT epoch, data FROM votes LIMIT ?", MAX_CERTIFICATES):
            yield self.committee(epoch), decode_vote(self._blob(data))
        for (data,) in self._rows("SELECT data FROM evidence LIMIT ?", MAX_CERTIFICATES):
            pair = decode_evidence(self._blob(data))
            yield from ((self.committee(pair.epoch), vote) for vote in (pair.first, pair.second))


class _Votes:
    """Valid votes of the members of one epoch, and the first contradiction of each kind by each."""

    def __init__(self, committee: Committee) -> None:
        self._committee = committee
        self._by_view: dict[tuple[int, int], list[Vote]] = {}
        self._extremes: dict[tuple[int, int, str], Vote] = {}
        """By (signer, term, kind): the nullify of the lowest view, the finalize of the highest."""
        self._found: dict[tuple[int, str], Evidence] = {}

    def add(self, vote: Vote) -> None:
        term = self._committee.term(vote.view)
        same_view = self._by_view.setdefault((vote.signer, vote.view), [])
        known = [*same_view, *(self._extremes.get((vote.signer, term, k)) for k in ("nullify", "finalize"))]
        for other in known:
            pair = conflict(self._committee, other, vote) if other else None
            if pair:
                self._found.setdefault((vote.signer, pair.kind), pair)
        if all((v.kind, v.block) != (vote.kind, vote.block) for v in same_view):
            same_view.append(vote)
        extreme = self._extremes.setdefault((vote.signer, term, vote.kind), vote)
        if vote.view < extreme.view if vote.kind == "nullify" else vote.view > extreme.view:
            self._extremes[vote.signer, term, vote.kind] = vote

    def convictions(self) -> list[Conviction]:
        members = self._committee.members
        return [Conviction(members[signer], pair) for (signer, _), pair in sorted(self._found.items())]


class _Pools:
    """Votes by the committee that they count in; on two sides of a fork an epoch may have two."""

    def __init__(self, journals: Sequence[Journal]) -> None:
        self._pools: dict[tuple[int, bytes], _Votes] = {}
        self._paths: dict[tuple[int, bytes], list[Handover]] = {}
        for journal in journals:
            for committee in journal.committees:
                key = (committee.epoch, committee.validators_hash)
                self._pools.setdefault(key, _Votes(committee))
                self._paths.setdefault(key, journal.handovers[: committee.epoch])

    def add(self, committee: Committee, votes: Iterable[Vote]) -> None:
        pool = self._pools[committee.epoch, committee.validators_hash]
        for vote in votes:
            pool.add(vote)

    def convictions(self) -> tuple[tuple[Conviction, ...], tuple[Handover, ...]]:
        """All pairs found, and the handovers that lead to their members."""
        found: list[Conviction] = []
        needed: dict[Handover, None] = {}
        for key, pool in sorted(self._pools.items()):
            found += (convictions := pool.convictions())
            needed |= dict.fromkeys(self._paths[key] if convictions else ())
        return tuple(found), tuple(sorted(needed, key=lambda h: h.header.epoch))


def audit(databases: Sequence[Path], genesis: Genesis) -> Report:
    """Compare consensus databases of the chain that starts with `genesis`. Raises as `Journal`."""
    with ExitStack() as stack:
        journals = [stack.enter_context(Journal(path, genesis)) for path in databases]
        pools = _Pools(journals)
        for journal in journals:
            for committee, handover in zip(journal.committees, journal.handovers, strict=False):
                pools.add(committee, committee.votes_of(handover.finalization))
        tips, places = [genesis.hash for _ in journals], [(0, 0) for _ in journals]
        branches: dict[bytes, list[int]] = {}
        feet: list[tuple[int, int]] = []
        fork: int | None = None
        room = [0 for _ in journals]
        for height, finals in enumerate(zip_longest(*(j.chain() for j in journals)), 1):
            found: dict[int, _Final] = {i: final for i, final in enumerate(finals) if final}
            ids = {i: final.block.header.id for i, final in found.items()}
            if len(set(ids.values())) > len({tips[i] for i in ids}):
                feet.append(min(places[i] for i in ids))
                room = [MAX_CERTIFICATES for _ in journals]
                if fork is None:
                    fork = height
                    for i, block_id in ids.items():
                        branches.setdefault(block_id, []).append(i)
            for i, final in found.items():
                tips[i], places[i] = ids[i], final.after
                if room[i] > 0:
                    certificates = journals[i].certificates(final)
                    room[i] -= len(certificates)
                    for cert in certificates:
                        pools.add(final.committee, final.committee.votes_of(cert))
        for foot in feet or [min(places)]:
            for journal in journals:
                for committee, vote in journal.loose_votes(foot):
                    if committee.is_valid_vote(vote):
                        pools.add(committee, [vote])
        heights = tuple(journal.height for journal in journals)
        return Report(heights, fork, tuple(map(tuple, branches.values())), *pools.convictions())


def evidence_file(report: Report, genesis: Genesis) -> EvidenceFile:
    pairs = tuple(pair for _, pair in report.convictions)
    return EvidenceFile("diptych/evidence/2", genesis.hash, report.handovers, pairs)


def verify(data: bytes, genesis: Genesis) -> tuple[Conviction, ...]:
    """Whom the pairs of an evidence file convict; `Unauthentic` if one convicts nobody, `Malformed` if the file is none or is of
    another chain."""
    found = _decode_file(data)
    if found.genesis != genesis.hash:
        raise Malformed("the evidence is of another chain than the genesis file; get the right pair")
    if not found.pairs:
        raise Malformed("the evidence file holds no pair of votes")
    first = Committee(genesis)
    committees = {(0, first.validators_hash): first}
    for handover in found.handovers:
        before = committees.get((handover.header.epoch, handover.header.validators_hash))
        if before is None:
            raise Unauthentic(
                f"the evidence does not lead from genesis to the members of epoch {handover.header.epoch}"
            )
        after = follow(before, handover)
        committees[after.epoch, after.validators_hash] = after
    return tuple(_convicted(committees.values(), pair, number) for number, pair in enumerate(found.pairs, 1))


def _convicted(committees: Iterable[Committee], pair: Evidence, number: int) -> Conviction:
    for committee in committees:
        is_conflict = conflict(committee, pair.first, pair.second) == pair
        if is_conflict and committee.is_valid_vote(pair.first) and committee.is_valid_vote(pair.second):
            return Conviction(committee.members[pair.first.signer], pair)
    raise Unauthentic(f"pair {number} of the evidence proves nothing: its votes agree or are not signed")
