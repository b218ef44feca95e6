"""The proof file: what it states holds for whoever has the genesis, in this program and in one that knows nothing but the format."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from light_world import GENESIS, PATIENT, RECORD, USER, World, tx_of

from client.light import Proved, ProvedLog, ProvedReceipt
from client.prooffile import export, verify
from configs.files import write
from crypto.errors import DiptychError
from protocol import genesis as genesis_file
from protocol.block import Committee
from protocol.checkpoint import SignedCheckpoint
from protocol.contract import person_key, record_key
from protocol.epochs import Handover, successor
from protocol.tx import ChangeMembers
from tests.simulation.cluster import ADMINS, Cluster, change_tx, member
from tests.simulation.cluster import SigningKey as Key

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "docs" / "examples" / "verify_proof.py"
CHECKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from verify_proof import verify
assert not [m for m in sys.modules if m.split(".")[0] in ("client", "protocol", "crypto", "configs", "node", "msgspec")]
genesis, *files = json.load(sys.stdin)
for file in files:
    try:
        print(json.dumps(verify(file, genesis)))
    except Exception as error:
        print(json.dumps(str(error) or "refused"))
"""


def independent(*files: str) -> list[Any]:
    """What the program that imports nothing of Diptych says of each file: the lines of what is proved, or why nothing is."""
    given = json.dumps([genesis_file.to_toml(GENESIS), *files])
    words = [sys.executable, "-I", "-c", CHECKER, str(PROGRAM.parent)]
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def file(world) -> bytes:
    """A record, its log, that nobody bears a key, and a denial."""
    client = world.client
    statements = [
        client.verified_state(record_key(RECORD)),
        client.verified_log(RECORD),
        client.verified_state(person_key(bytes(32))),
        client.verified_receipt(tx_of(3, 2)),
    ]
    return export(GENESIS, client.members.handovers, statements)


def test_the_file_proves_the_record_its_complete_log_and_a_denial_offline(file):
    record, log, nobody, denial = verify(file, GENESIS)
    assert isinstance(record.statement, Proved)
    assert isinstance(log.statement, ProvedLog)
    assert [(r.ok, r.code) for r in log.statement.receipts][-1] == (False, "revoked")
    assert len(log.statement.receipts) == 6
    assert nobody.statement.value is None
    assert isinstance(denial.statement, ProvedReceipt)
    assert denial.statement.proof.receipt.code == "wrong-purpose"
    assert denial.checkpoint.height == 3
    assert len(record.signers) == 3


def test_a_program_that_knows_only_the_format_proves_the_same_with_the_genesis_file(file, tmp_path):
    write(tmp_path / "proof.json", file)
    write(tmp_path / "genesis.toml", genesis_file.to_toml(GENESIS).encode())
    words = [sys.executable, "-I", str(PROGRAM), "proof.json", "genesis.toml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert f"the complete log of record {RECORD.hex()}: 6 receipts" in done.stdout
    assert f"by {USER.public.hex()} for treatment: denied" in done.stdout
    assert f"by {PATIENT.public.hex()}" in done.stdout
    assert "signed by n" in done.stdout
    write(tmp_path / "cut.json", file[:-100])
    cut = subprocess.run(
        [*words[:3], "cut.json", "genesis.toml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert cut.returncode == 1
    assert "not proved" in cut.stderr


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        yield path, value
    for name, child in items or ():
        yield from leaves(child, (*path, name))


def others(value: Any) -> list[Any]:
    """Other values that could stand in the place of one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if value is None:
        return ["00"]
    digits = len(value) > 8 and all(c in "0123456789abcdef" for c in value)
    flipped = [
        value[:at] + ("0" if value[at] != "0" else "1") + value[at + 1 :]
        for at in {0, len(value) // 2, len(value) - 1}
        if value
    ]
    return [*flipped, value[:-2] if digits else value + "x", None]


def put(document: Any, path: tuple[Any, ...], value: Any) -> str:
    copy = json.loads(json.dumps(document))
    at = copy
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return json.dumps(copy)


def mutants(document: Any) -> Iterator[str]:
    """Each field with other values; each list with an entry left out, repeated or out of order; each field left out, and one more."""
    for path, value in leaves(document):
        for other in others(value):
            yield put(document, path, other)

    def walk(value: Any, path: tuple[Any, ...]) -> Iterator[str]:
        if isinstance(value, list):
            for at in range(len(value)):
                yield put(document, path, value[:at] + value[at + 1 :])
                yield put(document, path, [*value, value[at]])
                if path != ("statements",) and value[at] != value[0]:
                    yield put(document, path, [value[at], *value[1:at], value[0], *value[at + 1 :]])
            for at, child in enumerate(value):
                yield from walk(child, (*path, at))
        elif isinstance(value, dict):
            for name, child in value.items():
                if path:
                    yield put(document, path, {n: c for n, c in value.items() if n != name})
                    yield put(document, path, {**value, "more": 1})
                yield from walk(child, (*path, name))

    yield from walk(document, ())


def differences(document: Any, mutant: str) -> list[Any]:
    """Where a mutant differs from the file, for the message of a failure."""
    (changed,) = json.loads(mutant)["statements"]
    found = [
        set(map(str, leaves(changed))) ^ set(map(str, leaves(statement)))
        for statement in document["statements"]
        if statement["kind"] == changed["kind"]
    ]
    return sorted(min(found, key=len))


def is_refused(data: str) -> bool:
    try:
        verify(data.encode(), GENESIS)
    except DiptychError:
        return True
    return False


def test_every_field_of_the_file_that_is_changed_left_out_repeated_or_added_is_refused_by_both(file):
    document = json.loads(file)
    whole = {json.dumps({**document, "statements": [s]}) for s in document["statements"]}
    changed = [
        m
        for statement in document["statements"]
        for m in mutants({**document, "statements": [statement]})
        # Without its only statement a file states nothing, with one twice it states it twice: that is no lie. Neither is a signature
        # less or one twice where that is refused anyway.
        if len(json.loads(m)["statements"] or ()) == 1 and m not in whole
    ]
    assert len(changed) > 1000
    ours = [m for m in changed if not is_refused(m)]
    theirs = [m for m, said in zip(changed, independent(*changed), strict=True) if not isinstance(said, str)]
    assert [differences(document, m) for m in ours] == []
    assert [differences(document, m) for m in theirs] == []


def test_the_file_of_another_chain_proves_nothing(file):
    other = msgspec.structs.replace(GENESIS, chain_id="diptych/1/storage/other")
    with pytest.raises(DiptychError, match="another genesis"):
        verify(file, other)


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"format": "diptych/proof/2"}'])
def test_what_is_no_proof_file_is_refused(data):
    with pytest.raises(DiptychError):
        verify(data, GENESIS)


def test_members_of_a_later_epoch_are_followed_in_the_file(world):
    """The admins put a new member in the place of one; only a proof of that makes the new one's signature count."""
    cluster, newcomer = Cluster(), Key(b"newcomer" * 4)
    members = (*GENESIS.members[:3], member(7, newcomer))
    block = cluster.block(1, change_tx(GENESIS, 0, members), parent=None)
    header = msgspec.structs.replace(
        block.header, next_validators_hash=Committee(GENESIS, 1, members).validators_hash
    )
    change = ChangeMembers(0, members, ())
    for admin in ADMINS[:2]:
        change = change.approve(GENESIS, admin)
    finalization = cluster.certificate("finalize", 1, header.id)
    handover = Handover(header, (), finalization, change)
    after = successor(cluster.committee, header, members)

    told = world.client.verified_state(record_key(RECORD))
    later = msgspec.structs.replace(told.signed.checkpoint, epoch=1)
    keys = [Key(bytes([i + 1]) * 32) for i in range(3)]
    signed = SignedCheckpoint.join(
        SignedCheckpoint.make(later, place, key) for place, key in ((1, keys[1]), (2, keys[2]), (3, newcomer))
    )
    assert signed.verify(after) == later
    good = export(GENESIS, [handover], [told._replace(signed=signed)])
    (shown,) = verify(good, GENESIS)
    assert shown.signers == ("n1", "n2", "n7")
    without = export(GENESIS, [], [told._replace(signed=signed)])
    forged = msgspec.structs.replace(
        handover, change=msgspec.structs.replace(change, approvals=change.approvals[:1])
    )
    unagreed = export(GENESIS, [forged], [told._replace(signed=signed)])
    for lie in (without, unagreed):
        assert is_refused(lie.decode())
    said = independent(good.decode(), without.decode(), unagreed.decode())
    assert [isinstance(s, list) for s in said] == [True, False, False]
