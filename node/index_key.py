"""This node's part in the chain's index key (`protocol.index_key`): it deals, judges what it is dealt, and answers with decryption shares.

The share is kept nowhere: it is opened anew from the dealings in the contract's state with the key file `index.key`, so what survives a
lost disk or a restored backup is whatever survives of that file and of the chain. A node may deal or judge twice after a crash; the
contract takes the first.
"""

import asyncio
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from crypto import tdh2
from crypto.codec import encode
from crypto.dkg import HolderKey, combined_share
from crypto.errors import DiptychError, Malformed, Unauthentic, Unavailable
from crypto.sign import Ed25519Signer
from protocol.contract import Receipt
from protocol.genesis import Genesis, Member
from protocol.index_key import (
    IndexKey,
    KeyRound,
    awaited,
    get_dealers,
    get_dealing,
    get_key,
    get_round,
    is_overdue,
    run_of,
)
from protocol.state import StateReader
from protocol.tx import Close, Deal, Judge, Tx

if TYPE_CHECKING:
    from node.daemon import Node

TX_LIFETIME_MS = 60_000
CLOSE_LIFETIME_MS = 2_000
"""Short, as a member whose clock is ahead of the blocks must ask again."""
CLOSE_STAGGER_MS = 200
"""One member after another says that a deadline has passed: the first one is enough."""
POLL = 1.0
"""Seconds between looks at the clock while no step of a round is executed."""
MAX_PARTS = 1024
"""Decryption shares kept at hand: a popular record, or one who asks again and again, costs one."""
START_GRACE = 1.0
"""Seconds that a linked quorum waits for the other members before it begins: leaders are among them."""


class Holder:
    """One member, by its consensus keys (more than one while it changes them: it deals what it held under the old one) and the key
    that its pieces are sealed to."""

    def __init__(self, genesis: Genesis, keys: Sequence[Ed25519Signer], share_key: HolderKey) -> None:
        self._genesis, self._keys, self._share_key = genesis, keys, share_key
        self._share: tuple[int, int | None] | None = None
        """The round of the key and this node's share of it; None if it holds none or has been dealt a wrong piece."""
        self._parts: dict[tuple[int, bytes, bytes], bytes] = {}
        """Decryption shares by round, label and entry."""
        self._sent: tuple[object, int] | None = None
        """The last step sent, and when it expires."""
        self._log = structlog.get_logger().bind(chain=genesis.kind)
        self._has_news = asyncio.Event()
        self.status = _status(None, False, None, ())
        """What operators are shown."""

    # --- decryption -------------------------------------------------------------------------------------------------------

    def decryption_share(self, state: StateReader, label: bytes, entry: bytes) -> tuple[int, bytes | None]:
        """The round of the key and this node's decryption share of an index entry, or None if it holds no share. Raises as
        `tdh2.check`, and `Unavailable` before there is a key."""
        key = get_key(state)
        if key is None:
            raise Unavailable("the members of this chain are still making its index key; try again later")
        share, asked = self._own_share(state, key), (key.round, label, entry)
        if share is None:
            return key.round, None
        if asked not in self._parts:
            if len(self._parts) >= MAX_PARTS:
                self._parts.clear()
            self._parts[asked] = tdh2.decryption_share(key.public, label, entry, share)
        return key.round, self._parts[asked]

    def _own_share(self, state: StateReader, key: IndexKey) -> int | None:
        if self._share is None or self._share[0] != key.round:
            try:
                self._share = key.round, self._open_share(state, key)
                self._log.info("index key", round=key.round, holds_share=self._share[1] is not None)
            except (Malformed, Unauthentic) as error:
                self._share = key.round, None
                self._log.error("no share of the index key", round=key.round, why=str(error))
        return self._share[1]

    def _open_share(self, state: StateReader, key: IndexKey) -> int | None:
        if self._find(key.holders) is None:
            return None
        place = self._place(key.holders)
        run = run_of(self._genesis.hash, key.round, key.holders, key.threshold)
        pieces = {
            d: run.piece(d, get_dealing(state, key.round, d), place, self._share_key) for d in key.dealers
        }
        return combined_share(pieces, key.weights)

    # --- rounds -----------------------------------------------------------------------------------------------------------

    def follow(self, receipts: Iterable[Receipt]) -> None:
        """Blocks have been executed: look at once if they touched the key or who may hold it."""
        if any(receipt.kind.startswith(("index.", "members.")) for receipt in receipts):
            self._has_news.set()

    async def run(self, node: "Node") -> None:
        """Take part in every round, for as long as the node runs."""
        await node.in_ledger(self._look)
        await _until_linked(node)
        while True:
            self._has_news.clear()
            try:
                step = await node.in_ledger(lambda state: self.next_step(state, node.clock_ms()))
                if step is not None:
                    node.submit(step)
            except (DiptychError, sqlite3.OperationalError) as error:  # full or halted now
                self._sent = None
                self._log.warning("a step of the index key waits", why=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._has_news.wait()

    def next_step(self, state: StateReader, now_ms: int) -> bytes | None:
        """The transaction by which this member carries the open round on, unless there is none to send now."""
        key, current, share = self._look(state)
        if current is None:
            return None
        speaker = self._find(awaited(state, current))
        closer = self._find((*get_dealers(state, current), *current.holders))
        must_speak = speaker is not None
        if must_speak and current.phase == "dealing" and key is not None and share is None:
            must_speak = False  # there is nothing it could deal
        turn_ms = CLOSE_STAGGER_MS * (closer[0] + 1) if closer else 0
        if not must_speak and not (turn_ms and is_overdue(state, current, now_ms - turn_ms)):
            return None
        _, key_to_sign = (speaker if must_speak else closer) or (0, self._keys[0])
        step = (current.number, current.phase, must_speak)
        if self._sent and self._sent[0] == step and now_ms < self._sent[1]:
            return None
        expires_ms = now_ms + (TX_LIFETIME_MS if must_speak else CLOSE_LIFETIME_MS)
        self._sent = step, expires_ms
        action = self._word(state, current, share) if must_speak else Close(current.number, current.phase)
        return encode(Tx.make(self._genesis.chain_id, key_to_sign, os.urandom(16), expires_ms, action))

    def _find(self, members: Sequence[Member]) -> tuple[int, Ed25519Signer] | None:
        """This node's place among members, and its key there; None if it is not among them."""
        own = {key.public: key for key in self._keys}
        return next(((place, own[m.key]) for place, m in enumerate(members) if m.key in own), None)

    def _place(self, members: Sequence[Member]) -> int:
        found = self._find(members)
        assert found, "asked only of members among whom this node is"
        return found[0]

    def _look(self, state: StateReader) -> tuple[IndexKey | None, KeyRound | None, int | None]:
        """The key, the open round and this member's share, which operators are then shown."""
        key, current = get_key(state), get_round(state, self._genesis)
        share = self._own_share(state, key) if key else None
        self.status = _status(key, share is not None, current, awaited(state, current) if current else ())
        return key, current, share

    def _word(self, state: StateReader, current: KeyRound, share: int | None) -> Deal | Judge:
        """This member's dealing, or its judgement of the dealings."""
        run = run_of(self._genesis.hash, current.number, current.holders, current.threshold)
        if current.phase == "dealing":
            return Deal(current.number, run.deal(self._place(get_dealers(state, current)), share))
        place = self._place(current.holders)
        complaints = []
        for dealer in current.dealt:
            dealing = get_dealing(state, current.number, dealer)
            try:
                run.piece(dealer, dealing, place, self._share_key)
            except Unauthentic as error:
                self._log.error("complains of a dealing", round=current.number, why=str(error))
                complaints.append(run.complain(dealer, dealing, place, self._share_key))
        return Judge(current.number, tuple(complaints))


async def _until_linked(node: "Node") -> None:
    """Until all members are linked, or a quorum has been for a while: what is sent before waits for leaders who are not there yet."""
    since = None
    while len(node.net.peers()) + 1 < node.core.committee.size:
        now = asyncio.get_running_loop().time()
        since = (since or now) if node.is_ready() else None
        if since is not None and now - since >= START_GRACE:
            return
        await asyncio.sleep(0.02)


def _status(
    key: IndexKey | None, holds_share: bool, current: KeyRound | None, missing: tuple[Member, ...]
) -> dict[str, Any]:
    """What an operator is shown of the index key: JSON-ready, nothing secret."""
    return {
        "public": key.commitments[0].hex() if key else None,
        "round": key.round if key else None,
        "threshold": key.threshold if key else None,
        "holds_share": holds_share,
        "phase": current.phase if current else None,
        "waits_for": [member.name for member in missing],
    }
