"""Who has stolen an index entry or a ticket, and who was once allowed: what each gets, which is nothing, and what the patient sees of it."""

from collections.abc import Callable

import httpx2
import msgspec
import pytest
from adversary_world import POLICIES, World, eventually

from client.authority import Authority
from client.chain import now_ms
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from crypto.codec import encode
from crypto.errors import Denied, NotFound
from crypto.sign import SigningKey
from protocol.identity import SignedTicket
from protocol.record import Download, Index
from protocol.tx import Request

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def grant(world: World, record: bytes) -> tuple[Index, SignedTicket]:
    """What a thief finds on the reader's machine."""
    return world.grant(world.reader, record)


def test_what_is_stolen_does_open_the_record_for_the_one_it_was_issued_to(
    world: World, grant: tuple[Index, SignedTicket], record: bytes
):
    assert world.ask(*grant, world.reader.home.sign).status_code == 200
    entry = world.cloud_log(record)[-1]
    assert (entry.code, entry.purpose, entry.requester) == (
        "served",
        "research",
        world.reader.home.sign.public,
    )


def test_a_thief_of_an_index_entry_gets_nothing_without_a_ticket(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    thief = world.thief.home.sign
    world.check_refused(record, world.ask(grant[0], None, thief), "no-ticket", thief)


def test_a_thief_of_an_index_entry_whom_nobody_knows_gets_nothing_either(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    nobody = SigningKey.generate()
    world.check_refused(record, world.ask(grant[0], None, nobody), "no-ticket", nobody)


def test_a_thief_of_an_index_entry_gets_nothing_with_a_ticket_of_their_own_for_another_record(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    public = world.store({"private": "role:doctor", "shared": "role:advertiser or role:researcher"})
    thief = world.thief.home.sign
    _, ticket = world.grant(world.thief, public)
    world.check_refused(record, world.ask(grant[0], ticket, thief), "other-record", thief)


def test_a_thief_of_an_index_entry_who_asks_the_chain_is_refused_there_and_stands_in_its_log(
    world: World, record: bytes
):
    thief = world.thief
    receipt = thief.chains["sharing"].send(thief.home.sign, Request(record, "research"))
    assert not receipt.ok
    world.check_on_chain(record, thief, "policy-not-met")
    with pytest.raises(Denied, match="do not satisfy"):
        thief.chains["sharing"].release(receipt.tx, thief.home.seal)


def test_an_index_entry_with_another_address_written_into_it_is_no_word_of_the_patient(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    before = world.cloud_log(record)
    forged = replace(grant[0], version=2)
    answer = world.ask(forged, None, world.thief.home.sign)
    assert answer.status_code == 401
    assert world.cloud_log(record) == before, "anybody could write such lines without end"


def test_a_thief_of_a_ticket_and_its_index_entry_gets_nothing_with_a_key_of_their_own(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    thief = world.thief.home.sign
    world.check_refused(record, world.ask(*grant, thief), "transfer", thief)


@pytest.mark.parametrize(
    "what", ["requester", "record", "version", "commit", "purpose", "expires_ms", "request"]
)
def test_a_thief_of_a_ticket_who_writes_into_it_has_no_ticket_any_more(
    world: World, record: bytes, grant: tuple[Index, SignedTicket], what: str
):
    index, ticket = grant
    thief = world.thief.home.sign
    lies = {"requester": thief.public, "record": bytes(16), "version": 2, "commit": bytes(32)}
    lies |= {"purpose": "treatment", "expires_ms": 2**60, "request": bytes(32)}
    changed = replace(ticket, ticket=replace(ticket.ticket, **{what: lies[what]}))
    world.check_refused(record, world.ask(index, changed, thief), "bad-ticket", thief, 401)


def test_a_thief_of_a_ticket_cannot_speak_as_its_owner(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    before = world.cloud_log(record)
    body = world.body(*grant, world.reader.home.sign.public)
    answer = world.post("download", encode(Download.make(body, world.thief.home.sign)))
    assert answer.status_code == 401
    assert world.cloud_log(record) == before, "nobody is named who did not sign"


def test_a_ticket_that_has_expired_opens_nothing_even_signed_by_all_nodes(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    index, ticket = grant
    reader = world.reader.home.sign
    old = world.forge_ticket(replace(ticket.ticket, expires_ms=now_ms()), 1, 2, 3, 4)
    world.check_refused(record, world.ask(index, old, reader), "expired", reader)


def test_a_ticket_of_the_storage_chain_opens_nothing_of_the_sharing_chain(
    world: World, record: bytes, grant: tuple[Index, SignedTicket]
):
    doctor = world.doctor.home.sign
    _, ticket = world.grant(world.doctor, record, "storage", "treatment")
    world.check_refused(record, world.ask(grant[0], ticket, doctor), "other-chain", doctor, 401)


def test_a_reader_who_asks_for_a_purpose_that_the_patient_did_not_allow_is_refused_on_the_log(
    world: World, record: bytes
):
    reader = world.reader
    receipt = reader.chains["sharing"].send(reader.home.sign, Request(record, "payment"))
    assert (receipt.ok, receipt.code) == (False, "wrong-purpose")
    world.check_on_chain(record, reader, "wrong-purpose")


# Who was once allowed


def test_a_reader_whose_credential_is_revoked_gets_nothing_for_a_ticket_that_still_lives(
    world: World, record: bytes, join_as: Callable[..., Session], authority: Authority
):
    reader = join_as("user", "role:researcher")
    receipt = Reader(reader).request(record, "sharing", "research")
    index, ticket = reader.chains["sharing"].release(receipt.tx, reader.home.seal)
    assert world.ask(index, ticket, reader.home.sign).status_code == 200
    authority.revoke(reader.home.sign.public)
    assert ticket.ticket.expires_ms > now_ms()
    eventually(lambda: world.ask(index, ticket, reader.home.sign).status_code == 403)
    world.check_refused(record, world.ask(index, ticket, reader.home.sign), "revoked", reader.home.sign)
    with pytest.raises(Denied, match="revoked"):
        reader.chains["sharing"].release(receipt.tx, reader.home.seal)
    asked = reader.chains["sharing"].send(reader.home.sign, Request(record, "research"))
    assert (asked.ok, asked.code) == (False, "revoked")
    world.check_on_chain(record, reader, "revoked")


def test_what_was_granted_for_a_version_ends_with_the_next_one_at_nodes_and_cloud(world: World):
    record = world.store()
    reader = world.reader
    receipt = Reader(reader).request(record, "sharing", "research")
    index, ticket = reader.chains["sharing"].release(receipt.tx, reader.home.seal)
    assert world.ask(index, ticket, reader.home.sign).status_code == 200
    Patient(world.patient).set_policies(record, {"shared": "role:doctor"})
    world.check_refused(
        record, world.ask(index, ticket, reader.home.sign), "superseded", reader.home.sign, 404
    )
    with pytest.raises(Denied, match="newer version"):
        reader.chains["sharing"].release(receipt.tx, reader.home.seal)
    newer, theirs = world.grant(world.doctor, record, purpose="treatment")
    assert world.ask(newer, theirs, world.doctor.home.sign).status_code == 200
    answer = world.ask(newer, ticket, reader.home.sign)  # the new address leaked, the old ticket still lives
    world.check_refused(record, answer, "other-version", reader.home.sign)


def test_nothing_of_an_erased_record_is_served_to_anybody_who_once_could_read_it(world: World):
    record = world.store(POLICIES)
    reader = world.reader
    index, ticket = world.grant(reader, record)
    stored = Patient(world.patient).load(record)
    names = [part.blob.hash.hex() for part in stored.parts]
    data = world.net.folder / "cloud" / "data" / "blobs"
    assert all((data / name[:2] / name).exists() for name in names)
    receipt = world.patient.cloud.delete(record, world.patient.home.sign)
    assert receipt.blobs >= len(names)
    assert not any((data / name[:2] / name).exists() for name in names)
    for who, its_ticket in [(reader, ticket), (world.patient, None)]:
        answer = world.ask(index, its_ticket, who.home.sign)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown-address")
    with pytest.raises(NotFound):
        world.cloud_log(record)
    assert world.patient.cloud.delete(record, world.patient.home.sign).blobs == receipt.blobs


def test_a_stranger_who_floods_the_cloud_with_a_stolen_entry_fills_no_disk_and_hides_nothing_that_is_served(
    world: World,
):
    record = world.store()
    index, ticket = world.grant(world.reader, record)
    with httpx2.Client(trust_env=False) as http:
        for _ in range(110):
            body = world.body(index, None, world.thief.home.sign.public)
            content = encode(Download.make(body, world.thief.home.sign))
            assert http.post(f"{world.cloud_url}/v1/download", content=content).status_code == 403
    assert world.ask(index, ticket, world.reader.home.sign).status_code == 200
    log = world.cloud_log(record)
    assert len(log) == 101
    assert (log[-1].code, log[-1].unlisted) == ("served", 10)
