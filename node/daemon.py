"""One consensus node: reads what has come, steps the core, writes one database transaction, then sends.

    Net events, HTTP submissions, the clock  ->  core  ->  journal  ->  sends
                                                        ->  ledger (thread)  ->  receipts, waiters

Everything that has arrived when a step starts goes into that step, so one commit to disk serves many messages. When the
journal cannot be written (disk full), the node sends nothing and tries the same step again until it can.
"""

import asyncio
import os
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import structlog

from crypto.codec import Decoder, encode
from crypto.dkg import HolderKey
from crypto.errors import Conflict, Denied, DiptychError, NotFound, Unavailable
from crypto.seal import seal
from crypto.sign import Ed25519Signer
from node.feed import Feed, Matter, Place
from node.index_key import Holder
from node.ledger import Ledger
from node.metrics import Metrics
from node.net import MAX_BODY, Chan, Event, Net, Peer, PeerDown, PeerUp, Received
from node.roster import Roster
from node.store import Store
from protocol import contract, merkle, queries
from protocol.block import (
    Accusation,
    Block,
    Committee,
    Message,
    Proposal,
    Rejoin,
    Report,
    Status,
    Votes,
    Want,
    decode_message,
)
from protocol.checkpoint import Checkpoint, ReceiptProof, SignedCheckpoint
from protocol.contract import Receipt
from protocol.core import Core, Effect, Finalized, Halted, Record, SaveAbstention, Send, ServeChain
from protocol.epochs import Handover
from protocol.evidence import Evidence
from protocol.genesis import Genesis
from protocol.identity import Credential, Release, Ticket
from protocol.index_key import SignedIndexKey, get_key, index_label
from protocol.mempool import Mempool, Pending
from protocol.network import NodeAddress
from protocol.queries import Item, Query
from protocol.state_tree import ProvedValue
from protocol.tx import decode_tx

T = TypeVar("T")
TxBatch = Annotated[tuple[bytes, ...], msgspec.Meta(max_length=4096)]
decode_batch = Decoder[tuple[bytes, ...]](TxBatch, "a batch of transactions", MAX_BODY[Chan.TX])

INBOX_BYTES, FRAME_BYTES = 16 << 20, 512
"""What one peer may have waiting here, each frame counted with an overhead: a flood costs its sender's share, no one else's."""
GOSSIP_DELAY, GOSSIP_BATCHES = 0.02, 256
REGOSSIP_PERIOD, REGOSSIP_COUNT = 1.0, 200
MAX_WAITERS = 20_000
LINK_CHECK_S, LINGER_S = 5.0, 1.0
MAX_CERTIFIED = 100_000
TIDY_TXS = 500
"""Transactions after which the ledger is tidied: some 16 MB of its write-ahead log."""
INLINE_TXS = 16
"""Blocks with no more transactions are executed in the loop's own thread: less work than to hand them to another and back."""


class Node:
    """The member `name`, or one that is to become it. `keys` are its consensus keys, more than one while a new one waits for the
    epoch that names it; `share_key` opens its shares of the index key; `transport` makes a `Net` to the peers given, whose addresses `addresses` tells;
    `marker` is the file beside the keys that names the journal (`Store.bind`), with `rejoin` to go on after that was lost."""

    def __init__(
        self,
        genesis: Genesis,
        name: str,
        keys: Sequence[Ed25519Signer],
        share_key: HolderKey,
        transport: Callable[[Sequence[Peer]], Net],
        addresses: Callable[[], Mapping[str, NodeAddress]],
        data: Path,
        marker: Path,
        rejoin: bool = False,
    ) -> None:
        self.genesis, self.name = genesis, name
        self._keys, self.holder = keys, Holder(genesis, keys, share_key)
        self._log = structlog.get_logger().bind(chain=genesis.kind, node=name)
        self._store = Store(data, genesis)
        committee = self._store.committee
        if rejoin and committee.size - 1 < committee.quorum:
            self._store.close()
            raise Conflict(
                f"a member can rejoin only with reports from {committee.quorum} others, and there are {committee.size - 1}; "
                "make a new network"
            )
        self._store.bind(marker, rejoin=rejoin)
        self._roster = Roster(name, committee, transport, addresses)
        self._ledger, self._ledger_reader = Ledger(data, genesis), Ledger(data, genesis)
        self._reader_thread = ThreadPoolExecutor(1, "reader")
        self._ledger_thread = ThreadPoolExecutor(1, "ledger")
        self._tidy_thread = ThreadPoolExecutor(1, "tidy")
        self._untidy, self._tidying = 0, False
        self.mempool = Mempool(genesis.chain_id)
        restored = self._store.load()
        key, nonce = self._key_in(committee), os.urandom(32)
        self.core = Core(committee, key, self.mempool, restored, time.monotonic(), wall_ms(), nonce)
        self.tip = self.core.tip
        """The last final block that is in the journal. The core's own may be ahead by one step, which a crash would undo."""
        self.alarm: str | None = None
        self.refused: Counter[str] = Counter()
        self.evidence: list[Evidence] = self._store.evidence()
        self.executed_height, self.receipts_root = self._ledger.head()
        self.state_root = self._ledger.tree.root
        self.pruned_height = self._store.pruned_height()
        self.metrics = Metrics(self)
        self._inbox: deque[Received] = deque()
        self._inbox_bytes: Counter[str] = Counter()
        self._wake, self._has_new_members = asyncio.Event(), asyncio.Event()
        self._clock: asyncio.TimerHandle | None = None
        self._rings_at = inf
        """When the clock wakes the step loop: at the core's deadline or earlier, as a deadline that moves on leaves it be."""
        self._submitted = False
        self._certified: set[bytes] = set()
        self._gossiped: asyncio.Queue[tuple[str, tuple[bytes, ...]]] = asyncio.Queue(GOSSIP_BATCHES)
        self._outbox: list[bytes] = []
        self._has_outbox = asyncio.Event()
        self._final: asyncio.Queue[list[Block]] = asyncio.Queue()
        self.feed = Feed(
            lambda after, limit: self._in_ledger(lambda: self._matters(after, limit)),
            lambda: self.executed_height,
        )
        self._waiters: dict[bytes, list[Callable[[Receipt], None]]] = {}
        self._has_executed = asyncio.Event()
        """Set, and replaced by a new one, each time that blocks have been executed."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def net(self) -> Net:
        return self._roster.net

    async def start(self) -> None:
        await self._catch_up_ledger()
        await self.net.start(self._on_event)
        loops = (
            self._steps,
            self._execute,
            self._admit,
            self._gossip,
            self._regossip,
            self._keep_links,
            self._hold,
            self.feed.run,
        )
        for loop in loops:
            self._tasks.append(asyncio.create_task(loop(), name=loop.__name__))
        self._log.info("started", height=self.core.tip.height, view=self.core.view)

    async def wait(self) -> None:
        """Until a part of the node fails; the failure is raised."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        self.feed.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.net.stop()
        self._reader_thread.shutdown()
        self._ledger_thread.shutdown()
        self._tidy_thread.shutdown()
        self._ledger.close()
        self._ledger_reader.close()
        self._store.close()
        self._log.info("stopped", height=self.core.tip.height)

    # --- what clients ask -----------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """A member, linked to enough others that a quorum can form, and executing what is final."""
        return (
            self.core.me is not None
            and len(self.net.peers()) + 1 >= self.core.committee.quorum
            and self.core.halted is None
            and self.alarm is None
        )

    def submit(self, raw: bytes) -> Pending:
        """Take a client's transaction in and spread it; raises `DiptychError` saying why not."""
        if self.core.halted or self.alarm:
            raise Unavailable(f"this node takes no transactions now: {self.core.halted or self.alarm}")
        if self.core.me is None:
            raise Unavailable("this node is not a member of the chain now; ask one that is")
        before = len(self.mempool)
        entry = self.mempool.add(raw, wall_ms())
        if len(self.mempool) > before:
            self._outbox.append(raw)
            self._has_outbox.set()
            self._submitted = True
            self._wake.set()
        return entry

    async def take_in(self, batch: Iterable[bytes]) -> list[Pending | DiptychError]:
        """Take clients' transactions in, of senders who may send: for each how it waits here, or why it is refused."""
        answers: list[Pending | DiptychError] = []
        for raw, refusal in await self._screen(batch):
            try:
                answers.append(refusal or self.submit(raw))
            except DiptychError as error:
                answers.append(error)
        return answers

    async def _screen(self, batch: Iterable[bytes]) -> list[tuple[bytes, DiptychError | None]]:
        """Each transaction with the reason to refuse it unseen, if there is one. Only certified people may send: with keys made up
        on the spot, anyone could fill mempools and blocks with what the contract refuses."""
        senders: list[tuple[bytes, bytes | DiptychError]] = []
        for raw in batch:
            try:
                senders.append((raw, decode_tx(raw).body.sender))
            except DiptychError as error:
                senders.append((raw, error))
        allowed = await self._allowed({s for _, s in senders if isinstance(s, bytes)})
        denied = Denied("the key is not certified on this chain; ask the authority for a credential first")
        return [
            (raw, sender if isinstance(sender, DiptychError) else None if sender in allowed else denied)
            for raw, sender in senders
        ]

    async def _allowed(self, senders: set[bytes]) -> set[bytes]:
        """Those who may send. Who may once may for ever, as the contract forgets nobody, so each is looked up once."""
        if unknown := senders - self._certified:
            found = await self._in_ledger(
                lambda: {s for s in unknown if contract.may_send(self._ledger_reader, self.genesis, s)}
            )
            if len(self._certified) > MAX_CERTIFIED:
                self._certified.clear()
            self._certified |= found
            return found | senders - unknown
        return senders

    async def receipt(self, tx_id: bytes, wait: float = 0) -> Receipt | None:
        """The receipt of a transaction, waiting up to `wait` seconds for it to be final."""
        if wait <= 0:
            return await self._in_ledger(lambda: self._ledger_reader.receipt(tx_id))
        with self._waiting_for([tx_id]) as (receipts, done):
            found = await self._in_ledger(lambda: self._ledger_reader.receipt(tx_id))
            if found is None:
                await asyncio.wait([done], timeout=wait)
            return found or receipts.get(tx_id)

    async def receipts(self, pending: Collection[bytes], wait: float) -> dict[bytes, Receipt]:
        """The receipts of transactions that were not final when this was called, of those that are in `wait` seconds."""
        with self._waiting_for(pending) as (receipts, done):
            await asyncio.wait([done], timeout=wait)
            return receipts

    @contextmanager
    def _waiting_for(
        self, txs: Collection[bytes]
    ) -> Iterator[tuple[dict[bytes, Receipt], asyncio.Future[None]]]:
        """The receipts that come meanwhile, and a future that is done when all have come."""
        if len(self._waiters) + len(txs) > MAX_WAITERS:
            raise Unavailable("too many clients wait at this node; ask again later, or ask another node")
        receipts: dict[bytes, Receipt] = {}
        wanted = set(txs)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_receipt(receipt: Receipt) -> None:
            receipts[receipt.tx] = receipt
            if len(receipts) == len(wanted) and not done.done():
                done.set_result(None)

        for tx_id in wanted:
            self._waiters.setdefault(tx_id, []).append(on_receipt)
        try:
            yield receipts, done
        finally:
            for tx_id in wanted - receipts.keys():
                with suppress(KeyError, ValueError):
                    self._waiters[tx_id].remove(on_receipt)
                    if not self._waiters[tx_id]:
                        del self._waiters[tx_id]

    async def block_at(self, height: int) -> Block:
        found = await self._from_journal(lambda: self._store.block_at(height))
        if found is None:
            raise NotFound(f"there is no block at height {height} here; the tip is at {self.tip.height}")
        return found[0]

    async def handovers(self, first: int) -> list[Handover]:
        """The proofs with which one follows the members from epoch `first` on, as far as one answer goes."""
        return await self._from_journal(lambda: self._store.handovers(first))

    async def person(self, subject: bytes) -> contract.Person | None:
        return await self._in_ledger(lambda: contract.get_person(self._ledger_reader, subject))

    async def record(self, record: bytes) -> contract.RecordEntry | None:
        return await self._in_ledger(lambda: contract.get_record(self._ledger_reader, record))

    async def record_log(self, record: bytes, after: tuple[int, int], limit: int) -> list[Receipt]:
        return await self._in_ledger(lambda: self._ledger_reader.record_log(record, after, limit))

    async def page(
        self, query: Query, owner: bytes, after: bytes, limit: int
    ) -> tuple[int, list[Item], bytes | None]:
        """A page of a listing (`protocol.queries.page`), with the height of the block after which it was so."""

        def read() -> tuple[int, list[Item], bytes | None]:
            ledger = self._ledger_reader
            with ledger.unchanging():
                return ledger.head()[0], *queries.page(ledger, query, owner, after, limit)

        return await self._in_ledger(read)

    def _matters(self, after: Place, limit: int) -> list[Matter]:
        ledger, found = self._ledger_reader, []
        with ledger.unchanging():
            for receipt in ledger.receipts_after(after, limit):
                entry = contract.get_record(ledger, receipt.record) if receipt.record else None
                asked = ledger.receipt(receipt.request) if receipt.request else None
                patient, requester = entry.patient if entry else None, asked.sender if asked else None
                found.append(Matter(receipt, patient, requester))
        return found

    async def release(self, tx_id: bytes) -> Release:
        """This node's part of a granted request: the ticket signed, its decryption share of the index entry sealed to the requester."""
        return await self.in_ledger(lambda ledger: self._release(ledger, tx_id))

    def _release(self, ledger: Ledger, tx_id: bytes) -> Release:
        ticket, entry, person = self._granted(tx_id)
        assert entry.rule is not None
        rule = entry.rule.digest
        label = index_label(ticket.chain_id, ticket.record, ticket.version, rule)
        round_, share = self.holder.decryption_share(ledger, label, entry.sealed_index)
        committee, me, key = self._standing()
        return Release.make(
            ticket,
            committee.epoch,
            me,
            key,
            entry=entry.sealed_index,
            rule=rule,
            round=round_,
            sealed_share=None if share is None else seal(person.seal_key, share),
        )

    async def signed_index_key(self) -> SignedIndexKey:
        """This node's word on the index key; `Unavailable` while there is none."""
        key = await self.in_ledger(get_key)
        if key is None:
            raise Unavailable("the members of this chain are still making its index key; try again later")
        _, me, secret = self._standing()
        return SignedIndexKey.make(self.genesis, key, me, secret)

    async def _until_executed(self, height: int, wait: float) -> None:
        """Until the block at a height is executed, `wait` seconds at most; `NotFound` if it is not by then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                while self.executed_height < height:
                    await self._has_executed.wait()
        if self.executed_height < height:
            raise NotFound(
                f"this node has executed the chain up to height {self.executed_height} only; ask again later"
            )

    async def checkpoint(self, height: int | None, wait: float) -> SignedCheckpoint:
        """This node's word on where the chain stood at a height, None for the last one it has executed."""
        if height is None:
            height = self.executed_height
        await self._until_executed(height, wait)
        roots = await self._in_ledger(lambda: self._ledger_reader.roots(height))
        block = await self._from_journal(lambda: self._store.final_at(height))
        if height == 0:
            block = self.genesis.hash, self.genesis.time_ms
        if roots is None or block is None:
            raise NotFound(f"this node does not know where the chain stood at height {height}; ask another")
        committee, me, key = self._standing()
        made = Checkpoint(self.genesis.chain_id, committee.epoch, height, *block, *roots)
        return SignedCheckpoint.make(made, me, key)

    async def proved_value(self, key: bytes, at_least: int, wait: float) -> ProvedValue:
        """What the state holds of a key, with its proof, at a height of `at_least`, waiting for it if need be."""
        await self._until_executed(at_least, wait)
        return await self._in_ledger(lambda: self._ledger.prove(key))

    async def proved_receipt(self, tx_id: bytes) -> ReceiptProof:
        """The receipt of a transaction with what proves it to whoever believes a checkpoint of its height."""

        def look(ledger: Ledger) -> tuple[Receipt, list[bytes], bytes] | None:
            receipt = ledger.receipt(tx_id)
            if receipt is None:
                return None
            before = ledger.roots(receipt.height - 1)
            return (receipt, ledger.receipts_at(receipt.height), before[0]) if before else None

        found = await self._in_ledger(lambda: look(self._ledger_reader))
        if found is None:
            raise NotFound("no final transaction with this id is known here yet; ask again later")
        receipt, receipts, before = found
        at = receipt.position
        proved = await self._from_journal(lambda: self._store.proved_block(receipt.height))
        if proved is None:
            raise Unavailable("this node cannot prove yet that the block is final; ask again later")
        block, links, finalization = proved
        is_whole = bool(block.txs)
        return ReceiptProof(
            receipt,
            merkle.proof(receipts, at),
            before,
            block.header,
            links,
            finalization,
            block.txs[at] if is_whole else None,
            merkle.proof(block.txs, at) if is_whole else (),
        )

    def _granted(self, tx_id: bytes) -> tuple[Ticket, contract.RecordEntry, Credential]:
        receipt = self._ledger_reader.receipt(tx_id)
        if receipt is None:
            raise NotFound("no final request with this id is known here yet; ask again later")
        if not receipt.ok:
            raise Denied(f"the contract refused the request: {receipt.reason}")
        return contract.check_grant(self._ledger_reader, tx_id, wall_ms())

    def _standing(self) -> tuple[Committee, int, Ed25519Signer]:
        """The present committee, this node's number in it and its key; `Unavailable` if it is not in it."""
        committee, me = self.core.committee, self.core.me
        if me is None:
            raise Unavailable("this node is not a member of the chain now; ask one that is")
        return committee, me, self._key_in(committee)

    def _key_in(self, committee: Committee) -> Ed25519Signer:
        """The key by which this node is a member in an epoch, if it is one."""
        return next((key for key in self._keys if key.public in committee.keys), self._keys[0])

    # --- the loops --------------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Received(src, _, body):
                cost = len(body) + FRAME_BYTES
                if self._inbox_bytes[src] + cost <= INBOX_BYTES:
                    self._inbox_bytes[src] += cost
                    self._inbox.append(event)
                else:
                    self.refused["inbox full"] += 1
                self._wake.set()
            case PeerUp(peer):
                self._log.info("peer up", peer=peer)
                self.core.greet(self._roster.number(peer))
                self._wake.set()
            case PeerDown(peer, why):
                self._log.info("peer down", peer=peer, why=why)

    async def _steps(self) -> None:
        while True:
            core = self.core
            await self._until_due(core.next_deadline())
            for _ in range(min(len(self._inbox), 1000)):
                if core.next_committee:
                    break
                self._take(self._inbox.popleft())
            if self._inbox:
                self._wake.set()
            if self._submitted:
                self._submitted = False
                core.submit(time.monotonic(), wall_ms())
            if time.monotonic() >= core.next_deadline():
                core.tick(time.monotonic(), wall_ms())
            effects = core.take_effects()
            if any(not isinstance(e, Send | ServeChain) for e in effects):
                started = time.monotonic()
                await self._until_written(
                    "journal",
                    lambda: self._write(effects),  # noqa: B023
                )
                self.metrics.wrote(time.monotonic() - started)
                self.tip = core.tip
            self.metrics.carried_out(effects)
            for effect in effects:
                await self._carry_out(effect)
            if core.next_committee:
                self._enter(core.next_committee)

    def _enter(self, committee: Committee) -> None:
        """The epoch is over: go on with a fresh engine, and with other links where the members are others."""
        self.core = self.core.next_epoch(self._key_in(committee))
        self._roster.enter(committee)
        self._has_new_members.set()
        self._wake.set()
        said = "a new epoch" if self.core.me is not None else "a new epoch, without this node"
        self._log.warning(said, epoch=committee.epoch, members=[m.name for m in committee.members])

    async def _keep_links(self) -> None:
        """Have links to the newest members, and find out who they are where this node was away while they changed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINK_CHECK_S):
                    await self._has_new_members.wait()
            if self._has_new_members.is_set():
                self._has_new_members.clear()
                await asyncio.sleep(
                    LINGER_S
                )  # over the old links, who is behind still hears how the epoch ended
            elif len(self.net.peers()) + 1 < self._roster.newest.quorum:
                await asyncio.get_running_loop().run_in_executor(
                    self._reader_thread, self._roster.look_around
                )
            await self._roster.relink(self._on_event)

    async def _until_due(self, due: float) -> None:
        """Until something has come or the time is `due`, but at least one turn of the loop, in which HTTP gets its own."""
        if due < self._rings_at:
            if self._clock:
                self._clock.cancel()
            self._clock = asyncio.get_running_loop().call_later(due - time.monotonic(), self._ring)
            self._rings_at = due
        if self._wake.is_set():
            await asyncio.sleep(0)
        else:
            await self._wake.wait()
        self._wake.clear()

    def _ring(self) -> None:
        self._rings_at = inf
        self._wake.set()

    def _take(self, event: Received) -> None:
        """One frame of a member, validated; what does not hold is counted against its name and dropped."""
        self._inbox_bytes[event.src] -= len(event.body) + FRAME_BYTES
        try:
            if event.chan is Chan.TX:
                self._gossiped.put_nowait((event.src, decode_batch(event.body)))
            else:
                message = decode_message(event.body)
                self.metrics.received(event.src, message)
                self.core.receive(self._roster.number(event.src), message, time.monotonic(), wall_ms())
        except DiptychError as error:
            self._refuse(event.src, error)
        except asyncio.QueueFull:
            self.refused["gossip full"] += 1

    async def _admit(self) -> None:
        """Take in what members pass on. A sender certified in a block not executed here yet comes again (`_regossip`)."""
        while True:
            src, batch = await self._gossiped.get()
            for raw, refusal in await self._screen(batch):
                if refusal is None:
                    self._add_gossip(raw, src)
                elif isinstance(refusal, Denied):
                    self.refused["uncertified sender"] += 1
                else:
                    self._refuse(src, refusal)
            self._wake.set()

    def _add_gossip(self, raw: bytes, src: str) -> None:
        try:
            self.mempool.add(raw, wall_ms())
            self._submitted = True
        except Unavailable:
            self.refused["mempool full"] += 1
        except DiptychError as error:
            if "final" not in str(error) and "expired" not in str(error):
                self._refuse(src, error)

    def _refuse(self, src: str, error: DiptychError) -> None:
        self.refused[src] += 1
        if self.refused[src].bit_count() == 1:  # log the 1st, 2nd, 4th, 8th …
            self._log.warning("refused a message", peer=src, times=self.refused[src], why=str(error))

    async def _until_written(self, what: str, write: Callable[[], Awaitable[T]]) -> T:
        """What `write` returns; on a failing disk, raise the alarm and try again until it works."""
        has_failed = False
        while True:
            try:
                written = await write()
                break
            except sqlite3.OperationalError as error:
                has_failed = True
                self.alarm = (
                    f"the {what} cannot be written ({error}); free the disk, the node goes on by itself"
                )
                self._log.error("disk", alarm=self.alarm)
                await asyncio.sleep(1)
        if has_failed:
            self._log.info("the disk works again", file=what)
            self.alarm = None
        return written

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(to, message)
            case ServeChain(to, height):
                page = await self._from_journal(lambda: self._store.page(height))
                if page:
                    self._send(to, page)
            case Finalized(blocks, _):
                self._final.put_nowait([block for block, _ in blocks])
            case Record(evidence):
                self.evidence.append(evidence)
                guilty = self.core.committee.members[evidence.first.signer]
                self._log.error("evidence", kind=evidence.kind, member=guilty.name)
            case Halted(reason):
                self._log.error("halted", reason=reason)
            case SaveAbstention(until):
                self._log.warning("rejoining: no votes up to a view", view=until)

    def _send(self, to: int | None, message: Message) -> None:
        body = encode(message)
        if isinstance(message, Proposal):
            chan = Chan.PROPOSAL
        elif (
            isinstance(message, Votes | Status | Want | Rejoin | Report | Accusation)
            and len(body) <= MAX_BODY[Chan.VOTE]
        ):
            chan = Chan.VOTE
        else:
            chan = Chan.SYNC
        if len(body) > MAX_BODY[chan]:
            self._log.error("a message is too large to send", kind=type(message).__name__, size=len(body))
        elif to is None:
            self.net.broadcast(chan, body)
        else:
            self.net.send(self._roster.names[to], chan, body)

    async def _execute(self) -> None:
        """Execute final blocks in order and tell whoever waits for a receipt."""
        while True:
            blocks = await self._final.get()
            while not self._final.empty():
                blocks += self._final.get_nowait()
            receipts = await self._until_written("ledger", lambda: self._run(blocks))  # noqa: B023
            self._advance()
            self.feed.wake()
            self.holder.follow(receipts)
            for receipt in receipts:
                for waiter in self._waiters.pop(receipt.tx, ()):
                    waiter(receipt)

    async def _run(self, blocks: list[Block]) -> list[Receipt]:
        txs = sum(len(block.txs) for block in blocks)
        if txs <= INLINE_TXS:
            receipts = self._ledger.execute(blocks)
        else:
            receipts = await self._in_ledger(lambda: self._ledger.execute(blocks))
        self._untidy += txs
        if self._untidy >= TIDY_TXS and not self._tidying:
            self._untidy, self._tidying = 0, True
            self._tidy_thread.submit(self._tidy)
        return receipts

    def _tidy(self) -> None:
        """A failing disk is told by the next write."""
        with suppress(sqlite3.Error):
            self._ledger.tidy()
        self._tidying = False

    def _advance(self) -> None:
        self.executed_height, self.receipts_root = self._ledger.head()
        self.state_root = self._ledger.tree.root
        self._has_executed.set()
        self._has_executed = asyncio.Event()

    async def _catch_up_ledger(self) -> None:
        """After a crash the ledger may be behind the journal: execute what is missing."""
        while self.executed_height < self.core.tip.height:
            first = self.executed_height + 1
            heights = range(first, min(first + 200, self.core.tip.height + 1))
            found = await self._from_journal(lambda: [self._store.block_at(h) for h in heights])  # noqa: B023
            blocks = [f[0] for f in found if f]
            if not blocks or blocks[0].header.height != first:
                raise Conflict(
                    f"the journal lacks the block at height {first}: its files are damaged; check the disk"
                )
            await self._run(blocks)
            self._advance()

    async def _hold(self) -> None:
        await self.holder.run(self)

    async def _gossip(self) -> None:
        """Spread clients' transactions: the first at once, what comes within `GOSSIP_DELAY` after it in batches."""
        while True:
            await self._has_outbox.wait()
            self._has_outbox.clear()
            outbox, self._outbox = self._outbox, []
            self._spread(outbox)
            await asyncio.sleep(GOSSIP_DELAY)

    async def _regossip(self) -> None:
        """Tell peers again what has waited long: a peer may have missed it."""
        known: set[bytes] = set()
        while True:
            await asyncio.sleep(REGOSSIP_PERIOD)
            oldest = self.mempool.oldest(REGOSSIP_COUNT)
            self._spread([e.raw for e in oldest if e.id in known])
            known = {e.id for e in oldest}

    def _spread(self, txs: list[bytes]) -> None:
        batch: list[bytes] = []
        size = 16
        for raw in txs:
            if batch and size + len(raw) + 8 > MAX_BODY[Chan.TX]:
                self.net.broadcast(Chan.TX, encode(tuple(batch)))
                batch, size = [], 16
            batch.append(raw)
            size += len(raw) + 8
        if batch:
            self.net.broadcast(Chan.TX, encode(tuple(batch)))

    async def _write(self, effects: list[Effect]) -> None:
        # In this thread: a step can do nothing else meanwhile, and handing a commit of half a millisecond to another thread
        # and back costs more than the commit.
        self._store.apply(effects)

    async def _from_journal(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader_thread, work)

    def in_ledger(self, work: Callable[[Ledger], T]) -> Awaitable[T]:
        """What `work` makes of the ledger, in the ledger's thread, between two blocks."""
        return self._in_ledger(lambda: work(self._ledger_reader))

    def clock_ms(self) -> int:
        """This node's wall clock, Unix milliseconds."""
        return wall_ms()

    def _in_ledger(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._ledger_thread, work)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000
