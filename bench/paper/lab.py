"""What every experiment runs on: networks of real processes, people, records made for it, and what cloud and chains hold of them."""

import base64
import hashlib
import json
import math
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec

from bench.baselines import SCHEMES, People, Rights, Scheme
from bench.proc import cpu_seconds
from bench.town import Town, town
from client.fhir import Part, load_bundle, load_profile, read_bundle, split
from client.home import Home
from client.session import Session
from client.web import now_ms
from configs.files import read_key
from crypto.codec import encode
from crypto.sign import SigningKey
from protocol.block import decode_block
from protocol.identity import ChainKind, Credential, Role, SignedCredential
from protocol.record import decode_envelope, decode_view
from protocol.tx import Certify, Tx, decode_tx

Row = dict[str, Any]
BEFORE = Rights(("role:doctor", "role:government"), ("role:researcher",))
SWAPPED = Rights(("role:doctor", "role:researcher"), ("role:government",))
"""Government and researchers have swapped their rights, as in the paper's section 5."""
PAPER_SHARED = frozenset({"m2", "m3", "m4", "m5", "m6", "m7"})
SAMPLES = Path(__file__).resolve().parents[2] / "client" / "samples"


class Piece(NamedTuple):
    """A part of an experiment: `run` gives its rows; `seconds` is about what it takes, in proportion to the others."""

    title: str
    seconds: float
    run: Callable[[], Iterable[Row]]


class CloudHolds(NamedTuple):
    """Bytes that the cloud holds for some records, by kind; `blobs` is how many files."""

    ciphertext: int
    key_headers: int
    signatures: int
    other: int
    blobs: int


class Transaction(NamedTuple):
    """A final transaction: the chain, its kind, and the bytes it has there."""

    chain: ChainKind
    kind: str
    size: int


class Testbed:
    """A network of real processes on loopback, and the people of the comparison."""

    def __init__(self, where: Town) -> None:
        self._town, self.folder, self.supervisor = where, where.folder, where.supervisor

    def join(self, role: Role, *attributes: str) -> Home:
        """A new person, enrolled."""
        return self._town.join(role, *attributes).home

    @cached_property
    def people(self) -> People:
        readers = [self.join("doctor")]
        readers += [self.join("user", f"role:{name}") for name in ("government", "researcher", "researcher")]
        return People(self.join("doctor"), self.join("patient"), readers)

    @property
    def researcher(self) -> Home:
        return self.people.readers[2]

    def users(self, count: int, kinds: Sequence[ChainKind]) -> list[SigningKey]:
        """Keys certified as government on these chains, without homes: for loads that only talk to nodes."""
        authority = SigningKey(read_key(self.folder / "authority" / "keys" / "authority.key"))
        keys = [SigningKey.generate() for _ in range(count)]
        with Session(self.people.patient) as session:
            for kind in kinds:
                chain = session.chains[kind]
                for start in range(0, count, 64):
                    txs = [
                        self._certify(chain.genesis.chain_id, key, authority)
                        for key in keys[start : start + 64]
                    ]
                    url = next(iter(session.home.network.chains[kind].nodes.values())).http
                    answer = httpx2.post(
                        f"{url}/v1/txs?wait=20", content=encode(tuple(txs)), timeout=30, trust_env=False
                    )
                    results = msgspec.msgpack.decode(answer.raise_for_status().content)
                    if not all(isinstance(result, bytes) for result in results):
                        raise RuntimeError("the users of a load were not certified")
        return keys

    @staticmethod
    def _certify(chain_id: str, key: SigningKey, authority: SigningKey) -> bytes:
        now = now_ms()
        credential = Credential(
            key.public,
            "user",
            ("role:government",),
            hashlib.sha256(key.public).digest(),
            None,
            now - 60_000,
            now + 86_400_000,
        )
        action = Certify(SignedCredential.issue(credential, authority))
        return encode(Tx.make(chain_id, authority, os.urandom(16), now + 120_000, action))

    def cpu(self) -> dict[str, float]:
        """CPU seconds that the processes have used so far, by name."""
        return {name: cpu_seconds(pid) for name, pid in self._town.pids().items()}

    @contextmanager
    def on_halves(self) -> Iterator[None]:
        """Give the nodes of either chain one half of the machine's cores for themselves, a larger sharing chain both halves, so that every
        node has the same share of a core whatever the others do; as before afterwards, and as ever on a single core."""
        cores = sorted(os.sched_getaffinity(0))
        halves = set(cores[: len(cores) // 2]) or set(cores), set(cores[len(cores) // 2 :])
        names = [name for name in self.supervisor.daemons if name.startswith(("storage-", "sharing-"))]
        both = len(names) > 2 * sum(name.startswith("storage-") for name in names)
        try:
            for name in names:
                number = int(name.rpartition("-")[2])
                self._pin(name, halves[number % 2 if both else name.startswith("sharing-")])
            yield
        finally:
            for name in names:
                self._pin(name, set(cores))

    def _pin(self, name: str, cores: set[int]) -> None:
        process = self.supervisor.daemons[name].process
        if process is not None:
            for task in os.listdir(f"/proc/{process.pid}/task"):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task), cores)

    # --- what is held -----------------------------------------------------------------------------------------------------

    def in_cloud(self, records: Iterable[bytes]) -> CloudHolds:
        """What the cloud's folder has for these records: the files that they hold, each once, and their views."""
        data, kinds, blobs = self.folder / "cloud" / "data", Counter[str](), set[bytes]()
        with closing(sqlite3.connect(f"file:{data / 'meta.db'}?mode=ro", uri=True)) as db:
            for record in records:
                blobs |= {
                    row[0] for row in db.execute("SELECT hash FROM holding WHERE record = ?", (record,))
                }
                for (encoded,) in db.execute("SELECT encoded FROM view WHERE record = ?", (record,)):
                    kinds["other"] += len(encoded)
                    for ref in decode_view(encoded).envelopes:
                        if ref.hash in blobs:
                            blobs.remove(ref.hash)
                            kinds.update(_of_envelope((data / "blobs" / _place(ref.hash)).read_bytes()))
        sizes = [(data / "blobs" / _place(name)).stat().st_size for name in blobs]
        return CloudHolds(
            sum(sizes), kinds["key_headers"], kinds["signatures"], kinds["other"], len(sizes) + kinds["files"]
        )

    def height(self, kind: ChainKind) -> int:
        return int(self._journal(kind, "SELECT COALESCE(MAX(height), 0) FROM final")[0][0])

    def on_chain(self, kind: ChainKind, after: int) -> list[Transaction]:
        """The final transactions in the journal of a node, in blocks above a height."""
        rows = self._journal(
            kind, "SELECT b.data FROM final f JOIN blocks b ON b.id = f.id WHERE f.height > ?", after
        )
        found = [raw for (data,) in rows for raw in decode_block(data).txs]
        return [
            Transaction(kind, str(decode_tx(raw).body.action.__struct_config__.tag), len(raw))
            for raw in found
        ]

    def _journal(self, kind: ChainKind, sql: str, *values: int) -> list[Any]:
        path = self.folder / f"{kind}-1" / "data" / "consensus.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return db.execute(sql, values).fetchall()


def _of_envelope(data: bytes) -> Mapping[str, int]:
    """The bytes of an envelope's file by kind."""
    envelope = decode_envelope(data)
    headers = len(envelope.header) + sum(len(part.wrapped_key) for part in envelope.parts)
    signatures = len(envelope.extract)
    return {
        "key_headers": headers,
        "signatures": signatures,
        "other": len(data) - headers - signatures,
        "files": 1,
    }


def _place(name: bytes) -> str:
    return f"{name.hex()[:2]}/{name.hex()}"


class Lab:
    """One run of the experiments: how thorough, from which seed, on which bundles, with rows in the folder `out`. Networks start when first
    wanted, and stop with `close`."""

    def __init__(self, out: Path, is_quick: bool, seed: int, bundles: Sequence[Path]) -> None:
        self.out, self.is_quick, self.seed, self.bundles = out, is_quick, seed, bundles
        self._stack = ExitStack()
        self._testbeds: dict[tuple[int, int], Testbed] = {}

    def close(self) -> None:
        self._stack.close()

    def testbed(self, storage: int = 4, sharing: int = 4) -> Testbed:
        shape = storage, sharing
        if shape not in self._testbeds:
            self._testbeds[shape] = Testbed(self._stack.enter_context(town(storage=storage, sharing=sharing)))
        return self._testbeds[shape]

    def schemes(self, people: People) -> Iterator[Scheme]:
        """Each scheme in turn, closed when the next one comes."""
        for kind in SCHEMES:
            with kind(people) as scheme:
                yield scheme

    def parts_of(self, path: Path) -> list[Part]:
        return split(read_bundle(load_bundle(path)), load_profile("paper"))


def made_parts(seed: int, shared: int, private: int, size: int) -> list[Part]:
    """Parts m5-1 … to be shared and m8-1 … to stay private, of about `size` bytes each, which do not compress well."""
    draw = random.Random(f"{seed} {shared} {private} {size}")  # noqa: S311
    names = [f"m5-{n + 1}" for n in range(shared)] + [f"m8-{n + 1}" for n in range(private)]
    return [Part(name, "private", name, _resource(draw, name, size)) for name in names]


def _resource(draw: random.Random, name: str, size: int) -> bytes:
    shell = {"resourceType": "Observation", "id": name, "status": "final", "valueString": ""}
    room = max(0, size - len(json.dumps(shell)))
    shell["valueString"] = base64.b64encode(draw.randbytes(room * 3 // 4)).decode()
    return json.dumps(shell).encode()


def labels(parts: Iterable[Part], prefix: str) -> list[str]:
    return [p.label for p in parts if p.label.startswith(prefix)]


def timed(work: Callable[..., Any], *args: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share `q` of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]
