"""What the cloud asks a chain before it serves a reader: whether the requester is still certified, and which version of the record is current.

A ticket lives for minutes, a revocation should not have to wait for that. A single node is not believed: a quorum must say the same, so no
few of them can hide a revocation or make one up. An answer is kept for a few seconds. When too few nodes answer alike, nobody is served.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import httpx2
import msgspec

from configs.members import Members
from crypto.errors import Unavailable
from protocol.block import Committee
from protocol.contract import MAX_OBJECT, Person, RecordEntry, decode_person, decode_record
from protocol.genesis import Genesis
from protocol.network import NodeAddress

MAX_AGE_S = 3.0
"""How long an answer is used again: a revocation reaches the cloud at most this much later than a quorum of nodes."""
PATIENCE_S = 3.0
_ANSWER_S = 2.0
_PAUSE_S = 0.1
_IDLE_S = 2.0
"""How long a connection is kept for the next question: less than nodes wait before they close it."""
_MAX_KEPT = 4096
_MAX_ASKING = 256
"""Questions under way at once."""
_MAX_ANSWER = 8 * MAX_OBJECT


class NodeChain:
    """One chain as its nodes tell it over HTTP. Methods block and may be called from several threads."""

    def __init__(self, genesis: Genesis, nodes: Mapping[str, NodeAddress]) -> None:
        self._nodes = nodes
        self._members = Members(Committee(genesis), nodes)
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._lock = threading.Lock()
        # Threads are made as needed and kept: to start one takes as long as to ask a node.
        self._pool = ThreadPoolExecutor(_MAX_ASKING)
        self._http = httpx2.Client(
            timeout=_ANSWER_S,
            trust_env=False,
            headers={"accept-encoding": "identity"},
            limits=httpx2.Limits(keepalive_expiry=_IDLE_S),
        )

    def committee(self, at_least: int) -> Committee:
        """The present members, at least those of the epoch given if there is such a one."""
        return self._members.now(at_least)

    def person(self, key: bytes, fresh: bool) -> Person | None:
        """What the chain says of a key; `fresh` asks anew whatever is kept. `Unavailable` if no quorum says the same."""
        data = self._agreed(f"/v1/identity/{key.hex()}", fresh)
        return decode_person(data) if data else None

    def record(self, record: bytes, fresh: bool) -> RecordEntry | None:
        """What the chain says of a record, as `person`."""
        data = self._agreed(f"/v1/record/{record.hex()}", fresh)
        return decode_record(data) if data else None

    def _agreed(self, path: str, fresh: bool) -> bytes:
        """The object that a quorum of nodes answers with, encoded; empty if a quorum has none."""
        with self._lock:
            asked, data = self._kept.get(path, (0.0, b""))
        if data and not fresh and time.monotonic() - asked < MAX_AGE_S:
            return data
        asked = time.monotonic()
        while (found := self._ask(path)) is None:  # some may be behind for a moment
            if time.monotonic() - asked > PATIENCE_S:
                raise Unavailable(
                    "too few nodes of the chain say the same about this request, so nothing is served; try again later",
                    "chain-silent",
                )
            time.sleep(_PAUSE_S)
        with self._lock:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[path] = asked, found
        return found

    def _ask(self, path: str) -> bytes | None:
        committee, said = self._members.now(), Counter[bytes]()
        urls = [self._nodes[m.name].http for m in committee.members if m.name in self._nodes]
        asked = [self._pool.submit(self._fetch, url + path) for url in urls]
        try:
            for answered in as_completed(asked):
                answer = answered.result()
                if answer is not None:
                    said[answer] += 1
                    if said[answer] >= committee.quorum:
                        return answer
        finally:
            for future in asked:
                future.cancel()
        return None

    def _fetch(self, url: str) -> bytes | None:
        """The encoded object in a node's answer, empty if it has none, None if it does not answer as it should."""
        try:
            with self._http.stream("GET", url) as response:
                data = b""
                for chunk in response.iter_raw():
                    data += chunk
                    if len(data) > _MAX_ANSWER:
                        return None
            if response.status_code == 404:
                return b""
            return bytes.fromhex(msgspec.json.decode(data)["encoded"]) if response.is_success else None
        except (httpx2.HTTPError, msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError):
            return None
