"""Section 6.2.2: what storing a record with k shared parts writes on chain, and how many requests a reader of all of them makes.

Counted in the journal of a node: every final transaction of the record, by kind, with its encoded bytes. `record.publish` is an index entry, `record.attest` the
doctor's word on a signed header, which the paper does not have, `access.request` a request.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial

from bench.baselines import SCHEMES, Scheme
from bench.paper.lab import BEFORE, Lab, Piece, Row, labels, made_parts
from protocol.identity import ChainKind

TITLE = "Section 6.2.2: index entries and bytes on chain"
CHAINS: tuple[ChainKind, ChainKind] = ("storage", "sharing")


def pieces(lab: Lab) -> Iterator[Piece]:
    for count in (1, 6, 20) if lab.is_quick else (1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 50):
        for kind in SCHEMES:
            seconds = 0.5 + (0.35 * count if kind.name == "bpds" else 0)
            yield Piece(f"{count} shared parts, {kind.title}", seconds, partial(_count, lab, kind, count))


def _count(lab: Lab, kind: type[Scheme], count: int) -> Iterable[Row]:
    testbed = lab.testbed()
    parts = made_parts(lab.seed, count, 3, 2_000)
    with kind(testbed.people) as scheme:
        before = {chain: testbed.height(chain) for chain in CHAINS}
        held = scheme.store(parts, labels(parts, "m5"), BEFORE)
        opened = scheme.read(held, testbed.researcher)
    if len(opened) != count:
        raise RuntimeError("the reader did not open what was shared")
    sums: dict[tuple[str, str], list[int]] = defaultdict(list)
    for chain in CHAINS:
        for tx in testbed.on_chain(chain, before[chain]):
            sums[chain, tx.kind].append(tx.size)
    for (chain_name, tx_kind), sizes in sorted(sums.items()):
        yield {
            "scheme": kind.name,
            "shared_parts": count,
            "chain": chain_name,
            "transaction": tx_kind,
            "count": len(sizes),
            "bytes": sum(sizes),
        }
