"""A proof in one file: what a chain holds of a record or a transaction, for somebody who has only the file and the genesis.

JSON with byte strings in hex; docs/proof-format.md says what each field means and how to check it without this program. A statement bears
everything that proves it: the checkpoint that a quorum of members signed, and the hashes from there to what is stated.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from client.light import Proved, ProvedLog, ProvedReceipt, check_log
from crypto.codec import Decoder, Wire, encode
from crypto.errors import Malformed, Unauthentic
from protocol.block import Certificate, Committee, Header, decode_certificate
from protocol.checkpoint import Checkpoint, CheckpointSignature, ReceiptProof, SignedCheckpoint
from protocol.contract import LogHead, Receipt, decode_log_head, decode_receipt, log_key
from protocol.epochs import Handover, decode_handover, follow
from protocol.genesis import Genesis
from protocol.state_tree import StateProof

MAX_FILE = 128 << 20
W = TypeVar("W", bound=Wire)
Hex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})*\Z")]
Fields = dict[str, str | int | bool | None]
"""A wire object of plain fields by their names, byte strings in hex."""
_decode_checkpoint = Decoder(Checkpoint, "a checkpoint", 1 << 10)
_decode_header = Decoder(Header, "a header", 4 << 10)


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    signer: int
    signature: Hex


class _Signed(msgspec.Struct, forbid_unknown_fields=True):
    checkpoint: Fields
    signatures: list[_Signature]


class _State(msgspec.Struct, forbid_unknown_fields=True, tag_field="kind", tag="state"):
    """What the state holds of `key`; no value: it holds nothing."""

    key: Hex
    value: Hex | None
    bucket: Hex
    siblings: list[Hex]
    signed: _Signed


class _Log(msgspec.Struct, forbid_unknown_fields=True, tag_field="kind", tag="log"):
    """All receipts that concern a record; `head` is what the state holds of its log."""

    record: Hex
    receipts: list[Fields]
    head: _State


class _OneReceipt(msgspec.Struct, forbid_unknown_fields=True, tag_field="kind", tag="receipt"):
    receipt: Fields
    path: list[Hex]
    root_before: Hex
    header: Hex
    links: list[Hex]
    finalization: Hex
    transaction: Hex | None
    transaction_path: list[Hex]
    signed: _Signed


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["diptych/proof/1"]
    chain: str
    genesis: Hex
    handovers: list[Hex]
    statements: list[_State | _Log | _OneReceipt]


class Shown(NamedTuple):
    """A statement that was proved: what is stated, where the chain stood, and which members signed for it."""

    statement: Proved | ProvedLog | ProvedReceipt
    checkpoint: Checkpoint
    signers: tuple[str, ...]


def export(
    genesis: Genesis, handovers: Sequence[Handover], statements: Sequence[Proved | ProvedLog | ProvedReceipt]
) -> bytes:
    """The file that proves these statements of one chain."""
    made = _File(
        "diptych/proof/1",
        genesis.chain_id,
        genesis.hash.hex(),
        [encode(h).hex() for h in handovers],
        [_statement(s) for s in statements],
    )
    return msgspec.json.format(msgspec.json.encode(made)) + b"\n"


def verify(data: bytes, genesis: Genesis) -> list[Shown]:
    """What a file proves to whoever believes the genesis; `Malformed` if it is no proof file, `Unauthentic` if it proves anything less than
    it states."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"this is no proof file of a form that this program knows: {error}") from None
    if msgspec.json.decode(msgspec.json.encode(file)) != msgspec.json.decode(data):
        raise Malformed("a field is missing in the proof file")
    if (file.chain, file.genesis) != (genesis.chain_id, genesis.hash.hex()):
        raise Unauthentic(f"the proof is for the chain {file.chain} with another genesis than the one given")
    committees = [Committee(genesis)]
    for handover in file.handovers:
        committees.append(follow(committees[-1], decode_handover(bytes.fromhex(handover))))
    return [_shown(statement, committees) for statement in file.statements]


def fields(value: Wire) -> Fields:
    """A wire object of plain fields, for people and JSON."""
    named = {name: getattr(value, name) for name in value.__struct_fields__}
    return {name: v.hex() if isinstance(v, bytes) else v for name, v in named.items()}


def _from_fields(kind: type[W], decode: Decoder[W], given: Fields) -> W:
    """The object that `fields` showed so; `Malformed` if there is none."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    if set(given) != {f.name for f in info.fields}:
        raise Malformed(f"the fields of {info.tag} are others than those of its form")
    values: list[Any] = [info.tag]
    for field in info.fields:
        value = given[field.name]
        options = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        if isinstance(value, str) and any(isinstance(t, inspect.BytesType) for t in options):
            value = _unhexed(value)
        values.append(value)
    return decode(encode(values))


def _unhexed(text: str) -> Any:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        raise Malformed("a byte string is not written in hex") from None
    if found.hex() != text:
        raise Malformed("hex digits are written in small letters, without spaces")
    return found


def _statement(statement: Proved | ProvedLog | ProvedReceipt) -> _State | _Log | _OneReceipt:
    match statement:
        case Proved():
            proof = statement.proof
            return _State(
                statement.key.hex(),
                None if statement.value is None else statement.value.hex(),
                proof.bucket.hex(),
                [s.hex() for s in proof.siblings],
                _signed(statement.signed),
            )
        case ProvedLog(head, receipts):
            record = head.key.removeprefix(log_key(b""))
            state = _statement(head)
            assert isinstance(state, _State)
            return _Log(record.hex(), [fields(r) for r in receipts], state)
        case ProvedReceipt(proof, signed):
            return _OneReceipt(
                fields(proof.receipt),
                [h.hex() for h in proof.path],
                proof.root_before.hex(),
                encode(proof.header).hex(),
                [encode(h).hex() for h in proof.links],
                encode(proof.finalization).hex(),
                None if proof.tx is None else proof.tx.hex(),
                [h.hex() for h in proof.tx_path],
                _signed(signed),
            )


def _signed(signed: SignedCheckpoint) -> _Signed:
    return _Signed(
        fields(signed.checkpoint), [_Signature(s.signer, s.signature.hex()) for s in signed.signatures]
    )


def _shown(statement: _State | _Log | _OneReceipt, committees: list[Committee]) -> Shown:
    match statement:
        case _State():
            return _shown_state(statement, committees)
        case _Log():
            head = _shown_state(statement.head, committees)
            record = bytes.fromhex(statement.record)
            found = head.statement
            assert isinstance(found, Proved)
            if found.key != log_key(record):
                raise Unauthentic("the log is of another record than its head")
            receipts = tuple(_from_fields(Receipt, decode_receipt, r) for r in statement.receipts)
            told = LogHead(0, bytes(32)) if found.value is None else decode_log_head(found.value)
            check_log(record, told, receipts)
            return Shown(ProvedLog(found, receipts), head.checkpoint, head.signers)
        case _OneReceipt():
            signed, signers = _believed(statement.signed, committees)
            header = _decode_header(bytes.fromhex(statement.header))
            certificate: Certificate = decode_certificate(bytes.fromhex(statement.finalization))
            links = tuple(_decode_header(bytes.fromhex(h)) for h in statement.links)
            tx = None if statement.transaction is None else bytes.fromhex(statement.transaction)
            proof = ReceiptProof(
                _from_fields(Receipt, decode_receipt, statement.receipt),
                tuple(map(bytes.fromhex, statement.path)),
                bytes.fromhex(statement.root_before),
                header,
                links,
                certificate,
                tx,
                tuple(map(bytes.fromhex, statement.transaction_path)),
            )
            if header.epoch >= len(committees) or (tx is None and statement.transaction_path):
                raise Unauthentic("the block of the receipt is of an epoch that the file does not prove")
            proof.verify(signed.checkpoint, committees[header.epoch])
            return Shown(ProvedReceipt(proof, signed), signed.checkpoint, signers)


def _shown_state(state: _State, committees: list[Committee]) -> Shown:
    signed, signers = _believed(state.signed, committees)
    key, value = bytes.fromhex(state.key), None if state.value is None else bytes.fromhex(state.value)
    proof = StateProof(bytes.fromhex(state.bucket), tuple(map(bytes.fromhex, state.siblings)))
    if len(proof.siblings) != 16 or proof.root(key, value) != signed.checkpoint.state_root:
        raise Unauthentic("a value of the state is not that of the root that the members have signed")
    return Shown(Proved(key, value, proof, signed), signed.checkpoint, signers)


def _believed(signed: _Signed, committees: list[Committee]) -> tuple[SignedCheckpoint, tuple[str, ...]]:
    checkpoint = _from_fields(Checkpoint, _decode_checkpoint, signed.checkpoint)
    found = SignedCheckpoint(
        checkpoint,
        tuple(CheckpointSignature(s.signer, bytes.fromhex(s.signature)) for s in signed.signatures),
    )
    if checkpoint.epoch >= len(committees) or not found.signatures:
        raise Unauthentic("the checkpoint is of an epoch that the file does not prove")
    committee = committees[checkpoint.epoch]
    found.verify(committee)
    return found, tuple(committee.members[s.signer].name for s in found.signatures)
