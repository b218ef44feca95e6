"""The journal: what a step writes is there whole or not at all, nothing signed is forgotten or contradicted, and its pages bring others up."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from crypto.codec import encode
from crypto.errors import Conflict, Unauthentic
from node import store as store_module
from node.store import FolderLock, Store
from protocol.block import Block, Certificate, Chain, Committee, decode_message, decode_vote
from protocol.core import (
    Core,
    Effect,
    EpochEnded,
    Finalized,
    Halted,
    Record,
    Restored,
    SaveAbstention,
    SaveBlock,
    SaveCertificate,
    SaveVote,
    anchor_tip,
)
from protocol.evidence import Evidence, conflict
from protocol.mempool import Mempool, Pending
from protocol.tx import decode_tx
from tests.simulation.cluster import WALL0, Cluster, Disk, Link, make_genesis, request_tx

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.cut = lambda a, b: True
    return made


@pytest.fixture
def store(tmp_path, cluster):
    made = Store(tmp_path / "data", cluster.genesis)
    yield made
    made.close()


def vote_of(cluster: Cluster, kind: str, view: int, block: bytes | None = None) -> SaveVote:
    return SaveVote(cluster.committee.sign(cluster.keys[0], 0, kind, view, block))


def entries(block: Block) -> tuple[Pending, ...]:
    return tuple(Pending(raw, decode_tx(raw)) for raw in block.txs)


def chain_of(cluster: Cluster, *views: int, txs_each: int = 1) -> list[Block]:
    """Blocks at these views (of one term), each with transactions of its own."""
    blocks: list[Block] = []
    for view in views:
        raws = [request_tx(100 * view + k) for k in range(txs_each)]
        blocks.append(cluster.block(view, *raws, parent=blocks[-1].header if blocks else None))
    return blocks


def finalized(cluster: Cluster, blocks: list[Block], named: Block | None = None) -> list[Effect]:
    """The effects that make `blocks` final by a finalization of the last, or of `named` above it."""
    header = (named or blocks[-1]).header
    cert = cluster.certificate("finalize", header.view, header.id)
    saves: list[Effect] = [SaveBlock(b) for b in blocks]
    return [*saves, Finalized(tuple((b, entries(b)) for b in blocks), cert), SaveCertificate(cert)]


def core_from(cluster: Cluster, restored: Restored, me: int = 0, committee: Committee | None = None) -> Core:
    mempool, committee = Mempool(cluster.genesis.chain_id), committee or cluster.committee
    return Core(committee, cluster.keys[me], mempool, restored, cluster.now, cluster.wall())


def test_what_is_signed_is_forced_to_the_disk_and_what_others_give_back_is_not(store, cluster):
    def is_forced(*effects: Effect) -> bool:
        store.apply(effects)
        return store._db.execute("PRAGMA synchronous").fetchone() == (2,)

    (block,) = chain_of(cluster, 1)
    assert is_forced(SaveBlock(block), vote_of(cluster, "notarize", 1, block.header.id))
    assert not is_forced(SaveCertificate(cluster.certificate("notarize", 1, block.header.id)))
    assert is_forced(vote_of(cluster, "finalize", 1, block.header.id))
    assert not is_forced(*finalized(cluster, [block]))
    assert is_forced(SaveAbstention(64))
    assert not is_forced()
    assert is_forced(Halted("a fork"))


def state_of(core: Core) -> tuple:
    """All that a restart must bring back."""
    return (
        core.tip,
        core.view,
        core.halted,
        core.abstain_until,
        dict(core._own),
        {i: h.is_valid for i, h in core._held.items()},
        set(core._orphans),
        dict(core._notarizations),
        dict(core._nullifications),
        core._finalization,
        dict(core.mempool.final),
    )


# --- one step, whole or not at all -------------------------------------------------------------------------------------


def test_a_step_that_fails_at_its_last_effect_keeps_nothing_of_it(store, cluster):
    first = vote_of(cluster, "nullify", 1)
    store.apply([first])
    before = store.load()
    blocks = chain_of(cluster, 1, 2)
    step = [
        SaveBlock(blocks[0]),
        SaveCertificate(cluster.certificate("notarize", 1, blocks[0].header.id)),
        *finalized(cluster, blocks[:1]),
        vote_of(cluster, "notarize", 2, blocks[1].header.id),
        Halted("reason"),
        first,
    ]
    with pytest.raises(sqlite3.IntegrityError):
        store.apply(step)
    assert store.load() == before
    assert store.block_at(1) is None
    store.apply(step[:-1])
    assert store.load().tip.height == 1


@pytest.mark.parametrize("kind", ["notarize", "finalize", "nullify"])
def test_a_second_vote_of_a_kind_in_a_view_is_never_written(store, cluster, kind):
    blocks = [None] if kind == "nullify" else [b"x" * 32, b"y" * 32]
    store.apply([vote_of(cluster, kind, 3, blocks[0])])
    with pytest.raises(sqlite3.IntegrityError):
        store.apply([vote_of(cluster, kind, 3, blocks[-1])])
    assert [v.block for v in store.load().votes] == [blocks[0]]


def test_a_disk_without_room_refuses_the_step_and_takes_it_later(store, cluster):
    blocks = chain_of(cluster, 1, txs_each=200)
    store._db.execute("PRAGMA max_page_count = 1").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.apply(finalized(cluster, blocks))
    assert store.load().tip.height == 0
    store._db.execute("PRAGMA max_page_count = 100000").fetchone()
    store.apply(finalized(cluster, blocks))
    assert store.load().tip.height == 1


def test_what_was_written_when_the_process_died_is_there_and_the_open_step_is_not(tmp_path, cluster, store):
    """The files of a living store, copied in the middle of a transaction, are what a power cut leaves."""
    store.apply([vote_of(cluster, "nullify", 1)])
    store._db.execute("BEGIN IMMEDIATE")
    store._db.execute("INSERT INTO votes VALUES (0, 2, 'nullify', x'00')")
    shutil.copytree(tmp_path / "data", tmp_path / "after")
    store._db.execute("ROLLBACK")
    after = Store(tmp_path / "after", cluster.genesis)
    assert [(v.view, v.kind) for v in after.load().votes] == [(1, "nullify")]
    after.close()


# --- whose folder it is ------------------------------------------------------------------------------------------------


def test_a_second_process_on_the_folder_is_refused_until_the_first_ends(tmp_path, cluster):
    store = Store(tmp_path / "data", cluster.genesis)
    with pytest.raises(Conflict, match="in use by another process"):
        Store(tmp_path / "data", cluster.genesis)
    program = (
        "import sys; from pathlib import Path; from node.store import FolderLock\n"
        "try: FolderLock(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__)"
    )

    def other() -> str:
        command = [sys.executable, "-c", program, str(tmp_path / "data")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    assert other() == "Conflict"
    store.close()
    assert other() == ""


def test_a_folder_of_another_chain_is_refused_and_left_usable(tmp_path, cluster):
    Store(tmp_path, cluster.genesis).close()
    other = msgspec.structs.replace(cluster.genesis, chain_id="diptych/1/storage/other")
    with pytest.raises(Conflict, match="another chain"):
        Store(tmp_path, other)
    Store(tmp_path, cluster.genesis).close()


# --- restarts ----------------------------------------------------------------------------------------------------------


class StoreDisk(Disk):
    """The model disk and a real journal side by side: every start is from the real one, and both must agree."""

    def __init__(self, cluster: Cluster, host: int, folder: Path) -> None:
        super().__init__(cluster.committee)
        self._cluster, self._host, self._folder = cluster, host, folder
        self.store = Store(folder, cluster.genesis)
        self.signed: set[bytes] = set()

    def apply(self, effects: list[Effect]) -> None:
        self.store.apply(effects)
        super().apply(effects)
        self.signed |= {encode(e.vote) for e in effects if isinstance(e, SaveVote)}

    def load(self) -> Restored:
        self.store.close()
        self.store = Store(self._folder, self._cluster.genesis)
        real, model = self.store.load(), super().load()
        assert (self.store.committee.epoch, self.store.committee.anchor) == (
            self.committee.epoch,
            self.committee.anchor,
        )
        after = [core_from(self._cluster, r, self._host, self.store.committee) for r in (real, model)]
        assert state_of(after[0]) == state_of(after[1])
        return real

    def page(self, height: int, size: int = 8) -> Chain | None:
        return self.store.page(height)


@pytest.mark.parametrize("seed", range(6))
def test_cores_on_real_journals_crash_restart_and_catch_up_without_a_fork_or_a_forgotten_vote(
    seed, tmp_path, monkeypatch
):
    monkeypatch.setattr(store_module, "PAGE_BLOCKS", 5)
    cluster = Cluster(seed=seed, link=Link(0.1, (0.001, 0.05), 0.1))
    for i in range(4):
        cluster.disks[i] = StoreDisk(cluster, i, tmp_path / str(i))
        cluster.start(i)
    for k in range(10):
        cluster.submit(request_tx(k))
        victim = cluster.random.randrange(4)
        core = cluster.cores[victim]
        if core and k % 3:
            before, kept = state_of(core), (core.tip, core._own)
            cluster.crash(victim)
            after = core_from(cluster, cluster.disks[victim].load(), victim)
            assert (after.tip, after._own) == kept
            assert state_of(after)[:6] == before[:6]
            cluster.run_for(cluster.random.uniform(0, 2))
            cluster.start(victim)
        cluster.run_for(cluster.random.uniform(0, 1))
        cluster.check_prefixes()
    cluster.link = Link()
    cluster.submit(request_tx(99))
    cluster.run_until(lambda: all(request_tx(99) in cluster.final_txs(i) for i in range(4)), 120)
    cluster.check_prefixes()
    for i, disk in enumerate(cluster.disks):
        assert not disk.evidence, "an honest member never contradicts itself"
        tip = cluster.cores[i].tip
        first = cluster.committee.term_start(cluster.committee.term(tip.view))
        held = {encode(v) for v in disk.store.load().votes}
        ever = {d for d in disk.signed if decode_vote(d).view >= first}
        assert held >= ever, "I8: own votes that may still matter are never forgotten"
        disk.store.close()


def test_transactions_of_the_last_ten_minutes_are_remembered_as_final(tmp_path, cluster):
    store = Store(tmp_path, cluster.genesis)
    blocks = chain_of(cluster, 1, 2)
    store.apply(finalized(cluster, blocks))
    store.close()
    store = Store(tmp_path, cluster.genesis)
    mempool = core_from(cluster, store.load()).mempool
    for block in blocks:
        with pytest.raises(Conflict, match="already final"):
            mempool.add(block.txs[0], WALL0)
    store.close()


def test_a_halt_and_its_evidence_survive_a_restart(tmp_path, cluster):
    pair = [cluster.committee.sign(cluster.keys[2], 2, "finalize", 5, b) for b in (b"x" * 32, b"y" * 32)]
    evidence = conflict(cluster.committee, *pair)
    assert isinstance(evidence, Evidence)
    store = Store(tmp_path, cluster.genesis)
    store.apply([Record(evidence), Record(evidence), Halted("the chain is halted: look")])
    store.close()
    store = Store(tmp_path, cluster.genesis)
    assert store.evidence() == [evidence]
    assert core_from(cluster, store.load()).halted == "the chain is halted: look"
    store.close()


# --- the key and its journal ---------------------------------------------------------------------------------------------


def bound(tmp_path: Path, cluster: Cluster, name: str = "data", *, rejoin: bool = False) -> Store:
    """A store as a node opens it."""
    made = Store(tmp_path / name, cluster.genesis)
    made.bind(tmp_path / "key.journal", rejoin=rejoin)
    return made


def test_an_old_copy_of_the_data_folder_is_refused_and_the_newest_one_is_not(tmp_path, cluster):
    store = bound(tmp_path, cluster)
    for view in (1, 5):
        store.apply([vote_of(cluster, "nullify", view)])
        shutil.copytree(
            tmp_path / "data", tmp_path / f"copy-{view}"
        )  # while it runs, as an operator's script may
    store.close()
    with pytest.raises(Conflict, match=r"old copy: this key has cast 2 votes, and 1 of them .* --rejoin"):
        bound(tmp_path, cluster, "copy-1")
    again = bound(tmp_path, cluster, "copy-5")
    assert [v.view for v in again.load().votes] == [1, 5]
    again.close()


def test_votes_of_terms_that_are_over_count_too(tmp_path, cluster):
    store = bound(tmp_path, cluster)
    blocks = chain_of(cluster, 1, 2, 3, 4)
    store.apply([vote_of(cluster, "notarize", v, b.header.id) for v, b in enumerate(blocks, 1)])
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    above = cluster.block(5, parent=blocks[-1].header)
    store.apply([vote_of(cluster, "notarize", 5, above.header.id), *finalized(cluster, [*blocks, above])])
    assert len(store.load().votes) == 1
    store.close()
    with pytest.raises(Conflict, match="old copy"):
        bound(tmp_path, cluster, "copy")
    bound(tmp_path, cluster).close()


def test_a_journal_ahead_of_its_count_is_taken_as_after_a_power_cut(tmp_path, cluster):
    store = bound(tmp_path, cluster)
    before = (tmp_path / "key.journal").read_bytes()
    store.apply([vote_of(cluster, "nullify", 1)])
    store.close()
    (tmp_path / "key.journal").write_bytes(before)  # the count was still in memory
    store = bound(tmp_path, cluster)
    store.apply([vote_of(cluster, "nullify", 5)])
    store.close()
    bound(tmp_path, cluster).close()


def test_after_a_rejoin_no_copy_from_before_counts_however_many_votes_it_has(tmp_path, cluster):
    store = bound(tmp_path, cluster)
    shutil.copytree(tmp_path / "data", tmp_path / "old")
    store.apply([vote_of(cluster, "nullify", view) for view in (1, 5, 9)])
    store.close()
    bound(tmp_path, cluster, "old", rejoin=True).close()
    with pytest.raises(Conflict, match="names another one"):
        bound(tmp_path, cluster)
    bound(tmp_path, cluster, "old").close()


def test_two_processes_cannot_vote_with_one_key_out_of_two_folders(tmp_path, cluster):
    store = bound(tmp_path, cluster)
    for rejoin in (False, True):
        with pytest.raises(Conflict, match="in use by another process"):
            bound(tmp_path, cluster, "elsewhere", rejoin=rejoin)
    store.close()
    bound(tmp_path, cluster).close()


@pytest.mark.parametrize("text", [b"junk", b"0" * 32, b"0" * 32 + b" 1\n", b"\xff" * 54, b"0" * 500])
def test_a_damaged_file_beside_the_key_is_refused_until_the_node_rejoins(tmp_path, cluster, text):
    bound(tmp_path, cluster).close()
    (tmp_path / "key.journal").write_bytes(text)
    with pytest.raises(Conflict, match=r"damaged.* --rejoin"):
        bound(tmp_path, cluster)
    bound(tmp_path, cluster, rejoin=True).close()
    bound(tmp_path, cluster).close()


def test_a_lock_is_released_once_however_often_it_is_asked_to(tmp_path):
    lock = FolderLock(tmp_path / "data")
    lock.release()
    with (tmp_path / "other").open("w") as other:  # takes the number of the descriptor that was freed
        lock.release()
        other.write("still open")


# --- what is kept ------------------------------------------------------------------------------------------------------


def test_blocks_that_lost_and_votes_of_past_terms_are_dropped_and_final_blocks_stay(store, cluster):
    kept = chain_of(cluster, 1, 2, 3, 4)
    lost = [cluster.block(1, request_tx(900)), cluster.block(3, request_tx(901), parent=kept[1].header)]
    above = cluster.block(5, request_tx(902), parent=kept[3].header)
    votes = [vote_of(cluster, "notarize", v, b"x" * 32) for v in (1, 4, 5, 6)]
    store.apply([*map(SaveBlock, [*lost, above]), *votes, *finalized(cluster, kept)])
    assert [store.block_at(h)[0] for h in (1, 2, 3, 4)] == kept
    assert store.load().blocks == [above]
    assert sorted(v.view for v in store.load().votes) == [1, 4, 5, 6], "the tip's own term still matters"
    store.apply(finalized(cluster, [above]))
    assert sorted(v.view for v in store.load().votes) == [5, 6]
    count = store._db.execute("SELECT count(*) FROM blocks").fetchone()[0]
    assert count == 5, "the blocks that lost are gone"


def test_a_block_above_the_tip_is_there_after_a_restart_of_the_core(store, cluster):
    blocks = chain_of(cluster, 1, 2)
    store.apply(
        [*map(SaveBlock, blocks), SaveCertificate(cluster.certificate("notarize", 1, blocks[0].header.id))]
    )
    core = core_from(cluster, store.load())
    assert (core.view, set(core._held)) == (2, {b.header.id for b in blocks})


# --- epochs ------------------------------------------------------------------------------------------------------------


def ended(
    cluster: Cluster, committee: Committee, *members: int, helpers: tuple[int, ...] = ()
) -> list[Effect]:
    """The effects of the end of an epoch by a block in view 1; blocks in the views of `helpers` make it final."""
    blocks, handover = cluster.ending(committee, *members, helpers=helpers)
    effects: list[Effect] = []
    for block in blocks:
        header = block.header
        notarization = cluster.certificate("notarize", header.view, header.id, committee=committee)
        effects += [SaveBlock(block), SaveCertificate(notarization)]
    final = ((blocks[0], entries(blocks[0])),)
    return [*effects, Finalized(final, handover.finalization), EpochEnded(handover)]


def test_an_epoch_ends_in_the_step_that_finalizes_its_last_block_or_not_at_all(tmp_path, cluster):
    store = Store(tmp_path, cluster.genesis)
    store.apply([vote_of(cluster, "notarize", 1, b"x" * 32), SaveAbstention(7)])
    before, first = store.load(), store.committee
    end = ended(cluster, first, 3, 2, 1, 0)
    with pytest.raises(sqlite3.IntegrityError):
        store.apply(
            [
                *end,
                SaveAbstention(0),
                vote_of(cluster, "notarize", 1, b"y" * 32),
                *[vote_of(cluster, "nullify", 2)] * 2,
            ]
        )
    assert (store.load(), store.committee, store.handovers(0)) == (before, first, [])
    store.apply([*end, SaveAbstention(0)])
    store.close()
    store = Store(tmp_path, cluster.genesis)
    restored, committee = store.load(), store.committee
    assert (committee.epoch, committee.anchor.height) == (1, 1)
    assert [m.name for m in committee.members] == ["n3", "n2", "n1", "n0"]
    assert restored.tip == anchor_tip(committee)
    assert (restored.votes, restored.certificates, restored.blocks, restored.abstain_until) == ([], [], [], 0)
    core = core_from(cluster, restored, committee=committee)
    assert (core.me, core.view) == (3, 1)
    with pytest.raises(Conflict, match="already final"):
        core.mempool.add(end[0].block.txs[0], WALL0)
    store.close()


def test_a_view_of_the_last_epoch_comes_again_in_the_next(store, cluster):
    store.apply([vote_of(cluster, "notarize", 2, b"x" * 32)])
    store.apply(ended(cluster, store.committee, 3, 2, 1, 0))
    vote = store.committee.sign(cluster.keys[0], 3, "notarize", 2, b"y" * 32)
    store.apply([SaveVote(vote)])
    assert store.load().votes == [vote]


def test_of_blocks_that_only_helped_to_finalize_the_last_one_the_certificates_stay(store, cluster):
    """An audit needs them; the blocks are no part of the chain."""
    first = store.committee
    beyond = cluster.certificate("nullify", 9, None)
    store.apply([SaveCertificate(beyond), *ended(cluster, first, 3, 2, 1, 0, helpers=(2, 3))])
    rows = "SELECT view, kind FROM certificates WHERE epoch = 0 ORDER BY view"
    assert store._db.execute(rows).fetchall() == [(1, "notarize"), (2, "notarize"), (3, "notarize")]
    assert store._db.execute("SELECT COUNT(*) FROM blocks").fetchone() == (1,)
    assert store.block_at(1)[1] is None
    assert store.page(1).links == store.handovers(0)[0].links


def test_pages_bring_an_empty_core_up_across_epochs_and_none_crosses_an_end(store, cluster, monkeypatch):
    rosters = [(3, 2, 1, 0), (0, 1, 2, 3), (1, 0, 3, 2)]
    for members, helpers in zip(rosters, ((), (2,), (2, 3)), strict=True):
        store.apply(ended(cluster, store.committee, *members, helpers=helpers))
    block = cluster.block(1, request_tx(1), committee=store.committee)
    proof = cluster.certificate("finalize", 1, block.header.id, committee=store.committee)
    store.apply([SaveBlock(block), Finalized(((block, entries(block)),), proof)])
    monkeypatch.setattr(store_module, "MAX_HANDOVERS", 2)
    core = Cluster().cores[1]
    for epoch in range(4):
        assert core.committee.epoch == epoch
        page = store.page(core.tip.height + 1)
        assert {b.header.epoch for b in page.blocks} == {epoch}
        core.receive(9, decode_message(encode(page)), cluster.now, cluster.wall())
        if epoch < 3:
            core = core.next_epoch(cluster.keys[1])
    assert core.tip.id == block.header.id
    assert [len(store.handovers(e)) for e in range(4)] == [2, 2, 1, 0]


def test_a_journal_of_more_epochs_than_are_read_in_one_go_opens_in_the_last(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_HANDOVERS", 2)
    store = Store(tmp_path, cluster.genesis)
    for members in ((3, 2, 1, 0), (0, 1, 2, 3), (3, 2, 1, 0)):
        store.apply(ended(cluster, store.committee, *members))
    store.close()
    store = Store(tmp_path, cluster.genesis)
    assert store.committee.epoch == 3
    store.close()


def test_a_journal_with_a_false_end_of_an_epoch_does_not_open(tmp_path, cluster):
    store = Store(tmp_path, cluster.genesis)
    store.apply(ended(cluster, store.committee, 3, 2, 1, 0))
    handover = store.handovers(0)[0]
    false = msgspec.structs.replace(
        handover, change=msgspec.structs.replace(handover.change, members=cluster.genesis.members[:3])
    )
    store._db.execute("UPDATE epochs SET handover = ?", (encode(false),))
    store.close()
    with pytest.raises(Unauthentic, match="end of epoch 0"):
        Store(tmp_path, cluster.genesis)


@pytest.mark.parametrize("seed", range(3))
def test_cores_on_real_journals_change_members_crash_and_go_on(seed, tmp_path):
    cluster = Cluster(seed=seed, link=Link(0.05, (0.001, 0.05), 0.1), spares=1)
    for i in range(5):
        cluster.disks[i] = StoreDisk(cluster, i, tmp_path / str(i))
        cluster.start(i)
    for epoch, members in enumerate([(0, 1, 2, 3, 4), (4, 3, 2, 1), (0, 4, 2, 1)]):
        cluster.submit(request_tx(epoch))
        cluster.submit(cluster.change(epoch, *members))
        cluster.run_for(cluster.random.uniform(0, 0.3))
        victim = cluster.random.randrange(5)
        cluster.crash(victim)
        cluster.run_for(cluster.random.uniform(0, 2))
        cluster.start(victim)
        cluster.run_until(
            lambda epoch=epoch: all(c and c.committee.epoch > epoch for c in cluster.cores), 120
        )
        cluster.check_prefixes()
    for disk in cluster.disks:
        assert disk.load().tip.height == len(disk.final)
        assert not disk.evidence
        disk.store.close()


# --- pages -------------------------------------------------------------------------------------------------------------


def catch_up(cluster: Cluster, store: Store, me: int = 1) -> Core:
    """A core with an empty disk that asks the store for page after page, over the wire."""
    core = cluster.cores[me]
    while core.tip.height < store.load().tip.height:
        page = store.page(core.tip.height + 1)
        assert page is not None
        height = core.tip.height
        core.receive(0, decode_message(encode(page)), cluster.now, cluster.wall())
        assert core.tip.height > height, "every page brings the asker on"
    return core


def test_pages_bring_an_empty_core_up_across_runs_of_blocks_without_a_finalization_of_their_own(
    store, cluster, monkeypatch
):
    blocks = chain_of(cluster, 1, 2, 3, 4)
    parent = blocks[-1].header
    for view in (5, 6, 7, 8):
        blocks.append(cluster.block(view, request_tx(100 * view), parent=parent))
        parent = blocks[-1].header
    store.apply(finalized(cluster, blocks[:1]))
    store.apply(finalized(cluster, blocks[1:6]))
    store.apply(finalized(cluster, blocks[6:]))
    for size in (1, 2, 3, 4, 256):
        monkeypatch.setattr(store_module, "PAGE_BLOCKS", size)
        fresh = Cluster()
        core = catch_up(fresh, store)
        assert core.tip.id == parent.id
        assert core.tip.certificate.block == parent.id
        assert len(core.mempool.final) == 8
    monkeypatch.setattr(store_module, "PAGE_BLOCKS", 3)
    page = store.page(2)
    assert [b.header.height for b in page.blocks] == [2, 3, 4], "none of heights 2 to 4 has a finalization"
    assert [h.height for h in page.links] == [5, 6]
    monkeypatch.setattr(store_module, "MAX_LINKS", 1)
    assert store.page(2) is None, "an honest node sends no page that its peers would refuse as too long"


def test_a_node_that_stopped_inside_such_a_run_goes_on_and_serves_it_again(tmp_path, store, cluster):
    blocks = chain_of(cluster, 1, 2, 3)
    store.apply(finalized(cluster, blocks[:1], named=blocks[2]))
    core = core_from(cluster, store.load())
    assert (core.tip.height, core._finalization.block) == (1, blocks[2].header.id)
    assert store.page(1) is None, "nothing final here proves the block yet"
    store.apply(finalized(cluster, blocks[1:]))
    fresh = Cluster()
    assert catch_up(fresh, store).tip.id == blocks[2].header.id


def test_a_page_holds_at_most_its_bytes_but_always_one_block(store, cluster, monkeypatch):
    blocks = chain_of(cluster, 1, 2, 3, txs_each=3)
    for block in blocks:
        store.apply(finalized(cluster, [block]))
    size = len(encode(blocks[0]))
    for limit, count in ((1, 1), (size, 1), (2 * size, 2), (10 * size, 3)):
        monkeypatch.setattr(store_module, "PAGE_BYTES", limit)
        assert len(store.page(1).blocks) == count
    assert store.page(4) is None
    assert store.page(2**62) is None


def test_the_finalization_of_a_block_is_served_with_it(store, cluster):
    blocks = chain_of(cluster, 1, 2)
    store.apply(finalized(cluster, blocks))
    (first, none), (second, own) = store.block_at(1), store.block_at(2)
    assert (first, second, none) == (blocks[0], blocks[1], None)
    assert isinstance(own, Certificate)
    assert cluster.committee.is_valid_certificate(own)
    assert store.block_at(3) is None


def test_a_chain_of_64_members_is_read_back(tmp_path):
    genesis, _ = make_genesis(64)
    cluster = Cluster(64)
    cluster.cut = lambda a, b: True
    store = Store(tmp_path, genesis)
    blocks = chain_of(cluster, 1)
    store.apply(finalized(cluster, blocks))
    assert store.load().tip.id == blocks[0].header.id
    store.close()
