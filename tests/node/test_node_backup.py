"""Backups of running nodes and their way back: nothing lost, nothing half, and no vote before the node has rejoined."""

import asyncio
import hashlib
import itertools
import sqlite3
import stat
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from node_world import World

import node.backup
from crypto.codec import encode
from crypto.errors import Conflict, DiptychError, Malformed, NotFound, Unauthentic
from node.backup import MANIFEST, Manifest, backup, restore
from node.ledger import Ledger
from node.prune import prune
from node.store import JOURNAL, LEDGER, Store
from protocol.block import Block, Chain, decode_block
from protocol.core import Effect, EpochEnded, Finalized, Restored, SaveBlock
from protocol.epochs import Handover
from protocol.genesis import Genesis
from tests.simulation.cluster import Cluster, Disk, request_tx


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    await made.stop()


def save(world: World, i: int, out: Path) -> Manifest:
    return backup(world.data(i), out, world.genesis, f"n{i}")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_backup_of_a_running_node_is_consistent_and_complete(world, tmp_path):
    await world.start()
    await world.grow(0, 3)
    running, out = world.nodes[0], tmp_path / "saved"
    made = save(world, 0, out)
    assert (made.height, made.block) == (running.core.tip.height, running.core.tip.id.hex())
    assert (made.executed_height, made.receipts_root) == (
        running.executed_height,
        running.receipts_root.hex(),
    )
    assert sorted(f.name for f in out.iterdir()) == [JOURNAL, LEDGER, MANIFEST]
    assert msgspec.json.decode((out / MANIFEST).read_bytes(), type=Manifest) == made
    assert digest(out / JOURNAL) == made.journal_sha256
    assert digest(out / LEDGER) == made.ledger_sha256
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in out.iterdir())
    await world.grow(0)
    assert running.core.tip.height > made.height, "the node has gone on"


async def test_a_backup_taken_while_blocks_are_made_has_no_ledger_ahead_of_its_journal(
    world, tmp_path, monkeypatch
):
    await world.start()
    await world.grow(0)
    loop, copy = asyncio.get_running_loop(), node.backup._copy

    def copy_slowly(source: Path, target: Path) -> None:
        copy(source, target)
        asyncio.run_coroutine_threadsafe(world.grow(0, 2), loop).result()

    monkeypatch.setattr(node.backup, "_copy", copy_slowly)
    made = await asyncio.to_thread(save, world, 0, tmp_path / "saved")
    assert made.executed_height < made.height
    restore(tmp_path / "saved", tmp_path / "new", world.genesis, "n0")


async def test_a_restored_node_refuses_to_start_without_rejoin_then_rejoins_and_votes_again(world, tmp_path):
    await world.start()
    await world.grow(0, 2)
    save(world, 3, tmp_path / "saved")
    await world.grow(0, 2)
    await world.stop(3)
    world.data(3).rename(tmp_path / "old")
    (tmp_path / "n3.journal").unlink()  # the key on a new machine, without the file beside it
    restore(tmp_path / "saved", world.data(3), world.genesis, "n3")
    with pytest.raises(Conflict, match="--rejoin"):
        world.make(3)
    with pytest.raises(Conflict, match="--rejoin"):
        world.make(3)
    await world.start(3, rejoin=True)
    restored = world.nodes[3]
    await world.until(lambda: restored.executed_height == world.nodes[0].executed_height)
    assert restored.receipts_root == world.nodes[0].receipts_root
    await world.stop(3)
    await world.start(3)  # the refusal does not come back
    restored = world.nodes[3]
    await world.until(lambda: restored.core.abstain_until)  # the reports of the others have come
    while world.nodes[0].core.view <= restored.core.abstain_until:
        await world.grow(0)
    await world.stop(1)
    await world.grow(0, 3)  # three of four: the restored one votes
    assert not any(n.evidence for n in world.nodes.values())


async def test_a_changed_backup_is_not_restored_and_leaves_nothing_behind(world, tmp_path):
    await world.start(0)
    saved = tmp_path / "saved"
    save(world, 0, saved)
    for name in (JOURNAL, LEDGER):
        before = (saved / name).read_bytes()
        (saved / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(Unauthentic, match=name):
            restore(saved, tmp_path / "new", world.genesis, "n0")
        (saved / name).write_bytes(before)
        assert [f.name for f in (tmp_path / "new").iterdir()] == ["lock"]
    other = msgspec.structs.replace(world.genesis, chain_id="diptych/1/storage/other")
    with pytest.raises(Malformed, match="another genesis"):
        restore(saved, tmp_path / "new", other, "n0")
    (saved / LEDGER).unlink()
    with pytest.raises(DiptychError, match="No such file"):
        restore(saved, tmp_path / "new", world.genesis, "n0")
    for text in (b"", b"[]", b"{}", b"\xff"):
        (saved / MANIFEST).write_bytes(text)
        with pytest.raises(Malformed, match="no manifest"):
            restore(saved, tmp_path / "new", world.genesis, "n0")


async def test_a_copy_of_the_files_by_hand_is_refused_without_rejoin_too(world, tmp_path):
    await world.start(0)
    save(world, 0, tmp_path / "saved")
    await world.stop(0)
    for name in (JOURNAL, LEDGER):
        (world.data(0) / name).write_bytes((tmp_path / "saved" / name).read_bytes())
    with pytest.raises(Conflict, match="--rejoin"):
        world.make(0)


async def test_neither_a_backup_nor_a_data_folder_is_overwritten(world, tmp_path):
    await world.start(0)
    saved = tmp_path / "saved"
    save(world, 0, saved)
    with pytest.raises(Conflict, match="not overwritten"):
        save(world, 0, saved)
    with pytest.raises(Conflict, match="in use"):
        restore(saved, world.data(0), world.genesis, "n0")
    await world.stop(0)
    with pytest.raises(Conflict, match="not overwritten"):
        restore(saved, world.data(0), world.genesis, "n0")


async def test_a_folder_without_or_with_damaged_databases_makes_no_backup(world, tmp_path):
    with pytest.raises(NotFound, match="never run"):
        save(world, 0, tmp_path / "saved")
    await world.start(0)
    await world.stop(0)
    path = world.data(0) / LEDGER
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(Malformed, match="damaged"):
        save(world, 0, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert not [f for f in tmp_path.iterdir() if f.name.endswith(".new")]


async def test_a_backup_holds_no_key(world, tmp_path):
    await world.start(0)
    save(world, 0, tmp_path / "saved")
    held = b"".join(f.read_bytes() for f in (tmp_path / "saved").iterdir())
    assert world.keys[0].seed not in held
    assert world.seeds[0] not in held


def rewrite(saved: Path, *statements: str) -> None:
    """Change the databases of a backup as a forger would, manifest and all."""
    names = {"journal_sha256": JOURNAL, "ledger_sha256": LEDGER}
    for name in names.values():
        with closing(sqlite3.connect(saved / name, isolation_level=None)) as db:
            for statement in statements:
                if statement.startswith(name + ": "):
                    db.execute(statement.removeprefix(name + ": "))
    manifest = msgspec.json.decode((saved / MANIFEST).read_bytes(), type=Manifest)
    hashes = {field: digest(saved / name) for field, name in names.items()}
    (saved / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, **hashes)))


FORGERIES = {
    "certificate of another block": f"{JOURNAL}: UPDATE final SET certificate = (SELECT certificate FROM final WHERE height = 1)",
    "last block dropped": f"{JOURNAL}: DELETE FROM final WHERE height = (SELECT MAX(height) FROM final)",
    "first block dropped": f"{JOURNAL}: DELETE FROM final WHERE height = 1",
    "body dropped": f"{JOURNAL}: UPDATE blocks SET data = (SELECT data FROM blocks LIMIT 1)",
    "bodies said to be archived": f"{JOURNAL}: INSERT INTO meta VALUES ('pruned', x'02')",
    "block without data": f"{JOURNAL}: DELETE FROM blocks",
    "receipt dropped": f"{LEDGER}: DELETE FROM receipts WHERE height = 2",
    "receipt filed elsewhere": f"{LEDGER}: UPDATE receipts SET record = zeroblob(16)",
    "receipts of the future": f"{LEDGER}: UPDATE receipts SET height = height + 9",
    "executed too far": f"{LEDGER}: INSERT INTO executed VALUES (99, zeroblob(32), zeroblob(32))",
    "another root": f"{LEDGER}: UPDATE executed SET root = zeroblob(32) WHERE height > 0",
    "another state root": f"{LEDGER}: UPDATE executed SET state = zeroblob(32) WHERE height > 0",
    "a value of the state": f"{LEDGER}: UPDATE state SET value = zeroblob(32)",
    "a value too many": f"{LEDGER}: INSERT INTO state VALUES (zeroblob(32), zeroblob(32))",
    "a bucket of the tree": f"{LEDGER}: INSERT OR REPLACE INTO buckets VALUES (0, zeroblob(64))",
    "a value dropped": f"{LEDGER}: DELETE FROM state WHERE key = (SELECT MIN(key) FROM state)",
    "a bucket that there is not": f"{LEDGER}: INSERT INTO buckets VALUES (65536, zeroblob(64))",
    "a tree of its own": f"{LEDGER}: INSERT INTO hashes VALUES (1, 7)",
    "changes of a tree of its own": f"{LEDGER}: INSERT INTO changed VALUES (1, x'00')",
    "another ledger's start": f"{LEDGER}: UPDATE executed SET root = zeroblob(32) WHERE height = 0",
    "no start": f"{LEDGER}: DELETE FROM executed WHERE height = 0",
    "a trigger": f"{LEDGER}: CREATE TRIGGER t AFTER INSERT ON receipts BEGIN DELETE FROM receipts; END",
    "another chain": f"{JOURNAL}: UPDATE meta SET value = zeroblob(32) WHERE name = 'genesis'",
}


async def test_a_forged_snapshot_is_not_taken_even_with_a_matching_manifest(world, tmp_path):
    await world.start()
    await world.grow(0, 3)
    for number, (what, statement) in enumerate(FORGERIES.items()):
        saved, new = tmp_path / f"saved-{number}", tmp_path / f"new-{number}"
        backup(world.data(0), saved, world.genesis, "n0", is_snapshot=True)
        rewrite(saved, statement)
        with pytest.raises((Unauthentic, Malformed), match=r"take another backup|get the right"):
            restore(saved, new, world.genesis, "n3")
        assert [f.name for f in new.iterdir()] == ["lock"], what


async def test_votes_certificates_and_evidence_of_a_stranger_are_not_taken(world, tmp_path):
    await world.start()
    await world.grow(0, 3)
    saved, new = tmp_path / "saved", tmp_path / "new"
    backup(world.data(0), saved, world.genesis, "n0", is_snapshot=True)
    rewrite(
        saved,
        f"{JOURNAL}: INSERT INTO votes VALUES (0, 99, 'notarize', x'00')",
        f"{JOURNAL}: INSERT INTO certificates VALUES (0, 99, 'notarize', x'00')",
        f"{JOURNAL}: INSERT INTO evidence VALUES (x'00')",
        f"{JOURNAL}: INSERT INTO blocks VALUES (x'00', 0, 99, x'00')",
        f"{JOURNAL}: INSERT INTO meta VALUES ('abstention', x'00')",
    )
    restore(saved, new, world.genesis, "n3")
    with closing(sqlite3.connect(new / JOURNAL)) as db:
        for table in ("votes", "certificates", "evidence"):
            assert db.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)
        assert db.execute("SELECT COUNT(*) FROM blocks WHERE view = 99").fetchone() == (0,)
        assert db.execute("SELECT COUNT(*) FROM meta WHERE name = 'abstention'").fetchone() == (0,)


async def test_the_backup_of_one_node_is_not_given_to_another(world, tmp_path):
    await world.start(0)
    save(world, 0, tmp_path / "saved")
    with pytest.raises(Conflict, match="snapshot"):
        restore(tmp_path / "saved", tmp_path / "new", world.genesis, "n1")


@pytest.fixture
def aging(monkeypatch):
    """All bodies but the last are old."""
    monkeypatch.setattr("node.prune.MAX_LIFETIME_MS", 1)
    monkeypatch.setattr("node.store.MAX_LIFETIME_MS", 1)


async def test_a_new_member_starts_from_a_snapshot_without_replaying_and_votes(world, tmp_path, aging):
    await world.start(0, 1, 2)
    await world.grow(0, 6)
    made = backup(world.data(1), tmp_path / "saved", world.genesis, "n1", is_snapshot=True)
    await world.grow(0, 2)
    restore(tmp_path / "saved", world.data(3), world.genesis, "n3")
    await world.start(3, rejoin=True)
    new = world.nodes[3]
    assert new.pruned_height == made.height - 1, "all bodies but the last are old in this test"
    await world.until(lambda: new.executed_height >= world.nodes[0].executed_height)
    assert new.receipts_root == world.nodes[0].receipts_root
    await world.grow(0, 8)
    await world.stop(1)
    await world.grow(3, 3)
    assert (await world.get(3, f"/v1/block/{made.height + 1}")).status_code == 200
    refused = await world.get(3, "/v1/block/1")
    assert refused.status_code == 404
    assert "archived" in refused.json()["detail"]


async def test_pruning_archives_old_bodies_and_leaves_a_node_that_works(world, tmp_path, aging):
    await world.start()
    await world.grow(0, 6)
    pruned, archive = world.nodes[2], tmp_path / "archive.db"
    bodies = {h: (await pruned.block_at(h)).txs for h in range(1, 6)}
    with pytest.raises(Conflict, match="in use"):
        prune(world.data(2), archive, world.genesis, 0)
    await world.stop(2)
    height = pruned.core.tip.height
    assert prune(world.data(2), archive, world.genesis, 10**9) == (1, 0), "nothing is that old"
    assert prune(world.data(2), archive, world.genesis, 0) == (1, height - 1)
    assert prune(world.data(2), archive, world.genesis, 0) == (height, height - 1)
    with closing(sqlite3.connect(archive)) as db:
        kept = [decode_block(d) for (d,) in db.execute("SELECT data FROM archive ORDER BY height")]
    assert [b.header.height for b in kept] == list(range(1, height))
    assert all(a.header.id == b.header.parent for a, b in itertools.pairwise(kept))
    assert {b.header.height: b.txs for b in kept[:5]} == bodies
    await world.start(2)
    await world.grow(2, 2)
    assert world.nodes[2].receipts_root == world.nodes[0].receipts_root
    assert (await world.get(2, "/v1/block/1")).status_code == 404
    assert (await world.get(2, "/v1/status")).json()["pruned_height"] == height - 1
    await world.stop(2)
    assert prune(world.data(2), archive, world.genesis, 0)[0] == height, "the archive grows"
    save(world, 2, tmp_path / "saved")


async def test_a_pruned_node_serves_what_it_has_and_nothing_false(world, tmp_path, aging):
    await world.start(0, 1, 2)
    await world.grow(0, 5)
    await world.stop()
    _, last = prune(world.data(0), tmp_path / "archive.db", world.genesis, 0)
    store = Store(world.data(0), world.genesis)
    try:
        assert store.page(1) is store.page(last) is None
        page = store.page(last + 1)
        assert page
        assert page.blocks[0].txs
        with pytest.raises(NotFound, match="archived"):
            store.block_at(last)
    finally:
        store.close()


async def test_bodies_that_guard_against_replays_stay(world, tmp_path):
    await world.start(0, 1, 2)
    await world.grow(0, 3)
    await world.stop()
    assert prune(world.data(0), tmp_path / "archive.db", world.genesis, 0) == (1, 0)


async def test_an_archive_of_another_history_is_not_added_to(world, tmp_path, aging):
    await world.start(0, 1, 2)
    await world.grow(0, 3)
    await world.stop()
    archive = tmp_path / "archive.db"
    other = World(tmp_path / "other", size=1)
    await other.start(0)
    await other.grow(0, 3)
    await other.stop()
    prune(other.data(0), archive, other.genesis, 0)
    with pytest.raises(Conflict, match="another chain"):
        prune(world.data(0), archive, world.genesis, 0)
    with closing(sqlite3.connect(archive)) as db, db:
        db.execute("UPDATE chain SET genesis = ?", (world.genesis.hash,))
    with pytest.raises(Malformed, match="other blocks"):
        prune(world.data(0), archive, world.genesis, 0)
    await world.start(0, 1, 2)
    assert (await world.get(0, "/v1/block/1")).status_code == 200


# --- chains whose members have changed ---------------------------------------------------------------------------------------


class FolderDisk(Disk):
    """A simulated host's disk in a real data folder."""

    def __init__(self, folder: Path, genesis: Genesis, *, rejoin: bool = False) -> None:
        self.store = Store(folder, genesis)
        self.store.bind(folder.with_suffix(".journal"), rejoin=rejoin)
        super().__init__(self.store.committee)

    def apply(self, effects: list[Effect]) -> None:
        self.store.apply(effects)
        super().apply(effects)

    def load(self) -> Restored:
        return self.store.load()

    def page(self, height: int, size: int = 8) -> Chain | None:
        return self.store.page(height)


def execute(folder: Path, store: Store, genesis: Genesis) -> None:
    """As the node does beside its journal."""
    ledger = Ledger(folder, genesis)
    while found := store.block_at(ledger.head()[0] + 1):
        ledger.execute([found[0]])
    ledger.close()


@dataclass
class Grown:
    """A chain in the third epoch, with a block of its own, in a data folder; empty blocks on top made the end of the first final."""

    folder: Path
    cluster: Cluster
    blocks: list[Block]

    @property
    def genesis(self) -> Genesis:
        return self.cluster.genesis

    def open(self, folder: Path | None = None) -> Store:
        return Store(folder or self.folder, self.genesis)


def grow(folder: Path, blocks_after: int = 1) -> Grown:
    cluster = Cluster()
    store, made = Store(folder, cluster.genesis), []
    for members, helpers in (((3, 2, 1, 0), (2, 3)), ((0, 1, 3, 2), ())):
        blocks, handover = cluster.ending(store.committee, *members, helpers=helpers)
        final = Finalized(((blocks[0], ()),), handover.finalization)
        store.apply([*map(SaveBlock, blocks), final, EpochEnded(handover)])
        made.append(blocks[0])
    for view in range(1, blocks_after + 1):
        parent = made[-1].header if view > 1 else None
        block = cluster.block(view, request_tx(view), parent=parent, committee=store.committee)
        proof = cluster.certificate("finalize", view, block.header.id, committee=store.committee)
        store.apply([SaveBlock(block), Finalized(((block, ()),), proof)])
        made.append(block)
    execute(folder, store, cluster.genesis)
    store.close()
    return Grown(folder, cluster, made)


@pytest.mark.parametrize("is_snapshot", [True, False])
@pytest.mark.parametrize("blocks_after", [0, 2])
def test_a_copy_of_a_chain_with_epochs_brings_its_members_and_their_proofs_along(
    tmp_path, aging, is_snapshot, blocks_after
):
    """Also when the last block is proved by nothing but the end of its epoch."""
    grown, new = grow(tmp_path / "old", blocks_after), tmp_path / "new"
    made = backup(grown.folder, tmp_path / "saved", grown.genesis, "n0", is_snapshot=is_snapshot)
    assert (made.height, made.block) == (len(grown.blocks), grown.blocks[-1].header.id.hex())
    restore(tmp_path / "saved", new, grown.genesis, "n0")
    old, restored = grown.open(), grown.open(new)
    assert restored.committee.epoch == 2
    assert restored.committee.anchor == old.committee.anchor
    assert restored.handovers(0) == old.handovers(0)
    assert restored.load().tip == old.load().tip
    assert restored.pruned_height() == (made.height - 1 if is_snapshot else 0)
    old.close()
    restored.close()


def test_the_end_of_an_epoch_that_only_blocks_on_top_made_final_is_copied(tmp_path):
    cluster, folder = Cluster(), tmp_path / "old"
    store = Store(folder, cluster.genesis)
    blocks, handover = cluster.ending(store.committee, 3, 2, 1, 0, helpers=(2, 3))
    store.apply(
        [*map(SaveBlock, blocks), Finalized(((blocks[0], ()),), handover.finalization), EpochEnded(handover)]
    )
    execute(folder, store, cluster.genesis)
    store.close()
    assert backup(folder, tmp_path / "saved", cluster.genesis, "n0").height == 1
    restore(tmp_path / "saved", tmp_path / "new", cluster.genesis, "n0")


@pytest.mark.parametrize("joins_after", [False, True])
def test_a_member_of_a_later_epoch_starts_from_a_snapshot_and_votes(tmp_path, aging, joins_after):
    """Whether it is a member when the snapshot is taken or only after the next change."""
    cluster = Cluster(spares=1)
    genesis, old, saved, young = cluster.genesis, tmp_path / "n0", tmp_path / "saved", tmp_path / "n4"
    cluster.disks[0] = FolderDisk(old, genesis)
    cluster.start(0)
    cluster.crash(4)
    change = cluster.change(0, *((3, 2, 1, 0) if joins_after else (0, 1, 2, 3, 4)))
    for raw in (change, request_tx(1), request_tx(2)):
        cluster.submit(raw)
        cluster.run_until(lambda raw=raw: all(raw in cluster.final_txs(i) for i in range(4)))
    execute(old, cluster.disks[0].store, genesis)
    assert backup(old, saved, genesis, "n0", is_snapshot=True).height == 3
    restore(saved, young, genesis, "n4")
    with pytest.raises(Conflict, match="--rejoin"):
        FolderDisk(young, genesis)
    new = cluster.disks[4] = FolderDisk(young, genesis, rejoin=True)
    cluster.start(4)
    assert new.store.pruned_height() == 2
    if joins_after:
        cluster.submit(cluster.change(1, 0, 1, 2, 3, 4))
        cluster.run_until(lambda: all(core.committee.epoch == 2 for core in cluster.cores))
    cluster.run_until(lambda: new.load().abstain_until is not None)
    number = 10
    while not new.votes:
        cluster.submit(request_tx(number))
        cluster.run_until(lambda n=number: all(request_tx(n) in cluster.final_txs(i) for i in range(5)))
        number += 1
    assert min(view for view, _ in new.votes) > new.load().abstain_until
    assert not any(disk.evidence for disk in cluster.disks)
    for host in (0, 4):
        cluster.disks[host].store.close()


def forge(handover: Handover, **changes: object) -> bytes:
    return encode(msgspec.structs.replace(handover, **changes))


def false_ends(grown: Grown) -> dict[str, tuple[str, tuple[object, ...]]]:
    """Changes of a journal's epochs, each with its values."""
    store = grown.open()
    first, second = store.handovers(0)
    store.close()
    link, other_view = first.links[0], grown.cluster.ending(grown.cluster.committee, 3, 2, 1, 0, view=2)[1]
    put = "UPDATE epochs SET handover = ? WHERE epoch = 0"
    return {
        "no proof": ("DELETE FROM epochs", ()),
        "no second proof": ("DELETE FROM epochs WHERE epoch = 1", ()),
        "other members": (put, (forge(first, change=msgspec.structs.replace(first.change, members=grown.genesis.members[:3])),)),
        "a block that only helped as the last one": (put, (forge(first, header=link, links=first.links[1:]),)),
        "no link": (put, (forge(first, links=()),)),
        "the proof of the next end": (put, (encode(second),)),
        "the same change in another view": (put, (encode(other_view),)),
        "no handover": (put, (b"\x90",)),
        "not even bytes": (put, (7,)),
        "elsewhere": ("UPDATE epochs SET height = 5 WHERE epoch = 0", ()),
        "one more": ("INSERT INTO epochs VALUES (2, 3, ?)", (encode(second),)),
        "blocks of another epoch": ("UPDATE final SET epoch = 0", ()),
        "a body filed under another view": ("UPDATE blocks SET view = 99 WHERE epoch = 0", ()),
        "a body filed under another epoch": ("UPDATE blocks SET epoch = 2", ()),
    }  # fmt: skip


def test_a_snapshot_with_a_false_end_of_an_epoch_is_not_taken(tmp_path):
    grown = grow(tmp_path / "old")
    for number, (what, (statement, values)) in enumerate(false_ends(grown).items()):
        saved, new = tmp_path / f"saved-{number}", tmp_path / f"new-{number}"
        backup(grown.folder, saved, grown.genesis, "n0", is_snapshot=True)
        with closing(sqlite3.connect(saved / JOURNAL, isolation_level=None)) as db:
            db.execute(statement, values)
        rewrite(saved)
        with pytest.raises((Unauthentic, Malformed)):
            restore(saved, new, grown.genesis, "n3")
        assert [f.name for f in new.iterdir()] == ["lock"], what


def test_a_block_on_top_of_the_end_of_an_epoch_is_not_taken_for_a_part_of_the_chain(tmp_path):
    """It is final and bears the members' true signatures, but its epoch ended below it."""
    grown, saved = grow(tmp_path / "old", 0), tmp_path / "saved"
    cluster, genesis = grown.cluster, grown.genesis
    blocks, handover = cluster.ending(cluster.committee, 3, 2, 1, 0, helpers=(2, 3))
    backup(grown.folder, saved, genesis, "n0", is_snapshot=True)
    helper = blocks[1]
    proof = cluster.certificate("finalize", 2, helper.header.id)
    rows = [
        ("DELETE FROM final WHERE height > 1", ()),
        ("DELETE FROM blocks WHERE epoch > 0", ()),
        ("DELETE FROM epochs", ()),
        ("INSERT INTO blocks VALUES (?, 0, 2, ?)", (helper.header.id, encode(helper))),
        ("INSERT INTO final VALUES (2, ?, 0, 2, ?, ?)", (helper.header.id, helper.header.time_ms, encode(proof))),
        ("INSERT INTO epochs VALUES (0, 2, ?)", (forge(handover, header=helper.header, links=handover.links[1:]),)),
    ]  # fmt: skip
    with closing(sqlite3.connect(saved / JOURNAL, isolation_level=None)) as db:
        for statement, values in rows:
            db.execute(statement, values)
    rewrite(saved)
    with pytest.raises(Unauthentic, match="epoch 0"):
        restore(saved, tmp_path / "new", genesis, "n3")


def test_a_certified_block_that_names_another_epoch_is_not_taken(tmp_path):
    cluster, folder = Cluster(), tmp_path / "old"
    store = Store(folder, cluster.genesis)
    block = cluster.block(1, epoch=1)
    proof = cluster.certificate("finalize", 1, block.header.id)
    store.apply([SaveBlock(block), Finalized(((block, ()),), proof)])
    store._db.execute("UPDATE final SET epoch = 1")
    Ledger(folder, cluster.genesis).close()
    with pytest.raises(Unauthentic, match="does not belong"):
        backup(folder, tmp_path / "saved", cluster.genesis, "n0")
    store.close()


def test_pruning_keeps_what_proves_the_members(tmp_path, aging):
    grown, archive = grow(tmp_path / "old", 2), tmp_path / "archive.db"
    store = grown.open()
    handovers = store.handovers(0)
    store.close()
    assert prune(grown.folder, archive, grown.genesis, 0) == (1, 3)
    store = grown.open()
    assert (store.committee.epoch, store.handovers(0)) == (2, handovers)
    assert store.page(3) is None
    assert store.page(4).blocks == (grown.blocks[3],)
    store.close()
    with closing(sqlite3.connect(archive)) as db:
        kept = [decode_block(d) for (d,) in db.execute("SELECT data FROM archive ORDER BY height")]
    assert kept == grown.blocks[:3]
    assert [b.header.epoch for b in kept] == [0, 1, 2]
    made = backup(grown.folder, tmp_path / "saved", grown.genesis, "n0")
    restore(tmp_path / "saved", tmp_path / "new", grown.genesis, "n0")
    assert made.executed_height == 4
