"""What can be made to go wrong inside one node that runs with `chaos = true`: the order that a chaos runner sends it.

An order is the whole state, not a change: the node forgets the one before. The default order is a healthy node.
"""

from typing import Annotated

import msgspec

from protocol.genesis import Name
from protocol.quorum import MAX_MEMBERS

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=60_000)]
SkewMs = Annotated[int, msgspec.Meta(ge=-86_400_000, le=86_400_000)]


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one direction of a link treats frames. Frames keep their order except the share `reorder`, which comes late.

    `delay_ms` is (least, most), drawn evenly; `bytes_per_s` 0 means unlimited. What waits on a link is bounded, the rest is lost.
    """

    drop: Probability = 0.0
    duplicate: Probability = 0.0
    reorder: Probability = 0.0
    delay_ms: tuple[Milliseconds, Milliseconds] = (0.0, 0.0)
    bytes_per_s: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0

    def __post_init__(self) -> None:
        if self.delay_ms[0] > self.delay_ms[1]:
            raise ValueError("delay_ms is [least, most]; the least is larger than the most")


class NodeFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`links` and `cut` name the peers whose frames to this node are mistreated or all lost."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    links: dict[Name, Link] = {}
    cut: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_MEMBERS)] = ()
    skew_ms: SkewMs = 0
    disk_full: bool = False
    equivocate: bool = False
