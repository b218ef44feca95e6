"""What a city, a country and a continent would need: records, transactions, nodes, pairs of chains, disks, cloud; from assumptions that
stand here with their sources, from what `bench.scaling` found a chain to carry, and from costs and sizes measured on the way.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.costs import attest_tx, certified, least
from bench.results import Row
from crypto import tdh2
from crypto.codec import encode
from crypto.dkg import HolderKey, Round
from crypto.group import G1_GENERATOR, random_scalar
from crypto.sharing import share_of
from node.ledger import Ledger
from node.store import Store
from protocol.core import Finalized, SaveBlock
from protocol.quorum import quorum
from protocol.state_tree import BUCKETS, MAX_BUCKET, PAIR
from protocol.tx import Attest, Request
from tests.protocol.contract_world import DOCTOR, PATIENT, RECORD, World, publish
from tests.protocol.contract_world import USER as READER
from tests.simulation.cluster import Cluster

YEAR_S = 365 * 86_400
HEADROOM = 0.5
"""The part of what a chain carries that is planned to be used at the peak."""


@dataclass(frozen=True)
class Assumption:
    value: float
    unit: str
    source: str


ASSUMPTIONS = {
    "records": Assumption(
        6.8,
        "a person and year",
        "one for each consultation of a doctor; OECD average of 2019 (Health at a Glance 2021, section 5)",
    ),
    "bundle": Assumption(
        39_441, "bytes", "FHIR for one encounter: ten Synthea bundles of 7,612,066 bytes with 193 encounters"
    ),
    "sealed": Assumption(
        0.204,
        "of the bundle",
        "parts compressed, padded and encrypted: 13,683 of 67,000 bytes (the sample of run_node.py demo)",
    ),
    "envelopes": Assumption(4_519, "bytes", "two envelopes and two views a record (run_node.py demo)"),
    "attached": Assumption(
        0.05, "of the records", "ours: that carry a scan or a picture; imaging stays in its archive"
    ),
    "attachment": Assumption(2_000_000, "bytes", "ours: of such a record"),
    "requests": Assumption(3, "a record", "ours: in its life, half of them on each chain"),
    "peak": Assumption(
        4, "times the mean", "ours: 250 working days of 10 hours, with some unevenness within"
    ),
    "horizon": Assumption(10, "years", "ours: that a chain is to take new records before another begins"),
}
REGIONS = (
    ("a city", 1_000_000, "city", 7),
    ("a country", 60_000_000, "country", 16),
    ("a continent", 450_000_000, "continent", 31),
)
"""Each with its people, where its nodes stand, and how many each chain has."""
CEREMONY_SIZES = (4, 16, 31, 64, 100)


@dataclass(frozen=True)
class Measured:
    """`disk` is bytes of journal and ledger for each transaction on each node, `keys` those of the state for a record attested and
    published, and for each request; the others are seconds of one processor."""

    disk: float
    keys_record: int
    keys_request: int
    share: float


def measure() -> Measured:
    """Some two seconds of work."""
    world = World().certified()
    counts = [len(world.state)]
    assert world.do(DOCTOR, Attest(RECORD, PATIENT.public, bytes(32))).ok
    assert world.do(PATIENT, publish(1)).ok
    counts.append(len(world.state))
    assert world.do(READER, Request(RECORD, "research")).ok
    counts.append(len(world.state))
    with tempfile.TemporaryDirectory(prefix="diptych-sizing-") as folder:
        disk = _disk(Path(folder))
    coefficients = [random_scalar() for _ in range(3)]
    public = G1_GENERATOR * coefficients[0]
    entry, own = tdh2.encrypt(public, b"label", bytes(200)), share_of(coefficients, 1)
    share = least(lambda: [tdh2.decryption_share(public, b"label", entry, own) for _ in range(20)]) / 20
    return Measured(disk, counts[1] - counts[0], counts[2] - counts[1], share)


def _disk(folder: Path, blocks: int = 40, txs: int = 100) -> float:
    """Bytes by which a node's files grow for each attestation, in blocks as they are at some hundred transactions a second."""
    cluster = Cluster()
    chain = [cluster.block(1, *certified(cluster.genesis))]
    for number in range(2 * blocks):
        raws = [attest_tx(cluster.genesis, number * txs + i) for i in range(txs)]
        chain.append(cluster.block(number + 2, *raws, parent=chain[-1].header))
    sizes = []
    for part in (chain[: blocks + 1], chain[blocks + 1 :]):
        store, ledger = Store(folder, cluster.genesis), Ledger(folder, cluster.genesis)
        for block in part:
            certificate = cluster.certificate("finalize", block.header.view, block.header.id)
            store.apply([SaveBlock(block), Finalized(((block, ()),), certificate)])
            ledger.execute([block])
        store.close()
        ledger.close()
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
    return (sizes[1] - sizes[0]) / blocks / txs


def ceremony() -> list[Row]:
    """The making of an index key by its members' number: what one of them computes, and what it sends."""
    rows: list[Row] = []
    for members in CEREMONY_SIZES:
        keys = [HolderKey.generate() for _ in range(members)]
        run = Round(bytes(32), tuple(key.public for key in keys), quorum(members, "bft"))
        dealing = run.deal(0)
        deal = least(lambda: run.deal(0), 2)  # noqa: B023
        check = least(lambda: run.check(0, dealing), 3)  # noqa: B023
        piece = least(lambda: run.piece(0, dealing, 1, keys[1]), 3)  # noqa: B023
        rows.append(
            {
                "members": members,
                "seconds_a_node": deal + members * (check + piece),
                "deal_ms": 1e3 * deal,
                "check_ms": 1e3 * check,
                "open_ms": 1e3 * piece,
                "dealing_bytes": len(encode(dealing)),
            }
        )
    return rows


def table(capacities: dict[tuple[str, int], float], measured: Measured) -> list[Row]:
    """A row for each quantity, a column for each region; `capacities` are transactions a second by place and members of a chain."""
    columns = {
        name: _region(people, place, members, capacities, measured)
        for name, people, place, members in REGIONS
    }
    first = next(iter(columns.values()))
    return [
        {"quantity": quantity, **{n: column[quantity] for n, column in columns.items()}} for quantity in first
    ]


def _region(
    people: int, place: str, wanted: int, capacities: dict[tuple[str, int], float], measured: Measured
) -> dict[str, Any]:
    value = {name: assumption.value for name, assumption in ASSUMPTIONS.items()}
    members = min((n for p, n in capacities if p == place), key=lambda n: abs(n - wanted))
    year = people * value["records"]
    peak = year / YEAR_S * value["peak"]
    tx_record = 2 + value["requests"] / 2  # on each chain: attested, published, half of the requests
    tx_peak, requests_peak = peak * tx_record, peak * value["requests"] / 2
    keys = year * (measured.keys_record + measured.keys_request * value["requests"] / 2)
    carried = HEADROOM * capacities[place, members]
    released = HEADROOM * members / quorum(members, "bft") / measured.share
    most_keys = BUCKETS * MAX_BUCKET // PAIR
    by = {
        "transactions": tx_peak / carried,
        "index releases": requests_peak / released,
        "state": keys * value["horizon"] / most_keys,
    }
    pairs = math.ceil(max(by.values()))
    stored = value["bundle"] * value["sealed"] + value["envelopes"]
    stored += value["attached"] * value["attachment"]
    disk = year * tx_record * measured.disk
    return {
        "people": people,
        "records a year": year,
        "records a second, mean": year / YEAR_S,
        "records a second, peak": peak,
        "transactions a second and chain, peak": tx_peak,
        "nodes a chain": members,
        "transactions a second that a chain carries": capacities[place, members],
        "pairs of chains for the transactions": by["transactions"],
        "pairs of chains for the index releases": by["index releases"],
        "pairs of chains for the state over the horizon": by["state"],
        "pairs of chains": pairs,
        "most of them for the": max(by, key=lambda name: by[name]),
        "busy part of a node's processor, peak": HEADROOM
        * (by["transactions"] + by["index releases"])
        / pairs,
        "nodes in all": 2 * pairs * members,
        "years until the state of one pair is full": most_keys / keys,
        "TB a node and year": disk / pairs / 1e12,
        "cloud TB a year": year * stored / 1e12,
        "cloud Mbit/s in, peak": peak * stored * 8 / 1e6,
        "cloud Mbit/s out, peak": peak * value["requests"] * stored * 8 / 1e6,
        "cloud requests a second, peak": peak * (1 + value["requests"]),
    }


def assumptions() -> list[Row]:
    return [
        {"what": name, "value": a.value, "unit": a.unit, "source": a.source}
        for name, a in ASSUMPTIONS.items()
    ]
