"""Credentials and tickets: whom they bind, until when, and what forgers make of them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.codec import encode
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.sign import SigningKey
from protocol.identity import (
    CesKey,
    Credential,
    SignedCredential,
    SignedTicket,
    Ticket,
    TicketSignature,
    decode_credential,
)

AUTHORITY, OTHER = SigningKey(b"a" * 32), SigningKey(b"o" * 32)
CREDENTIAL = Credential(
    OTHER.public, "doctor", ("role:doctor", "org:st-mary"), b"s" * 32, CesKey("rsa", b"k"), 1000, 2000
)
NODES = [SigningKey(bytes([i]) * 32) for i in range(4)]
MEMBERS = tuple(key.public for key in NODES)
CHAIN = "diptych/1/sharing/test"
TICKET = Ticket(CHAIN, b"q" * 32, b"r" * 16, 1, b"c" * 32, OTHER.public, "research", 5000)


def test_a_credential_of_the_authority_holds_from_its_first_to_before_its_last_millisecond():
    signed = SignedCredential.issue(CREDENTIAL, AUTHORITY)
    assert signed.verify(AUTHORITY.public, 1000) == signed.verify(AUTHORITY.public, 1999) == CREDENTIAL
    for now in (0, 999, 2000, 2**62):
        with pytest.raises(Denied, match="not valid now"):
            signed.verify(AUTHORITY.public, now)


def test_a_credential_signed_by_anyone_else_is_refused():
    with pytest.raises(Unauthentic, match="credential"):
        SignedCredential.issue(CREDENTIAL, OTHER).verify(AUTHORITY.public, 1500)


@pytest.mark.parametrize(
    "change",
    [
        {"subject": bytes(32)},
        {"role": "patient"},
        {"attributes": ("role:doctor",)},
        {"seal_key": bytes(32)},
        {"ces_key": None},
        {"not_before_ms": 1001},
        {"not_after_ms": 9999},
    ],
)
def test_no_field_of_a_signed_credential_can_be_changed(change):
    signed = SignedCredential.issue(CREDENTIAL, AUTHORITY)
    forged = msgspec.structs.replace(signed, credential=msgspec.structs.replace(CREDENTIAL, **change))
    with pytest.raises(Unauthentic):
        forged.verify(AUTHORITY.public, 1500)


@pytest.mark.parametrize(
    "attribute",
    [
        "role:doctor\n",
        "role:doc tor",
        "role",
        "Role:doctor",
        ":doctor",
        "role:",
        "role:a,b",
        "a:" + "b" * 127,
    ],
)
def test_attributes_that_are_no_policy_attributes_do_not_decode(attribute):
    signed = SignedCredential.issue(msgspec.structs.replace(CREDENTIAL, attributes=(attribute,)), AUTHORITY)
    with pytest.raises(Malformed):
        decode_credential(encode(signed))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_credential(data):
    with pytest.raises(Malformed):
        decode_credential(data)


def ticket_of(*signers: int, ticket: Ticket = TICKET) -> SignedTicket:
    payload = encode(ticket)
    return SignedTicket(
        ticket, 0, tuple(TicketSignature(i, NODES[i].sign("ticket", payload)) for i in signers)
    )


def test_a_ticket_with_a_quorum_of_signatures_holds_until_it_expires():
    for signers in ((0, 1, 2), (1, 2, 3), (0, 1, 2, 3)):
        assert ticket_of(*signers).verify(CHAIN, 0, MEMBERS, 3, 4999) == TICKET
    with pytest.raises(Denied, match="expired"):
        ticket_of(0, 1, 2).verify(CHAIN, 0, MEMBERS, 3, 5000)


@pytest.mark.parametrize("signers", [(), (0,), (2, 3)])
def test_a_ticket_with_too_few_signatures_is_refused(signers):
    with pytest.raises(Unauthentic, match=f"{len(signers)} valid node signatures where 3"):
        ticket_of(*signers).verify(CHAIN, 0, MEMBERS, 3, 0)


@pytest.mark.parametrize("signers", [(0, 0, 0), (0, 1, 1), (2, 1, 0), (0, 2, 1)])
def test_a_ticket_that_counts_a_node_twice_or_out_of_order_is_refused(signers):
    with pytest.raises(Unauthentic, match="twice, out of order"):
        ticket_of(*signers).verify(CHAIN, 0, MEMBERS, 3, 0)


def test_signatures_of_strangers_and_of_nodes_under_other_numbers_do_not_count():
    payload = encode(TICKET)
    stranger = TicketSignature(2, OTHER.sign("ticket", payload))
    swapped = TicketSignature(2, NODES[3].sign("ticket", payload))
    wrong_domain = TicketSignature(2, NODES[2].sign("vote", payload))
    for third in (stranger, swapped, wrong_domain):
        signed = SignedTicket(TICKET, 0, (*ticket_of(0, 1).signatures, third))
        with pytest.raises(Unauthentic, match="2 valid"):
            signed.verify(CHAIN, 0, MEMBERS, 3, 0)
    beyond = SignedTicket(TICKET, 0, (*ticket_of(0, 1).signatures, TicketSignature(63, bytes(64))))
    with pytest.raises(Unauthentic, match="beyond the members"):
        beyond.verify(CHAIN, 0, MEMBERS, 3, 0)


def test_a_ticket_of_another_chain_is_refused_even_when_the_same_nodes_signed_it():
    elsewhere = msgspec.structs.replace(TICKET, chain_id="diptych/1/storage/test")
    with pytest.raises(Unauthentic, match="another chain"):
        ticket_of(0, 1, 2, ticket=elsewhere).verify(CHAIN, 0, MEMBERS, 3, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"request": bytes(32)},
        {"record": bytes(16)},
        {"version": 2},
        {"commit": bytes(32)},
        {"requester": bytes(32)},
        {"purpose": "treatment"},
        {"expires_ms": 9999},
    ],
)
def test_no_field_of_a_signed_ticket_can_be_changed(change):
    forged = SignedTicket(msgspec.structs.replace(TICKET, **change), 0, ticket_of(0, 1, 2).signatures)
    with pytest.raises(Unauthentic, match="0 valid"):
        forged.verify(CHAIN, 0, MEMBERS, 3, 0)


def test_a_ticket_of_former_members_is_refused():
    with pytest.raises(Denied, match="members of the chain have changed"):
        ticket_of(0, 1, 2).verify(CHAIN, 1, MEMBERS, 3, 0)
