"""Quorum arithmetic (docs/protocol.md): how many of n members must agree.

Any two quorums share at least 2Q-n members. Safe while at most 2Q-n-1 members lie; live while at most n-Q are silent or lie.
"""

from typing import Literal

Mode = Literal["bft", "majority"]
MAX_MEMBERS = 128


def quorum(n: int, mode: Mode) -> int:
    """Votes needed among `n` members: more than two thirds (`bft`) or more than half (`majority`, the paper's rule)."""
    return n - (n - 1) // 3 if mode == "bft" else n // 2 + 1
