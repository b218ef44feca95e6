"""A contract with people, a record and a clock, for its tests."""

import msgspec

from crypto.codec import encode
from crypto.sign import SigningKey
from protocol.contract import Receipt, apply, decode_receipt, get_log_head, log_key, next_log_head
from protocol.identity import Credential, SignedCredential
from protocol.record import Delete, DeleteBody, DeletionReceipt
from protocol.tx import Action, Attest, Certify, Publish, Rule, Tx, TxBody, decode_tx
from tests.dealer import deal, sealed
from tests.memory_state import MemoryState
from tests.simulation.cluster import WALL0, make_genesis

AUTHORITY = SigningKey(bytes([77]) * 32)
DOCTOR, PATIENT, USER, STRANGER = (SigningKey(bytes([i]) * 32) for i in (11, 12, 13, 14))
CLOUD = SigningKey(bytes([15]) * 32)
GENESIS, _ = make_genesis(4)
RECORD = b"r" * 16
UNTIL = WALL0 + 10**9
RULE = Rule("role:user and org:lab", ("research", "treatment"), WALL0 + 5 * 10**6, (STRANGER.public,))


def credential(key: SigningKey, role: str, *attributes: str, **changes) -> SignedCredential:
    seal_key = bytes([key.public[0]]) * 32
    body = Credential(key.public, role, (f"role:{role}", *attributes), seal_key, None, WALL0, UNTIL)
    return SignedCredential.issue(msgspec.structs.replace(body, **changes), AUTHORITY)


class World:
    """A contract state and a clock; every call is a transaction of its own block."""

    def __init__(self) -> None:
        self.state, self.time, self.height = MemoryState(), WALL0, 0
        deal(GENESIS, self.state)

    def do(self, sender: SigningKey, action: Action) -> Receipt:
        """What the contract answers. Whatever it is, the receipt can be written, a refusal changes nothing, and the receipt stands in
        the log of the record that it names and in no other."""
        self.height += 1
        body = TxBody(GENESIS.chain_id, sender.public, self.height.to_bytes(16, "big"), UNTIL, action)
        tx = decode_tx(encode(Tx(body, bytes(64))))
        before = MemoryState(self.state)
        receipt = apply(self.state, GENESIS, tx, self.height, 0, self.time)
        assert decode_receipt(encode(receipt)) == receipt
        assert (receipt.tx, receipt.sender) == (tx.id, sender.public)
        assert (receipt.height, receipt.time_ms) == (self.height, self.time)
        changed = {key for key in before | self.state if before.get(key) != self.state.get(key)}
        logs = {key for key in changed if key.startswith(b"log/")}
        if receipt.record is None:
            assert not logs
        else:
            assert logs == {log_key(receipt.record)}
            head = next_log_head(get_log_head(before, receipt.record), receipt)
            assert get_log_head(self.state, receipt.record) == head
        assert receipt.ok or changed == logs, "a refused transaction changes nothing"
        return receipt

    def certified(self) -> "World":
        for signed in (
            credential(DOCTOR, "doctor"),
            credential(PATIENT, "patient"),
            credential(USER, "user", "org:lab"),
        ):
            assert self.do(AUTHORITY, Certify(signed)).code == "certified"
        return self

    def attested(self) -> "World":
        self.certified()
        assert self.do(DOCTOR, Attest(RECORD, PATIENT.public, b"h" * 32)).code == "attested"
        return self

    def published(self, rule: Rule = RULE) -> "World":
        self.attested()
        assert self.do(PATIENT, publish(1, rule)).code == "published"
        return self


def publish(version: int, rule: Rule = RULE, record: bytes = RECORD, tags: tuple[bytes, ...] = ()) -> Publish:
    entry = sealed(GENESIS, record, version, rule)
    return Publish(record, version, bytes([version % 256]) * 32, entry, rule, tags)


def deletion(record: bytes = RECORD, before: int | None = None) -> bytes:
    """A cloud's receipt for having deleted a record, or its versions `before` one, encoded."""
    delete = Delete.make(DeleteBody(CLOUD.public, PATIENT.public, record, before, WALL0, b"n" * 16), PATIENT)
    return encode(DeletionReceipt.make(delete, 2, 7, 4096, WALL0 + 1, CLOUD))
