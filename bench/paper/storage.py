"""Table 2: the bytes that the cloud really holds for a record, by kind, for each scheme and bundle, with the paper's split (m2 to m7 shared).

Counted in the cloud's folder after storing: the files that the record holds, each file once, and the rows that say which belong together. *Ciphertext* is
sealed parts, compressed and padded as they are, tags of the signature inside; *key headers* are CP-ABE headers, or the access list, with the wrapped keys;
*signatures* are extracted signatures with their record headers and hashes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.paper.lab import BEFORE, PAPER_SHARED, Lab, Piece, Row

TITLE = "Table 2: bytes in the cloud"


def pieces(lab: Lab) -> Iterator[Piece]:
    for path in lab.bundles:
        yield Piece(path.name, 2.5, lambda path=path: _store(lab, path))  # type: ignore[misc]


def _store(lab: Lab, path: Path) -> Iterable[Row]:
    testbed, parts = lab.testbed(), lab.parts_of(path)
    for scheme in lab.schemes(testbed.people):
        held = scheme.store(parts, PAPER_SHARED, BEFORE)
        found = testbed.in_cloud(held.records.values())
        yield {
            "bundle": path.name,
            "scheme": scheme.name,
            "keeps_whole": int(scheme.keeps_whole),
            "plain_bytes": sum(len(p.content) for p in parts),
            "plain_shared_bytes": sum(len(p.content) for p in parts if p.label in PAPER_SHARED),
            **found._asdict(),
            "total": sum(found[:4]),
        }
