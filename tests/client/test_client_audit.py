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
from protocol.block import Block, Certificate, Committee, Header, decode_block, signer_set, validators_hash
from protocol.core import EpochEnded, Finalized, Halted, Record, SaveBlock, SaveCertificate
from protocol.epochs import Handover, successor
from protocol.evidence import conflict
from protocol.genesis import Genesis, Member
from protocol.tx import ChangeMembers
from tests.dealer import share_point
from tests.simulation.cluster import ADMINS, change_tx

KEYS = [SigningKey(bytes([i + 1]) * 32) for i in range(6)]
MEMBERS = [Member(f"n{i}", key.public, f"peer-{i}", share_point(i)) for i, key in enumerate(KEYS)]
GENESIS = Genesis(
    "diptych/1/storage/audit",
    "storage",
    "bft",
    tuple(MEMBERS[:4]),
    bytes(32),
    1_700_000_000_000,
    tuple(admin.public for admin in ADMINS),
    2,
    term_length=4,
)
COMMITTEE = Committee(GENESIS)
HONEST_A, HONEST_B, LIARS = 0, 3, (1, 2)
SIDE_A, SIDE_B = (HONEST_A, *LIARS), (*LIARS, HONEST_B)
TURNED, ONLY_A, ONLY_B = (3, 2, 1, 0), (4, 2, 1, 0), (3, 2, 1, 5)
"""Members of a next epoch: those of epoch 0 in other places, and with a new one on either side of a fork."""


def certificate(
    kind: str, view: int, block: bytes | None, signers: tuple[int, ...], committee: Committee = COMMITTEE
) -> Certificate:
    """Signed by members of whatever place the committee gives them."""
    places = {committee.keys.index(KEYS[s].public): KEYS[s] for s in signers}
    return committee.certify(committee.sign(k, i, kind, view, block) for i, k in places.items())  # type: ignore[arg-type]


def agreed(epoch: int, members: tuple[Member, ...], admins: int = 2) -> ChangeMembers:
    change = ChangeMembers(epoch, members, ())
    for admin in ADMINS[:admins]:
        change = change.approve(GENESIS, admin)
    return change


class Journal:
    """A node's database written by the node's own store; `signers` certify what stands in it."""

    def __init__(self, folder: Path, signers: tuple[int, ...]) -> None:
        self.path = folder / "consensus.db"
        self.store = Store(folder, GENESIS)
        self.store._db.execute("PRAGMA synchronous=OFF")
        self.signers = signers
        self.waiting: list[Block] = []
        self.committee, self.head_id, self.height, self.view = COMMITTEE, GENESIS.hash, 0, 0
        self.time_ms = GENESIS.time_ms
        self.is_open = True

    def close(self) -> None:
        self.store.close()
        self.is_open = False

    def certificate(self, kind: str, view: int, block: bytes | None = None) -> Certificate:
        return certificate(kind, view, block, self.signers, self.committee)

    def skips(self, view: int) -> tuple[Certificate, ...]:
        """What justifies a block in `view` on top. If the block below is not final, its own view was given up after all."""
        committee, top = self.committee, self.view if self.waiting else self.view + 1
        terms = committee.covering_terms(self.view, view)
        firsts = [top if committee.term(top) == term else first for term, first in terms]
        skips = tuple(self.certificate("nullify", first) for first in firsts)
        self.store.apply([SaveCertificate(skip) for skip in skips])
        return skips

    def next_term(self) -> int:
        return self.committee.term_start(self.committee.term(self.view + 1) + 1)

    def block(
        self,
        view: int,
        skips: tuple[Certificate, ...] = (),
        mark: int = 0,
        txs: tuple[bytes, ...] = (),
        after: bytes = b"",
        epoch: int | None = None,
    ) -> bytes:
        """A notarized block on top; `mark` tells the histories apart, `after` names the members after the epoch."""
        epoch = self.committee.epoch if epoch is None else epoch
        keys = self.committee.validators_hash
        self.time_ms += 1 + mark
        rest = (merkle.root(txs), len(txs), self.time_ms, keys, after or keys, self.committee.leader(view))
        place = (GENESIS.chain_id, epoch, view, self.height + 1, self.head_id, self.view)
        block = Block(Header(*place, *rest), txs, skips)
        self.head_id, self.height, self.view = block.header.id, self.height + 1, view
        self.store.apply(
            [SaveBlock(block), SaveCertificate(self.certificate("notarize", view, self.head_id))]
        )
        self.waiting.append(block)
        return self.head_id

    def final(
        self, view: int, skips: tuple[Certificate, ...] = (), mark: int = 0, txs: tuple[bytes, ...] = ()
    ) -> bytes:
        """A block on top that is final with all below it."""
        block_id = self.block(view, skips, mark, txs)
        cert = self.certificate("finalize", view, block_id)
        self.store.apply([Finalized(tuple((b, ()) for b in self.waiting), cert)])
        self.waiting.clear()
        return block_id

    def end(
        self,
        view: int,
        places: tuple[int, ...],
        skips: tuple[Certificate, ...] = (),
        mark: int = 0,
        helpers: tuple[int, ...] = (),
        delay: int = 0,
    ) -> bytes:
        """The last block of the epoch, final by itself or by empty blocks in the views of `helpers`."""
        members = tuple(MEMBERS[p] for p in places)
        change, after = agreed(self.committee.epoch, members), validators_hash(GENESIS, members)
        last_id = self.block(view, skips, mark, (change_tx(GENESIS, self.committee.epoch, members),), after)
        last, height = self.waiting[-1].header, self.height
        for helper in helpers:
            self.block(helper, self.skips(helper), delay, after=after)
        links = tuple(b.header for b in self.waiting if b.header.height > height)
        cert = self.certificate("finalize", self.view, self.head_id)
        final = tuple((b, ()) for b in self.waiting if b.header.height <= height)
        self.store.apply([Finalized(final, cert), EpochEnded(Handover(last, links, cert, change))])
        self.waiting.clear()
        self.committee = successor(self.committee, last, members)
        self.head_id, self.height, self.view, self.time_ms = last_id, height, 0, last.time_ms
        return last_id

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


def compare(*journals: Journal) -> audit.Report:
    paths = [journal.path for journal in journals]
    report = audit.audit(paths, GENESIS)
    turned = audit.audit(paths[::-1], GENESIS)
    assert (turned.fork, turned.heights) == (report.fork, report.heights[::-1])
    assert {m for m, _ in turned.convictions} == {m for m, _ in report.convictions}
    return report


def guilty(report: audit.Report) -> set[tuple[int, str]]:
    """Who is convicted of what, by an evidence file that whoever has the genesis can check."""
    assert audit.verify(encode(audit.evidence_file(report, GENESIS)), GENESIS) == report.convictions
    return {(MEMBERS.index(member), pair.kind) for member, pair in report.convictions}


def test_prefixes_of_one_history_are_no_fork(journals):
    a, b = journals
    for journal in journals:
        journal.final(1)
        journal.final(2)
    a.final(3)
    assert compare(a, b) == audit.Report((3, 2), None, (), (), ())


def test_two_empty_databases_are_one_history(journals):
    assert compare(*journals) == audit.Report((0, 0), None, (), (), ())


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


steps = st.tuples(st.booleans(), st.booleans(), st.lists(st.booleans(), max_size=2) | st.none())
"""A block: whether the term before it is skipped; whether it has a finalization of its own; if it ends the epoch, the blocks that help
to finalize it, and whether each skips a term."""
histories = st.lists(steps, min_size=1, max_size=4)


def build(journal: Journal, history: list, members: tuple[int, ...], mark: int) -> None:
    for number, (is_skipping, is_certified, ending) in enumerate(history, 1):
        view = journal.next_term() if is_skipping else journal.view + 1
        skips = journal.skips(view)
        if ending is not None:
            helpers, at = [], view
            for skips_too in ending:
                at = COMMITTEE.term_start(COMMITTEE.term(at + 1) + 1) if skips_too else at + 1
                helpers.append(at)
            places = members if journal.committee.members[0] is not MEMBERS[members[0]] else members[::-1]
            journal.end(view, places, skips, mark, tuple(helpers))
        else:
            add = journal.final if is_certified or number == len(history) else journal.block
            add(view, skips, mark)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.just(False), st.just(True), st.none() | st.just([])), max_size=3),
    histories,
    histories,
)
def test_every_fork_convicts_all_who_signed_both_histories_and_nobody_else(common, first, second):
    with tempfile.TemporaryDirectory() as folder:
        a, b = Journal(Path(folder, "a"), SIDE_A), Journal(Path(folder, "b"), SIDE_B)
        for journal, side, members, mark in ((a, first, ONLY_A, 0), (b, second, ONLY_B, 1)):
            build(journal, common, TURNED, 0)
            build(journal, side, members, mark)
        try:
            report = compare(a, b)
        finally:
            a.close()
            b.close()
    assert report.fork == len(common) + 1
    epoch = sum(ending is not None for _, _, ending in common)
    assert {pair.epoch for _, pair in report.convictions} == {epoch}
    assert {member for member, _ in guilty(report)} == set(LIARS)


# --- epochs -----------------------------------------------------------------------------------------------------------------


def names(report: audit.Report) -> set[tuple[str, int, str]]:
    guilty(report)
    return {(member.name, pair.epoch, pair.kind) for member, pair in report.convictions}


def test_one_history_over_changes_of_members_is_no_fork(journals):
    a, b = journals
    for journal in journals:
        journal.final(1)
        journal.end(2, TURNED)
        journal.final(1)
    a.end(2, ONLY_A, helpers=(3, 5))
    assert compare(a, b) == audit.Report((4, 3), None, (), (), ())
    a.final(1)
    assert compare(a, b).heights == (5, 3)


def test_a_fork_in_a_later_epoch_names_its_makers_by_their_places_in_that_epoch(journals):
    a, b = journals
    for journal in journals:
        journal.end(1, TURNED, helpers=(2,))
    a.final(1)
    b.final(1, mark=1)
    report = compare(a, b)
    assert report.fork == 2
    assert {pair.first.signer for _, pair in report.convictions} == {1, 2}
    assert {name for name, epoch, _ in names(report) if epoch == 1} == {"n1", "n2"}
    assert [MEMBERS[p] for p in TURNED] == list(report.handovers[0].change.members)


@pytest.mark.parametrize("places", [TURNED, ONLY_B])
@pytest.mark.parametrize("view", [1, 5])
def test_two_ends_of_one_epoch_convict_who_signed_both(journals, places, view):
    """Whether the next members are the same or others; in the same view, or after nullifying the term of the other."""
    a, b = journals
    a.end(1, TURNED)
    b.end(view, places, b.skips(view), mark=1)
    for journal in journals:
        journal.final(1)
    report = compare(a, b)
    assert report.fork == 1
    liars = {(name, epoch) for name, epoch, _ in names(report)}
    assert liars >= {("n1", 0), ("n2", 0)}
    assert {name for name, _ in liars} == {"n1", "n2"}


def test_an_end_that_only_one_side_has_convicts_who_signed_both(journals):
    a, b = journals
    a.end(1, ONLY_A)
    a.final(1)
    b.final(1, mark=1)
    b.final(2)
    assert names(compare(a, b)) >= {("n1", 0, "E2"), ("n2", 0, "E2")}


def test_what_helped_to_finalize_the_last_block_of_an_epoch_convicts_too(journals):
    """B's block is final in a view that A skipped only on its way to the block that made the end of the epoch final."""
    a, b = journals
    a.end(1, TURNED, helpers=(9,))
    b.final(5, b.skips(5), mark=1)
    assert names(compare(a, b)) == {("n1", 0, "E4"), ("n2", 0, "E4")}


def test_different_proofs_of_one_end_are_no_fork(tmp_path, journals):
    a, b = journals
    third = Journal(tmp_path / "c", SIDE_B)
    a.end(1, TURNED)
    b.end(1, TURNED, helpers=(2,))
    third.end(1, TURNED, helpers=(2, 3))
    assert compare(a, b, third) == audit.Report((1, 1, 1), None, (), (), ())
    third.close()


def test_proofs_of_one_end_that_contradict_each_other_convict_who_signed_both(journals):
    a, b = journals
    a.end(1, TURNED, helpers=(2,))
    b.end(1, TURNED, helpers=(2,), delay=1)
    report = compare(a, b)
    assert report.fork is None
    assert names(report) == {("n1", 0, "E2"), ("n2", 0, "E2")}


def test_databases_of_other_nodes_on_a_side_bring_what_one_that_fetched_its_blocks_lacks(tmp_path, journals):
    a, b = journals
    third = Journal(tmp_path / "c", SIDE_A)
    for journal in (a, third):
        journal.end(1, TURNED)
        journal.block(1)
        journal.final(2)
    b.end(1, TURNED)
    b.final(1, mark=1)
    a.edit("DELETE FROM certificates")
    report = compare(a, b)
    assert (report.fork, report.branches, report.convictions) == (2, ((0,), (1,)), ())
    report = compare(a, b, third)
    assert (report.fork, report.branches) == (2, ((0, 2), (1,)))
    assert names(report) == {("n1", 1, "E3"), ("n2", 1, "E3")}
    third.close()


def test_a_second_fork_in_a_later_epoch_of_one_side_is_proved_as_well(tmp_path, journals, monkeypatch):
    """However many certificates lie between the two."""
    monkeypatch.setattr(audit, "MAX_CERTIFICATES", 3)
    a, b = journals
    third = Journal(tmp_path / "c", SIDE_B)
    a.final(1)
    for journal in (b, third):
        for view in range(1, 9):
            journal.block(view, mark=1)
        journal.final(9)
        journal.end(10, ONLY_B)
        journal.final(1)
    b.block(2)
    b.final(3)
    third.signers = (1, 2, 5)
    third.final(2, mark=1)
    report = compare(a, b, third)
    assert (report.fork, report.branches) == (1, ((0,), (1, 2)))
    assert names(report) >= {(name, 1, "E3") for name in ("n1", "n2")}
    assert {name for name, _, _ in names(report)} == {"n1", "n2"}
    third.close()


@pytest.mark.parametrize("epoch", [0, 5])
def test_a_block_of_another_epoch_below_a_certified_one_is_refused(journals, epoch):
    a, b = journals
    for journal in journals:
        journal.end(1, TURNED)
    b.block(1, epoch=epoch)
    b.final(2)
    b.edit("UPDATE final SET epoch = ? WHERE height = 2", epoch)
    with pytest.raises(Unauthentic, match="does not belong"):
        audit.audit([a.path, b.path], GENESIS)


@pytest.mark.parametrize(("admins", "quorum"), [(2, False), (1, True), (0, True)])
def test_nobody_is_framed_by_an_end_of_an_epoch_that_no_quorum_signed_or_no_admins(journals, admins, quorum):
    a, _ = journals
    a.end(1, TURNED)
    true = a.store.handovers(0)[0]
    replace = msgspec.structs.replace
    framed = tuple(replace(m, key=KEYS[5].public if i == 0 else m.key) for i, m in enumerate(MEMBERS[:4]))
    header = replace(true.header, next_validators_hash=validators_hash(GENESIS, framed))
    proof = certificate("finalize", 1, header.id, SIDE_A)
    if not quorum:
        proof = replace(true.finalization, block=header.id)
    false = replace(true, header=header, change=agreed(0, framed, admins), finalization=proof)
    committee = successor(COMMITTEE, header, framed)
    votes = [committee.sign(KEYS[5], 0, "notarize", 1, bytes([i]) * 32) for i in (1, 2)]
    pair = conflict(committee, *votes)
    file = audit.EvidenceFile("diptych/evidence/2", GENESIS.hash, (false,), (pair,))
    with pytest.raises(Unauthentic, match="end of epoch 0"):
        audit.verify(encode(file), GENESIS)


def test_a_chain_that_halted_over_a_false_end_is_audited(journals):
    a, b = journals
    a.final(1)
    b.block(1, mark=1, txs=(b"no change at all",), after=b"x" * 32)
    cert = b.certificate("finalize", 1, b.head_id)
    b.store.apply(
        [Finalized(((b.waiting[0], ()),), cert), Halted("it names members that no change in it names")]
    )
    assert names(compare(a, b)) >= {("n1", 0, "E2"), ("n2", 0, "E2")}


EPOCH_CHANGES = [
    ("DELETE FROM epochs", Unauthentic, "lacks what proves the members of epoch 1"),
    ("UPDATE epochs SET epoch = 7", Unauthentic, "the end of epoch 0 is missing"),
    ("UPDATE epochs SET handover = x'00'", Malformed, "the end of an epoch"),
    ("UPDATE epochs SET handover = 1", Malformed, "wrong type"),
    ("UPDATE final SET epoch = 0", Unauthentic, "lacks what proves|does not hold|does not belong"),
    ("UPDATE final SET epoch = 9", Unauthentic, "epoch 9"),
    ("UPDATE final SET epoch = 'x'", Unauthentic, "epoch x"),
    ("DELETE FROM final WHERE height > 1", Unauthentic, "lacks blocks below height 2"),
    ("INSERT INTO votes VALUES (9, 1, 'nullify', x'00')", Unauthentic, "epoch 9"),
    ("INSERT INTO certificates VALUES (9, 1, 'nullify', x'00')", Unauthentic, "epoch 9"),
    ("DROP TABLE epochs", Malformed, "no consensus database"),
]


@pytest.mark.parametrize(("statement", "kind", "what"), EPOCH_CHANGES)
def test_a_database_with_changed_epochs_is_refused_with_the_reason(journals, statement, kind, what):
    a, b = journals
    for journal in journals:
        journal.final(1)
        journal.end(2, TURNED)
        journal.final(1)
    b.edit(statement)
    with pytest.raises(kind, match=what):
        audit.audit([a.path, b.path], GENESIS)


@pytest.mark.parametrize("is_end", [True, False])
def test_the_end_of_another_history_does_not_fit_a_chain(journals, is_end):
    """B holds a true proof of an end that is not the one in its chain."""
    a, b = journals
    a.end(1, TURNED)
    if is_end:
        b.end(1, ONLY_B, mark=1)
    else:
        b.final(1)
    b.edit("INSERT OR REPLACE INTO epochs VALUES (0, 1, ?)", encode(a.store.handovers(0)[0]))
    with pytest.raises(Unauthentic, match=r"does not belong|lacks blocks"):
        audit.audit([a.path, b.path], GENESIS)


def test_evidence_of_a_later_epoch_convinces_nobody_without_every_handover_before_it(journals):
    a, b = journals
    for journal in journals:
        journal.end(1, TURNED)
        journal.end(1, (0, 1, 2, 3))
    a.final(1)
    b.final(1, mark=1)
    good = audit.evidence_file(compare(a, b), GENESIS)
    first, second = good.handovers
    replace = msgspec.structs.replace
    assert audit.verify(encode(good), GENESIS)
    swapped = replace(second, change=first.change)
    for handovers in ((), (first,), (second,), (second, first), (first, swapped), (first, first)):
        with pytest.raises(Unauthentic):
            audit.verify(encode(replace(good, handovers=handovers)), GENESIS)
    for epoch in (0, 1, 3):
        pairs = tuple(replace(pair, epoch=epoch) for pair in good.pairs)
        with pytest.raises(Unauthentic, match="pair 1"):
            audit.verify(encode(replace(good, pairs=pairs)), GENESIS)


# --- what the files must be ---------------------------------------------------------------------------------------------------


def test_a_fork_is_reported_even_if_the_files_do_not_name_its_makers(journals):
    a, b = journals
    a.block(1)
    a.final(2)
    a.edit("DELETE FROM certificates")
    b.final(1, mark=1)
    report = compare(a, b)
    assert (report.fork, report.convictions) == (1, ())


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
    assert compare(a, b).convictions == ()


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
        audit.audit([a.path, b.path], GENESIS)


def test_a_view_or_computed_column_in_place_of_a_table_is_not_queried(journals):
    a, b = journals
    b.edit("ALTER TABLE final RENAME TO real")
    b.edit("CREATE VIEW final AS SELECT * FROM real")
    with pytest.raises(Malformed, match="final is missing or different"):
        audit.audit([a.path, b.path], GENESIS)


def test_certificates_of_too_few_or_of_other_keys_do_not_make_a_fork(journals):
    a, b = journals
    a.final(1)
    block_id = b.final(1, mark=1)
    cert = certificate("finalize", 1, block_id, SIDE_B)
    false = msgspec.structs.replace(cert, signers=signer_set((0, 1, 2)))
    b.edit("UPDATE final SET certificate = ?", encode(false))
    with pytest.raises(Unauthentic, match="finalization at height 1 does not hold"):
        audit.audit([a.path, b.path], GENESIS)


def test_what_is_no_database_is_refused(tmp_path, journals):
    junk = tmp_path / "junk"
    for content in (b"", b"no database at all", b"SQLite format 3\0" + bytes(4096)):
        junk.write_bytes(content)
        with pytest.raises(Malformed, match="no consensus database"):
            audit.audit([journals[0].path, junk], GENESIS)
    with pytest.raises(NotFound):
        audit.audit([journals[0].path, tmp_path / "nothing"], GENESIS)


def test_the_audit_leaves_a_closed_database_and_its_folder_as_they_are(journals):
    a, b = journals
    a.final(1)
    for journal in journals:
        journal.close()
    before = {f: f.read_bytes() for j in journals for f in j.path.parent.iterdir()}
    audit.audit([a.path, b.path], GENESIS)
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
    rows = msgspec.json.decode(checked.output)
    assert [(row["member"], row["epoch"]) for row in rows] == [("n1", 0), ("n2", 0)]


def test_the_command_names_members_by_the_epoch_and_tells_the_sides_apart(tmp_path, journals):
    a, b = journals
    third = Journal(tmp_path / "c", SIDE_A)
    toml = tmp_path / "genesis.toml"
    toml.write_text(genesis_file.to_toml(GENESIS))
    for journal in (a, b, third):
        journal.end(1, (4, 1, 2, 3, 0))
    run = CliRunner().invoke
    words = ["audit", *(str(j.path) for j in (a, b, third)), "--genesis", str(toml)]
    done = run(cli.app, words)
    assert done.exit_code == 0
    assert "heights 1, 1, 1" in done.output
    for journal, signers in ((a, (0, 1, 2, 3)), (b, (1, 2, 3, 4)), (third, (0, 1, 2, 3))):
        journal.signers = signers
    a.final(1)
    b.final(1, mark=1)
    done = run(cli.app, ["-o", "json", *words])
    assert done.exit_code == 9
    told = msgspec.json.decode(done.output)
    assert told["branches"] == [[str(a.path)], [str(b.path)]]
    assert {row["member"] for row in told["evidence"]} == {"n1", "n2", "n3"}
    assert {row["key"] for row in told["evidence"]} == {KEYS[i].public.hex() for i in (1, 2, 3)}
    third.close()
    assert run(cli.app, words[:2] + words[4:]).exit_code == 1, "one database says nothing"


def test_a_database_whose_old_bodies_were_archived_is_audited_as_before(journals):
    a, b = journals
    for journal in journals:
        journal.final(1, txs=(b"a transaction",))
        journal.final(2)
    for data in bodies(a):
        a.edit("UPDATE blocks SET data = ? WHERE view = 1", encode(msgspec.structs.replace(data, txs=())))
    assert compare(a, b) == audit.Report((2, 2), None, (), (), ())
    for data in bodies(b):
        b.edit(
            "UPDATE blocks SET data = ? WHERE view = 1", encode(msgspec.structs.replace(data, txs=(b"b",)))
        )
    with pytest.raises(Unauthentic, match="does not belong"):
        audit.audit([a.path, b.path], GENESIS)


def bodies(journal: Journal) -> list[Block]:
    with sqlite3.connect(journal.path) as db:
        found = db.execute("SELECT data FROM blocks WHERE view = 1").fetchall()
    db.close()
    return [decode_block(data) for (data,) in found]
