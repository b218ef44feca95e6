"""Chains of any length for benchmarks, built straight into the databases of a node with the keys of the network's own members.

Nothing in them tells them from chains that nodes have made: every block is signed, linked, kept and executed as theirs are. What a chain
holds follows from a seed and a transaction's number, so that a build goes on where it was interrupted, and a benchmark knows what it may ask for.
"""

import multiprocessing
import random
import shutil
import tomllib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from client.web import now_ms
from configs.files import load_network, read_key, write
from configs.settings import NetworkSettings
from crypto import tdh2
from crypto.codec import encode
from crypto.dkg import HolderKey
from crypto.group import G1
from crypto.sign import SigningKey
from node.devnet import free_ports, make
from node.index_key import Holder
from node.ledger import Ledger
from node.store import Store
from protocol import genesis as genesis_file
from protocol import merkle
from protocol.block import Anchor, Block, Certificate, Committee, Header
from protocol.core import Finalized, SaveBlock
from protocol.genesis import Genesis
from protocol.identity import Credential, Role, SignedCredential
from protocol.index_key import get_key, index_label
from protocol.record import digest
from protocol.tx import Action, Attest, Certify, Publish, Request, Rule, Tx

BLOCK_TXS, BLOCK_MS = 100, 60_000
"""Transactions of each block of a chain of `build`, and the time between two blocks."""
DOCTORS, READERS = 20, 80
UNIT = 20
"""Transactions in which a patient comes, four records are attested and published, and eleven requests are made."""
RECORDS, REQUESTS = 4, 11
NEAR = 8
"""Each record is of one of the last so many patients, so that a patient has four on average however long the chain is."""
LIFETIME_MS = 10**12
TAGS = tuple(sorted(digest("bench-tag", bytes([number])) for number in range(4)))
RULE = Rule("role:researcher", ("research",), None, ())
INDEX_BYTES = 160
"""What the address of a record and the patient's signature on it take."""
WRITE = 20
"""Blocks that are written and executed together."""
MEMBER = "storage-1"


def make_network(folder: Path, storage: int, time_ms: int) -> Genesis:
    """A network with so many storage nodes whose genesis lies at `time_ms`; the genesis of its storage chain."""
    make(folder, NetworkSettings.model_validate({"storage": storage, "sharing": 1}))
    network = folder / "network.toml"
    _, chains = load_network(network)
    old = chains["storage"]
    genesis = msgspec.structs.replace(old, time_ms=time_ms)
    write(folder / "genesis-storage.toml", genesis_file.to_toml(genesis).encode(), replace=True)
    named = network.read_bytes().replace(old.hash.hex().encode(), genesis.hash.hex().encode())
    write(network, named, replace=True)
    return genesis


class Place(NamedTuple):
    """Where a chain ends: its last block, and the view and time of it."""

    anchor: Anchor
    view: int


def next_block(
    committee: Committee, keys: Sequence[SigningKey], end: Place, txs: tuple[bytes, ...], time_ms: int
) -> tuple[Block, Certificate, Place]:
    """A block in the view after the last one, with its finalization by the first members, whose keys these are; and where the chain ends then."""
    genesis, view = committee.genesis, end.view + 1
    header = Header(
        genesis.chain_id,
        0,
        view,
        end.anchor.height + 1,
        end.anchor.id,
        end.view,
        merkle.root(txs),
        len(txs),
        time_ms,
        committee.validators_hash,
        committee.validators_hash,
        committee.leader(view),
    )
    signing = enumerate(keys[: committee.quorum])
    votes = [committee.sign(key, i, "finalize", view, header.id) for i, key in signing]
    return (
        Block(header, txs, ()),
        committee.certify(votes),
        Place(Anchor(header.id, header.height, time_ms), view),
    )


@lru_cache(maxsize=4096)
def _key(seed: int, role: str, number: int) -> SigningKey:
    return SigningKey(digest("bench-key", encode((seed, role, number))))


@dataclass(frozen=True)
class Writer:
    """What people send to a chain, by the number of the block. First come doctors and readers; then, in units, new patients, records, and
    requests for any record so far, one in eleven of them for a purpose that the rule refuses."""

    chain_id: str
    authority: bytes
    index_key: bytes
    start_ms: int
    seed: int

    @cached_property
    def _authority(self) -> SigningKey:
        return SigningKey(self.authority)

    @cached_property
    def _index_key(self) -> G1:
        return G1.from_bytes(self.index_key)

    def time_ms(self, block: int) -> int:
        return self.start_ms + block * BLOCK_MS

    def doctor(self, number: int) -> SigningKey:
        return _key(self.seed, "doctor", number % DOCTORS)

    def reader(self, number: int) -> SigningKey:
        return _key(self.seed, "reader", number % READERS)

    def patient(self, number: int) -> SigningKey:
        return _key(self.seed, "patient", number)

    def record(self, number: int) -> bytes:
        return digest("bench-record", encode((self.seed, number)))[:16]

    def owner(self, record: int) -> int:
        """The number of the patient of a record."""
        unit = record // RECORDS
        return max(0, unit - digest("bench-owner", encode((self.seed, record)))[0] % NEAR)

    def block(self, number: int) -> tuple[bytes, ...]:
        """The transactions of block `number`, from 0."""
        if number == 0:
            said: list[tuple[SigningKey, Action]] = [
                (self._authority, self._certify(self.doctor(n), "doctor")) for n in range(DOCTORS)
            ]
            said += [(self._authority, self._certify(self.reader(n), "user")) for n in range(READERS)]
        else:
            units = BLOCK_TXS // UNIT
            first = (number - 1) * units
            said = [step for unit in range(first, first + units) for step in self._unit(unit)]
        return tuple(
            self.tx(number, position, sender, action) for position, (sender, action) in enumerate(said)
        )

    def tx(self, block: int, position: int, sender: SigningKey, action: Action) -> bytes:
        nonce = digest("bench-nonce", encode((self.seed, block, position)))[:16]
        return encode(Tx.make(self.chain_id, sender, nonce, self.time_ms(block) + 2 * BLOCK_MS, action))

    def _unit(self, unit: int) -> Iterator[tuple[SigningKey, Action]]:
        yield self._authority, self._certify(self.patient(unit), "patient")
        records = range(unit * RECORDS, (unit + 1) * RECORDS)
        for number in records:
            patient = self.patient(self.owner(number))
            yield self.doctor(number), Attest(self.record(number), patient.public, bytes(32))
        for number in records:
            yield self.patient(self.owner(number)), self._publish(number)
        chance = random.Random(f"{self.seed}/{unit}")  # noqa: S311
        for turn in range(REQUESTS):
            record = self.record(chance.randrange(records.stop))
            yield (
                self.reader(chance.randrange(READERS)),
                Request(record, "research" if turn else "treatment"),
            )

    def _certify(self, key: SigningKey, role: Role) -> Certify:
        attributes = ("role:researcher",) if role == "user" else ()
        until_ms = self.start_ms + LIFETIME_MS
        person = Credential(key.public, role, attributes, key.public, None, self.start_ms, until_ms)
        return Certify(SignedCredential.issue(person, self._authority))

    def _publish(self, number: int) -> Publish:
        record = self.record(number)
        label = index_label(self.chain_id, record, 1, RULE.digest)
        entry = tdh2.encrypt(self._index_key, label, bytes(INDEX_BYTES))
        return Publish(record, 1, record * 2, entry, RULE, (TAGS[number % len(TAGS)],))


_writer: Writer
"""That of a process that writes blocks for another."""


def _begin(writer: Writer) -> None:
    global _writer
    _writer = writer


def _write(numbers: Sequence[int]) -> list[tuple[tuple[bytes, ...], int]]:
    return [(_writer.block(number), _writer.time_ms(number)) for number in numbers]


class Chain:
    """The chain in a network folder with one storage node, whose databases hold it. Use only while the node does not run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.data, self._seed = folder, folder / MEMBER / "data", seed
        _, chains = load_network(folder / "network.toml")
        self.genesis = chains["storage"]
        keys = folder / MEMBER / "keys"
        self._keys = [SigningKey(read_key(keys / "consensus.key"))]
        self._share_key = HolderKey.from_bytes(read_key(keys / "index.key"))
        self._authority = read_key(folder / "authority" / "keys" / "authority.key")
        self._committee = Committee(self.genesis)
        self._store, self._ledger = Store(self.data, self.genesis), Ledger(self.data, self.genesis)
        tip = self._store.load().tip
        self._end = Place(Anchor(tip.id, tip.height, tip.time_ms), tip.view)
        behind = range(self._ledger.head()[0] + 1, tip.height + 1)  # a build was interrupted
        self._ledger.execute(found[0] for height in behind if (found := self._store.block_at(height)))
        self._make_index_key()

    def close(self) -> None:
        self._store.close()
        self._ledger.close()

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_index_key(self) -> None:
        """As the member does when its chain begins."""
        holder = Holder(self.genesis, self._keys, self._share_key)
        while step := holder.next_step(self._ledger, self._end.anchor.time_ms):
            self._append([((step,), self._end.anchor.time_ms + 1000)])

    @cached_property
    def _first(self) -> int:
        """The height of block 0 of the writer."""
        height = 1
        while (found := self._store.block_at(height)) and found[0].header.tx_count == 1:
            height += 1
        return height if found else self._end.anchor.height + 1

    @cached_property
    def writer(self) -> Writer:
        key = get_key(self._ledger)
        assert key, "a chain begins with its index key"
        start_ms = self.genesis.time_ms + BLOCK_MS
        return Writer(self.genesis.chain_id, self._authority, key.commitments[0], start_ms, self._seed)

    @property
    def blocks(self) -> int:
        """How many of the writer's blocks it has."""
        return self._end.anchor.height + 1 - self._first

    def _append(self, content: Sequence[tuple[tuple[bytes, ...], int]]) -> None:
        blocks = self.sealed(content)
        self.journal(blocks)
        self._ledger.execute(block for block, _ in blocks)

    def sealed(self, content: Sequence[tuple[tuple[bytes, ...], int]]) -> list[tuple[Block, Certificate]]:
        """The next blocks, final, with these transactions at these times."""
        blocks = []
        for txs, time_ms in content:
            block, certificate, self._end = next_block(self._committee, self._keys, self._end, txs, time_ms)
            blocks.append((block, certificate))
        return blocks

    def journal(self, blocks: Sequence[tuple[Block, Certificate]]) -> None:
        self._store.apply(e for b, cert in blocks for e in (SaveBlock(b), Finalized(((b, ()),), cert)))

    def execute(self, blocks: Sequence[tuple[Block, Certificate]]) -> None:
        self._ledger.execute(block for block, _ in blocks)

    def tidy(self) -> None:
        self._ledger.tidy()

    def grow(self, blocks: int, processes: int, on_block: Callable[[int], None]) -> None:
        """Until it has so many of the writer's blocks; `on_block` is told how many have come."""
        writer, context = self.writer, multiprocessing.get_context("spawn")
        starts = range(self.blocks, blocks, WRITE)
        batches = iter(range(start, min(start + WRITE, blocks)) for start in starts)
        with ProcessPoolExecutor(processes, context, _begin, (writer,)) as pool:
            ahead = deque(pool.submit(_write, batch) for batch in islice(batches, processes + 1))
            while ahead:
                written = ahead.popleft().result()
                ahead.extend(pool.submit(_write, batch) for batch in islice(batches, 1))
                self._append(written)
                on_block(len(written))


def _move(folder: Path) -> None:
    """Give the storage node of a copied network ports of its own."""
    config, network = folder / MEMBER / "config.toml", folder / "network.toml"
    told = tomllib.loads(config.read_text())
    for old, new in zip((told["p2p_port"], told["http_port"]), free_ports(2), strict=True):
        for file in (config, network):
            write(file, file.read_bytes().replace(b"%d" % old, b"%d" % new), replace=True)


def build(folder: Path, size: int, seed: int, processes: int, on_block: Callable[[int], None]) -> Path:
    """The network folder `folder/SIZE` with a chain of `size` transactions, a multiple of 100, besides those that make its index key. It goes on
    from the longest shorter chain in `folder`, and with an interrupted build; `on_block` is told how many blocks have come."""
    where = folder / str(size)
    if not where.exists():
        shorter = [int(f.name) for f in folder.glob("*") if f.name.isdecimal() and int(f.name) < size]
        part = folder / f"{size}.part"
        shutil.rmtree(part, ignore_errors=True)
        if shorter:
            shutil.copytree(folder / str(max(shorter)), part)
            _move(part)
        else:
            make_network(part, 1, now_ms() - 365 * 86_400_000)
        part.rename(where)
    with Chain(where, seed) as chain:
        if chain.blocks < size // BLOCK_TXS:
            chain.grow(size // BLOCK_TXS, processes, on_block)
    return where
