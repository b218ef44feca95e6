"""A node's HTTP API for light clients and operators (docs/operations.md lists it).

Transactions and releases travel as canonical msgpack, answers to queries as JSON with byte strings in hex and, where programs decode them, the
canonical object as `encoded`. A client believes a single node only as far as
it checks signatures and quorums itself.
"""

import time
from functools import partial
from typing import get_args

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from configs.metrics import instrument
from configs.web import EXCEPTION_HANDLERS, hexed, read_body
from crypto.codec import Decoder, encode
from crypto.errors import DiptychError, Malformed, NotFound
from node.daemon import Node, TxBatch
from node.feed import EventStream, Filter, Place
from protocol.block import MAX_TX
from protocol.contract import Receipt
from protocol.mempool import Pending
from protocol.queries import MAX_PAGE, QUERIES, Query
from protocol.tx import Action, decode_tx

MAX_WAIT_S = 30.0
LOG_PAGE = 500
LIST_PAGE = 100
KINDS = sorted(str(action.__struct_config__.tag) for action in get_args(Action))
MAX_BATCH = 1 << 20
decode_batch = Decoder[tuple[bytes, ...]](TxBatch, "a batch of transactions", MAX_BATCH)


def create_app(node: Node) -> Starlette:
    api = _Api(node)
    routes = [
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
        Route("/v1/status", api.status),
        Route("/v1/tx", api.submit, methods=["POST"]),
        Route("/v1/txs", api.submit_many, methods=["POST"]),
        Route("/v1/tx/{tx}", api.tx),
        Route("/v1/block/{height}", api.block),
        Route("/v1/identity/{key}", api.identity),
        Route("/v1/record/{record}", api.record),
        Route("/v1/record/{record}/log", api.log),
        *(Route(query.path, partial(api.page, query)) for query in QUERIES),
        Route("/v1/events", api.events),
        Route("/v1/epochs", api.epochs),
        Route("/v1/release/{tx}", api.release),
        Route("/v1/index-key", api.index_key),
        Route("/v1/checkpoint/{height}", api.checkpoint),
        Route("/v1/proof/state/{key}", api.state_proof),
        Route("/v1/proof/tx/{tx}", api.tx_proof),
    ]
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    instrument(app, node.metrics.registry)
    return app


class _Api:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        ready = self._node.is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def status(self, _: Request) -> Response:
        node, core = self._node, self._node.core
        names = [m.name for m in core.committee.members]
        missing = core.missing_votes()
        now, linked = time.monotonic(), node.net.peers()
        return JSONResponse(
            {
                "chain_id": node.genesis.chain_id,
                "kind": node.genesis.kind,
                "node": node.name,
                "mode": node.genesis.mode,
                "epoch": core.committee.epoch,
                "members": names,
                "is_member": core.me is not None,
                "quorum": core.committee.quorum,
                "height": node.tip.height,
                "block": node.tip.id.hex(),
                "time_ms": node.tip.time_ms,
                "executed_height": node.executed_height,
                "receipts_root": node.receipts_root.hex(),
                "state_root": node.state_root.hex(),
                "pruned_height": node.pruned_height,
                "view": core.view,
                "leader": names[core.committee.leader(core.view)],
                "peers": sorted(node.net.peers()),
                "mempool": len(node.mempool),
                "members_seen": [
                    {
                        "node": name,
                        "linked": name in linked,
                        "heard_s_ago": None if sight.heard is None else round(now - sight.heard, 3),
                        "height": sight.height,
                        "lag": None if sight.height is None else max(0, node.tip.height - sight.height),
                        "view": sight.view,
                        "last_votes": sight.votes,
                    }
                    for name in names
                    if name != node.name
                    for sight in [node.metrics.sight(name)]
                ],
                "nullified_by": [n for i, n in enumerate(names) if i not in missing["nullify"]],
                "since_final_s": round(now - node.metrics.last_final, 3),
                "timeout_in_s": None if core.deadline is None else round(core.deadline - now, 3),
                "no_notarize_from": [names[i] for i in missing["notarize"]],
                "no_nullify_from": [names[i] for i in missing["nullify"]],
                "evidence": len(node.evidence),
                "refused_messages": dict(node.refused),
                "halted": core.halted,
                "alarm": node.alarm,
                "index_key": node.holder.status,
            }
        )

    async def submit(self, request: Request) -> Response:
        raw, wait = await read_body(request, MAX_TX), _wait(request)
        (answer,) = await self._node.take_in([raw])
        if isinstance(answer, DiptychError):
            raise answer
        receipts = await self._node.receipts([answer.id], wait) if wait else {}
        return _receipt(*receipts.values()) if receipts else JSONResponse({"tx": answer.id.hex()}, 202)

    async def submit_many(self, request: Request) -> Response:
        """A batch of transactions, a msgpack array of byte strings: an array with, for each, its encoded receipt, nothing yet
        (nil), or the sentence of its refusal."""
        batch = decode_batch(await read_body(request, MAX_BATCH))
        wait = _wait(request)

        answers = await self._node.take_in(batch)
        pending = [answer.id for answer in answers if isinstance(answer, Pending)]
        receipts = await self._node.receipts(pending, wait) if wait and pending else {}
        found = [receipts.get(a.id) if isinstance(a, Pending) else str(a) for a in answers]
        results = [encode(f) if isinstance(f, Receipt) else f for f in found]
        return Response(encode(tuple(results)), media_type="application/msgpack")

    async def tx(self, request: Request) -> Response:
        receipt = await self._node.receipt(_hex(request, "tx", 32), _wait(request))
        if receipt is None:
            raise NotFound("no final transaction with this id is known here yet; ask again later")
        return _receipt(receipt)

    async def block(self, request: Request) -> Response:
        text = request.path_params["height"]
        height = self._node.tip.height if text == "latest" else _height(text)
        if height == 0:
            raise Malformed("a block is named by its height, from 1, or by 'latest'")
        block = await self._node.block_at(height)
        txs = [decode_tx(raw) for raw in block.txs]
        listed = [{"tx": tx.id.hex(), **hexed(tx.body)} for tx in txs]
        return JSONResponse({"block": block.header.id.hex(), "header": hexed(block.header), "txs": listed})

    async def identity(self, request: Request) -> Response:
        person = await self._node.person(_hex(request, "key", 32))
        if person is None:
            raise NotFound("nobody with this key is certified on this chain")
        return JSONResponse({**hexed(person), "encoded": encode(person).hex()})

    async def record(self, request: Request) -> Response:
        entry = await self._node.record(_hex(request, "record", 16))
        if entry is None:
            raise NotFound("no record with this id is on this chain")
        return JSONResponse({**hexed(entry), "encoded": encode(entry).hex()})

    async def log(self, request: Request) -> Response:
        after = _place(request.query_params.get("after", "0.0"), "after")
        record = _hex(request, "record", 16)
        receipts = await self._node.record_log(record, after, LOG_PAGE)
        more = f"{receipts[-1].height}.{receipts[-1].position}" if len(receipts) == LOG_PAGE else None
        encoded = [encode(r).hex() for r in receipts]
        return JSONResponse({"receipts": hexed(receipts), "encoded": encoded, "next": more})

    async def page(self, query: Query, request: Request) -> Response:
        """A page of a listing of the state."""
        owner = _hex(request, "key", query.owner_size) if query.owner_size else b""
        limit = request.query_params.get("limit", str(LIST_PAGE))
        if not limit.isdecimal() or len(limit) > 4 or not 0 < int(limit) <= MAX_PAGE:
            raise Malformed(f"limit must be a number of items, 1 to {MAX_PAGE}")
        after = request.query_params.get("after", "")
        start = _bytes(after, "after", query.id_size) if after else b""
        height, items, more = await self._node.page(query, owner, start, int(limit))
        listed = [{"id": i.id.hex(), "key": i.key.hex(), "encoded": i.encoded.hex()} for i in items]
        return JSONResponse({"height": height, "items": listed, "next": more.hex() if more else None})

    async def events(self, request: Request) -> Response:
        """Receipts as they come (`node.feed`)."""
        asked = request.query_params
        sizes = {"record": 16, "patient": 32, "reader": 32}
        ids = {
            name: _bytes(asked[name], f"the {name}", size) for name, size in sizes.items() if name in asked
        }
        kind = asked.get("kind")
        if kind is not None and kind not in KINDS:
            raise Malformed(f"kind must be one of {', '.join(KINDS)}")
        last = request.headers.get("last-event-id") or asked.get("from")
        after = _place(last, "from") if last else None
        return EventStream(self._node.feed, Filter(kind=kind, **ids), after)

    async def epochs(self, request: Request) -> Response:
        """The ends of epochs from `from` on, as a msgpack array of encoded handovers; again for more, until it is empty."""
        text = request.query_params.get("from", "0")
        if not text.isdecimal() or len(text) > 18:
            raise Malformed("from must be the number of an epoch, 0 or more")
        found = await self._node.handovers(int(text))
        answer = encode(tuple(encode(handover) for handover in found))
        return Response(answer, media_type="application/msgpack")

    async def release(self, request: Request) -> Response:
        release = await self._node.release(_hex(request, "tx", 32))
        return Response(encode(release), media_type="application/msgpack")

    async def index_key(self, _: Request) -> Response:
        return Response(encode(await self._node.signed_index_key()), media_type="application/msgpack")

    async def checkpoint(self, request: Request) -> Response:
        text = request.path_params["height"]
        signed = await self._node.checkpoint(None if text == "latest" else _height(text), _wait(request))
        return Response(encode(signed), media_type="application/msgpack")

    async def state_proof(self, request: Request) -> Response:
        """What the state holds of a key, with its proof, at the height `from` or later."""
        try:
            key = bytes.fromhex(request.path_params["key"])
        except ValueError:
            raise Malformed("the key must be written in hex digits") from None
        proved = await self._node.proved_value(
            key, _height(request.query_params.get("from", "0")), _wait(request)
        )
        return Response(encode(proved), media_type="application/msgpack")

    async def tx_proof(self, request: Request) -> Response:
        proved = await self._node.proved_receipt(_hex(request, "tx", 32))
        return Response(encode(proved), media_type="application/msgpack")


def _height(text: str) -> int:
    height = int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else -1
    if not 0 <= height < 2**63:
        raise Malformed("a height is a number from 0, or 'latest' where the last one may be meant")
    return height


def _wait(request: Request) -> float:
    """The seconds that the client lets us wait."""
    try:
        wait = float(request.query_params.get("wait", "0"))
    except ValueError:
        wait = -1.0
    if not wait >= 0:  # NaN too: it would upset the order of the event loop's timers
        raise Malformed("wait must be a number of seconds, 0 or more")
    return min(wait, MAX_WAIT_S)


def _receipt(receipt: Receipt) -> Response:
    return JSONResponse({**hexed(receipt), "encoded": encode(receipt).hex()})


def _place(text: str, what: str) -> Place:
    parts = text.split(".")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise Malformed(f"{what} must be HEIGHT.POSITION, such as 12.0")
    return int(parts[0]), int(parts[1])


def _hex(request: Request, name: str, size: int) -> bytes:
    return _bytes(request.path_params[name], f"the {name}", size)


def _bytes(text: str, what: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise Malformed(f"{what} must be written as {2 * size} hex digits")
    return value
