"""Fewer nodes than a quorum, with all their keys, against cloud and clients."""

import json
import os
from collections.abc import Callable

import msgspec
import pytest
from adversary_world import Passed, World

from client.authority import Authority
from client.chain import now_ms
from client.session import Session
from crypto.codec import encode
from protocol.contract import Person, RecordEntry, decode_person, decode_record
from protocol.identity import Ticket

replace = msgspec.structs.replace


def made_up(world: World, record: bytes) -> Ticket:
    """Leave for the thief to read the record, as only the contract could give it."""
    chain = world.patient.chains["sharing"]
    entry = chain.verified_record(record)
    return Ticket(
        chain.genesis.chain_id,
        os.urandom(32),
        record,
        entry.version,
        entry.commit,
        world.thief.home.sign.public,
        "research",
        now_ms() + 600_000,
    )


@pytest.mark.parametrize("numbers", [(1,), (3, 4)])
def test_the_stolen_keys_of_fewer_nodes_than_a_quorum_make_no_ticket(
    world: World, record: bytes, numbers: tuple[int, ...]
):
    index, _ = world.grant(world.reader, record)
    thief = world.thief.home.sign
    forged = world.forge_ticket(made_up(world, record), *numbers)
    world.check_refused(record, world.ask(index, forged, thief), "bad-ticket", thief, 401)


def test_one_signature_that_is_listed_for_every_node_counts_once(world: World, record: bytes):
    index, _ = world.grant(world.reader, record)
    thief = world.thief.home.sign
    forged = world.forge_ticket(made_up(world, record), 2)
    copies = tuple(replace(forged.signatures[0], signer=signer) for signer in range(4))
    answer = world.ask(index, replace(forged, signatures=copies), thief)
    world.check_refused(record, answer, "bad-ticket", thief, 401)


def person_said(change: Callable[[Person], Person]) -> Callable[[Passed], tuple[int, bytes] | None]:
    """A node that changes what it says of people."""

    def rewrite(seen: Passed) -> tuple[int, bytes] | None:
        if "/v1/identity/" not in seen.path or seen.status != 200:
            return None
        said = json.loads(seen.answer)
        person = change(decode_person(bytes.fromhex(said["encoded"])))
        return 200, json.dumps(said | {"encoded": encode(person).hex()}).encode()

    return rewrite


def test_one_node_cannot_hide_a_revocation_from_the_cloud(
    world: World, record: bytes, join_as: Callable[..., Session], authority: Authority
):
    reader = join_as("user", "role:researcher")
    grant = world.grant(reader, record)
    authority.revoke(reader.home.sign.public)
    with world.cloud_sees["sharing-1"].lying(person_said(lambda p: replace(p, is_revoked=False))):
        answer = world.ask(*grant, reader.home.sign)
    world.check_refused(record, answer, "revoked", reader.home.sign)


def test_one_node_cannot_have_an_honest_reader_refused_as_revoked(world: World, record: bytes):
    grant = world.grant(world.reader, record)
    with world.cloud_sees["sharing-1"].lying(person_said(lambda p: replace(p, is_revoked=True))):
        assert world.ask(*grant, world.reader.home.sign).status_code == 200


def test_one_node_cannot_have_the_cloud_take_an_old_version_for_the_current_one(
    world: World, record: bytes, join_as: Callable[..., Session]
):
    old: RecordEntry = world.patient.chains["sharing"].verified_record(record)

    def rolled_back(seen: Passed) -> tuple[int, bytes] | None:
        if not seen.path.startswith("/v1/record/") or seen.status != 200:
            return None
        said = json.loads(seen.answer)
        entry = replace(decode_record(bytes.fromhex(said["encoded"])), version=9, commit=bytes(32))
        return 200, json.dumps(said | {"encoded": encode(entry).hex()}).encode()

    reader = join_as("user", "role:researcher")
    with world.cloud_sees["sharing-1"].lying(rolled_back):
        assert world.ask(*world.grant(reader, record), reader.home.sign).status_code == 200
    assert world.patient.chains["sharing"].verified_record(record) == old


def test_the_cloud_serves_no_reader_when_too_few_nodes_tell_it_how_the_reader_stands(
    world: World, record: bytes, join_as: Callable[..., Session]
):
    reader = join_as("user", "role:researcher")
    index, ticket = world.grant(reader, record)
    first, second = world.cloud_sees.values()
    with first.lying(lambda _: (500, b"")), second.lying(lambda _: (500, b"")):
        answer = world.ask(index, ticket, reader.home.sign)
        world.check_refused(record, answer, "chain-silent", reader.home.sign, 503)
        assert world.ask(index, None, world.patient.home.sign).status_code == 200
    assert world.ask(index, ticket, reader.home.sign).status_code == 200
