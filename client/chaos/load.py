"""Clients of a chaos run: a closed loop each, and a watcher for each node. They write down what they see and nothing else.

What a client sends, when it pauses and which node it turns to follow from the scenario's seed; its keys and the chain's answers do not.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from client.chain import TX_LIFETIME_MS
from client.chaos.history import Acknowledged, FinalBlock, History, NoAnswer, Seen, Submitted
from client.web import checked, http_client, now_ms
from crypto.codec import encode
from crypto.errors import Conflict, DiptychError, NotFound, Unavailable
from crypto.sign import SigningKey
from protocol.genesis import Genesis
from protocol.identity import Credential, Role, SignedCredential
from protocol.tx import Action, Attest, Certify, Tx

ATTEMPT_S = 1.5
"""How long a client waits for a receipt at one node before it sends the same transaction to the next."""
WATCH_S, WATCH_TIMEOUT_S = 0.2, 1.0
DAY_MS = 86_400_000
Trouble = (httpx2.HTTPError, DiptychError, KeyError, TypeError, ValueError)


class ChainLoad:
    """The clients of one chain; `urls` by member name. `now` is the run's clock, `history` takes what is seen."""

    def __init__(
        self, genesis: Genesis, urls: Mapping[str, str], history: History, now: Callable[[], float]
    ) -> None:
        self._genesis, self._urls, self._history, self._now = genesis, urls, history, now
        self._kind = genesis.kind
        self._patient = SigningKey.generate()
        self._no_new, self._over = threading.Event(), threading.Event()
        self._doctors: list[SigningKey] = []
        self._clients: list[threading.Thread] = []
        self._watchers: list[threading.Thread] = []

    def certify(self, authority: SigningKey, clients: int) -> None:
        """Put the credentials of a patient and one doctor a client on chain; `Unavailable` if that does not work."""
        self._doctors = [SigningKey.generate() for _ in range(clients)]
        people: list[tuple[SigningKey, Role]] = [(self._patient, "patient")]
        people += [(doctor, "doctor") for doctor in self._doctors]
        with http_client(WATCH_TIMEOUT_S + ATTEMPT_S) as http:
            for key, role in people:
                now = now_ms()
                credential = Credential(key.public, role, (), key.public, None, now - 60_000, now + DAY_MS)
                certify = Certify(SignedCredential.issue(credential, authority))
                rng = random.Random(key.public)  # noqa: S311 - chooses nodes, no secrets
                tx = self._tx(authority, rng.randbytes(16), certify)
                if self._until_final(http, tx, rng, lambda: False) is None:
                    raise Unavailable(
                        f"the {self._kind} chain makes nothing final, before any fault; see the logs"
                    )

    def start(self, seed: int, pause_s: float) -> None:
        for number, doctor in enumerate(self._doctors):
            rng = random.Random(f"{seed}/{self._kind}/{number}")  # noqa: S311 - a reproducible load, no secrets
            self._clients.append(
                threading.Thread(target=self._send, args=(doctor, rng, pause_s), daemon=True)
            )
        self._watchers = [
            threading.Thread(target=self._watch, args=(node, url), daemon=True)
            for node, url in self._urls.items()
        ]
        for thread in (*self._clients, *self._watchers):
            thread.start()

    def has_progress_since(self, moment: float) -> bool:
        """Whether a transaction submitted after `moment` is acknowledged."""
        sent = {s.tx for s in list(self._history.submitted) if s.at >= moment and s.chain == self._kind}
        return any(a.tx in sent for a in list(self._history.acknowledged))

    def send_no_more(self) -> None:
        """Let the clients finish what is under way."""
        self._no_new.set()

    def wait_for_receipts(self, seconds: float) -> None:
        """Until every client has finished, or the time is over."""
        deadline = time.monotonic() + seconds
        for thread in self._clients:
            thread.join(max(0.0, deadline - time.monotonic()))

    def wait_for_nodes(self, seconds: float) -> None:
        """Until every node has shown the height of the highest receipt, or the time is over."""
        highest = max((a.height for a in self._history.acknowledged if a.chain == self._kind), default=0)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            tips = {s.node: s.height for s in list(self._history.seen)}
            if all(tips.get(node, 0) >= highest for node in self._urls):
                break
            time.sleep(0.05)

    def stop(self) -> None:
        """End all threads. Safe to call again, and at any moment."""
        self._no_new.set()
        self._over.set()
        for thread in (*self._clients, *self._watchers):
            thread.join()

    def read_finals(self) -> dict[str, list[FinalBlock] | None]:
        """All final blocks of every node as it serves them now, up to the highest with a receipt."""
        highest = max((a.height for a in self._history.acknowledged if a.chain == self._kind), default=0)
        with ThreadPoolExecutor(len(self._urls)) as pool:
            found = pool.map(lambda url: self._blocks(url, highest), self._urls.values())
            return dict(zip(self._urls, found, strict=True))

    # --- one client ---------------------------------------------------------------------------------------------------------

    def _send(self, doctor: SigningKey, rng: random.Random, pause_s: float) -> None:
        with http_client(WATCH_TIMEOUT_S + ATTEMPT_S) as http:
            while not self._no_new.is_set():
                attest = Attest(rng.randbytes(16), self._patient.public, rng.randbytes(32))
                tx = self._tx(doctor, rng.randbytes(16), attest)
                self._history.submitted.append(Submitted(self._now(), self._kind, tx.id.hex()))
                ack = self._until_final(http, tx, rng, self._over.is_set)
                if ack:
                    self._history.acknowledged.append(ack)
                self._no_new.wait(rng.uniform(0.5, 1.5) * pause_s)

    def _tx(self, sender: SigningKey, nonce: bytes, action: Action) -> Tx:
        return Tx.make(self._genesis.chain_id, sender, nonce, now_ms() + TX_LIFETIME_MS, action)

    def _until_final(
        self, http: httpx2.Client, tx: Tx, rng: random.Random, is_over: Callable[[], bool]
    ) -> Acknowledged | None:
        """Send the transaction to one node after the other until one gives a receipt, it expires, or the run is over."""
        raw = encode(tx)
        while not is_over() and now_ms() < tx.body.expires_ms:
            for node in rng.sample(list(self._urls), len(self._urls)):
                try:
                    answer = self._post(http, self._urls[node], tx.id.hex(), raw)
                    height, position = int(answer["height"]), int(answer["position"])
                except Trouble:
                    time.sleep(0.02)
                else:
                    return Acknowledged(self._now(), self._kind, tx.id.hex(), node, height, position)
                if is_over():
                    return None
        return None

    def _post(self, http: httpx2.Client, url: str, tx: str, raw: bytes) -> Any:
        wait = {"wait": str(ATTEMPT_S)}
        try:
            response = checked(http.post(f"{url}/v1/tx", content=raw, params=wait))
        except Conflict:  # final already: an earlier attempt went through
            response = checked(http.get(f"{url}/v1/tx/{tx}", params=wait))
        if response.status_code != 200:
            raise NotFound("the transaction is not final yet")
        return response.json()

    # --- one node's watcher -------------------------------------------------------------------------------------------------

    def _watch(self, node: str, url: str) -> None:
        with http_client(WATCH_TIMEOUT_S) as http:
            while not self._over.wait(WATCH_S):
                try:
                    s = self._status(http, url)
                    seen = Seen(
                        self._now(),
                        self._kind,
                        node,
                        int(s["height"]),
                        str(s["block"]),
                        int(s["executed_height"]),
                        str(s["receipts_root"]),
                        s["alarm"],
                        s["halted"],
                        int(s["evidence"]),
                    )
                    self._history.seen.append(seen)
                except Trouble:
                    self._history.no_answer.append(NoAnswer(self._now(), self._kind, node))

    def _status(self, http: httpx2.Client, url: str) -> Any:
        """A node's status. A node of another chain, which has the port of one that is down, does not answer for this one."""
        status = checked(http.get(f"{url}/v1/status")).json()
        if status["chain_id"] != self._genesis.chain_id:
            raise Unavailable("another chain answers at this address")
        return status

    def _blocks(self, url: str, to: int) -> list[FinalBlock] | None:
        blocks = []
        with http_client(WATCH_TIMEOUT_S) as http:
            try:
                self._status(http, url)
            except Trouble:
                return None
            for height in range(1, to + 1):
                try:
                    answer = checked(http.get(f"{url}/v1/block/{height}")).json()
                    txs = tuple(str(tx["tx"]) for tx in answer["txs"])
                    parent = str(answer["header"]["parent"])
                    blocks.append(FinalBlock(height, str(answer["block"]), parent, txs))
                except NotFound:
                    break
                except Trouble:
                    return None
        return blocks
