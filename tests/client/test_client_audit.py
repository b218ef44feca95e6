"""Two nodes' databases compared offline: what a fork proves, and what a forger's file does not."""

import sqlite3
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from client import audit, cli
from crypto.codec import encode
from crypto.errors import DiptychError, Malformed, NotFound, Unauthentic
from crypto.sign import SigningKey
from node.store import Store
from protocol import genesis as genesis_file
from protocol import merkle
from protocol.block import Block, Certificate, Committee, Header, decode_block
from protocol.core import Finalized, Record, SaveBlock, SaveCertificate
from protocol.evidence import conflict
from protocol.genesis import Genesis, Member

KEYS = [SigningKey(bytes([i + 1]) * 32) for i in range(4)]
GENESIS = Genesis(
    "diptych/1/storage/audit",
    "storage",
    "bft",
    tuple(Member(f"n{i}", key.public, f"peer-{i}") for i, key in enumerate(KEYS)),
    bytes(32),
    bytes(32),
    1_700_000_000_000,
    term_length=4,
)
COMMITTEE = Committee(GENESIS)
HONEST_A, HONEST_B, LIARS = 0, 3, (1, 2)
SIDE_A, SIDE_B = (HONEST_A, *LIARS), (*LIARS, HONEST_B)


def certificate(kind: str, view: int, block: bytes | None, signers: tuple[int, ...]) -> Certificate:
    return COMMITTEE.certify(COMMITTEE.sign(KEYS[s], s, kind, view, block) for s in signers)  # type: ignore[arg-type]


class Journal:
    """A node's database written by the node's own store; `signers` certify what stands in it."""

    def __init__(self, folder: Path, signers: tuple[int, ...]) -> None:
        self.path = folder / "consensus.db"
        self.store = Store(folder, GENESIS)
        self.signers = signers
        self.waiting: list[Block] = []
        self.head = Header("", 0, 0, 0, b"", 0, b"", 0, GENESIS.time_ms, b"", b"", 0)
        self.head_id = GENESIS.hash
        self.is_open = True

    def close(self) -> None:
        self.store.close()
        self.is_open = False

    def block(
        self, view: int, skips: tuple[Certificate, ...] = (), mark: int = 0, txs: tuple[bytes, ...] = ()
    ) -> bytes:
        """A notarized block on top; `mark` tells the histories apart."""
        keys = COMMITTEE.validators_hash
        time_ms = self.head.time_ms + 1 + mark
        rest = (merkle.root(txs), len(txs), time_ms, keys, keys, COMMITTEE.leader(view))
        header = Header(GENESIS.chain_id, 0, view, self.head.height + 1, self.head_id, self.head.view, *rest)
        block = Block(header, txs, skips)
        notarization = certificate("notarize", view, header.id, self.signers)
        self.store.apply([SaveBlock(block), SaveCertificate(notarization)])
        self.waiting.append(block)
        self.head, self.head_id = header, header.id
        return header.id

    def final(
        self, view: int, skips: tuple[Certificate, ...] = (), mark: int = 0, txs: tuple[bytes, ...] = ()
    ) -> bytes:
        """A block on top that is final with all below it."""
        block_id = self.block(view, skips, mark, txs)
        cert = certificate("finalize", view, block_id, self.signers)
        self.store.apply([Finalized(tuple((b, ()) for b in self.waiting), cert)])
        self.waiting.clear()
        return block_id

    def edit(self, statement: str, *values: object) -> None:
        with sqlite3.connect(self.path) as db:
            db.execute(statement, values)
        db.close()


@pytest.fixture
def journals(tmp_path):
    a, b = Journal(tmp_path / "a", SIDE_A), Journal(tmp_path / "b", SIDE_B)
    yield a, b
    for journal in (a, b):
        if journal.is_open:
            journal.close()


def compare(a: Journal, b: Journal) -> audit.Report:
    report = audit.audit(a.path, b.path, GENESIS)
    assert audit.audit(b.path, a.path, GENESIS).fork == report.fork
    return report


def guilty(report: audit.Report) -> set[tuple[int, str]]:
    assert audit.verify(encode(audit.evidence_file(report, GENESIS)), GENESIS) == report.pairs
    return {(pair.first.signer, pair.kind) for pair in report.pairs}


def test_prefixes_of_one_history_are_no_fork(journals):
    a, b = journals
    for journal in journals:
        journal.final(1)
        journal.final(2)
    a.final(3)
    assert compare(a, b) == audit.Report((3, 2), None, ())


def test_two_empty_databases_are_one_history(journals):
    assert compare(*journals) == audit.Report((0, 0), None, ())


def test_two_final_blocks_of_a_view_convict_who_finalized_both(journals):
    a, b = journals
    for journal in journals:
        journal.final(1)
    a.final(2)
    b.final(2, mark=1)
    report = compare(a, b)
    assert report.fork == 2
    assert guilty(report) >= {(liar, "E2") for liar in LIARS}
    assert {signer for signer, _ in guilty(report)} == set(LIARS)


def test_a_final_block_in_a_skipped_term_convicts_who_nullified_it(journals):
    a, b = journals
    a.final(1)
    a.final(2)
    b.final(5, (certificate("nullify", 1, None, SIDE_B),))
    report = compare(a, b)
    assert report.fork == 1
    assert guilty(report) == {(liar, "E4") for liar in LIARS}


def test_a_fork_certified_at_different_heights_convicts_by_the_kept_notarization(journals):
    a, b = journals
    a.block(1)
    a.final(2)
    b.final(1, mark=1)
    report = compare(a, b)
    assert report.fork == 1
    assert guilty(report) == {(liar, "E3") for liar in LIARS}


histories = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), histories, histories)
def test_every_fork_convicts_all_who_signed_both_histories_and_nobody_else(common, first, second):
    """A history is, for each block: whether the term before it is skipped, whether it has a finalization of its own."""
    with tempfile.TemporaryDirectory() as folder:
        a, b = Journal(Path(folder, "a"), SIDE_A), Journal(Path(folder, "b"), SIDE_B)
        for journal, side, mark in zip((a, b), (first, second), (0, 1), strict=True):
            for view in range(1, common + 1):
                journal.final(view)
            for number, (is_skipping, is_certified) in enumerate(side, 1):
                parent = journal.head.view
                view = COMMITTEE.term_start(COMMITTEE.term(parent + 1) + 1) if is_skipping else parent + 1
                terms = COMMITTEE.covering_terms(parent, view)
                skips = tuple(certificate("nullify", first, None, journal.signers) for _, first in terms)
                add = journal.final if is_certified or number == len(side) else journal.block
                add(view, skips, mark)
        try:
            report = compare(a, b)
        finally:
            a.close()
            b.close()
    assert report.fork == common + 1
    assert {signer for signer, _ in guilty(report)} == set(LIARS)


def test_a_fork_is_reported_even_if_the_files_do_not_name_its_makers(journals):
    a, b = journals
    a.block(1)
    a.final(2)
    a.edit("DELETE FROM certificates")
    b.final(1, mark=1)
    report = compare(a, b)
    assert (report.fork, report.pairs) == (1, ())


def test_a_pair_seen_live_is_reported_without_a_fork(journals):
    a, b = journals
    votes = [COMMITTEE.sign(KEYS[2], 2, "notarize", 7, bytes([i]) * 32) for i in (1, 2)]
    pair = conflict(COMMITTEE, *votes)
    assert pair
    a.store.apply([Record(pair)])
    report = compare(a, b)
    assert report.fork is None
    assert guilty(report) == {(2, "E1")}


def test_a_forged_live_pair_convicts_nobody(journals):
    a, b = journals
    votes = [COMMITTEE.sign(KEYS[2], 1, "notarize", 7, bytes([i]) * 32) for i in (1, 2)]
    pair = conflict(COMMITTEE, *votes)
    assert pair
    a.store.apply([Record(pair)])
    assert compare(a, b).pairs == ()


def test_blocks_without_a_finalization_make_no_fork(journals):
    a, b = journals
    for journal in journals:
        journal.final(1)
    a.final(2)
    b.final(2, mark=1)
    b.edit("UPDATE final SET certificate = NULL WHERE height = 2")
    assert compare(a, b).fork is None


@pytest.mark.parametrize(
    ("statement", "kind", "what"),
    [
        ("UPDATE final SET certificate = (SELECT certificate FROM final WHERE height = 1) WHERE height = 2", Unauthentic, "does not hold"),
        ("UPDATE final SET certificate = x'00' WHERE height = 2", Malformed, "certificate"),
        ("UPDATE final SET id = zeroblob(32) WHERE height = 1", Malformed, "wrong type"),
        ("UPDATE blocks SET data = (SELECT data FROM blocks WHERE view = 2) WHERE view = 1", Unauthentic, "does not belong"),
        ("DELETE FROM final WHERE height = 1", Unauthentic, "does not belong"),
        ("UPDATE final SET height = 9 WHERE height = 2", Unauthentic, "does not belong"),
        ("UPDATE meta SET value = zeroblob(32)", Malformed, "another chain"),
        ("DROP TABLE evidence", Malformed, "no consensus database"),
        ("ALTER TABLE votes RENAME TO real", Malformed, "no consensus database"),
    ],
)  # fmt: skip
def test_a_changed_database_is_refused_with_the_reason(journals, statement, kind, what):
    a, b = journals
    for journal in journals:
        journal.final(1)
        journal.final(2)
    b.edit(statement)
    with pytest.raises(kind, match=what):
        audit.audit(a.path, b.path, GENESIS)


def test_a_view_or_computed_column_in_place_of_a_table_is_not_queried(journals):
    a, b = journals
    b.edit("ALTER TABLE final RENAME TO real")
    b.edit("CREATE VIEW final AS SELECT * FROM real")
    with pytest.raises(Malformed, match="final is missing or different"):
        audit.audit(a.path, b.path, GENESIS)


def test_certificates_of_too_few_or_of_other_keys_do_not_make_a_fork(journals):
    a, b = journals
    a.final(1)
    block_id = b.final(1, mark=1)
    cert = certificate("finalize", 1, block_id, SIDE_B)
    false = msgspec.structs.replace(cert, signers=0b0111)
    b.edit("UPDATE final SET certificate = ?", encode(false))
    with pytest.raises(Unauthentic, match="finalization at height 1 does not hold"):
        audit.audit(a.path, b.path, GENESIS)


def test_what_is_no_database_is_refused(tmp_path, journals):
    junk = tmp_path / "junk"
    for content in (b"", b"no database at all", b"SQLite format 3\0" + bytes(4096)):
        junk.write_bytes(content)
        with pytest.raises(Malformed, match="no consensus database"):
            audit.audit(journals[0].path, junk, GENESIS)
    with pytest.raises(NotFound):
        audit.audit(journals[0].path, tmp_path / "nothing", GENESIS)


def test_the_audit_leaves_a_closed_database_and_its_folder_as_they_are(journals):
    a, b = journals
    a.final(1)
    for journal in journals:
        journal.close()
    before = {f: f.read_bytes() for j in journals for f in j.path.parent.iterdir()}
    audit.audit(a.path, b.path, GENESIS)
    assert {f: f.read_bytes() for j in journals for f in j.path.parent.iterdir()} == before


def test_false_evidence_files_are_refused(journals):
    a, b = journals
    a.final(1)
    b.final(1, mark=1)
    good = audit.evidence_file(compare(a, b), GENESIS)
    pair = good.pairs[0]
    agreeing = msgspec.structs.replace(pair, second=pair.first)
    framed = msgspec.structs.replace(
        pair,
        first=msgspec.structs.replace(pair.first, signer=0),
        second=msgspec.structs.replace(pair.second, signer=0),
    )
    mislabelled = msgspec.structs.replace(pair, kind="E4")
    for false in (agreeing, framed, mislabelled):
        with pytest.raises(Unauthentic, match="pair 2"):
            audit.verify(encode(msgspec.structs.replace(good, pairs=(pair, false))), GENESIS)
    other = msgspec.structs.replace(GENESIS, chain_id="diptych/1/storage/other")
    with pytest.raises(Malformed, match="another chain"):
        audit.verify(encode(good), other)
    for data in (b"", b"\x93", encode(good) + b"\x00", encode(msgspec.structs.replace(good, pairs=()))):
        with pytest.raises(DiptychError):
            audit.verify(data, GENESIS)


def test_the_command_names_the_guilty_writes_the_evidence_and_checks_it(tmp_path, journals):
    a, b = journals
    toml, out = tmp_path / "genesis.toml", tmp_path / "evidence.bin"
    toml.write_text(genesis_file.to_toml(GENESIS))
    run = CliRunner().invoke
    words = ["audit", str(a.path), str(b.path), "--genesis", str(toml)]
    assert run(cli.app, words).exit_code == 0
    a.final(1)
    b.final(5, (certificate("nullify", 1, None, SIDE_B),))
    done = run(cli.app, [*words, "--out", str(out)])
    assert done.exit_code == 9
    assert "FORK at height 1" in done.output
    checked = run(cli.app, ["-o", "json", "audit", "--verify", str(out), "--genesis", str(toml)])
    assert checked.exit_code == 0
    assert [row["member"] for row in msgspec.json.decode(checked.output)] == ["n1", "n2"]


def test_a_database_whose_old_bodies_were_archived_is_audited_as_before(journals):
    a, b = journals
    for journal in journals:
        journal.final(1, txs=(b"a transaction",))
        journal.final(2)
    for data in bodies(a):
        a.edit("UPDATE blocks SET data = ? WHERE view = 1", encode(msgspec.structs.replace(data, txs=())))
    assert compare(a, b) == audit.Report((2, 2), None, ())
    for data in bodies(b):
        b.edit(
            "UPDATE blocks SET data = ? WHERE view = 1", encode(msgspec.structs.replace(data, txs=(b"b",)))
        )
    with pytest.raises(Unauthentic, match="does not belong"):
        audit.audit(a.path, b.path, GENESIS)


def bodies(journal: Journal) -> list[Block]:
    with sqlite3.connect(journal.path) as db:
        found = db.execute("SELECT data FROM blocks WHERE view = 1").fetchall()
    db.close()
    return [decode_block(data) for (data,) in found]
