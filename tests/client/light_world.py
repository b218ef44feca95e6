"""Four members of a chain as a light client meets them: each answers from a history that it has executed, or lies."""

import json
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from client.chain import ChainClient
from crypto.codec import encode
from crypto.sign import SigningKey
from node.ledger import Ledger
from protocol import merkle
from protocol.block import Block
from protocol.checkpoint import Checkpoint, ReceiptProof, SignedCheckpoint
from protocol.contract import Receipt
from protocol.identity import Credential, SignedCredential
from protocol.network import ChainAddresses, NodeAddress
from protocol.tx import Action, Attest, Certify, Publish, Request, Revoke, Rule, Tx, decode_tx
from tests.dealer import sealed
from tests.ledger_state import deal_into
from tests.simulation.cluster import WALL0, Cluster

CLUSTER = Cluster()
GENESIS = CLUSTER.genesis
KEYS = [SigningKey(bytes([i + 1]) * 32) for i in range(4)]
AUTHORITY = SigningKey(bytes([77]) * 32)
DOCTOR, PATIENT, USER, STRANGER = (SigningKey(bytes([i]) * 32) for i in (11, 12, 13, 14))
RECORD = b"r" * 16
NO_HEADERS: Mapping[str, str] = {}
RULE = Rule("role:user", ("research",), None, ())


def certify(key: SigningKey, role: str) -> Certify:
    body = Credential(key.public, role, (f"role:{role}",), bytes(32), None, WALL0, WALL0 + 10**6)  # type: ignore[arg-type]
    return Certify(SignedCredential.issue(body, AUTHORITY))


def publish(version: int) -> Publish:
    return Publish(RECORD, version, bytes([version]) * 32, sealed(GENESIS, RECORD, version, RULE), RULE)


STORY: list[list[tuple[SigningKey, Action]]] = [
    [(AUTHORITY, certify(k, r)) for k, r in ((DOCTOR, "doctor"), (PATIENT, "patient"), (USER, "user"))],
    [(DOCTOR, Attest(RECORD, PATIENT.public, bytes(32)))],
    [(PATIENT, publish(1)), (USER, Request(RECORD, "research")), (USER, Request(RECORD, "treatment"))],
    [(PATIENT, publish(2)), (AUTHORITY, Revoke(USER.public))],
    [(USER, Request(RECORD, "research"))],
]


def blocks_of(story: list[list[tuple[SigningKey, Action]]]) -> list[Block]:
    made: list[Block] = []
    number = 0
    for view, actions in enumerate(story, 1):
        raws = []
        for sender, action in actions:
            number += 1
            tx = Tx.make(GENESIS.chain_id, sender, number.to_bytes(16, "big"), WALL0 + 500_000, action)
            raws.append(encode(tx))
        made.append(CLUSTER.block(view, *raws, parent=made[-1].header if made else None))
    return made


BLOCKS = blocks_of(STORY)
HEIGHT_OF_STORY = len(BLOCKS)


def tx_of(height: int, position: int = 0) -> bytes:
    return decode_tx(BLOCKS[height - 1].txs[position]).id


class History:
    """What a node that has executed these blocks would say, and sign with the key of whoever says it."""

    def __init__(self, folder: Path, blocks: list[Block], is_pruned: bool = False) -> None:
        folder.mkdir()
        self.blocks, self.ledger, self.is_pruned = blocks, Ledger(folder, GENESIS), is_pruned
        deal_into(self.ledger, GENESIS)
        self.ledger.execute(blocks)
        self._lock = Lock()

    def checkpoint(self, height: int) -> Checkpoint | None:
        roots = self.ledger.roots(height)
        if roots is None:
            return None
        header = self.blocks[height - 1].header if height else None
        where = (header.id, header.time_ms) if header else (GENESIS.hash, GENESIS.time_ms)
        return Checkpoint(GENESIS.chain_id, 0, height, *where, *roots)

    def receipt_proof(self, tx: bytes) -> ReceiptProof | None:
        receipt = self.ledger.receipt(tx)
        if receipt is None:
            return None
        block, at = self.blocks[receipt.height - 1], receipt.position
        roots = self.ledger.roots(receipt.height - 1)
        assert roots is not None
        # Of the last block alone there is a certificate: it proves the others through it.
        last, links = self.blocks[-1].header, tuple(b.header for b in self.blocks[receipt.height :])
        return ReceiptProof(
            receipt,
            merkle.proof(self.ledger.receipts_at(receipt.height), at),
            roots[0],
            block.header,
            links,
            CLUSTER.certificate("finalize", last.view, last.id),
            None if self.is_pruned else block.txs[at],
            () if self.is_pruned else merkle.proof(block.txs, at),
        )

    def include(self, raw: bytes) -> Receipt:
        """The receipt of a transaction, in a new block unless it is in one."""
        with self._lock:
            tx = decode_tx(raw).id
            if self.ledger.receipt(tx) is None:
                block = CLUSTER.block(len(self.blocks) + 1, raw, parent=self.blocks[-1].header)
                self.blocks = [*self.blocks, block]
                self.ledger.execute([block])
            receipt = self.ledger.receipt(tx)
            assert receipt
            return receipt

    def log(self, record: bytes) -> list[Receipt]:
        return self.ledger.record_log(record, (0, 0), 1000)

    def answer(self, member: int, path: str) -> bytes | None:
        """The honest answer of a member with this history; None for not found."""
        parts = urlsplit(path)
        words, query = parts.path.split("/")[2:], parse_qs(parts.query)
        with self._lock:
            match words:
                case ["checkpoint", height]:
                    found = self.checkpoint(int(height))
                    return encode(SignedCheckpoint.make(found, member, KEYS[member])) if found else None
                case ["proof", "state", key]:
                    if self.ledger.head()[0] < int(query["from"][0]):
                        return None
                    return encode(self.ledger.prove(bytes.fromhex(key)))
                case ["proof", "tx", tx]:
                    proof = self.receipt_proof(bytes.fromhex(tx))
                    return encode(proof) if proof else None
                case ["record", record, "log"]:
                    return page(self.log(bytes.fromhex(record)))
                case ["epochs"]:
                    return encode(())
                case _:
                    return None


def shown(receipt: Receipt) -> bytes:
    return json.dumps({"encoded": encode(receipt).hex(), "detail": "full"}).encode()


def page(receipts: list[Receipt]) -> bytes:
    return json.dumps({"encoded": [encode(r).hex() for r in receipts], "next": None}).encode()


class Member:
    """A member's HTTP server: `history` is what it answers from; `lie` answers first, with `NotImplemented` where it does not care."""

    def __init__(self, number: int, history: History) -> None:
        self.history = history
        self.lie: Callable[[str], Any] | None = None
        self.on_post: Callable[[bytes], tuple[int, bytes, dict[str, str]]] = lambda _: (202, b"{}", {})
        member = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = member.lie(self.path) if member.lie else NotImplemented
                if answer is NotImplemented:
                    answer = member.history.answer(number, self.path)
                self._say(404 if answer is None else 200, b'{"detail": "no"}' if answer is None else answer)

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                self._say(*member.on_post(raw))

            def _say(self, status: int, content: bytes, headers: Mapping[str, str] = NO_HEADERS) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class World:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.history = self.with_blocks("honest", BLOCKS)
        self.members = [Member(i, self.history) for i in range(4)]
        names = [m.name for m in GENESIS.members]
        nodes = {n: NodeAddress("127.0.0.1:1", m.url) for n, m in zip(names, self.members, strict=True)}
        self.addresses, self.warnings = ChainAddresses("g", "0" * 64, nodes), list[str]()
        self.clients: list[ChainClient] = []
        self.client = self.connect()

    def connect(self) -> ChainClient:
        """A client that has seen nothing."""
        self.clients.append(ChainClient(GENESIS, self.addresses, self.warnings.append))
        return self.clients[-1]

    def with_blocks(self, name: str, blocks: list[Block], **more: bool) -> History:
        return History(self._folder / name, blocks, **more)

    def named(self) -> set[str]:
        """The members that were caught."""
        return {w.split(" ")[0] for w in self.warnings}

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for member in self.members:
            member.stop()
