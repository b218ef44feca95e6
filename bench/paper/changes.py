"""Section 6.2.4: what redefining a part (private to shared) and changing rights take, against the size of the record.

A record of nine parts of equal size, five of them shared at first. Time is from the patient's call until the new version is final and what it replaces is deleted in the cloud; bytes are what
the patient sends to the cloud, and the encoded transactions on all chains. The contents do not compress well, so sizes are those that travel.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from bench.baselines import SCHEMES, Scheme, Traditional
from bench.paper.index import CHAINS
from bench.paper.lab import BEFORE, SWAPPED, Lab, Piece, Row, labels, made_parts, timed

TITLE = "Section 6.2.4: redefining a part and changing rights"
SHARED, PRIVATE, MOVED = 5, 4, 3


def pieces(lab: Lab) -> Iterator[Piece]:
    sizes = (
        (10_000, 100_000, 1_000_000)
        if lab.is_quick
        else (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    )
    for size in sizes:
        repeats = 1 if lab.is_quick or size == max(sizes) else 3
        for kind in SCHEMES:
            seconds = repeats * (2.5 + (0.2 if kind is Traditional else 0.05) * size / 1e6)
            yield Piece(f"{size:,} bytes, {kind.title}", seconds, partial(_changes, lab, kind, size, repeats))


def _changes(lab: Lab, kind: type[Scheme], size: int, repeats: int) -> Iterable[Row]:
    for _ in range(repeats):
        yield from _change(lab, kind, size)


def _change(lab: Lab, kind: type[Scheme], size: int) -> Iterable[Row]:
    testbed = lab.testbed()
    parts = made_parts(lab.seed, SHARED, PRIVATE, size // (SHARED + PRIVATE))
    with kind(testbed.people) as scheme:
        held = scheme.store(parts, labels(parts, "m5"), BEFORE)

        def measure(change: str, work: Callable[[], None]) -> Row:
            sent, heights = scheme.uploaded, {chain: testbed.height(chain) for chain in CHAINS}
            seconds = timed(work)
            on_chain = [tx for chain in CHAINS for tx in testbed.on_chain(chain, heights[chain])]
            return {
                "scheme": kind.name,
                "change": change,
                "record_bytes": size,
                "ms": 1e3 * seconds,
                "uploaded_bytes": scheme.uploaded - sent,
                "chain_bytes": sum(tx.size for tx in on_chain),
                "transactions": len(on_chain),
            }

        for label in labels(parts, "m8")[:MOVED]:
            yield measure("redefine a part", partial(scheme.share, held, label))
        for rights in (SWAPPED, BEFORE, SWAPPED):
            yield measure("change rights", partial(scheme.permit, held, rights))
