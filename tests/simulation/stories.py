"""Short runs that read as stories; `golden/` holds them, a test compares, `python -m tests.simulation.run --regenerate` rewrites.

Every message takes exactly 10 ms here, so that a difference in a story is a difference in behaviour.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from crypto.sign import SigningKey
from protocol.block import Status
from protocol.core import Core
from tests.simulation.cluster import Cluster, Link, request_tx
from tests.simulation.liars import Equivocator

GOLDEN = Path(__file__).parent / "golden"
STORIES: dict[str, Callable[[], Cluster]] = {}


def story(tell: Callable[[], Cluster]) -> Callable[[], Cluster]:
    STORIES[tell.__name__] = tell
    return tell


def cluster(n: int = 4, **options: Any) -> Cluster:
    return Cluster(n, link=Link(delay=(0.01, 0.01)), **options)


def everywhere(c: Cluster, number: int, *but: int) -> None:
    """Submit a transaction to all and run until it is final on all hosts, but some."""
    c.say(f"transaction {number} reaches every host")
    c.submit(request_tx(number))
    hosts = [i for i in range(len(c.cores)) if i not in but]
    c.run_until(lambda: all(request_tx(number) in c.final_txs(i) for i in hosts))


def change(c: Cluster, *members: int) -> None:
    """The admins' agreement on the next members reaches all; run until every host is in their epoch."""
    epoch = c.disks[0].committee.epoch
    c.say(f"the admins' agreement on the members {' '.join(f'n{m}' for m in members)} reaches every host")
    c.submit(c.change(epoch, *members))
    c.run_until(lambda: all(core.committee.epoch > epoch for core in c.cores if core))


def stop(c: Cluster, i: int) -> None:
    c.say(f"{c.name(i)} stops")
    c.crash(i)


def start(c: Cluster, i: int) -> None:
    c.say(f"{c.name(i)} starts")
    c.start(i)


@story
def happy_path() -> Cluster:
    c = cluster()
    everywhere(c, 1)
    everywhere(c, 2)
    return c


@story
def dead_leader() -> Cluster:
    c = cluster()
    stop(c, 0)
    everywhere(c, 1, 0)
    return c


@story
def two_nullified_terms() -> Cluster:
    c = cluster(7)
    stop(c, 0)
    stop(c, 1)
    everywhere(c, 1, 0, 1)
    return c


@story
def spoiled_term_is_finalized_by_the_next() -> Cluster:
    """Two of four nullify a view that is notarized after all: Rule F keeps it from becoming final before the next term."""
    c = cluster()
    c.submit(request_tx(1), to=0)
    c.run_for(0.015)
    c.say("all votes are lost, and n0 and n3 start anew with fresh patience")
    c.cut = lambda a, b: True
    c.run_for(0.9)
    for host in (0, 3):
        stop(c, host)
        start(c, host)
    c.run_for(0.3)
    c.say("the network is whole")
    c.cut = lambda a, b: False
    c.run_until(lambda: all(request_tx(1) in c.final_txs(i) for i in range(4)))
    return c


@story
def restart_in_mid_view() -> Cluster:
    c = cluster()
    c.crash_next[2] = ("after commit", 0)
    c.on_crash = lambda host: c.at(c.now + 0.3, lambda: start(c, host))
    everywhere(c, 1)
    return c


@story
def leader_restarts_and_says_the_same() -> Cluster:
    c = cluster()
    c.crash_next[0] = ("after commit", 0)
    c.on_crash = lambda host: c.at(c.now + 0.3, lambda: start(c, host))
    everywhere(c, 1)
    return c


@story
def catch_up() -> Cluster:
    c = cluster()
    stop(c, 3)
    for number in range(1, 5):
        everywhere(c, number, 3)
    start(c, 3)
    c.run_until(lambda: c.heights()[3] == c.heights()[0])
    return c


@story
def partition_and_heal() -> Cluster:
    c = cluster()
    c.say("n0 is cut off")
    c.cut = lambda a, b: (a == 0) != (b == 0)
    everywhere(c, 1, 0)
    c.say("n0 is linked again")
    c.cut = lambda a, b: False
    c.run_until(lambda: c.heights()[0] == c.heights()[1])
    return c


@story
def rejoin_after_a_lost_disk() -> Cluster:
    c = cluster()
    everywhere(c, 1)
    c.say("n2 loses its disk and starts with --rejoin")
    c.lose_disk(2)
    c.start(2)
    c.run_until(lambda: c.disks[2].abstain_until is not None)
    number = 2
    while not any(view > c.disks[2].abstain_until for view, _ in c.disks[2].votes):  # type: ignore[operator]
        everywhere(c, number)
        number += 1
    c.say("n2 votes again")
    return c


@story
def a_member_joins() -> Cluster:
    """n4 watches until the epoch that names it; five members need four votes."""
    c = cluster(spares=1)
    everywhere(c, 1)
    change(c, 0, 1, 2, 3, 4)
    everywhere(c, 2)
    return c


@story
def a_member_leaves() -> Cluster:
    """n0 leads when it leaves: it proposes the block that ends its membership, and watches from then on."""
    c = cluster(5)
    everywhere(c, 1)
    change(c, 1, 2, 3, 4)
    everywhere(c, 2)
    return c


@story
def a_key_is_rotated() -> Cluster:
    c = cluster()
    c.new_keys[2] = [SigningKey(b"2" * 32)]
    c.say("n2 has made a new key")
    change(c, 0, 1, 2, 3)
    c.say("n2 loses its old key")
    c.keys[2] = c.new_keys[2][0]
    everywhere(c, 1)
    return c


@story
def the_last_block_of_an_epoch_is_finalized_by_the_next_term() -> Cluster:
    """As in the spoiled term, but the block ends the epoch: the empty one of the next term that makes it final is dropped."""
    c = cluster()
    c.submit(c.change(0, 0, 1, 2), to=0)
    c.run_for(0.015)
    c.say("all votes are lost, and n0 and n3 start anew with fresh patience")
    c.cut = lambda a, b: True
    c.run_for(0.9)
    for host in (0, 3):
        stop(c, host)
        start(c, host)
    c.run_for(0.3)
    c.say("the network is whole")
    c.cut = lambda a, b: False
    c.run_until(lambda: all(core and core.committee.epoch == 1 for core in c.cores))
    everywhere(c, 1)
    return c


@story
def lost_disk_across_an_epoch() -> Cluster:
    """n2 cannot know whether its lost journal has seen the next epoch, so it asks there again. Of the one after that it can."""
    c = cluster()
    everywhere(c, 1)
    c.say("n2 loses its disk")
    c.lose_disk(2)
    change(c, 3, 2, 1, 0)
    c.say("n2 starts with --rejoin")
    c.start(2)
    c.run_until(lambda: c.disks[2].abstain_until is not None)
    number = 2
    while not c.disks[2].votes:
        everywhere(c, number)
        number += 1
    c.say("n2 votes again")
    change(c, 0, 1, 2, 3)
    everywhere(c, number)
    return c


@story
def equivocation_is_recorded_by_all() -> Cluster:
    c = cluster(make_core=lambda host: Equivocator if host == 0 else Core)
    c.submit(request_tx(1), to=0)
    c.submit(request_tx(1))
    c.run_until(lambda: all(c.disks[i].evidence and request_tx(1) in c.final_txs(i) for i in (1, 2, 3)))
    return c


@story
def conflicting_finalization_halts() -> Cluster:
    """More liars than the mode bears: three members finalize a second block in a final view."""
    c = cluster(may_halt=True)
    everywhere(c, 1)
    c.say("n1, n2 and n3 finalize another block of view 1")
    other = c.certificate("finalize", 1, b"x" * 32, 1, 2, 3)
    c.inject(0, 1, Status(0, 2, 1, other, None, None, ()))
    return c


def told(name: str) -> str:
    return "\n".join([name.replace("_", " "), "", *STORIES[name]().story]) + "\n"


def regenerate() -> int:
    for name in STORIES:
        (GOLDEN / f"{name}.txt").write_text(told(name))
    return 0
