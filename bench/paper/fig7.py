"""Figure 7: response time of an access request, up to the verified plaintext of all k shared parts, for several numbers of users at once.

Every response is a whole one of the product's reader: transaction, proved receipt, ticket and index from a quorum of nodes, envelopes and parts from the cloud, CP-ABE and AES
decryption, the doctor's signature. Users are threads with a session each; they begin together and ask again at once. BPDS asks for one sub-message after the other, as in the
paper; *BPDS, 4 at a time* is how its users could do better. From 20 sub-messages on, BPDS answers one user fewer times (column `responses`), as each takes seconds.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from threading import Barrier, Thread

from bench.baselines import SCHEMES, Bpds, Scheme
from bench.paper.lab import BEFORE, Lab, Piece, Row, Testbed, labels, made_parts, quantile
from client.home import Home

TITLE = "Figure 7: response time against shared parts"
PART_BYTES = 1_000
AT_ONCE = "bpds_at_once"
Read = Callable[[Home], dict[str, bytes]]


def pieces(lab: Lab) -> Iterator[Piece]:
    counts = (1, 3, 6, 9, 20, 50, 200) if lab.is_quick else (*range(1, 10), 20, 50, 100, 200)
    users = (1, 4) if lab.is_quick else (1, 4, 16)
    for kind in SCHEMES:
        if kind is Bpds:
            kept = [k for k in counts if not lab.is_quick or k <= 50]
            cost = sum(_bpds_responses(lab, k, u) * u * k * 0.1 for k in kept for u in users)
            yield Piece(kind.title, 0.15 * max(kept) + cost, partial(_bpds, lab, kept, users))
            continue
        for count in counts:
            seconds = 0.6 + sum(0.06 * u * _responses(lab, u) for u in users)
            yield Piece(
                f"{kind.title}, {count} shared parts",
                seconds,
                partial(_one, lab, kind, count, users),
            )


def _responses(lab: Lab, users: int) -> int:
    """Of each user."""
    if lab.is_quick:
        return 8 if users == 1 else 4
    return {1: 12, 4: 4}.get(users, 2)


def _bpds_responses(lab: Lab, count: int, users: int) -> int:
    if users > 1 and count > 9:
        return 0
    if count > 9:
        return 1 if lab.is_quick or count > 50 else 2
    if lab.is_quick:
        return 2 if users == 1 else 1
    return {1: 3, 4: 2}.get(users, 1)


def _one(lab: Lab, kind: type[Scheme], count: int, users: tuple[int, ...]) -> Iterable[Row]:
    testbed = lab.testbed()
    parts = made_parts(lab.seed, count, 1, PART_BYTES)
    homes = readers(testbed, max(users))
    with kind(testbed.people) as scheme:
        held = scheme.store(parts, labels(parts, "m5"), BEFORE)
        for many in users:
            yield _measure(
                testbed, kind.name, count, homes[:many], _responses(lab, many), partial(scheme.read, held)
            )


def _bpds(lab: Lab, counts: list[int], users: tuple[int, ...]) -> Iterable[Row]:
    """One record of as many sub-messages as are ever wanted: who asks for k of them asks for the first k."""
    testbed = lab.testbed()
    parts = made_parts(lab.seed, max(counts), 1, PART_BYTES)
    homes = readers(testbed, max(users))
    with Bpds(testbed.people) as scheme:
        held = scheme.store(parts, labels(parts, "m5"), BEFORE)
        for count in counts:
            for many in users:
                responses = _bpds_responses(lab, count, many)
                for name, read in ((Bpds.name, scheme.read), (AT_ONCE, scheme.read_at_once)):
                    if responses:
                        yield _measure(
                            testbed, name, count, homes[:many], responses, partial(read, held, count=count)
                        )


def readers(testbed: Testbed, count: int) -> list[Home]:
    """The researchers among the people, with more of them if need be."""
    people = testbed.people
    found = [home for home in people.readers if "role:researcher" in home.credential.credential.attributes]
    while len(found) < count:
        found.append(testbed.join("user", "role:researcher"))
        people.readers.append(found[-1])  # type: ignore[attr-defined]
    return found[:count]


def _measure(testbed: Testbed, name: str, count: int, homes: list[Home], responses: int, read: Read) -> Row:
    """Each user reads once unmeasured, unless there is time for one response alone, then `responses` times."""
    times: list[float] = []
    failures: list[Exception] = []
    began = Barrier(len(homes) + 1)

    def user(home: Home) -> None:
        try:
            if responses > 1 and len(read(home)) != count:
                raise RuntimeError("a reader did not open what was shared")
        except Exception as error:
            failures.append(error)
        began.wait()
        try:
            for _ in range(0 if failures else responses):
                start = time.perf_counter()
                read(home)
                times.append(time.perf_counter() - start)
        except Exception as error:
            failures.append(error)

    threads = [Thread(target=user, args=(home,)) for home in homes]
    for thread in threads:
        thread.start()
    began.wait()
    servers, clients = sum(testbed.cpu().values()), time.process_time()
    for thread in threads:
        thread.join()
    servers, clients = sum(testbed.cpu().values()) - servers, time.process_time() - clients
    if failures:
        raise failures[0]
    return {
        "scheme": name,
        "shared_parts": count,
        "users": len(homes),
        "responses": len(times),
        "mean_ms": 1e3 * sum(times) / len(times),
        "p50_ms": 1e3 * quantile(times, 0.5),
        "p95_ms": 1e3 * quantile(times, 0.95),
        "min_ms": 1e3 * min(times),
        "max_ms": 1e3 * max(times),
        "servers_cpu_ms": 1e3 * servers / len(times),
        "user_cpu_ms": 1e3 * clients / len(times),
    }
