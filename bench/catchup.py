"""What a long chain costs: the restart of a node that has it, and the catch-up of an empty one over the real transport.

The chain is built straight into the journal and ledger of the first node by the keys of all four, as fast as the disk takes it, with one
block a second of chain time; nodes 2 and 3 get copies. Then processes do what is measured:

- restart: kill -9 of a node and a new start, until it answers `/readyz` (links to a quorum, executing); beside it the same on a chain of a
  few blocks, which is the baseline: what is left is what the length of the chain costs;
- catch-up: an empty fourth node, from its start until it has executed the last block, with CPU and peak memory of all.

    python -m bench.catchup                            # 100,000 blocks of 4 transactions, both transports
    python -m bench.catchup --blocks 10000 --transport tls
"""

import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from rich.progress import track

from bench.chains import Place, make_network, next_block
from bench.proc import cpu_seconds, status
from bench.results import Row, console, publish
from client.web import now_ms
from configs.files import read_key, write
from crypto.codec import encode
from crypto.sign import SigningKey
from node.devnet import Supervisor
from node.ledger import Ledger
from node.store import Store
from protocol.block import Block, Certificate, Committee
from protocol.core import Finalized, SaveBlock
from protocol.identity import Credential, Role, SignedCredential
from protocol.tx import Action, Attest, Certify, Tx

BATCH, SHORT = 200, 1000
NAMES = [f"storage-{n}" for n in range(1, 5)]


def final_blocks(
    committee: Committee, keys: list[SigningKey], authority: SigningKey, txs: int
) -> Iterator[tuple[Block, Certificate]]:
    """A chain from genesis on, a block a second, each with its finalization: two credentials first, then attestations."""
    genesis, end = committee.genesis, Place(committee.anchor, 0)
    doctor, patient = SigningKey.generate(), SigningKey.generate()
    roles: tuple[tuple[SigningKey, Role], ...] = ((doctor, "doctor"), (patient, "patient"))

    def tx(sender: SigningKey, action: Action) -> bytes:
        return encode(Tx.make(genesis.chain_id, sender, os.urandom(16), time_ms + 120_000, action))

    while True:
        time_ms = end.anchor.time_ms + 1000
        if not end.view:
            people = [
                Credential(key.public, role, (), key.public, None, time_ms, time_ms + 10**12)
                for key, role in roles
            ]
            raw = tuple(
                tx(authority, Certify(SignedCredential.issue(person, authority))) for person in people
            )
        else:
            raw = tuple(tx(doctor, Attest(os.urandom(16), patient.public, bytes(32))) for _ in range(txs))
        block, certificate, end = next_block(committee, keys, end, raw, time_ms)
        yield block, certificate


def make_chain(folder: Path, blocks: int, txs: int) -> None:
    """A network of four storage nodes, the first three with the same chain of `blocks` blocks on their disks."""
    genesis = make_network(folder, 4, now_ms() - (blocks + 1) * 1000)
    keys = [SigningKey(read_key(folder / name / "keys" / "consensus.key")) for name in NAMES]
    authority = SigningKey(read_key(folder / "authority" / "keys" / "authority.key"))
    committee = Committee(genesis)
    data = folder / NAMES[0] / "data"
    store, ledger = Store(data, genesis), Ledger(data, genesis)
    source = final_blocks(committee, keys, authority, txs)
    for _ in track(range(0, blocks, BATCH), f"building {blocks:,} blocks", console=console):
        page = list(islice(source, min(BATCH, blocks - ledger.head()[0])))
        store.apply(e for block, cert in page for e in (SaveBlock(block), Finalized(((block, ()),), cert)))
        ledger.execute(block for block, _ in page)
    ledger.close()
    store.close()
    for name in NAMES[1:3]:
        shutil.copytree(data, folder / name / "data")


def executed(url: str) -> int:
    """The height that a node has executed; -1 while it does not answer."""
    try:
        return int(httpx2.get(f"{url}/v1/status", timeout=5, trust_env=False).json()["executed_height"])
    except (httpx2.HTTPError, ValueError, KeyError):
        return -1


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def start_three(folder: Path) -> Supervisor:
    supervisor = Supervisor(folder)
    supervisor.start(*NAMES[:3])
    supervisor.wait_ready()
    return supervisor


def time_restarts(folder: Path, repeats: int) -> float:
    """Seconds from the start of a process to its readiness, after kill -9; the median."""
    times = []
    with start_three(folder) as supervisor:
        daemon = supervisor.daemons[NAMES[0]]
        for _ in range(repeats):
            supervisor.kill(daemon.name)
            began = time.perf_counter()
            supervisor.start(daemon.name)
            while not is_ready(daemon.url):
                time.sleep(0.01)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def time_catch_up(folder: Path, blocks: int, txs: int) -> Row:
    """One row of the table."""
    for lost in (folder / NAMES[3] / "data", folder / NAMES[3] / "keys" / "consensus.journal"):
        if lost.is_dir():
            shutil.rmtree(lost)
        lost.unlink(missing_ok=True)
    with start_three(folder) as supervisor:
        began = time.perf_counter()
        supervisor.start(NAMES[3])
        pids = [d.process.pid for name in NAMES if (d := supervisor.daemons[name]).process]
        before = [cpu_seconds(pid) for pid in pids]
        while executed(supervisor.daemons[NAMES[3]].url) < blocks:
            if supervisor.daemons[NAMES[3]].process.poll() is not None:  # type: ignore[union-attr]
                raise RuntimeError(supervisor.log_tail(supervisor.daemons[NAMES[3]]))
            time.sleep(0.2)
        took = time.perf_counter() - began
        cpu = [cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True)]
        peaks = [status(pid, "VmHWM") / 2**20 for pid in pids]
    return {
        "catch-up s": took,
        "blocks/s": blocks / took,
        "tx/s": blocks * txs / took,
        "CPU of the new node s": cpu[3],
        "of the busiest peer s": max(cpu[:3]),
        "peak MiB of the new node": peaks[3],
        "of a peer": max(peaks[:3]),
    }


def set_transport(folder: Path, transport: str) -> None:
    for name in NAMES:
        config = folder / name / "config.toml"
        lines = [line for line in config.read_text().splitlines() if not line.startswith("transport")]
        write(config, "\n".join([*lines, f'transport = "{transport}"', ""]).encode(), replace=True)


def main(
    blocks: Annotated[int, typer.Option(help="Length of the chain.")] = 100_000,
    txs: Annotated[int, typer.Option(help="Transactions in each block.")] = 4,
    transport: Annotated[list[str] | None, typer.Option(help="libp2p or tls; repeatable.")] = None,
    repeats: Annotated[int, typer.Option(help="Restarts of which the median is shown.")] = 5,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Keep the networks here and use them again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for CSV files.")] = Path("bench/results/catchup"),
) -> None:
    """Time the restart of a node on a long chain and the catch-up of an empty one."""
    transports = transport or ["libp2p", "tls"]
    with tempfile.TemporaryDirectory(prefix="diptych-catchup-") as temporary:
        where = folder or Path(temporary)
        for length in (SHORT, blocks):
            if not (where / str(length)).exists():
                make_chain(where / str(length), length, txs)
        with sqlite3.connect(where / str(blocks) / NAMES[0] / "data" / "consensus.db") as db:
            size = (
                db.execute("PRAGMA page_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0]
            )
        restarts: list[Row] = []
        catches: list[Row] = []
        for name in transports:
            times = {}
            for length in (blocks, SHORT):
                set_transport(where / str(length), name)
                times[length] = time_restarts(where / str(length), repeats)
                row = {"transport": name, "blocks": length, "runs": repeats, "p50 s": times[length]}
                restarts.append(row)
            row = {
                "transport": name,
                "blocks": blocks,
                "tx a block": txs,
                "journal MiB": size / 2**20,
                "runs": 1,
            }
            catches.append({**row, **time_catch_up(where / str(blocks), blocks, txs)})
    publish(out, restart=restarts, catchup=catches)


if __name__ == "__main__":
    typer.run(main)
