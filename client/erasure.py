"""Erasing a record (crypto-shredding): retired on both chains, deleted by the cloud with its signed word, erased on both chains with that
word, and its keys, tags and content destroyed in the home.

What is still to do is written down first, so that whatever interrupts, the same command goes on. The home keeps the proof at the end, in
which nothing of the record is left but its id.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from client.patient import Agree, Patient
from client.session import KINDS, Session
from crypto.codec import Bytes16, Bytes32, Decoder, UInt, Wire, encode
from crypto.errors import NotFound
from protocol.contract import Receipt
from protocol.identity import ChainKind
from protocol.record import DeletionReceipt, decode_deletion_receipt
from protocol.tx import Erase, Retire


class Erased(Wire, frozen=True):
    """Where the erasure stands on a chain."""

    kind: ChainKind
    tx: Bytes32
    height: UInt
    time_ms: UInt


class Erasure(Wire, frozen=True, tag="erasure/1"):
    """How far the erasure of a record has come: `deletion` is the cloud's encoded receipt once there is one. `is_done`: the home has
    destroyed what it had."""

    record: Bytes16
    deletion: Annotated[bytes, msgspec.Meta(max_length=1024)] = b""
    chains: tuple[Erased, ...] = ()
    is_done: bool = False

    @property
    def receipt(self) -> DeletionReceipt:
        return decode_deletion_receipt(self.deletion)


decode_erasure = Decoder(Erasure, "the state of an erasure", 8 << 10)


def erase(session: Session, record: bytes, agree: Agree | None = None) -> Erasure:
    """Erase a record of this home's patient, or go on where an erasure was interrupted; the proof at the end.

    `NotFound` if the home has no such record. Raises `DiptychError` when a chain or the cloud refuses or does not answer; then repeat it.
    """
    home, patient = session.home, Patient(session)
    name = f"erasure-{record.hex()}"
    if home.has(name):
        state = decode_erasure(home.load(name))
    else:
        stored = patient.load(record)
        if agree:
            agree(patient.foresee("erase", stored, None))
        state = Erasure(record)
        home.save(name, encode(state))
    if not state.deletion:
        home.destroy(f"pending-{record.hex()}")  # no version that was begun may come after the deletion
        session.progress("retiring the record on both chains")
        session.on_chains(lambda kind: _retire(session, kind, record))
        session.progress("having the cloud delete what it holds")
        deletion = session.cloud.delete(record, home.sign)
        state = msgspec.structs.replace(state, deletion=encode(deletion))
        home.save(name, encode(state))
    if not state.chains:
        session.progress("erasing the record on both chains")
        action = Erase(record, state.deletion)
        erased = session.on_chains(lambda kind: _erase(session, kind, action))
        state = msgspec.structs.replace(state, chains=tuple(erased))
        home.save(name, encode(state))
    if not state.is_done:
        session.progress("destroying keys, tags and content in this home")
        for found in _files(record):
            home.destroy(found)
        home.remove_packs(record)
        state = msgspec.structs.replace(state, is_done=True)
        home.save(name, encode(state))
    return state


def _files(record: bytes) -> list[str]:
    """The sealed files of a home that tell something of a record, its keys last: until they are gone, everything can be repeated. Then its
    packs are noise."""
    return [*(f"request-{kind}-{record.hex()}" for kind in KINDS), f"record-{record.hex()}"]


def _retire(session: Session, kind: ChainKind, record: bytes) -> None:
    chain = session.chains[kind]
    if chain.verified_record(record).status not in ("retired", "erased"):
        chain.execute(session.home.sign, Retire(record, None))


def _erase(session: Session, kind: ChainKind, action: Erase) -> Erased:
    chain = session.chains[kind]
    if chain.verified_record(action.record).status == "erased":
        receipt = _earlier(chain.verified_log(action.record).receipts)
    else:
        receipt = chain.execute(session.home.sign, action)
    return Erased(kind, receipt.tx, receipt.height, receipt.time_ms)


def _earlier(log: Sequence[Receipt]) -> Receipt:
    """The receipt of the erasure that went through before an interruption."""
    for receipt in log:
        if receipt.kind == "record.erase" and receipt.ok:
            return receipt
    raise NotFound("a node calls the record erased and shows no receipt of it; ask again, it may be behind")
