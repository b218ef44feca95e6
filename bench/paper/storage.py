"""Table 2: the bytes that the cloud really holds for a record, by kind, for each scheme and bundle, with the paper's split (m2 to m7 shared).

Counted in the cloud's folder after storing: the files that the record holds, each file once, and the rows that say which belong together. *Ciphertext* is
sealed parts, compressed and padded as they are, tags of the signature inside; *key headers* are CP-ABE headers, or the access list, with the wrapped keys;
*signatures* are extracted signatures with their record headers and hashes.
Bundles of text compress to a fraction, the whole as one ciphertext better than its parts; the made records, nine parts of equal size with six of them shared, hardly compress, as images do not.
"""

from collections.abc import Collection, Iterable, Iterator
from functools import partial

from bench.paper.lab import BEFORE, PAPER_SHARED, Lab, Piece, Row, labels, made_parts
from client.fhir import Part

TITLE = "Table 2: bytes in the cloud"
SHARED, PRIVATE = 6, 3


MADE = (10_000, 100_000, 1_000_000, 10_000_000)


def pieces(lab: Lab) -> Iterator[Piece]:
    for path in lab.bundles:
        yield Piece(path.name, 2.5, partial(_store, lab, path.name, lab.parts_of(path), PAPER_SHARED))
    for size in MADE[: 3 if lab.is_quick else 4]:
        parts = made_parts(lab.seed, SHARED, PRIVATE, size // (SHARED + PRIVATE))
        work = partial(_store, lab, f"made, {size:,} B", parts, frozenset(labels(parts, "m5")))
        yield Piece(f"a made record of {size:,} bytes", 2.5 + 2 * size / 1e6, work)


def _store(lab: Lab, name: str, parts: list[Part], shared: Collection[str]) -> Iterable[Row]:
    testbed = lab.testbed()
    for scheme in lab.schemes(testbed.people):
        held = scheme.store(parts, shared, BEFORE)
        found = testbed.in_cloud(held.records.values())
        yield {
            "bundle": name,
            "scheme": scheme.name,
            "keeps_whole": int(scheme.keeps_whole),
            "plain_bytes": sum(len(p.content) for p in parts),
            "plain_shared_bytes": sum(len(p.content) for p in parts if p.label in shared),
            **found._asdict(),
            "total": sum(found[:4]),
        }
