"""Backups of running nodes and their way back: nothing lost, nothing half, and no vote before the node has rejoined."""

import asyncio
import hashlib
import itertools
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from node_world import World

import node.backup
from crypto.errors import Conflict, DiptychError, Malformed, NotFound, Unauthentic
from node.backup import MANIFEST, Manifest, backup, restore
from node.prune import prune
from node.store import JOURNAL, LEDGER, Store
from protocol.block import decode_block


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
    "receipts of the future": f"{LEDGER}: UPDATE receipts SET height = 9",
    "executed too far": f"{LEDGER}: INSERT INTO executed VALUES (99, zeroblob(32))",
    "another root": f"{LEDGER}: UPDATE executed SET root = zeroblob(32) WHERE height > 0",
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
        f"{JOURNAL}: INSERT INTO votes VALUES (99, 'notarize', x'00')",
        f"{JOURNAL}: INSERT INTO certificates VALUES (99, 'notarize', x'00')",
        f"{JOURNAL}: INSERT INTO evidence VALUES (x'00')",
        f"{JOURNAL}: INSERT INTO blocks VALUES (x'00', 99, x'00')",
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
