"""The offline audit of two nodes' consensus databases: is there one history, and if not, who signed both.

It reads the files of `node.store` (`consensus.db`), which may come from a stranger, without changing them:

    meta(name, value)                                'genesis': the 32-byte hash of the chain's genesis
    final(height, id, view, time_ms, certificate)    final blocks; a certificate is a Finalization of just this block
    blocks(id, view, data)                           canonical `Block`; `txs` may be empty where a body was archived
    certificates(view, kind, data)                   what stands above the tip; notarizations of final blocks that have none
    votes(view, kind, data)                          the node's own votes
    evidence(data)                                   pairs the node has seen live

A chain counts up to its highest certified block: from there hash links reach down to genesis. Two such chains that part make a fork, and
by the safety argument of docs/protocol.md some finalization of one meets in the other either a different block of its view (E1 to E3, if
a certificate of that block is stored) or a nullification that covers its view (E4, always stored, as `skips`). Every vote comes from a
certificate whose signatures were checked, so a pair found here convicts its signer before anyone who has the genesis.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

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
from protocol.evidence import Evidence, conflict, decode_evidence
from protocol.genesis import Genesis

MAX_VALUE = 8 << 20
"""Bytes of one value read from a database."""
MAX_CERTIFICATES = 4096
"""Certificates taken from one chain above the fork, and rows from each other table: the proof lies at the fork's foot."""
MAX_FILE = 1 << 20
_COLUMNS = {
    "meta": ("name", "value"),
    "final": ("height", "id", "view", "certificate"),
    "blocks": ("id", "data"),
    "certificates": ("view", "data"),
    "votes": ("data",),
    "evidence": ("data",),
}


class EvidenceFile(Wire, frozen=True):
    """Pairs of votes that convict their signers, for whoever holds the genesis named by its hash."""

    format: Literal["diptych/evidence/1"]
    genesis: Bytes32
    pairs: Annotated[tuple[Evidence, ...], msgspec.Meta(max_length=1024)]


_decode_file = Decoder(EvidenceFile, "an evidence file", MAX_FILE)


@dataclass(frozen=True, slots=True)
class Report:
    """`heights` are the proved ones of the two chains; `fork` is the first height at which they differ, or None. `pairs`
    holds at most one per member and kind; in a fork it may be empty when the databases lack the certificates."""

    heights: tuple[int, int]
    fork: int | None
    pairs: tuple[Evidence, ...]


class Journal:
    """One consensus database, opened read-only. Raises `NotFound`, `Malformed` (not such a file, damaged) or `Unauthentic`
    (what it holds is not proved). Use as a context manager."""

    def __init__(self, path: Path, committee: Committee) -> None:
        if not path.is_file():
            raise NotFound(f"{path} is no file; name a node's consensus.db or a copy of it")
        self.path, self._committee = path, committee
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
            genesis = next(self._rows("SELECT value FROM meta WHERE name = 'genesis'"), (None,))[0]
            if genesis != committee.genesis.hash:
                raise Malformed(f"{path} belongs to another chain than the genesis file; get the right pair")
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

    def _proved_height(self) -> int:
        """The highest block with a finalization of its own, which must hold."""
        query = "SELECT height, id, view, certificate FROM final WHERE certificate IS NOT NULL ORDER BY height DESC LIMIT 1"
        for height, block_id, view, data in self._rows(query):
            self._finalization(height, block_id, view, data)
            return int(height)
        return 0

    def _finalization(self, height: object, block_id: object, view: object, data: object) -> Certificate:
        cert = decode_certificate(self._blob(data))
        is_of_block = (cert.kind, cert.view, cert.block) == ("finalize", view, block_id)
        if not is_of_block or not self._committee.is_valid_certificate(cert):
            raise Unauthentic(
                f"{self.path}: the finalization at height {height} does not hold; the file was changed"
            )
        return cert

    def _blob(self, value: object) -> bytes:
        if not isinstance(value, bytes):
            raise Malformed(f"{self.path} is damaged: it holds a value of the wrong type")
        return value

    def chain(self) -> Iterator[tuple[Block, tuple[int, bytes, int, bytes | None]]]:
        """The proved blocks in height order, their hash links checked from genesis on, each with its row."""
        genesis = self._committee.genesis
        height, parent, view = 0, genesis.hash, 0
        query = (
            "SELECT f.height, f.id, f.view, f.certificate, b.data FROM final f LEFT JOIN blocks b ON b.id = f.id"
            " WHERE f.height <= ? ORDER BY f.height"
        )
        for row in self._rows(query, self.height):
            block = decode_block(self._blob(row[4]))
            header = block.header
            is_linked = (header.height, header.parent, header.parent_view) == (height + 1, parent, view)
            is_own = header.chain_id == genesis.chain_id and header.view > view
            has_body = bool(block.txs) or not header.tx_count
            if (
                (header.height, header.id, header.view) != row[:3]
                or not (is_linked and is_own)
                or (has_body and header.tx_root != merkle.root(block.txs))
                or not self._committee.is_legal_parent(header.parent_view, header.view, block.skips)
            ):
                raise Unauthentic(
                    f"{self.path}: the block after height {height} does not belong there; the file was changed"
                )
            height, parent, view = header.height, header.id, header.view
            yield block, row[:4]
        if height != self.height:
            raise Unauthentic(f"{self.path} lacks blocks below height {self.height}; the file was changed")

    def certificates(self, block: Block, row: tuple[int, bytes, int, bytes | None]) -> list[Certificate]:
        """The certificates stored with a block of `chain`; those that do not hold are `Unauthentic`."""
        if not all(map(self._committee.is_valid_certificate, block.skips)):
            raise Unauthentic(
                f"{self.path}: a nullification at height {block.header.height} does not hold; the file was changed"
            )
        return [*block.skips, *([self._finalization(*row)] if row[3] is not None else [])]

    def loose_votes(self, common_view: int) -> Iterator[Vote]:
        """The votes of the other tables, from certificates only those above `common_view`; each may be false."""
        above = "SELECT data FROM certificates WHERE view > ? ORDER BY view LIMIT ?"
        for (data,) in self._rows(above, common_view, MAX_CERTIFICATES):
            yield from self._committee.votes_of(decode_certificate(self._blob(data)))
        for (data,) in self._rows("SELECT data FROM votes LIMIT ?", MAX_CERTIFICATES):
            yield decode_vote(self._blob(data))
        for (data,) in self._rows("SELECT data FROM evidence LIMIT ?", MAX_CERTIFICATES):
            pair = decode_evidence(self._blob(data))
            yield from (pair.first, pair.second)


class _Votes:
    """Valid votes of all members, and the first contradiction of each kind by each."""

    def __init__(self, committee: Committee) -> None:
        self._committee = committee
        self._by_view: dict[tuple[int, int], list[Vote]] = {}
        self._extremes: dict[tuple[int, int, str], Vote] = {}
        """By (signer, term, kind): the nullify of the lowest view, the finalize of the highest."""
        self._found: dict[tuple[int, str], Evidence] = {}

    def add_all(self, votes: Iterable[Vote]) -> None:
        for vote in votes:
            self._add(vote)

    def _add(self, vote: Vote) -> None:
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

    def pairs(self) -> tuple[Evidence, ...]:
        return tuple(pair for _, pair in sorted(self._found.items()))


def audit(first: Path, second: Path, genesis: Genesis) -> Report:
    """Compare two consensus databases of the chain that starts with `genesis`. Raises as `Journal`."""
    committee = Committee(genesis)
    votes = _Votes(committee)
    fork, common_view = None, 0
    with Journal(first, committee) as a, Journal(second, committee) as b:
        room = [MAX_CERTIFICATES, MAX_CERTIFICATES]
        for pair in zip_longest(a.chain(), b.chain()):
            if fork is None and None not in pair:
                (height, first_id, view, _), (_, second_id, _, _) = pair[0][1], pair[1][1]
                if first_id == second_id:
                    common_view = view
                else:
                    fork = height
            for i, (journal, found) in enumerate(zip((a, b), pair, strict=True)):
                if fork is not None and found is not None and room[i] > 0:
                    certificates = journal.certificates(*found)
                    room[i] -= len(certificates)
                    for cert in certificates:
                        votes.add_all(committee.votes_of(cert))
        for journal in (a, b):
            votes.add_all(filter(committee.is_valid_vote, journal.loose_votes(common_view)))
        return Report((a.height, b.height), fork, votes.pairs())


def evidence_file(report: Report, genesis: Genesis) -> EvidenceFile:
    return EvidenceFile("diptych/evidence/1", genesis.hash, report.pairs)


def verify(data: bytes, genesis: Genesis) -> tuple[Evidence, ...]:
    """The pairs of an evidence file, each of which convicts its signer; `Unauthentic` if one does not, `Malformed` if the file
    is none or is of another chain."""
    found, committee = _decode_file(data), Committee(genesis)
    if found.genesis != genesis.hash:
        raise Malformed("the evidence is of another chain than the genesis file; get the right pair")
    if not found.pairs:
        raise Malformed("the evidence file holds no pair of votes")
    for number, pair in enumerate(found.pairs, 1):
        shown = conflict(committee, pair.first, pair.second)
        is_signed = committee.is_valid_vote(pair.first) and committee.is_valid_vote(pair.second)
        if shown is None or shown.kind != pair.kind or not is_signed:
            raise Unauthentic(
                f"pair {number} of the evidence proves nothing: its votes agree or are not signed"
            )
    return found.pairs
