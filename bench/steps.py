"""Where the time of an operation goes: the functions of each step are watched while it runs, in the thread that runs it.

Times are exclusive: what a watched function spends in another one counts for that alone. What other threads do meanwhile does not count; what the
thread waits for them does, under the step that waits.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import client.doctor
import client.fhir
import client.pack
import client.patient
import client.reader
import crypto.ces
import crypto.parts
from client.chain import ChainClient
from client.cloud import CloudClient
from client.home import Home
from client.session import Session

OTHER = "other"
SPOTS: Mapping[str, list[tuple[Any, str]]] = {
    "JSON": [(client.doctor, "read_bundle"), (client.doctor, "split"), (client.doctor, "check_signing"),
             (client.patient, "check_sharing")],
    "CES": [(crypto.ces, "sign"), (crypto.ces, "verify"), (crypto.ces, "verify_full"),
            (crypto.ces.FullSignature, "commit"), (crypto.ces.FullSignature, "extract")],
    "compress": [(crypto.parts, "_compress"), (crypto.parts, "_decompress")],
    "AES": [(crypto.parts, "_seal"), (crypto.parts, "_open")],
    "CP-ABE": [(client.patient, "encapsulate"), (client.reader, "decapsulate")],
    "TDH2": [(client.patient, "encrypt")],
    "cloud": [(CloudClient, "upload"), (CloudClient, "fetch"), (CloudClient, "delete")],
    "chain": [(Session, "on_chains"), (ChainClient, "send"), (ChainClient, "release"), (ChainClient, "verified_state"),
              (ChainClient, "verified_receipt"), (ChainClient, "index_key")],
    "home": [(Home, "save"), (Home, "load")],
}  # fmt: skip


class Steps:
    """Seconds by step, of everything that ran under `watching` in this thread."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0
        self._thread = threading.get_ident()

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for step, spots in SPOTS.items():
                for owner, name in spots:
                    stack.enter_context(patch.object(owner, name, self._watched(step, getattr(owner, name))))
            with self._in(OTHER):
                yield

    @contextmanager
    def _in(self, step: str) -> Iterator[None]:
        self._count()
        self._stack.append(step)
        try:
            yield
        finally:
            self._count()
            self._stack.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def _watched(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*args, **kwargs)
            with self._in(step):
                return function(*args, **kwargs)

        return watched
