"""The cloud itself, with its key and its disk, against readers and the patient."""

from collections.abc import Iterator

import msgspec
import pytest
from adversary_world import Passed, Proxy, World, proxy

from client.chain import now_ms
from client.cloud import CloudClient
from client.patient import Patient
from client.reader import Reader
from configs.files import read_key
from crypto.codec import encode
from crypto.errors import DiptychError, Unauthentic
from crypto.sign import SigningKey
from protocol.network import Service
from protocol.record import (
    CloudLogPage,
    Delete,
    DeleteBody,
    DeletionReceipt,
    decode_cloud_log_page,
    decode_cloud_log_request,
)
from protocol.tx import Erase

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def key(world: World) -> SigningKey:
    """The cloud's own key."""
    return SigningKey(read_key(world.net.folder / "cloud" / "keys" / "cloud.key", None))


@pytest.fixture
def cloud(world: World) -> Iterator[Proxy]:
    """A cloud that lies to patient and reader."""
    with proxy(world.cloud_url) as liar:
        service = world.patient.home.network.cloud
        people = [world.patient, world.reader]
        honest = [person.cloud for person in people]
        for person in people:
            person.cloud = CloudClient(Service(liar.url, service.key))
        yield liar
        for person, client in zip(people, honest, strict=True):
            person.cloud.close()
            person.cloud = client


def test_a_cloud_that_serves_the_version_before_is_not_believed(world: World, cloud: Proxy):
    record = world.store()
    reader = Reader(world.reader)
    assert reader.request(record, "sharing", "research").ok
    assert reader.open(record, "sharing").parts
    kept = [seen.answer for seen in cloud.passed if seen.path == "/v1/download"]
    Patient(world.patient).set_policies(record, {"shared": "role:researcher"})
    assert reader.request(record, "sharing", "research").ok

    def before(seen: Passed) -> tuple[int, bytes] | None:
        return (200, kept[0]) if seen.path == "/v1/download" else None

    with cloud.lying(before), pytest.raises(Unauthentic, match="another view"):
        reader.open(record, "sharing")
    assert reader.open(record, "sharing").parts


def test_a_cloud_that_changes_a_byte_of_what_it_serves_is_noticed(world: World, record: bytes, cloud: Proxy):
    reader = Reader(world.reader)
    assert reader.request(record, "sharing", "research").ok
    for place in (0.3, 0.5, 0.999):

        def changed(seen: Passed, place: float = place) -> tuple[int, bytes] | None:
            if seen.path != "/v1/download":
                return None
            data = bytearray(seen.answer)
            data[int(len(data) * place)] ^= 1
            return 200, bytes(data)

        with cloud.lying(changed), pytest.raises(DiptychError):
            reader.open(record, "sharing")


def log_page(seen: Passed) -> CloudLogPage:
    return decode_cloud_log_page(seen.answer)


@pytest.mark.parametrize(
    "lie",
    [
        lambda page: replace(page, entries=page.entries[:-1]),
        lambda page: replace(page, entries=page.entries[1:]),
        lambda page: replace(page, entries=page.entries[::-1]),
        lambda page: replace(page, entries=(*page.entries, page.entries[-1])),
        lambda page: replace(page, entries=(replace(page.entries[0], code="other"), *page.entries[1:])),
        lambda page: replace(page, entries=page.entries[:-1], count=page.count - 1),
    ],
)
def test_a_log_that_somebody_changed_after_the_cloud_signed_its_head_is_not_believed(
    world: World, record: bytes, cloud: Proxy, lie
):
    index, _ = world.grant(world.reader, record)
    for nobody in (SigningKey.generate(), SigningKey.generate()):
        world.ask(index, None, nobody)

    def lying(seen: Passed) -> tuple[int, bytes] | None:
        return (200, encode(lie(log_page(seen)))) if seen.path == "/v1/log" else None

    with cloud.lying(lying), pytest.raises(Unauthentic):
        world.cloud_log(record)


def test_a_cloud_that_leaves_a_request_out_of_its_log_contradicts_what_it_signed_before(
    world: World, cloud: Proxy, key: SigningKey
):
    record = world.store()
    index, ticket = world.grant(world.reader, record)
    world.ask(index, None, world.thief.home.sign)
    world.ask(index, ticket, world.reader.home.sign)
    known = world.cloud_log(record)

    def without_the_first(seen: Passed) -> tuple[int, bytes] | None:
        if seen.path != "/v1/log":
            return None
        entries = log_page(seen).entries[1:]
        head = bytes(32)
        for entry in entries:
            head = entry.head_after(head)
        request = decode_cloud_log_request(seen.body)
        return 200, encode(CloudLogPage.make(request, entries, len(entries), head, now_ms(), key))

    with cloud.lying(without_the_first):
        told = world.cloud_log(record)
    assert told[: len(known)] != known
    assert world.cloud_log(record)[: len(known)] == known


def test_a_receipt_for_another_record_for_old_versions_or_by_another_key_is_no_deletion(
    world: World, cloud: Proxy, key: SigningKey
):
    record, patient = world.store(), world.patient.home.sign

    def receipt_of(signer: SigningKey, **changes: object) -> DeletionReceipt:
        body = DeleteBody(key.public, patient.public, record, None, now_ms(), bytes(16))
        return DeletionReceipt.make(
            Delete.make(replace(body, **changes), patient), 2, 9, 999, now_ms(), signer
        )

    lies = [
        receipt_of(key, record=bytes(16)),
        receipt_of(key, before=1),
        receipt_of(SigningKey.generate()),
        receipt_of(key),
    ]
    for lie in lies:  # the last is a good receipt for another request than the one that was made
        answer = encode(lie)
        with cloud.lying(lambda _, answer=answer: (200, answer)), pytest.raises(Unauthentic):  # type: ignore[misc]
            world.patient.cloud.delete(record, patient)
    for lie in lies[:2]:
        chain = world.patient.chains["sharing"]
        receipt = chain.send(patient, Erase(record, encode(lie)))
        assert (receipt.ok, receipt.code) == (False, "bad-deletion")
        assert chain.verified_record(record).status == "published"


def test_the_disk_of_the_cloud_after_an_erasure_shows_neither_the_record_nor_that_its_patient_had_it(
    world: World,
):
    record = world.store()
    index, ticket = world.grant(world.reader, record)
    world.ask(index, ticket, world.reader.home.sign)
    folder = world.net.folder / "cloud"
    assert any(record in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    world.patient.cloud.delete(record, world.patient.home.sign)
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert record not in data, path.name
            assert record.hex().encode() not in data, path.name
