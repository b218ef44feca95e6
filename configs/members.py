"""Following the members of a chain over its nodes' HTTP: what one believes is proved from genesis (`protocol.epochs`), whoever answers."""

import time
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Annotated

import httpx2
import msgspec

from crypto.codec import Decoder
from crypto.errors import DiptychError
from protocol.block import Committee
from protocol.epochs import Handover, decode_handover, follow
from protocol.network import NodeAddress

MAX_ANSWER = 8 << 20
PATIENCE_S = 2.0
Handovers = Annotated[tuple[bytes, ...], msgspec.Meta(max_length=128)]
_decode_handovers = Decoder[tuple[bytes, ...]](Handovers, "the ends of epochs", MAX_ANSWER)


def newest(committee: Committee, urls: Iterable[str]) -> Committee:
    """The committee of the latest epoch that a node at `urls` proves; the one given if none knows a later one."""
    return _followed(committee, urls)[-1][1]


def _followed(committee: Committee, urls: Iterable[str]) -> list[tuple[Handover | None, Committee]]:
    """The committee given and those after it that nodes at `urls` prove, each with the proof."""
    found: list[tuple[Handover | None, Committee]] = [(None, committee)]
    with httpx2.Client(timeout=PATIENCE_S, trust_env=False, follow_redirects=False) as http:
        for url in urls:
            try:
                while answer := _ask(http, url, found[-1][1].epoch):
                    for encoded in answer:
                        handover = decode_handover(encoded)
                        found.append((handover, follow(found[-1][1], handover)))
            except (httpx2.HTTPError, DiptychError):
                continue  # it does not answer, lies, or is behind: another may know
    return found


def _ask(http: httpx2.Client, url: str, epoch: int) -> tuple[bytes, ...]:
    with http.stream("GET", f"{url}/v1/epochs", params={"from": epoch}) as response:
        data = b""
        for chunk in response.iter_raw():  # not unpacked: it could unpack to anything
            data += chunk
            if len(data) > MAX_ANSWER:
                return ()
    return _decode_handovers(data) if response.is_success else ()


class Members:
    """The members of one chain from the committee given to now, looked up again once what is known is older than `max_age_s`."""

    def __init__(self, committee: Committee, nodes: Mapping[str, NodeAddress], max_age_s: float = 30) -> None:
        self._known, self._max_age_s = [committee], max_age_s
        self.handovers: list[Handover] = []
        """What proves each committee but the first, in order."""
        self._urls = [address.http for address in nodes.values()]
        self._asked = -max_age_s
        self._lock = Lock()

    def now(self, at_least: int = 0) -> Committee:
        """The present committee; asks the nodes if that is due, or if `at_least` names a later epoch than is known, at most once a
        second."""
        with self._lock:
            age = time.monotonic() - self._asked
            if age >= self._max_age_s or (at_least > self._known[-1].epoch and age >= 1):
                for handover, committee in _followed(self._known[-1], self._urls)[1:]:
                    assert handover is not None
                    self.handovers.append(handover)
                    self._known.append(committee)
                self._asked = time.monotonic()
            return self._known[-1]

    def at(self, epoch: int) -> Committee | None:
        """The committee of an epoch; None for one that is not known here."""
        return next((c for c in self._known if c.epoch == epoch), None)
