"""Nothing but the disk grows with the length of a chain: what a node asks its databases to do is the same on a long one, counted in the steps of
SQLite's machine, which no other work on the host disturbs."""

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest

import node.ledger
import node.store
from bench.chains import MEMBER, RECORDS, TAGS, Chain, build
from configs.files import read_key
from crypto.dkg import HolderKey
from crypto.sign import SigningKey
from node.api import create_app
from node.backup import backup, restore
from node.daemon import Node
from node.net import Net, Peer
from node.tls import TlsNet
from protocol.contract import log_key, record_key

SHORT, LONG = 600, 3000
MORE = 1.1
"""What a query may take more on the long chain: a tree of five times as many rows may be one level deeper."""
MAX_CHANGED = 100


class Steps:
    """Counts the steps of every connection to a database made while it counts."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self, db: sqlite3.Connection) -> sqlite3.Connection:
        db.set_progress_handler(self._step, 1)
        return db

    def _step(self) -> None:
        self.count += 1

    def taken(self) -> int:
        """Since this was asked last."""
        count, self.count = self.count, 0
        return count


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Steps]:
    steps, connect = Steps(), node.store.connect
    with patch.context() as patched:
        for module in (node.store, node.ledger):
            patched.setattr(module, "connect", lambda *args: steps.watch(connect(*args)))
        yield steps


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Iterator[dict[int, Path]]:
    """The same chain, short and long."""
    where = tmp_path_factory.mktemp("chains")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.ledger, "MAX_CHANGED", MAX_CHANGED)
        yield {size: build(where, size, 1, 1, lambda _: None) for size in (SHORT, LONG)}


def make_node(folder: Path, chain: Chain) -> Node:
    keys = folder / MEMBER / "keys"

    def transport(peers: Sequence[Peer]) -> Net:
        return TlsNet(
            me=MEMBER,
            chain_id=chain.genesis.chain_id,
            identity_seed=read_key(keys / "network.key"),
            listen_host="127.0.0.1",
            listen_port=0,
            peers=peers,
        )

    return Node(
        chain.genesis,
        MEMBER,
        [SigningKey(read_key(keys / "consensus.key"))],
        HolderKey.from_bytes(read_key(keys / "index.key")),
        transport,
        dict,
        chain.data,
        keys / "consensus.journal",
    )


def chain_in(folder: Path) -> Chain:
    with Chain(folder, 1) as chain:
        _ = chain.writer  # read before it is closed
        return chain


def unread_record(chain: Chain, size: int) -> bytes:
    """A record of which nothing but its two first receipts speaks."""
    with closing(sqlite3.connect(chain.data / "ledger.db")) as db:
        records = (chain.writer.record(number) for number in range(size // 10))
        query = "SELECT COUNT(*) FROM receipts WHERE record = ?"
        return next(r for r in records if db.execute(query, (r,)).fetchone() == (2,))


def paths(chain: Chain, size: int) -> dict[str, str]:
    """A path of each query of the API, about things alike on all chains."""
    writer, record = chain.writer, unread_record(chain, size)
    patient, reader = writer.patient(5).public.hex(), writer.reader(5).public.hex()
    with closing(sqlite3.connect(chain.data / "ledger.db")) as db:
        query = "SELECT tx FROM receipts WHERE record = ? ORDER BY height, position LIMIT 1"
        tx = db.execute(query, (record,)).fetchone()[0].hex()
    return {
        "a record": f"/v1/record/{record.hex()}",
        "a log": f"/v1/record/{record.hex()}/log",
        "a person": f"/v1/identity/{patient}",
        "a receipt": f"/v1/tx/{tx}",
        "a block": "/v1/block/4",
        "the last block": "/v1/block/latest",
        "records of a patient": f"/v1/patient/{patient}/records?limit=1",
        "an inbox": f"/v1/patient/{patient}/inbox",
        "grants": f"/v1/reader/{reader}/grants?limit=1",
        "wards": f"/v1/proxy/{reader}/wards",
        "records with a tag": f"/v1/tag/{TAGS[0].hex()}?limit=10",
        "what waits": "/v1/pending",
        "people": "/v1/people?limit=10",
        "epochs": "/v1/epochs",
        "the index key": "/v1/index-key",
        "an old checkpoint": "/v1/checkpoint/4",
        "the last checkpoint": "/v1/checkpoint/latest",
        "a proof of the state": f"/v1/proof/state/{record_key(record).hex()}",
        "a proof of a log": f"/v1/proof/state/{log_key(record).hex()}",
        "a proof of absence": f"/v1/proof/state/{record_key(bytes(16)).hex()}",
        "a proof of a receipt": f"/v1/proof/tx/{tx}",
        "the status": "/v1/status",
    }


async def test_every_query_costs_as_much_on_a_long_chain_as_on_a_short_one(folders, monkeypatch):
    found: dict[int, dict[str, int]] = {}
    for size, folder in folders.items():
        chain = chain_in(folder)
        with counted(monkeypatch) as steps:
            asked = make_node(folder, chain)
            transport, taken = httpx2.ASGITransport(app=create_app(asked)), {}
            async with httpx2.AsyncClient(transport=transport, base_url="http://node") as client:
                for what, path in paths(chain, size).items():
                    steps.taken()
                    answer = await client.get(path)
                    taken[what] = steps.taken()
                    assert answer.status_code == 200, (what, answer.text)
            await asked.stop()
        found[size] = taken
    for what, count in found[LONG].items():
        assert count <= MORE * found[SHORT][what] + 5, what
    assert found[SHORT]["a record"] > 5, "the steps are counted"


async def test_a_start_costs_as_much_on_a_long_chain_as_on_a_short_one(folders, monkeypatch):
    found = {}
    for size, folder in folders.items():
        chain = chain_in(folder)
        with counted(monkeypatch) as steps:
            started = make_node(folder, chain)
            assert started.state_root == started._ledger.tree.root
            found[size] = steps.taken()
            await started.stop()
    # What both have: the transactions of the last ten minutes, and at most so many buckets to look after.
    assert found[LONG] <= found[SHORT] + 25 * MAX_CHANGED


def test_the_next_block_costs_as_much_on_a_long_chain_as_on_a_short_one(folders, monkeypatch, tmp_path):
    found = {}
    for size in folders:
        copy = shutil.copytree(folders[size], tmp_path / str(size))
        with counted(monkeypatch) as steps, Chain(copy, 1) as chain:
            number = chain.blocks
            final = chain.sealed([(chain.writer.block(number), chain.writer.time_ms(number))])
            steps.taken()
            chain.journal(final)
            chain.execute(final)
            found[size] = steps.taken()
    assert found[LONG] <= MORE * found[SHORT]


def test_an_interrupted_build_goes_on_to_a_chain_that_holds_together_and_that_a_node_takes(folders, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(_: int) -> None:
        raise Interrupted

    where = tmp_path / "chains"
    shutil.copytree(folders[SHORT], where / str(SHORT))
    with pytest.raises(Interrupted):
        build(where, LONG, 1, 1, interrupt)
    with Chain(where / str(LONG), 1) as chain:
        assert SHORT // 100 < chain.blocks < LONG // 100
    chain = chain_in(build(where, LONG, 1, 1, lambda _: None))
    whole = chain_in(folders[LONG])
    made, expected = (
        backup(c.data, tmp_path / f"saved-{i}", c.genesis, MEMBER) for i, c in enumerate((chain, whole))
    )
    assert (made.executed_height, made.kind) == (expected.executed_height, "backup")
    restore(tmp_path / "saved-0", tmp_path / "restored", chain.genesis, MEMBER)
    with closing(sqlite3.connect(chain.data / "ledger.db")) as db:
        codes = dict(db.execute("SELECT kind, COUNT(*) FROM receipts GROUP BY kind"))
    units = (LONG - 100) // 20
    assert codes["identity.certify"] == 100 + units
    assert codes["record.attest"] == codes["record.publish"] == RECORDS * units
    assert codes["access.request"] == 11 * units
