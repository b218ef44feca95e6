"""The ledger: the same blocks give the same state and root however they come, and a crash between two blocks loses nothing."""

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

import node.ledger
from crypto.codec import encode
from crypto.errors import Conflict, Malformed, Unavailable
from crypto.sign import SigningKey
from node.ledger import Ledger
from protocol import contract
from protocol.block import Block
from protocol.identity import Credential, SignedCredential
from protocol.state_tree import StateTree, bucket_hash, bucket_of, changed, key_hash, value_hash
from protocol.tx import Action, Attest, Certify, Publish, Request, Revoke, Rule, Tx, decode_tx
from tests.dealer import deal, sealed
from tests.ledger_state import deal_into
from tests.memory_state import MemoryState
from tests.simulation.cluster import WALL0, Cluster

AUTHORITY = SigningKey(bytes([77]) * 32)
DOCTOR, PATIENT, USER = (SigningKey(bytes([i]) * 32) for i in (11, 12, 13))
RECORD = b"r" * 16
CLUSTER = Cluster()
GENESIS = CLUSTER.genesis


def credential(key: SigningKey, role: str) -> Certify:
    body = Credential(key.public, role, (f"role:{role}",), bytes(32), None, WALL0, WALL0 + 10**6)
    return Certify(SignedCredential.issue(body, AUTHORITY))


def make_chain() -> list[Block]:
    """A history with every action, allowed and refused, an empty block and a busy one."""
    rule = Rule("role:user", ("research",), None, ())
    history: list[list[tuple[SigningKey, Action]]] = [
        [
            (AUTHORITY, credential(k, r))
            for k, r in ((DOCTOR, "doctor"), (PATIENT, "patient"), (USER, "user"))
        ],
        [
            (DOCTOR, Attest(RECORD, PATIENT.public, bytes(32))),
            (USER, Attest(RECORD, PATIENT.public, bytes(32))),
        ],
        [],
        [
            (PATIENT, Publish(RECORD, 1, b"c" * 32, sealed(GENESIS, RECORD, 1, rule), rule)),
            (USER, Request(RECORD, "research")),
        ],
        [
            *((USER, Request(RECORD, p)) for p in ("research", "treatment", "research", "research")),
            *((DOCTOR, Request(b"x" * 16, "research")) for _ in range(40)),
        ],
        [(AUTHORITY, Revoke(USER.public)), (USER, Request(RECORD, "research"))],
    ]
    blocks: list[Block] = []
    number = 0
    for view, actions in enumerate(history, 1):
        raws = []
        for sender, action in actions:
            number += 1
            nonce = number.to_bytes(16, "big")
            raws.append(encode(Tx.make(GENESIS.chain_id, sender, nonce, WALL0 + 500_000, action)))
        blocks.append(CLUSTER.block(view, *raws, parent=blocks[-1].header if blocks else None))
    return blocks


CHAIN = make_chain()


def new_ledger(folder) -> Ledger:
    """A ledger to which the index key has been dealt."""
    made = Ledger(folder, GENESIS)
    deal_into(made, GENESIS)
    return made


@pytest.fixture
def ledger(tmp_path):
    made = new_ledger(tmp_path)
    yield made
    made.close()


def contents(ledger: Ledger) -> list[list[tuple]]:
    return [
        ledger._db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
        for table in ("state", "receipts", "executed", "buckets")
    ]


@pytest.fixture
def expected(tmp_path_factory):
    made = new_ledger(tmp_path_factory.mktemp("expected"))
    made.execute(CHAIN)
    yield contents(made)
    made.close()


def test_a_new_ledger_stands_at_genesis(ledger):
    assert ledger.head() == (0, GENESIS.hash)


def test_the_ledger_is_the_contract_applied_in_order(ledger):
    receipts = ledger.execute(CHAIN)
    state, root, plain = MemoryState(), GENESIS.hash, []
    deal(GENESIS, state)
    for block in CHAIN:
        h = block.header
        of_block = [
            contract.apply(state, GENESIS, decode_tx(raw), h.height, position, h.time_ms)
            for position, raw in enumerate(block.txs)
        ]
        root = contract.next_root(root, h.id, of_block)
        plain += of_block
    assert receipts == plain
    assert ledger.head() == (len(CHAIN), root)
    assert {k: ledger.get(k) for k in state} == dict(state)
    assert [ledger.receipt(r.tx) for r in plain] == plain
    assert sum(r.ok for r in plain) < len(plain)


@pytest.mark.parametrize("height", range(len(CHAIN) + 1))
def test_a_crash_at_any_height_and_going_on_from_there_gives_the_same_ledger(tmp_path, expected, height):
    ledger = new_ledger(tmp_path)
    ledger.execute(CHAIN[:height])
    ledger.close()
    ledger = new_ledger(tmp_path)
    assert ledger.head()[0] == height
    new = ledger.execute(CHAIN)
    assert {r.height for r in new} == {b.header.height for b in CHAIN[height:] if b.txs}
    assert contents(ledger) == expected
    ledger.close()


def test_one_block_at_a_time_repeated_or_all_at_once_is_the_same(ledger, expected):
    for block in CHAIN:
        ledger.execute([block])
        assert ledger.execute([block]) == []
    assert ledger.execute(CHAIN) == []
    assert contents(ledger) == expected


def test_a_block_above_a_gap_is_not_executed(ledger):
    assert ledger.execute(CHAIN[2:]) == []
    assert ledger.head() == (0, GENESIS.hash)


def test_a_failure_in_the_middle_keeps_nothing_of_all_the_blocks(ledger):
    bad = CLUSTER.block(3, b"no transaction", parent=CHAIN[1].header)
    before = contents(ledger)
    with pytest.raises(Malformed):
        ledger.execute([*CHAIN[:2], bad])
    assert contents(ledger) == before
    assert len(ledger.execute(CHAIN[:2])) == 5


def test_a_full_disk_in_the_middle_keeps_nothing_and_the_blocks_are_executed_later(ledger, expected):
    ledger._db.execute("PRAGMA max_page_count = 1").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        ledger.execute(CHAIN)
    assert ledger.head() == (0, GENESIS.hash)
    ledger._db.execute("PRAGMA max_page_count = 100000").fetchone()
    ledger.execute(CHAIN)
    assert contents(ledger) == expected


def test_a_power_cut_in_the_middle_of_a_block_leaves_the_last_whole_one(tmp_path, ledger, expected):
    ledger.execute(CHAIN[:2])
    ledger._db.execute("BEGIN IMMEDIATE")
    ledger._save({b"half": b"done"}, {7: bytes(64)})
    shutil.copytree(tmp_path, tmp_path / "after")
    ledger._db.execute("ROLLBACK")
    after = new_ledger(tmp_path / "after")
    assert after.get(b"half") is None
    after.execute(CHAIN)
    assert contents(after) == expected
    after.close()


def test_what_is_tidied_is_in_the_file_itself_without_its_log(tmp_path, ledger, expected):
    ledger.execute(CHAIN)
    for is_tidy in (False, True):
        if is_tidy:
            ledger.tidy()
        alone = tmp_path / f"alone-{is_tidy}"
        alone.mkdir()
        shutil.copy(tmp_path / "ledger.db", alone)
        found = Ledger(alone, GENESIS)
        assert (contents(found) == expected) == is_tidy
        found.close()


def test_a_ledger_is_tidied_while_another_thread_executes(tmp_path, ledger, expected):
    with ThreadPoolExecutor(1) as pool:
        for block in CHAIN:
            tidying = pool.submit(ledger.tidy)
            ledger.execute([block])
            tidying.result()
    assert contents(ledger) == expected
    again = Ledger(tmp_path, GENESIS)
    assert contents(again) == expected
    again.close()


def state_root(ledger: Ledger) -> bytes:
    """The root of the state from its values alone."""
    naive = StateTree()
    for key, value in ledger._db.execute("SELECT key, value FROM state"):
        hashed = key_hash(key)
        number = bucket_of(hashed)
        others = {
            key_hash(k): value_hash(v)
            for k, v in ledger._db.execute("SELECT key, value FROM state")
            if bucket_of(key_hash(k)) == number
        }
        naive.update({number: bucket_hash(changed(b"", others | {hashed: value_hash(value)}))})
    return naive.root


def test_each_height_has_the_root_of_the_state_after_its_block(tmp_path, ledger, expected):
    for block in CHAIN:
        ledger.execute([block])
        assert ledger.roots(block.header.height)[1] == state_root(ledger) == ledger.tree.root
    assert ledger.roots(len(CHAIN) + 1) is None
    fresh = Ledger(tmp_path, GENESIS)
    assert fresh.tree.root == ledger.tree.root, "from the disk it is the same tree"
    fresh.close()


def test_every_value_and_every_absence_is_proved_against_the_root_of_its_height(ledger):
    ledger.execute(CHAIN)
    height, root = len(CHAIN), ledger.roots(len(CHAIN))[1]
    keys = [key for (key,) in ledger._db.execute("SELECT key FROM state")]
    for key in [*keys, b"nobody", b""]:
        proved = ledger.prove(key)
        assert (proved.height, proved.value) == (height, ledger.get(key))
        assert proved.proof.root(key, proved.value) == root
    assert contract.person_key(USER.public) in keys


def test_after_a_failure_in_the_middle_proofs_are_of_the_state_before(ledger, expected):
    bad = CLUSTER.block(3, b"no transaction", parent=CHAIN[1].header)
    before = ledger.tree.root
    with pytest.raises(Malformed):
        ledger.execute([*CHAIN[:2], bad])
    assert ledger.tree.root == before == ledger.roots(0)[1]
    key = contract.person_key(USER.public)
    assert ledger.prove(key).proof.root(key, None) == before
    ledger.execute(CHAIN)
    assert contents(ledger) == expected


def test_a_ledger_whose_tree_is_damaged_is_refused(tmp_path, ledger):
    ledger.execute(CHAIN)
    ledger._db.execute("UPDATE buckets SET pairs = zeroblob(64)")
    with pytest.raises(Conflict, match="damaged"):
        _ = Ledger(tmp_path, GENESIS).tree


def reads_of(ledger: Ledger) -> list[str]:
    """What making the tree reads of the buckets."""
    seen: list[str] = []
    ledger._db.set_trace_callback(seen.append)
    _ = ledger.tree
    ledger._db.set_trace_callback(None)
    return [statement for statement in seen if "FROM buckets" in statement]


@pytest.mark.parametrize("most", [1, 5, 20, 1000])
def test_a_start_finds_the_tree_by_the_hashes_kept_and_the_buckets_changed_since(
    tmp_path, monkeypatch, expected, most
):
    monkeypatch.setattr(node.ledger, "MAX_CHANGED", most)
    new_ledger(tmp_path).close()
    for height in range(1, len(CHAIN) + 1):
        ledger = Ledger(tmp_path, GENESIS)
        reads = reads_of(ledger)
        assert len(reads) <= most
        # Until the first block, the test's own way of dealing an index key tells nobody.
        assert height == 1 or all("WHERE number" in statement for statement in reads)
        ledger.execute(CHAIN[:height])
        assert ledger.tree.root == state_root(ledger)
        ledger.close()
    ledger = Ledger(tmp_path, GENESIS)
    assert contents(ledger) == expected
    ledger.close()


@pytest.mark.parametrize(("table", "most"), [("hashes", 5), ("changed", 100)])
def test_a_tree_that_another_version_has_not_kept_is_made_from_all_buckets_and_kept_from_then_on(
    tmp_path, monkeypatch, expected, table, most
):
    monkeypatch.setattr(node.ledger, "MAX_CHANGED", most)
    ledger = new_ledger(tmp_path)
    for block in CHAIN[:-1]:
        ledger.execute([block])
    assert ledger._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone() != (0,)
    ledger._db.execute(f"DELETE FROM {table}")
    ledger.close()
    ledger = Ledger(tmp_path, GENESIS)
    assert any("WHERE number" not in statement for statement in reads_of(ledger))
    ledger.execute(CHAIN)
    assert contents(ledger) == expected
    ledger.close()
    again = Ledger(tmp_path, GENESIS)
    assert reads_of(again) == []
    assert again.tree.root == state_root(again)
    again.close()


def test_a_failure_in_the_middle_leaves_what_a_start_finds_the_tree_by(tmp_path, monkeypatch, ledger):
    monkeypatch.setattr(node.ledger, "MAX_CHANGED", 5)
    bad = CLUSTER.block(3, b"no transaction", parent=CHAIN[1].header)
    ledger.execute(CHAIN[:1])
    with pytest.raises(Malformed):
        ledger.execute([CHAIN[1], bad])
    for block in CHAIN[1:]:
        ledger.execute([block])
        again = Ledger(tmp_path, GENESIS)
        assert all("WHERE number" in statement for statement in reads_of(again))
        assert again.tree.root == state_root(again)
        again.close()


def test_a_bucket_damaged_while_the_node_runs_is_neither_proved_nor_built_upon(ledger):
    ledger.execute(CHAIN[:4])
    key = contract.log_key(RECORD)  # the next block changes it
    number = bucket_of(key_hash(key))
    ledger._db.execute("UPDATE buckets SET pairs = zeroblob(64) WHERE number = ?", (number,))
    with pytest.raises(Unavailable, match="ask another node"):
        ledger.prove(key)
    before = ledger.head(), ledger.tree.root
    with pytest.raises(Conflict, match="damaged"):
        ledger.execute(CHAIN)
    assert (ledger.head(), ledger.tree.root) == before
    other = contract.person_key(USER.public)
    assert ledger.prove(other).proof.root(other, ledger.get(other)) == before[1]


def test_a_ledger_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("CREATE TABLE executed (height INTEGER PRIMARY KEY, root BLOB NOT NULL)")
    with pytest.raises(Conflict, match="move it away"):
        Ledger(tmp_path, GENESIS)


def test_the_ledger_of_another_chain_is_refused(tmp_path, ledger):
    ledger.execute(CHAIN)
    other = msgspec.structs.replace(GENESIS, chain_id="diptych/1/storage/other")
    with pytest.raises(Conflict, match="of another chain: move it away"):
        Ledger(tmp_path, other)
    same = Ledger(tmp_path, GENESIS)
    assert same.head() == ledger.head()
    same.close()


def test_the_log_of_a_record_has_every_receipt_that_concerns_it_in_order_and_in_pages(ledger):
    receipts = ledger.execute(CHAIN)
    log = ledger.record_log(RECORD, (0, 0), 100)
    assert log == [r for r in receipts if r.record == RECORD]
    places = [(2, 0), (2, 1), (4, 0), (4, 1), (5, 0), (5, 1), (5, 2), (5, 3), (6, 1)]
    assert [(r.height, r.position) for r in log] == places
    codes = ["attested", "wrong-role", "published"]
    codes += ["allowed", "allowed", "wrong-purpose", "allowed", "allowed", "revoked"]
    assert [r.code for r in log] == codes
    head = contract.LogHead(0, bytes(32))
    for receipt in log:
        head = contract.next_log_head(head, receipt)
    assert contract.get_log_head(ledger, RECORD) == head
    pages, after = [], (0, 0)
    while page := ledger.record_log(RECORD, after, 2):
        pages += page
        after = (page[-1].height, page[-1].position)
    assert pages == log
    assert ledger.record_log(b"y" * 16, (0, 0), 100) == []
