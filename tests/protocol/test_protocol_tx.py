"""Transactions: signed over everything they say, valid on one chain, with one id however they are signed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.codec import encode
from crypto.errors import Malformed, Unauthentic
from crypto.sign import SigningKey
from protocol.block import MAX_TX
from protocol.identity import Credential, SignedCredential
from protocol.tx import Attest, Certify, Publish, Request, Revoke, Rule, Tx, check_tx
from tests.simulation.cluster import CLIENT, WALL0, request_tx

CHAIN = "diptych/1/storage/test"
OTHER = SigningKey(b"o" * 32)
RULE = Rule("role:doctor", ("research",), None, (bytes(32),))
CREDENTIAL = SignedCredential.issue(
    Credential(OTHER.public, "patient", ("role:patient",), bytes(32), None, 0, 9), OTHER
)
ACTIONS = [
    Certify(CREDENTIAL),
    Revoke(OTHER.public),
    Attest(bytes(16), OTHER.public, bytes(32)),
    Publish(bytes(16), 1, bytes(32), b"sealed", RULE),
    Request(bytes(16), "research"),
]


def tx_of(action, chain: str = CHAIN) -> Tx:
    return Tx.make(chain, CLIENT, bytes(16), WALL0 + 1000, action)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda a: type(a).__name__)
def test_every_action_comes_out_of_its_signed_encoding_unchanged(action):
    tx = tx_of(action)
    assert check_tx(encode(tx), CHAIN) == tx


@pytest.mark.parametrize(
    "change",
    [
        {"sender": OTHER.public},
        {"nonce": b"n" * 16},
        {"expires_ms": WALL0 + 1001},
        {"action": Request(bytes(16), "treatment")},
        {"action": ACTIONS[1]},
    ],
)
def test_no_field_of_a_signed_transaction_can_be_changed(change):
    tx = tx_of(ACTIONS[4])
    forged = Tx(msgspec.structs.replace(tx.body, **change), tx.signature)
    assert forged.id != tx.id
    with pytest.raises(Unauthentic, match="transaction"):
        check_tx(encode(forged), CHAIN)


def test_a_transaction_of_the_other_chain_is_refused_with_both_names():
    with pytest.raises(Malformed, match=r"sharing/test.*storage/test"):
        check_tx(encode(tx_of(ACTIONS[4], "diptych/1/sharing/test")), CHAIN)
    moved = msgspec.structs.replace(tx_of(ACTIONS[4], "diptych/1/sharing/test").body, chain_id=CHAIN)
    with pytest.raises(Unauthentic):
        check_tx(encode(Tx(moved, tx_of(ACTIONS[4], "diptych/1/sharing/test").signature)), CHAIN)


def test_the_id_does_not_depend_on_the_signature():
    tx = tx_of(ACTIONS[4])
    assert Tx(tx.body, bytes(64)).id == tx.id


@pytest.mark.parametrize(
    "action",
    [
        Publish(bytes(16), 1, bytes(32), bytes(2049), RULE),
        Publish(bytes(16), -1, bytes(32), b"", RULE),
        Publish(bytes(16), 1, bytes(32), b"", msgspec.structs.replace(RULE, policy="a" * ((16 << 10) + 1))),
        Publish(bytes(16), 1, bytes(32), b"", msgspec.structs.replace(RULE, deny=(bytes(32),) * 257)),
        Publish(bytes(16), 1, bytes(32), b"", msgspec.structs.replace(RULE, purposes=("fun",))),
        Request(bytes(15), "research"),
        Request(bytes(16), "fun"),
        Certify(CREDENTIAL.credential),
    ],
)
def test_actions_out_of_their_bounds_are_malformed_even_if_signed(action):
    with pytest.raises(Malformed):
        check_tx(encode(tx_of(action)), CHAIN)


def test_a_transaction_over_the_size_limit_is_refused():
    with pytest.raises(Malformed, match="limit"):
        check_tx(bytes(MAX_TX + 1), CHAIN)


@given(st.data())
def test_changed_bytes_are_refused_with_a_sentence(data):
    raw = bytearray(request_tx(1))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((Malformed, Unauthentic)):
        check_tx(bytes(raw), CHAIN)


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed(data):
    with pytest.raises(Malformed):
        check_tx(data, CHAIN)
