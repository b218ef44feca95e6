"""What the cryptography costs, with the peers beside it.

    python -m bench.crypto                     # every section
    python -m bench.crypto --only cp-abe --seconds 3

A peer that is installed is measured in the same run; of one that is not, the figure stands that was published, or once
measured by us on another machine (an AMD EPYC with 2 cores), and is marked so. CP-ABE is the key encapsulation secure
against chosen ciphertexts, under policies that are the `and` of n attributes; tables are warm.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Annotated

import typer

from bench import ces
from bench.lines import Line, Peer, Sample, measure, rows
from bench.results import console, publish
from crypto import abe, fabeo, fame, group
from crypto.parts import unwrap_key, wrap_key
from crypto.policy import parse

SIZES = (1, 10, 50)
CONTEXT = b"record 7, version 3, class shared"
GOALS: dict[str, dict[int, float]] = {
    "encrypt": {1: 1.0, 10: 2.0, 50: 6.0},
    "decrypt": {1: 2.0, 10: 2.5, 50: 6.5},
    "issue a key": {10: 1.0},
}
MEASURED_ONCE: dict[str, dict[str, dict[int, float]]] = {
    "Charm FABEO, MNT224": {
        "encrypt": {1: 15.0, 10: 28.8, 50: 88.0},
        "decrypt": {1: 15.2, 10: 14.6, 50: 15.2},
        "issue a key": {1: 7.3, 10: 14.0, 50: 40.9},
    },
    "OpenABE CPA, BN254": {
        "encrypt": {1: 0.70, 10: 4.10, 50: 15.6},
        "decrypt": {1: 1.03, 10: 1.97, 50: 8.49},
        "issue a key": {1: 0.56, 10: 1.58, 50: 4.98},
    },
    "OpenABE CCA, BN254": {"decrypt": {10: 5.1, 50: 29.4}},
    "CIRCL tkn20": {
        "encrypt": {1: 27.8, 10: 125, 50: 463},
        "decrypt": {1: 11.0, 10: 21.0, 50: 41.6},
        "issue a key": {1: 49.6, 10: 194, 50: 785},
    },
}
CHARM_FAME: dict[str, dict[int, float]] = {
    "encrypt": {1: 24.5, 10: 66.7, 50: 256},
    "decrypt": {1: 28.2, 10: 22.2, 50: 27.2},
    "issue a key": {1: 27, 10: 75, 50: 321},
}
"""Charm's AC17 on MNT224, measured once."""
POLICIES = (
    "role:doctor and org:st-mary",
    "role:doctor or role:government",
    "role:researcher and (org:st-mary or org:st-john) and status:approved",
    "2 of (role:insurer, role:auditor, org:ministry)",
)
READER = ("role:doctor", "org:st-mary", "role:researcher", "status:approved", "role:insurer", "org:ministry")
PARTS = 200

Operations = dict[str, Callable[[], object]]


def names(count: int) -> list[str]:
    return [f"org:hospital-{i}" for i in range(count)]


def operations(scheme: ModuleType, count: int) -> Operations:
    """The three operations under the `and` of `count` attributes, of which the key holds all."""
    master = scheme.MasterKey.generate()
    public, held = master.public, names(count)
    policy = " and ".join(held)
    key = master.issue(held)
    header, secret = abe.encapsulate(public, policy, CONTEXT)
    for _ in range(100):  # until tables are made
        abe.encapsulate(public, held[0], CONTEXT)

    def decrypt() -> None:
        assert abe.decapsulate(public, key, policy, header, CONTEXT) == secret

    return {
        "encrypt": lambda: abe.encapsulate(public, policy, CONTEXT),
        "decrypt": decrypt,
        "issue a key": lambda: master.issue(held),
    }


def cp_abe(seconds: float) -> Iterator[Line]:
    """FABEO, our default, beside the others; then FAME beside Charm's."""
    for count in SIZES:
        for what, operation in operations(fabeo, count).items():
            ours, goal = measure(operation, "ms", seconds), GOALS[what].get(count)
            for system, figures in MEASURED_ONCE.items():
                if (figure := figures.get(what, {}).get(count)) is not None:
                    yield Line(_title(what, count), "ms", ours, Peer(system, figure, "measured once"), goal)
                    goal = None
    for count in SIZES:
        charm = charm_fame(count)
        for what, operation in operations(fame, count).items():
            if charm:
                peer = Peer("Charm FAME, MNT224", measure(charm[what], "ms", seconds).median, "this run")
            else:
                peer = Peer("Charm FAME, MNT224", CHARM_FAME[what][count], "measured once")
            yield Line(f"FAME: {_title(what, count)}", "ms", measure(operation, "ms", seconds), peer)


def _title(what: str, count: int) -> str:
    return f"{what}, {count} attribute{'s' * (count > 1)}"


def charm_fame(count: int) -> Operations | None:
    """The same by Charm's AC17 on MNT224 (about 100 bits), secure against chosen plaintexts; None if Charm is not installed."""
    try:
        from charm.schemes.abenc.ac17 import AC17CPABE
        from charm.toolbox.pairinggroup import GT, PairingGroup
    except ImportError:
        return None
    pairing = PairingGroup("MNT224")
    scheme = AC17CPABE(pairing, 2)
    public, master = scheme.setup()
    held = [f"HOSPITAL{i}" for i in range(count)]
    policy = " and ".join(held) if count > 1 else held[0]
    key, message = scheme.keygen(public, master, held), pairing.random(GT)
    sealed = scheme.encrypt(public, message, policy)
    return {
        "encrypt": lambda: scheme.encrypt(public, message, policy),
        "decrypt": lambda: scheme.decrypt(public, sealed, key),
        "issue a key": lambda: scheme.keygen(public, master, held),
    }


def record(seconds: float) -> Iterator[Line]:
    """The keys of a record of many parts, beside the paper's form, in which each part has a CP-ABE ciphertext of its own."""
    master = fabeo.MasterKey.generate()
    public, key = master.public, master.issue(READER)
    part_keys = [os.urandom(32) for _ in range(PARTS)]
    classes = [range(i, PARTS, len(POLICIES)) for i in range(len(POLICIES))]

    def seal() -> list[tuple[str, bytes, dict[int, bytes]]]:
        sealed = []
        for policy, indices in zip(POLICIES, classes, strict=True):
            header, class_key = abe.encapsulate(public, policy, CONTEXT)
            sealed.append(
                (policy, header, {i: wrap_key(class_key, CONTEXT, i, part_keys[i]) for i in indices})
            )
        return sealed

    made = seal()

    def open_() -> None:
        for policy, header, wrapped in made:
            class_key = abe.decapsulate(public, key, policy, header, CONTEXT)
            for i, data in wrapped.items():
                assert unwrap_key(class_key, CONTEXT, i, data) == part_keys[i]

    def seal_each() -> list[bytes]:
        return [abe.encapsulate(public, POLICIES[i % len(POLICIES)], CONTEXT)[0] for i in range(PARTS)]

    each = seal_each()

    def open_each() -> None:
        for i, header in enumerate(each):
            abe.decapsulate(public, key, POLICIES[i % len(POLICIES)], header, CONTEXT)

    leaves = ", ".join(str(len(parse(policy).leaves)) for policy in POLICIES)
    title = f"{PARTS} parts under {len(POLICIES)} policies ({leaves} leaves)"
    for verb, ours, theirs, goal in (("seal", seal, seal_each, 12.0), ("open", open_, open_each, 25.0)):
        peer = Peer("a header for each part", measure(theirs, "ms", seconds).median, "this run")
        yield Line(f"{verb} {title}, with wrapping", "ms", measure(ours, "ms", seconds), peer, goal)


_COLD = """
import time
began = time.process_time()
from crypto import abe, fabeo, group
imported = time.process_time()
public = fabeo.PublicKey.from_bytes(bytes.fromhex({public!r}))
abe.encapsulate(public, "role:doctor and org:st-mary", b"here")
first = time.process_time()
for element in (group.G1_GENERATOR, group.G2_GENERATOR, public.element):
    element._table.build()
print(imported - began, first - began, time.process_time() - began)
"""


def cold_start(seconds: float) -> Iterator[Line]:
    """CPU time of a fresh process, the start of Python apart."""
    code = _COLD.format(public=fabeo.MasterKey.generate().public.to_bytes().hex())
    runs = []
    for _ in range(max(5, int(seconds * 8))):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
        runs.append([float(word) * 1e3 for word in done.stdout.split()])
    whats = (
        "cold start: imports and self-test",
        "… and the first header",
        "… and all tables (made when they pay)",
    )
    for what, times in zip(whats, zip(*runs, strict=True), strict=True):
        yield Line(what, "ms", Sample(min(times), median(times), len(times)), goal=300.0)


@contextmanager
def _computing_with(name: str) -> Iterator[None]:
    group.use(name)
    try:
        yield
    finally:
        group.use()


def libraries(seconds: float) -> Iterator[Line]:
    """Each pairing library beside the fastest: `mcl-plain` is that without its C interface."""
    fastest: dict[tuple[str, int], float] = {}
    for library in group.BACKENDS:
        with _computing_with(library):
            for count in SIZES:
                for what, operation in operations(fabeo, count).items():
                    ours = measure(operation, "ms", seconds)
                    known = fastest.setdefault((what, count), ours.median)
                    peer = Peer("mcl", known, "this run") if library != "mcl" else None
                    yield Line(f"{library}: {_title(what, count)}", "ms", ours, peer)


def two_threads(seconds: float) -> Iterator[Line]:
    """Wall time of eight operations, one after the other and by two threads: mcl sets the interpreter's lock free."""
    with ThreadPoolExecutor(2) as pool:
        for what, operation in operations(fabeo, SIZES[-1]).items():

            def eight(run: Callable[[], object] = operation) -> None:
                for _ in range(8):
                    run()

            def shared(run: Callable[[], object] = operation) -> None:
                list(pool.map(lambda _: run(), range(8)))

            alone = measure(eight, "ms", seconds, time.perf_counter)
            ours = measure(shared, "ms", seconds, time.perf_counter)
            peer = Peer("one thread", alone.median, "this run")
            yield Line(f"8 times {_title(what, SIZES[-1])}, wall time by two threads", "ms", ours, peer)


SECTIONS: dict[str, Callable[[float], Iterator[Line]]] = {
    "cp-abe": cp_abe,
    "record": record,
    "ces": ces.lines,
    "cold-start": cold_start,
    "libraries": libraries,
    "two-threads": two_threads,
}


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"A section; repeatable. All by default: {', '.join(SECTIONS)}.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for each measurement.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The folder for CSV files.")] = Path("bench/results/crypto"),
) -> None:
    """Measure the cryptography."""
    if unknown := set(only or ()) - set(SECTIONS):
        raise typer.BadParameter(f"there is no section {min(unknown)!r}")
    chosen = {name: rows(section(seconds)) for name, section in SECTIONS.items() if not only or name in only}
    publish(out, **chosen)
    console.print(f"load average {os.getloadavg()[0]:.1f}; pairings by {group.chosen().name}")


if __name__ == "__main__":
    typer.run(main)
