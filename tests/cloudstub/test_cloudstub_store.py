import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cloudstub_world import NOW, OTHER_PATIENT, PATIENT, Record, files, is_empty, make_record, rows, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudstub.store import BlobStore, OverQuota, Quota, read_chunk, read_whole
from crypto.errors import Conflict, NotFound, Unauthentic, Unavailable
from protocol.record import BlobRef, CloudEntry

PLENTY = Quota()


async def pieces(data: bytes, size: int = 4096) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def put(store: BlobStore, record: Record, quota: Quota = PLENTY) -> None:
    async with store.staging() as staging:
        for ref in record.refs:
            await staging.put(ref, pieces(record.blobs[ref.hash]))
        holdings = {(view.record, ref) for view in record.views for ref in record.refs}
        await store.publish(record.views, holdings, staging, quota)


def open_to_others(folder: Path) -> list[Path]:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    return [path for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cloud"


async def test_a_published_record_is_there_after_reopening(folder: Path):
    record = make_record()
    async with BlobStore(folder) as store:
        await put(store, record)
    async with BlobStore(folder) as store:
        assert [await store.view(view.address) for view in record.views] == record.views
        for ref in record.refs:
            assert read_whole(store.path(ref.hash), ref) == record.blobs[ref.hash]
        sizes = {ref.hash: ref.size for ref in record.refs}
        assert await store.held(PATIENT.public, record.views[0].record) == sizes
        assert await store.usage(PATIENT.public) == (sum(sizes.values()), len(sizes))


async def test_publishing_the_same_record_again_changes_nothing(folder: Path):
    record = make_record()
    async with BlobStore(folder) as store:
        await put(store, record)
        before = await store.usage(PATIENT.public)
        await put(store, record)
        assert await store.usage(PATIENT.public) == before
    assert files(folder) == {ref.hash.hex() for ref in record.refs}
    assert rows(folder, "view") == 2


async def test_a_blob_of_one_patient_or_record_is_not_held_by_another(folder: Path):
    record = make_record()
    async with BlobStore(folder) as store:
        await put(store, record)
        assert await store.held(OTHER_PATIENT.public, record.views[0].record) == {}
        assert await store.held(PATIENT.public, os.urandom(16)) == {}


async def test_another_view_of_the_same_version_is_refused_and_leaves_no_trace(folder: Path):
    first = make_record()
    second = make_record(record=first.views[0].record)
    third = make_record(owner=OTHER_PATIENT, record=first.views[0].record)
    async with BlobStore(folder) as store:
        await put(store, first)
        with pytest.raises(Conflict):
            await put(store, second)
        assert await store.view(second.views[0].address) is None
        assert files(folder) == {ref.hash.hex() for ref in first.refs}
        await put(store, third)  # somebody who guesses a record's name cannot keep its owner from using it


async def test_when_one_view_of_several_conflicts_none_becomes_readable(folder: Path):
    taken = make_record(chains=["sharing-1"])
    both = make_record(record=taken.views[0].record)
    async with BlobStore(folder) as store:
        await put(store, taken)
        with pytest.raises(Conflict):
            await put(store, both)
        assert [await store.view(view.address) for view in both.views] == [None, None]


async def test_a_failed_publication_removes_only_blobs_that_nobody_holds(folder: Path):
    mine, clash = make_record(chains=["sharing-1"]), make_record(chains=["sharing-1"])
    async with BlobStore(folder) as store:
        await put(store, mine)
        clash.views[0] = make_record(record=mine.views[0].record, chains=["sharing-1"]).views[0]
        clash.blobs |= mine.blobs
        with pytest.raises(Conflict):
            await put(store, clash)
    assert files(folder) == {ref.hash.hex() for ref in mine.refs}


@pytest.mark.parametrize(("spare_bytes", "spare_blobs"), [(-1, 0), (0, -1)])
async def test_a_quota_refuses_one_byte_or_blob_too_many(folder: Path, spare_bytes: int, spare_blobs: int):
    record = make_record()
    size, blobs = sum(ref.size for ref in record.refs), len(record.refs)
    async with BlobStore(folder) as store:
        with pytest.raises(OverQuota):
            await put(store, record, Quota(size + spare_bytes, blobs + spare_blobs))
        assert is_empty(folder)
        await put(store, record, Quota(size, blobs))


async def test_bytes_that_do_not_hash_to_their_name_never_get_it(folder: Path):
    ref = BlobRef.of(b"right")
    async with BlobStore(folder) as store:
        async with store.staging() as staging:
            with pytest.raises(Unauthentic):
                await staging.put(ref, pieces(b"wrong"))
            with pytest.raises(Unauthentic):
                await staging.put(BlobRef(ref.hash, 9), pieces(b"right"))
            assert not staging.hashes
        assert is_empty(folder)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(min_size=1, max_size=3000), size=st.integers(1, 4000))
async def test_a_blob_reads_back_however_it_was_cut(tmp_path: Path, data: bytes, size: int):
    async with BlobStore(tmp_path / "cloud") as store, store.staging() as staging:
        ref = BlobRef.of(data)
        await staging.put(ref, pieces(data, size))
        path = staging.path(ref.hash)
        assert b"".join(read_chunk(path, at, size) for at in range(0, len(data), size)) == data


async def test_a_second_store_on_the_folder_is_refused_until_the_first_closes(folder: Path):
    async with BlobStore(folder):
        with pytest.raises(Conflict, match="another cloud server"):
            await BlobStore(folder).__aenter__()
    async with BlobStore(folder):
        pass


async def test_a_folder_of_an_unknown_layout_is_refused(folder: Path):
    async with BlobStore(folder):
        pass
    with sqlite3.connect(folder / "meta.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(Conflict, match="another version"):
        await BlobStore(folder).__aenter__()


async def test_leftovers_of_a_crash_are_gone_after_opening(folder: Path):
    async with BlobStore(folder):
        (folder / "tmp" / "dead").mkdir()
        (folder / "tmp" / "dead" / "half").write_bytes(b"half")
    async with BlobStore(folder):
        assert is_empty(folder)


async def test_only_the_owner_of_the_process_may_read_the_files(folder: Path):
    async with BlobStore(folder) as store:
        await put(store, make_record())
        assert open_to_others(folder) == []


async def test_a_nonce_is_good_once_also_across_a_restart_until_it_expires(folder: Path):
    nonce = os.urandom(16)
    async with BlobStore(folder) as store:
        assert await store.use_nonce(PATIENT.public, nonce, NOW + 10, NOW)
        assert await store.use_nonce(OTHER_PATIENT.public, nonce, NOW + 10, NOW)
    async with BlobStore(folder) as store:
        assert not await store.use_nonce(PATIENT.public, nonce, NOW + 10, NOW + 10)
        assert await store.use_nonce(PATIENT.public, os.urandom(16), NOW + 99, NOW + 11)
    assert rows(folder, "nonce") == 1


async def test_of_many_equal_nonces_at_once_exactly_one_is_good(folder: Path):
    nonce = os.urandom(16)
    async with BlobStore(folder) as store:
        answers = await asyncio.gather(*(store.use_nonce(PATIENT.public, nonce, NOW, NOW) for _ in range(20)))
    assert sum(answers) == 1


async def test_records_published_at_once_are_all_there(folder: Path):
    records = [make_record(sizes=(100, 200)) for _ in range(12)]
    async with BlobStore(folder) as store:
        await asyncio.gather(*(put(store, record) for record in records))
        for record in records:
            assert await store.view(record.views[0].address) == record.views[0]
    assert files(folder) == {ref.hash.hex() for record in records for ref in record.refs}
    assert rows(folder, "placing") == 0


async def test_cancelling_a_publication_leaves_the_store_usable_and_whole(folder: Path):
    async with BlobStore(folder) as store:
        record, other = make_record(), make_record()
        task = asyncio.create_task(put(store, record))
        await until(lambda: rows(folder, "placing") > 0)
        task.cancel()
        await asyncio.wait([task])
        await put(store, other)
        if view := await store.view(record.views[0].address):
            for ref in (*view.envelopes, *record.parts):
                read_whole(store.path(ref.hash), ref)
        assert await store.view(other.views[0].address)
    held = {ref.hash.hex() for r in (record, other) for ref in r.refs} & files(folder)
    assert len(held) == rows(folder, "holding")


async def test_a_blob_that_rotted_on_disk_is_not_passed_off_as_good(folder: Path):
    record = make_record()
    async with BlobStore(folder) as store:
        await put(store, record)
        ref = record.refs[0]
        store.path(ref.hash).write_bytes(b"rot")
        with pytest.raises(Unavailable, match="damaged"):
            read_whole(store.path(ref.hash), ref)
        await put(store, record)
        assert read_whole(store.path(ref.hash), ref) == record.blobs[ref.hash]


async def test_a_request_that_meets_a_deletion_writes_nothing_about_the_record_any_more(folder: Path):
    record = make_record()
    name, entry = record.views[0].record, CloudEntry(NOW, "c", 1, bytes(32), None, None, 0, "served", 0)
    async with BlobStore(folder) as store:
        await put(store, record)
        assert await store.admit(PATIENT.public, name, entry, os.urandom(16), NOW)
        await store.refuse(PATIENT.public, name, entry)
        assert (rows(folder, "entry"), rows(folder, "log")) == (2, 1)
        await store.delete(PATIENT.public, name, None, NOW)
        with pytest.raises(NotFound):
            await store.admit(PATIENT.public, name, entry, os.urandom(16), NOW)
        await store.refuse(PATIENT.public, name, entry)
    assert (rows(folder, "entry"), rows(folder, "log")) == (0, 0)
