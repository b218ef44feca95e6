import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from cloudstub_world import (
    AUTHORITY,
    CHAINS,
    CLOUD,
    NOW,
    OTHER_PATIENT,
    PATIENT,
    READER,
    WORLD,
    Clock,
    Record,
    config,
    credential,
    files,
    framed,
    is_empty,
    key,
    make_delete,
    make_download,
    make_envelope,
    make_log_request,
    make_record,
    make_ticket,
    make_upload,
    next_version,
    parse_download,
    publish,
    rows,
    until,
    upload_bytes,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cloudstub import server
from cloudstub.server import Limits, create_app
from cloudstub.store import Quota
from configs import web
from configs.web import serve
from crypto.codec import encode
from crypto.errors import Conflict, Malformed, Unauthentic
from protocol.identity import TicketSignature
from protocol.record import (
    MAX_ENVELOPE,
    MAX_LOG_PAGE,
    BlobRef,
    CloudEntry,
    Delete,
    DeletionReceipt,
    Download,
    Index,
    Upload,
    View,
    decode_cloud_log_page,
    decode_deletion_receipt,
    decode_upload_receipt,
)

replace = msgspec.structs.replace


class Cloud:
    """A server, a client of it, and what it has on disk."""

    def __init__(self, folder: Path, clock: Clock, client: httpx2.AsyncClient) -> None:
        self.folder, self.clock, self.client = folder, clock, client

    async def upload(self, body: bytes | Record) -> httpx2.Response:
        content = upload_bytes(body, self.clock.now) if isinstance(body, Record) else body
        return await self.client.post("/v1/upload", content=content)

    async def delete(self, request: Delete | Record) -> httpx2.Response:
        delete = make_delete(request, request.owner) if isinstance(request, Record) else request
        return await self.client.post("/v1/delete", content=encode(delete))

    async def log(self, record: Record) -> list[CloudEntry]:
        """The record's log, checked against the cloud's signature."""
        request = make_log_request(record, record.owner, self.clock.now)
        page = decode_cloud_log_page((await self.client.post("/v1/log", content=encode(request))).content)
        page.verify(request, CLOUD.public)
        head = bytes(32)
        for entry in page.entries:
            head = entry.head_after(head)
        assert (len(page.entries), head) == (page.count, page.head)
        return list(page.entries)

    async def download(self, request: Download | bytes) -> httpx2.Response:
        content = request if isinstance(request, bytes) else encode(request)
        return await self.client.post("/v1/download", content=content)


@contextlib.asynccontextmanager
async def running(folder: Path, limits: Limits | None = None) -> AsyncIterator[Cloud]:
    clock = Clock()
    app = create_app(config(folder, clock, limits))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client,
    ):
        yield Cloud(folder, clock, client)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with running(tmp_path / "cloud") as cloud:
        yield cloud


def check_refused(answer: httpx2.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert set(problem) - {"code"} == {"type", "title", "status", "detail"}
    assert words in problem["detail"]
    assert "Traceback" not in answer.text


# Uploads


async def test_what_a_patient_uploads_a_reader_with_a_ticket_downloads(cloud: Cloud):
    record = make_record()
    answer = await cloud.upload(record)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/msgpack"
    wanted = [record.parts[2], record.parts[0]]
    answer = await cloud.download(make_download(record, READER, wanted))
    assert answer.status_code == 200
    head, parts = parse_download(answer.content)
    assert head.view == record.views[0]
    assert list(head.envelopes) == [record.blobs[ref.hash] for ref in record.views[0].envelopes]
    assert list(head.blobs) == wanted
    assert parts == [record.blobs[ref.hash] for ref in wanted]


async def test_the_receipt_is_the_clouds_signature_on_exactly_this_upload(cloud: Cloud):
    record = make_record()
    upload = make_upload(record)
    answer = await cloud.upload(framed(encode(upload), *record.blobs.values()))
    receipt = decode_upload_receipt(answer.content)
    receipt.verify(upload, CLOUD.public)
    assert receipt.addresses == tuple(view.address for view in record.views)
    assert receipt.upload == type(receipt).make(upload, NOW, CLOUD).upload


async def test_the_patient_needs_no_ticket(cloud: Cloud):
    record = make_record()
    await cloud.upload(record)
    answer = await cloud.download(make_download(record, PATIENT, record.parts))
    assert parse_download(answer.content)[1] == [record.blobs[ref.hash] for ref in record.parts]


async def test_uploading_again_gives_a_fresh_receipt_and_changes_nothing(cloud: Cloud):
    record = make_record()
    body = upload_bytes(record)
    first = decode_upload_receipt((await cloud.upload(body)).content)
    before = files(cloud.folder), rows(cloud.folder, "holding")
    cloud.clock.now += 5
    second = decode_upload_receipt((await cloud.upload(body)).content)
    assert (first.addresses, first.time_ms + 5) == (second.addresses, second.time_ms)
    assert (files(cloud.folder), rows(cloud.folder, "holding")) == before


async def test_a_new_version_need_not_send_the_parts_again(cloud: Cloud):
    old = make_record()
    await cloud.upload(old)
    name = old.views[0].record
    envelope = make_envelope(name, 2, old.parts)
    views = [View(c, name, 2, PATIENT.public, os.urandom(32), (BlobRef.of(envelope),)) for c in CHAINS]
    new = Record(PATIENT, views, old.parts, {BlobRef.of(envelope).hash: envelope})
    assert (await cloud.upload(new)).status_code == 200
    publish(new)
    answer = await cloud.download(make_download(new, READER, old.parts))
    assert parse_download(answer.content)[1] == [old.blobs[ref.hash] for ref in old.parts]


async def test_another_view_of_a_version_that_exists_is_a_conflict(cloud: Cloud):
    record = make_record()
    await cloud.upload(record)
    before = files(cloud.folder)
    rival = make_record(record=record.views[0].record)
    check_refused(await cloud.upload(rival), 409, "another view of this record version")
    assert files(cloud.folder) == before


async def test_of_two_rival_views_at_once_one_wins(cloud: Cloud):
    rivals = [make_record(record=bytes(16)) for _ in range(4)]
    answers = await asyncio.gather(*(cloud.upload(rival) for rival in rivals))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    winner = rivals[[answer.status_code for answer in answers].index(200)]
    assert files(cloud.folder) == {ref.hash.hex() for ref in winner.refs}


def signed(**changes: Any) -> Callable[[Record], bytes]:
    """An upload of the record with a changed body, truly signed."""
    return lambda record: framed(encode(make_upload(record, **changes)), *record.blobs.values())


def forged_signature(record: Record) -> bytes:
    upload = replace(make_upload(record), signature=make_upload(record, time_ms=NOW + 1).signature)
    return framed(encode(upload), *record.blobs.values())


def signed_by_another(record: Record) -> bytes:
    return framed(encode(Upload.make(make_upload(record).body, OTHER_PATIENT)), *record.blobs.values())


def view_of_another_patient(record: Record) -> bytes:
    record.views[1] = replace(record.views[1], patient=OTHER_PATIENT.public)
    return upload_bytes(record)


def unknown_chain(record: Record) -> bytes:
    record.views[1] = replace(record.views[1], chain_id="elsewhere")
    return upload_bytes(record)


def envelope_missing(record: Record) -> bytes:
    del record.blobs[record.views[0].envelopes[0].hash]
    return upload_bytes(record)


def part_missing(record: Record) -> bytes:
    del record.blobs[record.parts[1].hash]
    return upload_bytes(record)


def with_envelope(record: Record, envelope: bytes) -> bytes:
    ref = BlobRef.of(envelope)
    del record.blobs[record.views[0].envelopes[0].hash]
    record.blobs[ref.hash] = envelope
    record.views = [replace(view, envelopes=(ref,)) for view in record.views]
    return upload_bytes(record)


def envelope_garbage(record: Record) -> bytes:
    return with_envelope(record, os.urandom(500))


def envelope_of_another_record(record: Record) -> bytes:
    return with_envelope(record, make_envelope(os.urandom(16), 1, record.parts))


def envelope_of_another_version(record: Record) -> bytes:
    return with_envelope(record, make_envelope(record.views[0].record, 2, record.parts))


def part_size_wrong(record: Record) -> bytes:
    parts = [replace(record.parts[0], size=7), *record.parts[1:]]
    return with_envelope(record, make_envelope(record.views[0].record, 1, parts))


def envelope_size_wrong(record: Record) -> bytes:
    wrong = replace(record.views[0].envelopes[0], size=7)
    record.views = [replace(view, envelopes=(wrong,)) for view in record.views]
    return upload_bytes(record)


def envelope_too_large(record: Record) -> bytes:
    return with_envelope(record, bytes(MAX_ENVELOPE + 1))


def blob_that_nothing_needs(record: Record) -> bytes:
    record.blobs[BlobRef.of(b"stowaway").hash] = b"stowaway"
    return upload_bytes(record)


def tampered_blob(record: Record) -> bytes:
    body = bytearray(upload_bytes(record))
    body[-1] ^= 1
    return bytes(body)


def blob_twice(record: Record) -> bytes:
    return signed(blobs=(*record.refs, record.refs[0]))(record) + next(iter(record.blobs.values()))


def not_canonical(record: Record) -> bytes:
    head = encode(make_upload(record))
    return framed(b"\xdc\x00\x03" + head[1:], *record.blobs.values())


BAD_UPLOADS: list[tuple[Callable[[Record], bytes], int, str]] = [
    (lambda r: b"", 400, "ends before"),
    (lambda r: b"\x00\x10\x00\x01" + bytes(9), 413, "over the limit"),
    (lambda r: framed(os.urandom(300)), 400, "does not decode"),
    (not_canonical, 400, "not canonically encoded"),
    (forged_signature, 401, "signature on the upload"),
    (signed_by_another, 401, "signature on the upload"),
    (signed(credential=credential(PATIENT, key("imposter"))), 401, "the credential"),
    (signed(credential=credential(PATIENT, not_after_ms=NOW)), 403, "not valid now"),
    (signed(credential=credential(PATIENT, not_before_ms=NOW + 1)), 403, "not valid now"),
    (signed(credential=credential(PATIENT, role="doctor")), 403, "only a patient"),
    (signed(cloud=AUTHORITY.public), 403, "another cloud"),
    (signed(time_ms=NOW - 60_001), 403, "last minute"),
    (signed(time_ms=NOW + 60_001), 403, "last minute"),
    (view_of_another_patient, 403, "another patient"),
    (unknown_chain, 403, "a chain that this cloud does not serve"),
    (envelope_missing, 400, "an envelope is neither"),
    (envelope_size_wrong, 400, "an envelope is neither"),
    (envelope_garbage, 400, "an envelope does not decode"),
    (envelope_of_another_record, 400, "another record or version"),
    (envelope_of_another_version, 400, "another record or version"),
    (envelope_too_large, 413, "an envelope of"),
    (part_missing, 400, "a sealed part is neither"),
    (part_size_wrong, 400, "a sealed part is neither"),
    (blob_that_nothing_needs, 400, "none of its views needs"),
    (blob_twice, 400, "lists a blob twice"),
    (tampered_blob, 401, "not the bytes that its hash names"),
    (lambda r: upload_bytes(r)[:-1], 400, "ends before"),
    (lambda r: upload_bytes(r) + b"!", 400, "goes on after"),
]


@pytest.mark.parametrize(("make", "status", "words"), BAD_UPLOADS)
async def test_a_bad_upload_is_refused_with_a_sentence_and_stores_nothing(
    cloud: Cloud, make: Callable[[Record], bytes], status: int, words: str
):
    check_refused(await cloud.upload(make(make_record())), status, words)
    assert is_empty(cloud.folder)


@pytest.mark.parametrize("skew", [-60_000, 60_000])
async def test_a_clock_that_is_one_minute_off_is_borne(cloud: Cloud, skew: int):
    record = make_record()
    assert (await cloud.upload(upload_bytes(record, NOW + skew))).status_code == 200
    assert (await cloud.download(make_download(record, time_ms=NOW + skew))).status_code == 200


ANY_UPLOAD = upload_bytes(make_record(sizes=(40, 50)))


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, len(ANY_UPLOAD) - 1), flip=st.integers(1, 255))
@example(at=len(ANY_UPLOAD) - 1, flip=1)
async def test_no_changed_byte_of_an_upload_gets_past_the_checks(cloud: Cloud, at: int, flip: int):
    body = bytearray(ANY_UPLOAD)
    body[at] ^= flip
    answer = await cloud.upload(bytes(body))
    assert 400 <= answer.status_code < 500
    assert is_empty(cloud.folder)


async def test_another_patients_blob_cannot_be_claimed_by_its_hash(cloud: Cloud):
    victim = make_record()
    await cloud.upload(victim)
    thief = make_record(owner=OTHER_PATIENT)
    envelope = make_envelope(thief.views[0].record, 1, victim.parts)
    stolen = await cloud.upload(with_envelope(thief, envelope))
    check_refused(stolen, 400, "a sealed part is neither")
    absent = await cloud.upload(part_missing(make_record(owner=OTHER_PATIENT)))
    assert stolen.json() == absent.json()
    record = make_record(owner=OTHER_PATIENT)
    record.views = [replace(view, envelopes=victim.views[0].envelopes) for view in record.views]
    record.blobs = {}
    check_refused(await cloud.upload(record), 400, "an envelope is neither")


async def test_a_blob_of_one_record_cannot_be_claimed_for_another(cloud: Cloud):
    first = make_record()
    await cloud.upload(first)
    name = os.urandom(16)
    envelope = make_envelope(name, 1, first.parts)
    ref = BlobRef.of(envelope)
    view = View(CHAINS[0], name, 1, PATIENT.public, bytes(32), (ref,))
    check_refused(
        await cloud.upload(Record(PATIENT, [view], [], {ref.hash: envelope})), 400, "a sealed part is neither"
    )


@pytest.mark.parametrize(
    ("limits", "status", "words"),
    [
        (Limits(quota=Quota(max_bytes=300_000)), 507, "quota"),
        (Limits(quota=Quota(max_blobs=3)), 507, "quota"),
        (Limits(view_bytes=500), 413, "envelopes of a view"),
    ],
)
async def test_limits_of_the_operator_hold(tmp_path: Path, limits: Limits, status: int, words: str):
    async with running(tmp_path / "cloud", limits) as cloud:
        check_refused(await cloud.upload(make_record()), status, words)
        assert is_empty(cloud.folder)


async def test_a_full_quota_does_not_refuse_what_is_already_held(tmp_path: Path):
    record = make_record()
    size = sum(ref.size for ref in record.refs)
    async with running(tmp_path / "cloud", Limits(quota=Quota(size, 4))) as cloud:
        assert (await cloud.upload(record)).status_code == 200
        assert (await cloud.upload(record)).status_code == 200
        check_refused(await cloud.upload(make_record()), 507, "quota")
        assert (await cloud.upload(make_record(owner=OTHER_PATIENT, sizes=(9,)))).status_code == 200


async def test_uploads_under_way_cannot_fill_the_disk_beyond_the_quota(tmp_path: Path):
    record, half = make_record(sizes=(300_000,)), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        body = upload_bytes(record)
        yield body[:200_000]
        await half.wait()
        yield body[200_000:]

    async with running(tmp_path / "cloud", Limits(quota=Quota(max_bytes=500_000))) as cloud:
        first = asyncio.create_task(cloud.client.post("/v1/upload", content=slowly()))
        await until(lambda: any((cloud.folder / "tmp").iterdir()))
        check_refused(await cloud.upload(make_record(sizes=(300_000,))), 507, "under way")
        half.set()
        assert (await first).status_code == 200


async def test_a_client_that_stops_sending_is_told_and_leaves_nothing(tmp_path: Path):
    async def stalling() -> AsyncIterator[bytes]:
        yield upload_bytes(make_record())[:-1]
        await asyncio.Event().wait()

    async with running(tmp_path / "cloud", Limits(patience_s=0, slowest_rate=1 << 30)) as cloud:
        check_refused(await cloud.client.post("/v1/upload", content=stalling()), 408, "too slowly")
        assert is_empty(cloud.folder)


# Downloads


@pytest.fixture
async def stored(cloud: Cloud) -> Record:
    record = make_record()
    assert (await cloud.upload(record)).status_code == 200
    return record


def ticket(**changes: Any) -> Callable[[Record], Download]:
    """A reader's request for the record with a ticket that all nodes signed and that says something else."""
    return lambda r: make_download(r, ticket=make_ticket(r.views[0], **changes))


def signatures(*signers: int) -> Callable[[Record], Download]:
    return lambda r: make_download(r, ticket=make_ticket(r.views[0], signers=signers))


def signed_by_strangers(record: Record) -> Download:
    good = make_ticket(record.views[0])
    foreign = key("stranger").sign("ticket", encode(good.ticket))
    return make_download(
        record, ticket=replace(good, signatures=tuple(TicketSignature(i, foreign) for i in range(4)))
    )


def signed_beyond_members(record: Record) -> Download:
    good = make_ticket(record.views[0])
    extra = (*good.signatures[:2], TicketSignature(9, good.signatures[2].signature))
    return make_download(record, ticket=replace(good, signatures=extra))


def one_signature_for_three(record: Record) -> Download:
    good = make_ticket(record.views[0])
    one = good.signatures[0].signature
    return make_download(
        record, ticket=replace(good, signatures=tuple(TicketSignature(i, one) for i in range(3)))
    )


def ticket_of_the_other_chain(record: Record) -> Download:
    return make_download(record, ticket=make_ticket(record.views[1]))


def ticket_of_the_other_chain_renamed(record: Record) -> Download:
    return make_download(record, ticket=make_ticket(record.views[1], chain_id=CHAINS[0]))


def ticket_changed_after_signing(record: Record) -> Download:
    good = make_ticket(record.views[0], key("somebody"))
    changed = replace(good, ticket=replace(good.ticket, requester=READER.public))
    return make_download(record, ticket=changed)


def signed_by_not_the_requester(record: Record) -> Download:
    return Download.make(make_download(record).body, key("thief"))


def index_signed_by(signer: Any) -> Callable[[Record], Download]:
    return lambda r: make_download(r, index=Index.make(r.views[0], signer))


def index_of(**changes: Any) -> Callable[[Record], Download]:
    """A request whose index entry the patient signed for something else than the view at its address."""

    def make(record: Record) -> Download:
        index = replace(Index.make(record.views[0], PATIENT), **changes)
        return make_download(record, index=replace(index, signature=PATIENT.sign("index", index._payload())))

    return make


def wanting(*hashes: bytes) -> Callable[[Record], Download]:
    return lambda r: make_download(r, wanted=[BlobRef(digest, 1) for digest in hashes])


BAD_DOWNLOADS: list[tuple[Callable[[Record], Download | bytes], int, str, str]] = [
    (lambda r: b"", 400, "does not decode", ""),
    (lambda r: bytes(2 << 20), 413, "over the limit", ""),
    (lambda r: encode(make_download(r)) + b"\x00", 400, "does not decode", ""),
    (signed_by_not_the_requester, 401, "signature on the download request", ""),
    (lambda r: make_download(r, cloud=AUTHORITY.public), 403, "another cloud", "other-cloud"),
    (lambda r: make_download(r, time_ms=NOW - 60_001), 403, "last minute", "stale"),
    (lambda r: make_download(r, time_ms=NOW + 60_001), 403, "last minute", "stale"),
    (lambda r: make_download(make_record()), 404, "no record lies at this address", "unknown-address"),
    (index_signed_by(READER), 401, "the address of the record", ""),
    (index_signed_by(AUTHORITY), 401, "the address of the record", ""),
    (index_of(record=bytes(16)), 403, "another record, version or chain", "other-index"),
    (index_of(version=2), 403, "another record, version or chain", "other-index"),
    (index_of(chain_id=CHAINS[1]), 403, "another record, version or chain", "other-index"),
    (lambda r: make_download(r, ticket=None), 403, "an index entry alone opens nothing", "no-ticket"),
    (
        lambda r: make_download(r, key("thief"), ticket=make_ticket(r.views[0])),
        403,
        "somebody else",
        "transfer",
    ),
    (ticket(expires_ms=NOW), 403, "expired", "expired"),
    (ticket(requester=PATIENT), 403, "somebody else", "transfer"),
    (ticket(record=bytes(16)), 403, "another record", "other-record"),
    (ticket(version=2), 403, "another version or view", "other-version"),
    (ticket(commit=bytes(32)), 403, "another version or view", "other-version"),
    (ticket_of_the_other_chain, 401, "another chain", "other-chain"),
    (ticket_of_the_other_chain_renamed, 401, "0 valid node signatures", "bad-ticket"),
    (ticket_changed_after_signing, 401, "0 valid node signatures", "bad-ticket"),
    (signatures(), 401, "0 valid node signatures where 3", "bad-ticket"),
    (signatures(1, 3), 401, "2 valid node signatures where 3", "bad-ticket"),
    (signatures(0, 0, 0), 401, "twice", "bad-ticket"),
    (signatures(2, 1, 0), 401, "out of order", "bad-ticket"),
    (signed_by_strangers, 401, "0 valid node signatures", "bad-ticket"),
    (signed_beyond_members, 401, "beyond the members", "bad-ticket"),
    (one_signature_for_three, 401, "1 valid node signatures", "bad-ticket"),
    (wanting(bytes(32)), 403, "not in this view", "other-part"),
    (lambda r: make_download(r, wanted=[r.parts[0], r.parts[0]]), 400, "twice", "malformed"),
    (lambda r: make_download(r, wanted=r.views[0].envelopes), 403, "not in this view", "other-part"),
]


@pytest.mark.parametrize(("make", "status", "words", "code"), BAD_DOWNLOADS)
async def test_a_bad_download_is_refused_with_its_reason_which_the_patient_finds_in_the_log(
    cloud: Cloud,
    stored: Record,
    make: Callable[[Record], Download | bytes],
    status: int,
    words: str,
    code: str,
):
    request = make(stored)
    answer = await cloud.download(request)
    check_refused(answer, status, words)
    assert answer.json().get("code", "") == code
    assert rows(cloud.folder, "nonce") == 0  # a refused request costs the server no memory
    log = await cloud.log(stored)
    if code in (
        "",
        "unknown-address",
    ):  # without a signature of the sender and the patient's on the address there is nobody to name
        assert log == []
    else:
        assert isinstance(request, Download)
        assert [(entry.code, entry.requester) for entry in log] == [(code, request.body.requester)]


async def test_a_stolen_index_entry_opens_nothing_for_a_thief_with_a_ticket_of_another_record(
    cloud: Cloud, stored: Record
):
    own = make_record(owner=OTHER_PATIENT)
    await cloud.upload(own)
    request = make_download(stored, key("thief"), ticket=make_ticket(own.views[0], key("thief")))
    check_refused(await cloud.download(request), 403, "another record")


async def test_a_part_of_another_record_cannot_be_had_with_a_ticket_for_this_one(
    cloud: Cloud, stored: Record
):
    other = make_record()
    await cloud.upload(other)
    check_refused(await cloud.download(make_download(stored, wanted=other.parts)), 403, "not in this view")


async def test_each_signed_request_is_answered_once(cloud: Cloud, stored: Record):
    request = make_download(stored)
    assert (await cloud.download(request)).status_code == 200
    check_refused(await cloud.download(request), 403, "answered already")
    again = Download.make(replace(request.body, nonce=os.urandom(16)), READER)
    assert (await cloud.download(again)).status_code == 200
    cloud.clock.now += 60_000
    check_refused(await cloud.download(request), 403, "answered already")
    cloud.clock.now += 1
    check_refused(await cloud.download(request), 403, "last minute")


async def test_a_refused_request_may_be_sent_again_once_the_reason_is_gone(cloud: Cloud):
    record = make_record()
    request = make_download(record)
    check_refused(await cloud.download(request), 404, "no record")
    await cloud.upload(record)
    assert (await cloud.download(request)).status_code == 200


async def test_a_ticket_is_good_until_the_millisecond_it_expires(cloud: Cloud, stored: Record):
    late = make_ticket(stored.views[0], expires_ms=NOW + 1)
    assert (await cloud.download(make_download(stored, ticket=late))).status_code == 200
    cloud.clock.now += 1
    check_refused(await cloud.download(make_download(stored, ticket=late)), 403, "expired")


async def test_damage_on_the_clouds_disk_is_reported_and_healed_by_uploading_again(
    cloud: Cloud, stored: Record
):
    part = stored.parts[0].hash.hex()
    (cloud.folder / "blobs" / part[:2] / part).unlink()
    request = make_download(stored, wanted=stored.parts)
    check_refused(await cloud.download(request), 503, "damaged")
    assert (await cloud.upload(stored)).status_code == 200
    assert (await cloud.download(request)).status_code == 200


# Standing and log


@pytest.fixture
def world() -> Iterator[None]:
    yield
    for chain in WORLD.values():
        chain.revoked.clear()
        chain.is_silent = False


async def test_a_live_ticket_of_a_revoked_requester_opens_nothing(cloud: Cloud, stored: Record, world: None):
    request = make_download(stored)
    WORLD[CHAINS[0]].revoked.add(READER.public)
    answer = await cloud.download(request)
    check_refused(answer, 403, "revoked")
    assert answer.json()["code"] == "revoked"
    assert (await cloud.download(make_download(stored, PATIENT))).status_code == 200


async def test_nobody_but_the_patient_is_served_while_the_chain_does_not_answer(
    cloud: Cloud, stored: Record, world: None
):
    WORLD[CHAINS[0]].is_silent = True
    answer = await cloud.download(make_download(stored))
    check_refused(answer, 503, "too few nodes")
    assert (answer.json()["code"], answer.headers["retry-after"]) == ("chain-silent", "1")
    assert (await cloud.download(make_download(stored, PATIENT))).status_code == 200
    assert [entry.code for entry in await cloud.log(stored)] == ["chain-silent", "served"]


async def test_the_chain_is_asked_only_for_those_whose_ticket_holds(cloud: Cloud, stored: Record):
    before = WORLD[CHAINS[0]].asked
    await cloud.download(signatures(1, 3)(stored))
    assert WORLD[CHAINS[0]].asked == before


async def test_a_ticket_of_a_version_that_the_chain_has_replaced_opens_nothing(cloud: Cloud, stored: Record):
    new = next_version(stored)
    await cloud.upload(new)
    publish(new)
    answer = await cloud.download(make_download(stored))
    check_refused(answer, 403, "newer version")
    assert answer.json()["code"] == "superseded"
    assert (await cloud.download(make_download(new))).status_code == 200


async def test_the_log_tells_who_asked_when_for_what_and_how_it_ended(cloud: Cloud, stored: Record):
    request = make_download(stored, READER, stored.parts)
    assert (await cloud.download(request)).status_code == 200
    cloud.clock.now += 7
    assert (await cloud.download(request)).status_code == 403
    ticket = request.body.ticket
    assert ticket
    served = CloudEntry(NOW, CHAINS[0], 1, READER.public, ticket.ticket.request, "treatment", 3, "served", 0)
    assert await cloud.log(stored) == [served, replace(served, time_ms=NOW + 7, code="replay")]


async def test_a_log_is_for_its_patient_alone_and_asked_for_once(cloud: Cloud, stored: Record):
    request = make_log_request(stored)
    for bad, status, words in [
        (type(request).make(request.body, READER), 401, "request for a log"),
        (make_log_request(stored, OTHER_PATIENT), 404, "no such record"),
        (make_log_request(stored, cloud=READER.public), 403, "another cloud"),
        (make_log_request(stored, time_ms=NOW - 60_001), 403, "last minute"),
    ]:
        check_refused(await cloud.client.post("/v1/log", content=encode(bad)), status, words)
    assert (await cloud.client.post("/v1/log", content=encode(request))).status_code == 200
    check_refused(await cloud.client.post("/v1/log", content=encode(request)), 403, "answered already")


async def test_refusals_without_end_are_counted_and_do_not_fill_the_log(
    cloud: Cloud, stored: Record, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cloudstub.store.REFUSALS_LISTED", 3)
    for _ in range(8):
        await cloud.download(make_download(stored, ticket=None))
    assert (await cloud.download(make_download(stored))).status_code == 200
    log = await cloud.log(stored)
    assert [(entry.code, entry.unlisted) for entry in log] == [("no-ticket", 0)] * 3 + [("served", 5)]
    cloud.clock.now += 3_600_000
    await cloud.download(make_download(stored, ticket=None, time_ms=cloud.clock.now))
    assert [entry.code for entry in await cloud.log(stored)][-1] == "no-ticket"


async def test_a_long_log_comes_in_pages(cloud: Cloud, stored: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "MAX_LOG_PAGE", 2)
    for _ in range(5):
        await cloud.download(make_download(stored))
    entries, counts = [], []
    while len(entries) < 5:
        request = make_log_request(stored, after=len(entries))
        page = decode_cloud_log_page((await cloud.client.post("/v1/log", content=encode(request))).content)
        entries += page.entries
        counts.append((len(page.entries), page.count))
    assert counts == [(2, 5), (2, 5), (1, 5)]
    assert MAX_LOG_PAGE == 500


# Deletions


def deletion(answer: httpx2.Response) -> DeletionReceipt:
    assert answer.status_code == 200, answer.text
    return decode_deletion_receipt(answer.content)


def traces(folder: Path, record: Record) -> list[str]:
    """The files that hold anything of the record: its id, patient, salts or any blob, or the name of one."""
    words = [record.views[0].record, record.owner.public, *(view.salt for view in record.views)]
    words += [part for digest, data in record.blobs.items() for part in (digest, data[:32])]
    found = [path for path in folder.rglob("*") if path.is_file()]
    names = {digest.hex() for digest in record.blobs}
    return [path.name for path in found if path.name in names or any(w in path.read_bytes() for w in words)]


async def test_after_a_deletion_no_file_of_the_cloud_holds_anything_of_the_record(cloud: Cloud):
    record, other = make_record(sizes=(40, 5_000, 300_000)), make_record(owner=OTHER_PATIENT)
    await cloud.upload(record)
    await cloud.upload(other)
    await cloud.download(make_download(record, PATIENT))
    assert traces(cloud.folder, record)
    delete = make_delete(record)
    receipt = deletion(await cloud.delete(delete))
    receipt.verify(record.views[0].record, CLOUD.public)
    assert receipt == DeletionReceipt.make(
        delete, 2, 4, sum(len(data) for data in record.blobs.values()), NOW, CLOUD
    )
    cloud.clock.now += 60_001  # what is left of the download's nonce goes with the next one
    assert (
        await cloud.download(make_download(other, OTHER_PATIENT, time_ms=cloud.clock.now))
    ).status_code == 200
    await cloud.delete(make_delete(make_record(), time_ms=cloud.clock.now))
    assert traces(cloud.folder, record) == []
    check_refused(
        await cloud.download(make_download(record, PATIENT, time_ms=cloud.clock.now)), 404, "no record"
    )


async def test_deleting_again_gives_a_receipt_for_what_is_gone(cloud: Cloud):
    record = make_record()
    await cloud.upload(record)
    first = deletion(await cloud.delete(record))
    cloud.clock.now += 5
    delete = make_delete(record)
    second = deletion(await cloud.delete(delete))
    assert second == DeletionReceipt.make(delete, first.views, first.blobs, first.size, first.time_ms, CLOUD)


async def test_an_erased_record_cannot_be_uploaded_again_in_any_version(cloud: Cloud):
    record = make_record()
    recorded = upload_bytes(record)
    await cloud.upload(recorded)
    await cloud.delete(record)
    check_refused(await cloud.upload(recorded), 409, "erased for good")
    check_refused(await cloud.upload(make_record(record=record.views[0].record, version=2)), 409, "erased")
    assert not files(cloud.folder)
    namesake = make_record(owner=OTHER_PATIENT, record=record.views[0].record)
    assert (await cloud.upload(namesake)).status_code == 200, "who guesses an id takes it from nobody"


async def test_an_upload_that_is_under_way_while_its_record_is_erased_is_not_stored(cloud: Cloud):
    record, half = make_record(sizes=(300_000,)), asyncio.Event()
    await cloud.upload(record)
    later = upload_bytes(next_version(record, sizes=(100_000,)))

    async def slowly() -> AsyncIterator[bytes]:
        yield later[:50_000]
        await half.wait()
        yield later[50_000:]

    task = asyncio.create_task(cloud.client.post("/v1/upload", content=slowly()))
    await until(lambda: any((cloud.folder / "tmp").iterdir()))
    deletion(await cloud.delete(record))
    half.set()
    check_refused(await task, 409, "erased for good")
    assert is_empty(cloud.folder)


async def test_deleting_what_was_never_there_is_acknowledged_and_leaves_no_mark(cloud: Cloud):
    record = make_record()
    receipt = deletion(await cloud.delete(record))
    assert (receipt.views, receipt.blobs, receipt.size) == (0, 0, 0)
    assert rows(cloud.folder, "erased") == 0


async def test_blobs_that_another_patient_holds_too_stay_theirs(cloud: Cloud):
    mine = make_record()
    theirs = make_record(owner=OTHER_PATIENT, record=mine.views[0].record)
    theirs.parts, theirs.blobs = mine.parts, mine.blobs
    theirs.views = [replace(view, envelopes=mine.views[0].envelopes) for view in theirs.views]
    await cloud.upload(mine)
    await cloud.upload(theirs)
    assert deletion(await cloud.delete(mine)).blobs == len(mine.blobs)
    answer = await cloud.download(make_download(theirs, OTHER_PATIENT, theirs.parts))
    assert parse_download(answer.content)[1] == [mine.blobs[ref.hash] for ref in mine.parts]


BAD_DELETIONS: list[tuple[Callable[[Record], Delete], int, str, str]] = [
    (lambda r: Delete.make(make_delete(r).body, READER), 401, "request to delete", ""),
    (lambda r: make_delete(r, cloud=AUTHORITY.public), 403, "another cloud", "other-cloud"),
    (lambda r: make_delete(r, time_ms=NOW - 60_001), 403, "last minute", "stale"),
    (lambda r: make_delete(r, time_ms=NOW + 60_001), 403, "last minute", "stale"),
    (lambda r: make_delete(r, before=2), 409, "never deletes the last", ""),
]


@pytest.mark.parametrize(("make", "status", "words", "code"), BAD_DELETIONS)
async def test_a_bad_deletion_deletes_nothing(
    cloud: Cloud, stored: Record, make: Callable[[Record], Delete], status: int, words: str, code: str
):
    answer = await cloud.delete(make(stored))
    check_refused(answer, status, words)
    assert answer.json().get("code", "") == code
    assert (await cloud.download(make_download(stored, READER, stored.parts))).status_code == 200


async def test_nobody_deletes_the_record_of_another(cloud: Cloud, stored: Record):
    receipt = deletion(await cloud.delete(make_delete(stored, OTHER_PATIENT)))
    assert (receipt.views, receipt.blobs) == (0, 0)
    assert (await cloud.download(make_download(stored, READER, stored.parts))).status_code == 200


async def test_old_versions_go_with_all_that_they_alone_needed(cloud: Cloud, stored: Record):
    new = next_version(stored, sizes=(700,), keep=1)
    await cloud.upload(new)
    assert (await cloud.download(make_download(stored))).status_code == 200, (
        "the new one is not published yet"
    )
    publish(new)
    check_refused(await cloud.download(make_download(stored)), 403, "newer version")
    receipt = deletion(await cloud.delete(make_delete(stored, before=2)))
    receipt.verify(stored.views[0].record, CLOUD.public, before=2)
    with pytest.raises(Unauthentic):
        receipt.verify(stored.views[0].record, CLOUD.public)
    assert (receipt.views, receipt.blobs) == (2, 3)
    assert files(cloud.folder) == {ref.hash.hex() for ref in (*new.parts, *new.views[0].envelopes)}
    answer = await cloud.download(make_download(new, READER, new.parts))
    assert parse_download(answer.content)[1][0] == stored.blobs[stored.parts[0].hash]
    check_refused(await cloud.upload(stored), 409, "later version")
    check_refused(await cloud.download(make_download(stored)), 404, "no record")
    assert [entry.code for entry in await cloud.log(stored)] == [
        "served",
        "superseded",
        "served",
        "superseded",
    ]


async def test_a_version_that_counts_on_blobs_deleted_meanwhile_is_refused_whole(
    cloud: Cloud, stored: Record
):
    second, half = next_version(stored, sizes=(50,), keep=0), asyncio.Event()
    await cloud.upload(second)
    third = upload_bytes(next_version(next_version(stored), sizes=(100_000,)))

    async def slowly() -> AsyncIterator[bytes]:
        yield third[:50_000]
        await half.wait()
        yield third[50_000:]

    task = asyncio.create_task(cloud.client.post("/v1/upload", content=slowly()))
    await until(lambda: any((cloud.folder / "tmp").iterdir()))
    deletion(await cloud.delete(make_delete(stored, before=2)))
    half.set()
    check_refused(await task, 409, "deleted meanwhile")
    assert files(cloud.folder) == {digest.hex() for digest in second.blobs}


async def test_a_disk_that_fails_in_mid_deletion_gives_no_receipt_and_the_next_attempt_finishes(
    cloud: Cloud, stored: Record, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("cloudstub.store._unlink", broken)
    check_refused(await cloud.delete(stored), 503, "try again later")
    check_refused(await cloud.download(make_download(stored)), 404, "no record")
    monkeypatch.undo()
    assert deletion(await cloud.delete(stored)).blobs == 4
    assert is_empty(cloud.folder)


# The server itself


async def test_uploads_and_downloads_at_once_do_not_mix(cloud: Cloud):
    records = [make_record(sizes=(i + 1, 100_000)) for i in range(8)]
    answers = await asyncio.gather(*(cloud.upload(record) for record in records))
    assert {answer.status_code for answer in answers} == {200}
    requests = [make_download(record, READER, record.parts) for record in records]
    more = [make_record() for _ in range(4)]
    *answers, _ = await asyncio.gather(
        *(cloud.download(request) for request in requests), asyncio.gather(*map(cloud.upload, more))
    )
    for record, answer in zip(records, answers, strict=True):
        assert parse_download(answer.content)[1] == [record.blobs[ref.hash] for ref in record.parts]


async def test_the_server_says_who_it_is_and_how_it_is(cloud: Cloud):
    info = (await cloud.client.get("/v1/info")).json()
    assert info["public_key"] == CLOUD.public.hex()
    assert info["chains"] == sorted(CHAINS)
    assert info["limits"]["quota"]["max_bytes"] == Quota().max_bytes
    assert (await cloud.client.get("/healthz")).status_code == 200
    assert (await cloud.client.get("/readyz")).status_code == 200


async def test_unknown_paths_and_methods_are_problems_too(cloud: Cloud):
    check_refused(await cloud.client.get("/v1/blobs"), 404, "")
    check_refused(await cloud.client.get("/v1/upload"), 405, "")


async def test_a_bug_shows_nothing_of_the_inside(
    cloud: Cloud, stored: Record, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(server, "_authorise", broken)
    answer = await cloud.download(make_download(stored))
    check_refused(answer, 500, "tell its operator")
    assert "secret" not in answer.text


async def test_a_disk_that_fails_is_a_503_and_nothing_is_stored(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    record = make_record()
    monkeypatch.setattr("cloudstub.store._append", full)
    answer = await cloud.upload(record)
    check_refused(answer, 503, "try again later")
    assert "secret" not in answer.text
    assert is_empty(cloud.folder)
    monkeypatch.undo()
    assert (await cloud.upload(record)).status_code == 200


def test_an_authority_key_of_the_wrong_length_is_refused(tmp_path: Path):
    good = config(tmp_path, Clock())
    with pytest.raises(Malformed):
        type(good)(tmp_path, CLOUD, bytes(31), good.chains)


# Real sockets and processes


@contextlib.asynccontextmanager
async def serving(folder: Path, limits: Limits | None = None) -> AsyncIterator[int]:
    port = asyncio.get_running_loop().create_future()
    app = create_app(config(folder, Clock(), limits))
    task = asyncio.create_task(serve(app, "127.0.0.1", 0, port.set_result))
    await asyncio.wait([port, task], return_when=asyncio.FIRST_COMPLETED)
    yield port.result()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Process:
    """A server process; `url` once it accepts connections."""

    def __init__(self, folder: Path, *mode: str) -> None:
        script = Path(__file__).with_name("cloudstub_process.py")
        self.folder = folder
        self.popen = subprocess.Popen([sys.executable, script, folder, *mode], stdout=subprocess.PIPE)
        assert self.popen.stdout
        self.port = int(self.popen.stdout.readline() or 0)
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self, number: int) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes = []

    def start(*mode: str) -> Process:
        processes.append(Process(tmp_path / "cloud", *mode))
        return processes[-1]

    yield start
    for process in processes:
        process.popen.kill()
        process.popen.wait()
        process.popen.stdout.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def fetch(process: Process, record: Record) -> httpx2.Response:
    request = make_download(record, PATIENT, record.parts, now_ms())
    async with httpx2.AsyncClient(base_url=process.url) as client:
        return await client.post("/v1/download", content=encode(request))


async def send(process: Process, record: Record) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=process.url) as client:
        return await client.post("/v1/upload", content=upload_bytes(record, now_ms()))


async def send_half(port: int, body: bytes, folder: Path) -> asyncio.StreamWriter:
    """Send half of an upload and wait until the server has put some of it on disk."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/upload HTTP/1.1\r\nHost: cloud\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body[: len(body) // 2])
    await writer.drain()
    await until(lambda: sum(path.stat().st_size for path in (folder / "tmp").glob("*/*")) > len(body) // 4)
    return writer


async def check_whole(process: Process, record: Record) -> None:
    _, parts = parse_download((await fetch(process, record)).content)
    assert parts == [record.blobs[ref.hash] for ref in record.parts]


async def test_kill_9_in_the_middle_of_an_upload_leaves_nothing_torn(start: Callable[..., Process]):
    record = make_record(sizes=(1_000, 4 << 20))
    process = start()
    writer = await send_half(process.port, upload_bytes(record, now_ms()), process.folder)
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    writer.close()
    assert files(process.folder)
    process = start()
    assert is_empty(process.folder)
    check_refused(await fetch(process, record), 404, "no record")
    assert (await send(process, record)).status_code == 200
    await check_whole(process, record)


async def test_kill_9_between_placing_blobs_and_committing_leaves_nothing(start: Callable[..., Process]):
    record = make_record()
    process = start("die-after-placing")
    with pytest.raises(httpx2.TransportError):
        await send(process, record)
    assert process.popen.wait(30) == -signal.SIGKILL
    assert files(process.folder) == {ref.hash.hex() for ref in record.refs}
    process = start()
    assert is_empty(process.folder)
    check_refused(await fetch(process, record), 404, "no record")
    assert (await send(process, record)).status_code == 200
    await check_whole(process, record)


@pytest.mark.parametrize("moment", ["die-before-forgetting", "die-after-forgetting"])
async def test_kill_9_in_mid_deletion_leaves_the_record_whole_or_gone(
    start: Callable[..., Process], moment: str
):
    record = make_record(sizes=(40, 5_000, 300_000))
    process = start()
    await send(process, record)
    process.end(signal.SIGKILL)
    process = start(moment)
    delete = encode(make_delete(record, time_ms=now_ms()))
    async with httpx2.AsyncClient(base_url=process.url) as client:
        with pytest.raises(httpx2.TransportError):
            await client.post("/v1/delete", content=delete)
    assert process.popen.wait(30) == -signal.SIGKILL
    assert files(process.folder) == {ref.hash.hex() for ref in record.refs}
    process = start()
    if moment == "die-before-forgetting":
        await check_whole(process, record)
    else:
        assert is_empty(process.folder)
        assert traces(process.folder, record) == []
        check_refused(await fetch(process, record), 404, "no record")
    async with httpx2.AsyncClient(base_url=process.url) as client:
        receipt = deletion(await client.post("/v1/delete", content=delete))
    assert (receipt.views, receipt.blobs) == (2, 4)
    assert is_empty(process.folder)


async def test_a_download_under_way_while_its_record_is_deleted_ends_early(tmp_path: Path):
    record = make_record(sizes=(32 << 20,))
    async with (
        serving(tmp_path / "cloud") as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as c,
    ):
        assert (await c.post("/v1/upload", content=upload_bytes(record))).status_code == 200
        request = encode(make_download(record, READER, record.parts))

        async def read_on() -> None:
            async with c.stream("POST", "/v1/download", content=request) as answer:
                assert answer.status_code == 200
                chunks = answer.aiter_raw()
                await anext(chunks)
                deletion(await c.post("/v1/delete", content=encode(make_delete(record))))
                async for _ in chunks:
                    pass

        with pytest.raises(httpx2.RemoteProtocolError):
            await read_on()
        assert (await c.get("/healthz")).status_code == 200


async def test_kill_9_right_after_an_acknowledgement_loses_nothing(start: Callable[..., Process]):
    record = make_record()
    process = start()
    assert (await send(process, record)).status_code == 200
    process.end(signal.SIGKILL)
    await check_whole(start(), record)


async def test_sigterm_ends_a_server_cleanly_and_a_second_one_may_then_start(start: Callable[..., Process]):
    first = start()
    second = start()
    assert (second.port, second.popen.wait(30)) == (0, 1)  # the folder is in use
    assert first.end(signal.SIGTERM) == 0
    assert start().port


async def test_a_second_server_on_the_folder_is_refused(tmp_path: Path):
    async with serving(tmp_path / "cloud"):
        app = create_app(config(tmp_path / "cloud", Clock()))
        with pytest.raises(Conflict, match="another cloud server"):
            await serve(app, "127.0.0.1", 0)


async def test_a_port_in_use_is_refused(tmp_path: Path):
    async with serving(tmp_path / "one") as port:
        app = create_app(config(tmp_path / "two", Clock()))
        with pytest.raises(Conflict, match="cannot listen"):
            await serve(app, "127.0.0.1", port)


async def test_a_client_that_leaves_in_mid_upload_leaves_nothing_behind(tmp_path: Path):
    record, folder = make_record(sizes=(2 << 20,)), tmp_path / "cloud"
    async with serving(folder) as port:
        writer = await send_half(port, upload_bytes(record), folder)
        writer.close()
        await until(lambda: not any((folder / "tmp").iterdir()))
        assert is_empty(folder)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/v1/upload", content=upload_bytes(record))).status_code == 200


async def test_a_large_upload_that_is_refused_early_still_hears_why(tmp_path: Path):
    async with serving(tmp_path / "cloud") as port:
        record = make_record(sizes=(8 << 20,))
        body = signed(time_ms=NOW - 100_000)(record)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            check_refused(await client.post("/v1/upload", content=body), 403, "last minute")


async def test_a_connection_that_never_finishes_its_request_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(web, "_IDLE_S", 0.01)
    async with serving(tmp_path / "cloud") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/upload HTTP/1.1\r\nX-Slow: ")
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()


async def test_a_reader_that_does_not_take_the_answer_is_given_up(tmp_path: Path):
    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    await server._Timed(content(), {}, "application/octet-stream", 0).stream_response(never)
