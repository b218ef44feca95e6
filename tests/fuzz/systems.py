"""Fuzz targets over running parts: the consensus core, a whole node, both transports' framing, the HTTP servers, a client, files on disk."""

import asyncio
import contextlib
import hashlib
import json
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import structlog
from starlette.applications import Starlette

import node.api as node_api
from client import chain
from client.audit import audit
from client.chain import ChainClient
from client.cloud import Blobs, _read_download, _Reader
from client.diagnosis import diagnose
from cloudstub.server import create_app as cloud_app
from configs.faults import NodeFaults
from crypto.codec import Decoder, encode
from crypto.errors import DiptychError
from crypto.sign import SigningKey
from node import daemon, p2p, tls
from node.backup import MANIFEST, Manifest, backup, restore
from node.chaos import Faults, admin
from node.daemon import Node, decode_batch
from node.frames import HEADER, LIMITS, PING, BrokenRules, Cutter
from node.ledger import Ledger
from node.net import MAX_BODY, Chan, Event, Peer, PeerUp, Received
from node.p2p import P2PNet
from node.p2p import _Link as P2PLink
from node.store import JOURNAL, LEDGER, Store
from protocol import merkle
from protocol.block import Chain, Message, Proposal, Status, Vote, Votes, decode_message
from protocol.contract import decode_person, decode_receipt, decode_record
from protocol.core import Core, Finalized, Halted, Record, Restored, SaveBlock, SaveVote, Send, anchor_tip
from protocol.identity import decode_release
from protocol.mempool import Mempool
from protocol.network import ChainAddresses, NodeAddress
from protocol.record import (
    CloudLogRequest,
    Delete,
    Download,
    Upload,
    decode_cloud_log_request,
    decode_delete,
    decode_download,
    decode_download_head,
    decode_index,
    decode_upload,
)
from protocol.tx import Request, decode_tx
from tests.cloudstub import cloudstub_world as cloud_world
from tests.fuzz.recorded import COMMITTEE, GENESIS, KEYS, LIAR, ME, chain_messages, transaction
from tests.fuzz.targets import NOW, SCRATCH, SEAL, TARGETS, USER, objects, refused, target, transactions
from tests.simulation.cluster import WALL0
from tests.simulation.oracle import Invariants

__all__ = ["TARGETS", "stop"]
NAMES = [m.name for m in GENESIS.members]
MAX_MESSAGE = 4 << 20


# --- the core ---------------------------------------------------------------------------------------------------------------------


class Step(msgspec.Struct, array_like=True):
    """After `ms`: `message` comes from member `src`; with `is_signed`, its lies are in order. An empty message submits a transaction."""

    ms: int
    src: int
    is_signed: bool
    message: bytes


_decode_steps = Decoder(tuple[Step, ...], "steps", 1 << 18)


def runs() -> list[bytes]:
    """The recorded run in pieces, and pieces that begin with the page that brings the core up."""
    messages = chain_messages()
    page = next(m for m in messages if isinstance(m, Chain))
    steps = [Step(20, 1 + n % 3, n % 2 == 0, encode(m)) for n, m in enumerate(messages)]
    first = Step(5, 1, False, encode(page))
    cuts = [steps[at : at + 24] for at in range(0, len(steps), 12)]
    return [encode(tuple(cut)) for cut in cuts] + [
        encode((first, Step(9, 1, False, b""), *cut)) for cut in cuts
    ]


def lie(message: Message) -> Message:
    """The message with whatever the liar can make true of it: its proposals whole, its votes signed."""

    def signed(vote: Vote) -> Vote:
        return (
            COMMITTEE.sign(KEYS[LIAR], LIAR, vote.kind, vote.view, vote.block)
            if vote.signer == LIAR
            else vote
        )

    match message:
        case Proposal(block, _, vote):
            header = msgspec.structs.replace(
                block.header, tx_root=merkle.root(block.txs), tx_count=len(block.txs), proposer=LIAR
            )
            vote = signed(Vote("notarize", header.view, header.id, LIAR, vote.signature))
            return msgspec.structs.replace(
                message, block=msgspec.structs.replace(block, header=header), vote=vote
            )
        case Votes() | Status():
            return msgspec.structs.replace(message, votes=tuple(map(signed, message.votes)))
    return message


def fresh_core() -> Core:
    restored = Restored(anchor_tip(COMMITTEE))
    return Core(COMMITTEE, KEYS[ME], Mempool(GENESIS.chain_id), restored, 0.0, WALL0, bytes(32))


@target(runs, max_bytes=1 << 17)
def consensus(data: bytes) -> None:
    """The core among two honest members and a liar: I1 to I9 hold, nothing is halted, nobody honest is accused, every effect travels."""
    with refused:
        steps = _decode_steps(data)[:64]
        oracle, core = Invariants(GENESIS, frozenset({LIAR}), len(KEYS)), fresh_core()
        oracle._bodies |= {m.block.header.id: {1, 2, 3} for m in chain_messages() if isinstance(m, Proposal)}
        oracle.starts(ME, core, Restored(core.tip))
        now = 0.0
        for number, step in enumerate(steps):
            now += min(max(step.ms, 0), 5000) / 1000
            wall = WALL0 + int(now * 1000)
            if now >= core.next_deadline():
                core.tick(now, wall)
                _check(core, oracle)
            if not step.message:
                with refused:
                    core.mempool.add(transaction(100 + number), wall)
                    core.submit(now, wall)
            else:
                with refused:
                    message = decode_message(step.message)
                    core.receive(step.src % 4, lie(message) if step.is_signed else message, now, wall)
            _check(core, oracle)


def _check(core: Core, oracle: Invariants) -> None:
    effects = core.take_effects()
    oracle.committed(ME, core, effects)
    for effect in effects:
        match effect:
            case Send(_, message):
                oracle.sends(ME, core, message)
                raw = encode(message)
                assert len(raw) <= MAX_MESSAGE
                assert decode_message(raw) == message
            case Record(evidence):
                assert evidence.first.signer == LIAR
            case Halted(reason):
                raise AssertionError(reason)
            case Finalized(blocks, _):
                assert all(len(b.txs) == len(txs) == b.header.tx_count for b, txs in blocks)
            case SaveBlock(block):
                assert block.header.tx_root == merkle.root(block.txs)
    assert len(core._orphans) + len(core._held) + len(core._proposals) < 400
    assert len(core._votes) + len(core._accused) + len(core._own) < 4000


# --- a whole node -------------------------------------------------------------------------------------------------------------------


class QuietNet:
    """A transport that is linked to everybody and says nothing; frames are handed in by the target."""

    def __init__(self) -> None:
        self.me = NAMES[ME]
        self.on_event: Callable[[Event], None] = lambda event: None

    def send(self, dst: str, chan: Chan, body: bytes) -> bool:
        assert len(body) <= MAX_BODY[chan]
        return True

    def broadcast(self, chan: Chan, body: bytes) -> int:
        assert len(body) <= MAX_BODY[chan]
        return len(NAMES) - 1

    def peers(self) -> frozenset[str]:
        return frozenset(NAMES) - {self.me}

    async def start(self, on_event: Callable[[Event], None]) -> None:
        self.on_event = on_event
        for name in self.peers():
            on_event(PeerUp(name))

    async def stop(self) -> None:
        pass


class Running:
    """One node and the applications around it, on an event loop of their own, for as long as the process lives."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.said = 0

        def count(_: object, name: str, event: dict[str, Any]) -> dict[str, Any]:
            self.said += event["event"] == "refused a message"
            raise structlog.DropEvent

        structlog.configure(processors=[count])
        self.net = QuietNet()
        self.node = self.loop.run_until_complete(self._start())
        daemon.wall_ms = lambda: NOW
        node_api.MAX_WAIT_S = 0.01
        self.app = node_api.create_app(self.node)
        self.app.router.routes.append(admin(self.node, Faults(self.net.me), KEYS[ME]))
        self.cloud = cloud_app(cloud_world.config(SCRATCH / "cloud", cloud_world.Clock()))
        self._life = self.cloud.router.lifespan_context(self.cloud)
        self.loop.run_until_complete(self._life.__aenter__())

    async def _start(self) -> Node:
        made = Node(
            GENESIS,
            NAMES[ME],
            [KEYS[ME]],
            SEAL,
            lambda peers: self.net,
            lambda: {name: NodeAddress("127.0.0.1:1", "http://127.0.0.1:1") for name in NAMES},
            SCRATCH / "node",
            SCRATCH / "node.journal",
        )
        await made.start()
        return made

    async def settle(self) -> None:
        """Until the node has taken in what came."""
        while self.node._inbox or not self.node._gossiped.empty():  # noqa: ASYNC110 - a node's state has no event
            await asyncio.sleep(0)
        await self.node._allowed(set())  # the ledger's thread has done what was asked before
        await asyncio.sleep(0)

    def alive(self) -> None:
        for task in self.node._tasks:
            if task.done():
                task.result()
                raise AssertionError(f"{task.get_name()} has ended")
        assert self.node.core.halted is None

    def stop(self) -> None:
        self.loop.run_until_complete(self._life.__aexit__(None, None, None))
        self.loop.run_until_complete(self.node.stop())
        self.loop.close()


_running: list[Running] = []


def running() -> Running:
    if not _running:
        _running.append(Running())
    return _running[0]


def stop() -> None:
    """Whoever ran a target ends what it started; threads would keep the process alive."""
    while _running:
        _running.pop().stop()
    shutil.rmtree(SCRATCH, ignore_errors=True)


class Frame(msgspec.Struct, array_like=True):
    src: int
    chan: int
    body: bytes


_decode_frames = Decoder(tuple[Frame, ...], "frames", 1 << 18)


def frames() -> list[bytes]:
    messages, txs = chain_messages(), transactions()
    found = [Frame(1 + n % 3, Chan.VOTE, encode(m)) for n, m in enumerate(messages[:60])]
    found += [Frame(2, Chan.SYNC, encode(m)) for m in messages if isinstance(m, Chain | Proposal)]
    found += [Frame(3, Chan.TX, encode(tuple(txs))), Frame(3, Chan.TX, encode((b"junk", txs[0])))]
    return [encode(tuple(found[at : at + 6])) for at in range(0, len(found), 6)]


@target(frames, max_bytes=1 << 17)
def frames_handled(data: bytes) -> None:
    """Frames from members: what does not decode is counted against exactly its sender and logged less and less often; the node lives on."""
    here = running()
    before, bad = here.node.refused.copy(), dict.fromkeys(NAMES, 0)
    with refused:
        for frame in _decode_frames(data)[:32]:
            src, chan = NAMES[1 + frame.src % 3], Chan(frame.chan % 4)
            if len(frame.body) > MAX_BODY[chan]:
                continue  # the transports end such a link
            bad[src] += _undecodable(chan, frame.body)
            here.net.on_event(Received(src, chan, frame.body))
    here.loop.run_until_complete(asyncio.wait_for(here.settle(), 20))
    here.alive()
    for name in NAMES:
        assert here.node.refused[name] - before[name] >= bad[name]
    assert here.said <= sum(here.node.refused[name].bit_length() for name in NAMES)
    assert sum(here.node._inbox_bytes.values()) == 0
    assert len(here.node.metrics._saved) <= 4096


def _undecodable(chan: Chan, body: bytes) -> int:
    """How many things in a frame must be refused: the frame, or transactions in it."""
    try:
        batch = decode_batch(body) if chan is Chan.TX else ()
        if chan is not Chan.TX:
            decode_message(body)
    except DiptychError:
        return 1
    count = 0
    for raw in dict.fromkeys(batch):
        try:
            decode_tx(raw)
        except DiptychError:
            count += 1
    return count


# --- transports -----------------------------------------------------------------------------------------------------------------------


def frame_streams() -> list[bytes]:
    small = HEADER.pack(0, 3) + b"abc" + HEADER.pack(PING, 0) + HEADER.pack(3, 0)
    large = HEADER.pack(1, 70_000) + bytes(65_536) + HEADER.pack(1, 4464) + bytes(4464)
    return [small, large, small + large, HEADER.pack(0, 1 << 20) + b"x"]


CUTTERS = [(LIMITS, tls._PIECE), *((limits, LIMITS[Chan.PROPOSAL]) for limits in p2p._STREAMS.values())]


@target(frame_streams, is_tree=False, max_bytes=1 << 18)
def frames_cut(data: bytes) -> None:
    """The same frames however a member's stream is cut; none over its limit, and no more kept than is missing of one."""
    for limits, piece in CUTTERS:
        results = []
        for size in (1 << 20, 7) if len(data) <= 1 << 14 else (1 << 20,):
            cutter, found = Cutter(limits, piece), []
            with contextlib.suppress(BrokenRules):
                for at in range(0, len(data), size):
                    found += cutter.cut(data[at : at + size])
                    assert len(cutter._buffer) <= HEADER.size + piece
            assert all(len(body) <= limits[chan] for chan, body in found)
            results.append(found)
        assert results[0] == results[-1]


class Wire(asyncio.Transport):
    """From one link to another in this process; what is written before there is another is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.other: P2PLink | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.other is None:
            self.written += data
        else:
            asyncio.get_running_loop().call_soon(self.other.data_received, bytes(data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return SOCKET if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        pass


SOCKET = socket.socket()
IDENTITIES = {name: name.encode() * 32 for name in "ab"}


def net_of(me: str) -> P2PNet:
    peers = [Peer(n, p2p.identity_of(seed), "127.0.0.1", 1) for n, seed in IDENTITIES.items() if n != me]
    made = P2PNet(
        chain_id="fuzz",
        identity_seed=IDENTITIES[me],
        me=me,
        listen_host="127.0.0.1",
        listen_port=1,
        peers=peers,
    )
    made._on_event = lambda event: None
    return made


NETS = {name: net_of(name) for name in IDENTITIES}


def connected(me: str) -> P2PLink:
    """Node a dials, node b accepts."""
    identity = next(iter(NETS["a"]._outbound)) if me == "a" else None
    link, _ = NETS[me]._new_link(identity)
    assert isinstance(link, P2PLink)
    link.connection_made(Wire())
    return link


def greetings() -> list[bytes]:
    """What a dialler that nobody answers says first, and what multistream-select looks like."""

    async def first() -> bytes:
        link = connected("a")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(link.set_up(), 0.01)
        return bytes(link._transport.written)  # type: ignore[union-attr]

    words = (b"/multistream/1.0.0", b"/noise", b"ls", b"na")
    return [asyncio.run(first()), b"".join(bytes([len(w) + 1]) + w + b"\n" for w in words), b"\xff" * 20]


@target(greetings, is_tree=False, max_bytes=1 << 15)
def strangers_heard(data: bytes) -> None:
    """Whoever reaches the port, before the Noise handshake has ended: no link, nothing kept beyond what a handshake may take."""

    async def talk() -> None:
        link = connected("b")
        setting_up = asyncio.create_task(link.set_up())
        for at in range(0, len(data), 1 + len(data) // 3):
            link.data_received(data[at : at + 1 + len(data) // 3])
            assert len(link._raw._buffer) <= p2p._TALK
            for _ in range(4):
                await asyncio.sleep(0)
        link.end("enough")
        setting_up.cancel()
        with contextlib.suppress(BaseException):  # as where it is awaited in a node
            await setting_up
        assert not link.was_up

    asyncio.run(talk())


def yamux_streams() -> list[bytes]:
    frame = HEADER.pack(0, 3) + b"abc"
    data = p2p._FRAME.pack(0, 0, 0, 1, len(frame)) + frame
    window, ping = p2p._FRAME.pack(0, 1, 0, 3, 1 << 20), p2p._FRAME.pack(0, 2, 1, 0, 7)
    large = HEADER.pack(1, 50_000) + bytes(50_000)
    bulk = p2p._FRAME.pack(0, 0, 0, 3, len(large)) + large
    return [
        data,
        window + ping,
        bulk + data,
        p2p._FRAME.pack(0, 0, 1, 5, 4) + b"more",
        p2p._FRAME.pack(0, 3, 0, 0, 0),
    ]


@target(yamux_streams, is_tree=False, max_bytes=1 << 17)
def yamux_heard(data: bytes) -> None:
    """A member that makes up the frames of Yamux on a link that is up: frames of ours within their limits, or the end of the link."""
    found: list[Event] = []

    async def talk() -> None:
        dialler, acceptor = connected("a"), connected("b")
        dialler._transport.other, acceptor._transport.other = acceptor, dialler  # type: ignore[union-attr]
        await asyncio.wait_for(asyncio.gather(dialler.set_up(), acceptor.set_up()), 20)
        NETS["b"]._on_event = found.append
        for at in range(0, len(data), 60_000):
            dialler._write_plain(data[at : at + 60_000])
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert acceptor._has_ended or len(acceptor._muxed) <= p2p._FRAME.size
        assert len(acceptor._sealed) <= 1 << 16
        assert len(acceptor._numbers) == len(p2p._STREAMS)
        for link in (dialler, acceptor):
            link.end("enough")

    asyncio.run(talk())
    assert all(len(e.body) <= MAX_BODY[e.chan] for e in found if isinstance(e, Received))


# --- HTTP -------------------------------------------------------------------------------------------------------------------------------


class Call(msgspec.Struct, array_like=True):
    method: int
    path: str
    query: bytes
    kind: str
    body: bytes


_decode_call = Decoder(Call, "a request", 1 << 18)
ALLOWED = {200, 202, 400, 401, 403, 404, 405, 409, 413, 503}


async def call(app: Starlette, given: Call) -> int:
    """The status of the answer to one request that comes in two pieces."""
    half = len(given.body) // 2
    pieces = [(given.body[:half], True), (given.body[half:], False)]
    started: list[dict[str, Any]] = []
    shown = bytearray()

    async def receive() -> dict[str, Any]:
        if not pieces:
            await asyncio.Event().wait()  # the client stays
        body, more = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.append(message)
        else:
            shown.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "method": ("GET", "POST", "PUT", "HEAD")[given.method % 4],
        "path": "/" + given.path,
        "query_string": given.query,
        "headers": [(b"content-type", given.kind.encode(errors="replace"))],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 1),
        "client": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    [start] = started
    status = int(start["status"])
    assert status in ALLOWED, (status, bytes(shown[:500]))
    if status >= 400 and scope["method"] != "HEAD":
        assert json.loads(bytes(shown))["detail"]
    return status


def node_requests() -> list[bytes]:
    txs, key = transactions(), "00" * 32
    order = NodeFaults(1, skew_ms=0)
    calls = [Call(1, "v1/tx", b"wait=0.1", "", raw) for raw in txs]
    calls += [
        Call(1, "v1/txs", b"", "", encode(tuple(txs))),
        Call(1, "v1/txs", b"wait=1", "", encode((b"junk",))),
    ]
    paths = ("healthz", "readyz", "v1/status", f"v1/tx/{key}", "v1/block/latest", "v1/block/7", "metrics")
    paths += (f"v1/identity/{key}", f"v1/record/{key[:32]}", f"v1/release/{key}")
    calls += [Call(0, path, b"", "", b"") for path in paths]
    calls += [Call(0, f"v1/record/{key[:32]}/log", b"after=12.0", "", b"")]
    bodies = (msgspec.json.encode(order), b'{"\xde": 1}')
    calls += [Call(2, "chaos", b"", "application/json", body) for body in bodies]
    return list(map(encode, calls))


@target(node_requests)
def node_asked(data: bytes) -> None:
    """Any request to a node's API ends in an answer that says what is wrong, never in a failure."""
    here = running()
    with refused:
        given = _decode_call(data)
        here.loop.run_until_complete(asyncio.wait_for(call(here.app, given), 20))
        here.alive()


_SIGNED: dict[str, tuple[Any, Any, SigningKey]] = {
    "v1/upload": (decode_upload, Upload, cloud_world.PATIENT),
    "v1/download": (decode_download, Download, cloud_world.READER),
    "v1/delete": (decode_delete, Delete, cloud_world.PATIENT),
    "v1/log": (decode_cloud_log_request, CloudLogRequest, cloud_world.PATIENT),
}
"""How a request to the cloud is read, and signed anew by whom."""


def cloud_requests() -> list[bytes]:
    made = cloud_world.make_record(sizes=(1, 50))
    download = cloud_world.make_download(made)
    signed = [
        cloud_world.make_upload(made),
        download,
        cloud_world.make_delete(made),
        cloud_world.make_log_request(made),
    ]
    heads = [encode(request) for request in signed]
    calls = [Call(1, path, b"", "", b"") for path in _SIGNED]
    calls[0].body = b"".join(made.blobs.values())
    others = [Call(0, path, b"", "", b"") for path in ("v1/info", "healthz", "readyz", "v1/upload")]
    return [encode([c, h]) for c, h in zip(calls, heads, strict=True)] + [encode([c, b""]) for c in others]


_decode_cloud_call = Decoder(tuple[Call, bytes], "a request to the cloud", 1 << 18)  # type: ignore[arg-type]


@target(cloud_requests)
def cloud_asked(data: bytes) -> None:
    """Requests to the cloud, whose heads are signed anew by a patient or reader who lies."""
    here = running()
    with refused:
        given, head = _decode_cloud_call(data)
        decode, kind, signer = _SIGNED.get(given.path, _SIGNED["v1/download"])
        with refused:
            head = encode(kind.make(decode(head).body, signer))
        if given.path == "v1/upload":
            head = len(head).to_bytes(4, "big") + head
        given.body = head + given.body
        here.loop.run_until_complete(asyncio.wait_for(call(here.cloud, given), 20))


# --- answers to clients -----------------------------------------------------------------------------------------------------------------


class Answer(msgspec.Struct, array_like=True):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


_decode_answers = Decoder(tuple[Answer, ...], "answers", 1 << 18)


def answers() -> list[bytes]:
    """What nodes say, each kind for all questions."""
    receipt, person, entry, release = map(one, (decode_receipt, decode_person, decode_record, decode_release))
    shown = [{"encoded": o.hex()} for o in (receipt, person, entry)]
    log = {"receipts": [], "encoded": [receipt.hex()], "next": "5.0"}
    problem = {"type": "about:blank", "detail": "full"}
    bodies = [
        json.dumps(x).encode() for x in (*shown, log, {**log, "next": None}, problem, [], "x", {"node": "n1"})
    ]
    made = [Answer(200, [], body) for body in (*bodies, release)]
    made += [
        Answer(503, [("retry-after", "1")], bodies[5]),
        Answer(409, [], bodies[5]),
        Answer(202, [], bodies[0]),
    ]
    return [encode((answer,)) for answer in made] + [encode(tuple(made)), encode((made[3], made[4]))]


def one(decode: Decoder[Any]) -> bytes:
    """An object of the kind that `decode` takes."""
    for data in objects():
        with refused:
            decode(data)
            return data
    raise LookupError(decode._what)


@target(answers)
def client_answered(data: bytes) -> None:
    """Nodes that lie to a client of the chain: it gets a true answer or a refusal, and does not ask for ever."""
    with refused:
        given = _decode_answers(data)
        asked = 0

        def answer(_: httpx2.Request) -> httpx2.Response:
            nonlocal asked
            asked += 1
            assert asked < 300, "asks for ever"
            if not given:
                raise httpx2.ConnectError("nobody")
            a = given[asked % len(given)]
            return httpx2.Response(
                a.status if 200 <= a.status < 600 else 500, headers=_headers(a.headers), content=a.body
            )

        addresses = ChainAddresses(
            "g", "00" * 32, {n: NodeAddress("127.0.0.1:1", f"http://{n}") for n in NAMES}
        )
        chain.PAUSE = 0.0
        client = ChainClient(GENESIS, addresses)
        client._http.close()
        client._http = httpx2.Client(transport=httpx2.MockTransport(answer))
        client.members._asked = float("inf")  # whom it asks about the members has targets of its own
        client.verified_state = lambda key, seconds=0: ChainClient.verified_state(client, key, 0)  # type: ignore[method-assign]
        key = bytes(32)
        asks: list[Callable[[], object]] = [
            lambda: client.verified_receipt(key, 0),
            lambda: client.verified_record(bytes(16)),
            lambda: client.verified_person(key),
            lambda: client.credential(key),
            lambda: client.verified_log(bytes(16), 0),
            lambda: diagnose(COMMITTEE, client.status()),
            lambda: client.release(key, SEAL, seconds=0),
            lambda: client.send(USER, Request(bytes(16), "research"), seconds=0.001),
        ]
        for ask in asks:
            asked = 0
            with refused:
                ask()


def _headers(given: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that an HTTP library lets through."""
    return [(n, v) for n, v in given if n.isascii() and n.isidentifier() and v.isascii() and v.isprintable()]


def downloads() -> list[bytes]:
    head = one(decode_download_head)
    return [len(head).to_bytes(4, "big") + head, (5).to_bytes(4, "big") + b"short"]


@target(downloads, is_tree=False)
def cloud_answered(data: bytes) -> None:
    """A cloud that lies to a reader."""
    index = decode_index(one(decode_index))
    with refused:
        _read_download(index, (), _Reader(iter([data[:10], data[10:]])), Blobs(0, None), lambda _: None)


# --- files on disk --------------------------------------------------------------------------------------------------------------------------


class Patch(msgspec.Struct, array_like=True):
    """Bytes written into a file at a place; an empty one cuts the file there."""

    file: int
    at: int
    data: bytes


_decode_patches = Decoder(tuple[Patch, ...], "patches", 1 << 18)
FILES = (JOURNAL, LEDGER, MANIFEST)


def disk() -> Path:
    """The data folder of a node with a short chain, and a backup and a snapshot of it."""
    folder = SCRATCH / "disk"
    if not folder.exists():
        page = next(m for m in chain_messages() if isinstance(m, Chain))
        store, ledger = Store(folder / "data", GENESIS), Ledger(folder / "data", GENESIS)
        blocks = tuple((block, ()) for block in page.blocks)
        votes = [SaveVote(COMMITTEE.sign(KEYS[ME], ME, "nullify", view, None)) for view in (1, 90)]
        store.apply([*map(SaveBlock, page.blocks), Finalized(blocks, page.finalization), *votes])
        ledger.execute(page.blocks)
        store.close()
        ledger.close()
        for kind in ("backup", "snapshot"):
            backup(folder / "data", folder / kind, GENESIS, NAMES[ME], is_snapshot=kind == "snapshot")
    return folder


def patches() -> list[bytes]:
    found = [
        (Patch(0, 16, b"\x10"),),
        (Patch(0, 5000, b""),),
        (Patch(1, 4096, b"\x0d"),),
        (Patch(2, 30, b"x"),),
        (),
    ]
    journal = (disk() / "backup" / JOURNAL).read_bytes()
    for block in next(m for m in chain_messages() if isinstance(m, Chain)).blocks:
        at = journal.find(encode(block)[:40])
        found.append((Patch(0, max(0, at), encode(block)[:60]),))
    return [encode(f) for f in found]


def patched(source: Path, target: Path, given: Iterable[Patch]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for patch in given:
        file = target / FILES[patch.file % 3]
        if not file.exists():
            continue
        content = bytearray(file.read_bytes())
        at = patch.at % (len(content) + 1)
        if patch.data:
            content[at : at + len(patch.data)] = patch.data
        else:
            del content[at:]
        file.write_bytes(content)


@target(patches)
def backups_restored(data: bytes) -> None:
    """A changed backup with a manifest that fits it: what is restored holds together and opens, or nothing is left behind."""
    with refused:
        given = _decode_patches(data)
        for kind in ("backup", "snapshot"):
            source, into = SCRATCH / "changed", SCRATCH / "restored"
            patched(disk() / kind, source, given)
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
                seals = {f: hashlib.sha256((source / f).read_bytes()).hexdigest() for f in (JOURNAL, LEDGER)}
                manifest = msgspec.structs.replace(
                    manifest, journal_sha256=seals[JOURNAL], ledger_sha256=seals[LEDGER]
                )
                (source / MANIFEST).write_bytes(msgspec.json.encode(manifest))
            shutil.rmtree(into, ignore_errors=True)
            try:
                restore(source, into, GENESIS, NAMES[ME])
            except DiptychError:
                assert sorted(f.name for f in into.glob("*")) in ([], ["lock"])
            else:
                _open(into)


@target(patches)
def journals_opened(data: bytes) -> None:
    """A damaged data folder: the node and the audit refuse it by name, or go on with a chain that is the true one."""
    with refused:
        folder = SCRATCH / "damaged"
        patched(disk() / "data", folder, [p for p in _decode_patches(data) if p.file % 3 < 2])
        with contextlib.suppress(DiptychError, sqlite3.DatabaseError):
            _open(folder)
        with refused:
            found = audit([folder / JOURNAL, disk() / "backup" / JOURNAL], GENESIS)
            assert found.fork is None
            assert not found.convictions


def _open(folder: Path) -> None:
    """As a node does."""
    store = Store(folder, GENESIS)
    try:
        ledger = Ledger(folder, GENESIS)
        restored = store.load()
        core = Core(COMMITTEE, KEYS[ME], Mempool(GENESIS.chain_id), restored, 0.0, WALL0, bytes(32))
        core.tick(1.0, WALL0)
        store.page(1)
        for height in range(1, core.tip.height + 1):
            store.block_at(height)
        ledger.head()
        ledger.close()
    finally:
        store.close()
