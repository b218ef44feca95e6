"""Somebody on the wire, who hears all that passes without TLS, and says it again, or something else."""

import os
import random
import socket
from collections.abc import Iterator

import httpx2
import msgspec
import pytest
from adversary_world import Proxy, World, proxy

from client.chain import now_ms
from client.cloud import CloudClient
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from crypto.codec import encode
from crypto.sign import SigningKey
from protocol.network import Service, split_host_port
from protocol.record import (
    Delete,
    DeleteBody,
    Download,
    decode_delete,
    decode_deletion_receipt,
    decode_download,
)
from protocol.tx import Request, Tx

replace = msgspec.structs.replace


@pytest.fixture
def wire(world: World) -> Iterator[Proxy]:
    """The line between people and the cloud, with somebody on it."""
    with proxy(world.cloud_url) as line:
        service = world.patient.home.network.cloud
        people: list[Session] = [world.patient, world.reader]
        direct = [person.cloud for person in people]
        for person in people:
            person.cloud = CloudClient(Service(line.url, service.key))
        yield line
        for person, client in zip(people, direct, strict=True):
            person.cloud.close()
            person.cloud = client


def read(world: World, record: bytes) -> None:
    reader = Reader(world.reader)
    assert reader.request(record, "sharing", "research").ok
    assert reader.open(record, "sharing").parts


def test_a_download_that_was_heard_cannot_be_had_again(world: World, record: bytes, wire: Proxy):
    read(world, record)
    heard = wire.last("/v1/download")
    assert heard.status == 200
    again = world.post("download", heard.body)
    world.check_refused(record, again, "replay", world.reader.home.sign)


def test_a_download_that_was_heard_and_changed_anywhere_gets_nothing(
    world: World, record: bytes, wire: Proxy
):
    read(world, record)
    heard = wire.last("/v1/download").body
    served = [entry for entry in world.cloud_log(record) if entry.code == "served"]
    with httpx2.Client(trust_env=False) as http:
        for at in random.Random(7).sample(range(len(heard)), 60):
            changed = bytearray(heard)
            changed[at] ^= 1
            answer = http.post(f"{world.cloud_url}/v1/download", content=bytes(changed))
            assert 400 <= answer.status_code < 500
    assert [entry for entry in world.cloud_log(record) if entry.code == "served"] == served


def test_what_was_said_to_another_cloud_or_long_ago_is_not_heard_here(world: World, record: bytes):
    index, ticket = world.grant(world.reader, record)
    reader = world.reader.home.sign
    elsewhere = world.ask(index, ticket, reader, cloud=os.urandom(32))
    world.check_refused(record, elsewhere, "other-cloud", reader)
    old = world.ask(index, ticket, reader, time_ms=now_ms() - 61_000)
    world.check_refused(record, old, "stale", reader)


def test_somebody_on_the_wire_sees_no_part_and_no_key_of_one_in_what_people_and_cloud_say(
    world: World, record: bytes, wire: Proxy
):
    read(world, record)
    stored = Patient(world.patient).load(record)
    answers = b"".join(seen.answer + seen.body for seen in wire.passed)
    for content in Patient(world.patient).contents(stored).values():
        assert content[:64] not in answers
    for part in stored.parts:
        assert part.key not in answers


def test_an_upload_that_was_heard_does_not_bring_an_old_version_or_an_erased_record_back(
    world: World, wire: Proxy
):
    record = world.store()
    first = wire.last("/v1/upload").body
    Patient(world.patient).set_policies(record, {"shared": "role:doctor"})
    second = wire.last("/v1/upload").body
    answer = world.post("upload", first)
    assert (answer.status_code, answer.json()["code"]) == (409, "other-version")
    world.patient.cloud.delete(record, world.patient.home.sign)
    for heard in (first, second):
        answer = world.post("upload", heard)
        assert (answer.status_code, answer.json()["code"]) == (409, "erased")


def test_a_deletion_that_was_heard_deletes_nothing_else_and_nobody_signs_one_for_another(
    world: World, record: bytes, wire: Proxy
):
    gone = world.store()
    world.patient.cloud.delete(gone, world.patient.home.sign)
    heard = wire.last("/v1/delete").body
    assert world.post("delete", heard).status_code == 200, "it says again what is gone"
    known = decode_delete(heard)
    aimed = Delete(replace(known.body, record=record), known.signature)
    assert world.post("delete", encode(aimed)).status_code == 401
    thief = world.thief.home.sign
    body = DeleteBody(known.body.cloud, thief.public, record, None, now_ms(), os.urandom(16))
    theirs = decode_deletion_receipt(world.post("delete", encode(Delete.make(body, thief))).content)
    assert (theirs.views, theirs.blobs) == (0, 0)
    read(world, record)


def test_the_log_of_a_record_cannot_be_asked_for_with_a_request_that_was_heard(
    world: World, record: bytes, wire: Proxy
):
    world.cloud_log(record)
    answer = world.post("log", wire.last("/v1/log").body)
    assert (answer.status_code, answer.json()["code"]) == (403, "replay")


def test_a_request_that_was_heard_on_one_chain_is_not_taken_on_the_other_and_not_twice(
    world: World, record: bytes
):
    reader = world.reader
    sharing, storage = (reader.chains[kind] for kind in ("sharing", "storage"))
    tx = Tx.make(
        sharing.genesis.chain_id,
        reader.home.sign,
        os.urandom(16),
        now_ms() + 60_000,
        Request(record, "research"),
    )
    raw = encode(tx)

    def send(url: str) -> httpx2.Response:
        return httpx2.post(f"{url}/v1/tx", content=raw, params={"wait": "10"}, trust_env=False, timeout=20)

    assert send(sharing._urls[0]).status_code == 200
    assert send(sharing._urls[1]).status_code == 409
    assert send(storage._urls[0]).status_code == 400
    assert [receipt.tx for receipt in sharing.verified_log(record).receipts].count(tx.id) == 1
    assert not [receipt for receipt in storage.verified_log(record).receipts if receipt.tx == tx.id]


def test_a_stranger_who_talks_rubbish_to_every_node_disturbs_nobody(world: World, record: bytes):
    connections = []
    for address in world.patient.home.network.chains["sharing"].nodes.values():
        connection = socket.create_connection(split_host_port(address.p2p), timeout=5)
        connection.sendall(os.urandom(4096))
        connections.append(connection)
    read(world, record)
    for connection in connections:
        connection.close()


def test_a_download_signed_anew_by_somebody_on_the_wire_is_theirs_and_so_refused(
    world: World, record: bytes, wire: Proxy
):
    read(world, record)
    heard = decode_download(wire.last("/v1/download").body)
    stranger = SigningKey.generate()
    body = replace(heard.body, requester=stranger.public, nonce=os.urandom(16))
    world.check_refused(
        record, world.post("download", encode(Download.make(body, stranger))), "transfer", stranger
    )
