"""A chaos scenario: a TOML file with a network, a load, timed faults and what is expected (docs/chaos.md is the manual).

A scenario that loads is sound: every field is known and in range, every node exists, every fault ends while the load runs.
"""

import random
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from configs.faults import Link, SkewMs
from configs.files import read_text
from configs.settings import Transport
from crypto.errors import Malformed
from protocol.identity import ChainKind
from protocol.quorum import Mode, quorum

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Nodes = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=64)]
"""Members such as storage-2, or storage-leader, storage-random, storage-minority (as many as may fail), storage-all."""
_GROUPS = ("leader", "random", "minority", "all")


class NetworkPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: Literal["storage", "sharing", "both"] = "storage"
    nodes: Annotated[int, msgspec.Meta(ge=1, le=32)] = 4
    mode: Mode = "bft"
    transport: Transport = "libp2p"
    base_timeout_ms: Annotated[int, msgspec.Meta(ge=50, le=60_000)] = 500
    term_length: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64

    @property
    def chains(self) -> tuple[ChainKind, ...]:
        return ("storage", "sharing") if self.chain == "both" else (self.chain,)

    def members(self, chain: ChainKind) -> tuple[str, ...]:
        return tuple(f"{chain}-{number}" for number in range(1, self.nodes + 1))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for chain in self.chains for name in self.members(chain))


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`clients` a chain, each of which sends a transaction, waits for its receipt, and sends the next after `pause_ms`."""

    seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)]
    clients: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    pause_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 30


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How soon after the last fault every chain answers new transactions, and how soon after the load every node has caught up."""

    progress_within_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 5.0
    catch_up_within_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0


class _Fault(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    rename={"lasts": "for"},
):
    at: Seconds


class _Lasting(_Fault, frozen=True, kw_only=True, rename={"lasts": "for"}):
    lasts: Seconds
    nodes: Nodes


class Kill(_Lasting, frozen=True, tag="kill"):
    """kill -9, and a start `for` seconds later."""


class Pause(_Lasting, frozen=True, tag="pause"):
    """SIGSTOP, and SIGCONT `for` seconds later."""


class Restart(_Fault, frozen=True, kw_only=True, tag="restart"):
    """SIGTERM and a new start, one node after the other, each once the one before is ready."""

    nodes: Nodes


class Disconnect(_Lasting, frozen=True, tag="disconnect"):
    """Each node loses every frame to and from all others."""


class Partition(_Fault, frozen=True, kw_only=True, tag="partition", rename={"lasts": "for"}):
    """Frames between groups are lost. Members of the chain that no group names form one more."""

    lasts: Seconds
    groups: Annotated[tuple[Nodes, ...], msgspec.Meta(min_length=1, max_length=32)]


class BadLinks(_Lasting, frozen=True, kw_only=True, tag="link"):
    """Every link to and from the nodes becomes `link`, both directions."""

    link: Link


class Skew(_Lasting, frozen=True, kw_only=True, tag="skew"):
    """The wall clock jumps by `ms`, and back."""

    ms: SkewMs


class DiskFull(_Lasting, frozen=True, tag="disk-full"):
    """The journal cannot grow."""


class DoubleStart(_Lasting, frozen=True, tag="double-start"):
    """A second process with the same key and data is started; it must refuse to run."""


class Equivocate(_Lasting, frozen=True, tag="equivocate"):
    """The node contradicts each of its proposals and votes."""


class Wipe(_Lasting, frozen=True, tag="wipe"):
    """kill -9, loss of the data folder, and a start with `--rejoin` `for` seconds later."""


Fault = (
    Kill
    | Pause
    | Restart
    | Disconnect
    | Partition
    | BadLinks
    | Skew
    | DiskFull
    | DoubleStart
    | Equivocate
    | Wipe
)


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    load: Load
    network: NetworkPart = NetworkPart()
    expect: Expect = Expect()
    fault: Annotated[tuple[Fault, ...], msgspec.Meta(max_length=100)] = ()


def load_scenario(path: Path) -> Scenario:
    """The scenario in a TOML file; `Malformed` says what is wrong and where."""
    try:
        scenario = msgspec.convert(tomllib.loads(read_text(path)), Scenario)
    except (
        ValueError,
        msgspec.ValidationError,
        RecursionError,
    ) as error:  # ValueError: no TOML, or a number too long
        raise Malformed(f"{path} is not a valid chaos scenario: {error}") from None
    for number, fault in enumerate(scenario.fault, 1):
        trouble = _trouble(scenario, fault)
        if trouble:
            raise Malformed(f"{path}, fault {number} ({kind_of(fault)}): {trouble}")
    return scenario


def kind_of(fault: Fault) -> str:
    return str(fault.__struct_config__.tag)


def lasts(fault: Fault) -> float:
    return 0.0 if isinstance(fault, Restart) else fault.lasts


def describe(fault: Fault, nodes: tuple[str, ...]) -> str:
    """A fault on the nodes chosen for it, in a few words."""
    words = f"{kind_of(fault)}: {', '.join(nodes) if len(nodes) <= 4 else f'{len(nodes)} nodes'}"
    match fault:
        case Partition(groups=groups):
            return f"partition: {' / '.join(' '.join(group) for group in (*groups, ('the rest',)))}"
        case BadLinks(link=link):
            bad = {
                n: getattr(link, n) for n in link.__struct_fields__ if getattr(link, n) != getattr(Link(), n)
            }
            shown = {
                n: "-".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"
                for n, value in bad.items()
            }
            return f"{words} ({', '.join(f'{n} {value}' for n, value in shown.items())})"
        case Skew(ms=ms):
            return f"{words} by {ms / 1000:+g} s"
        case _:
            return words


def _trouble(scenario: Scenario, fault: Fault) -> str | None:
    network = scenario.network
    if fault.at + lasts(fault) > scenario.load.seconds:
        return f"it ends after the load, which lasts {scenario.load.seconds:g} s; make the load longer"
    named = [n for group in fault.groups for n in group] if isinstance(fault, Partition) else fault.nodes
    if isinstance(fault, Partition) and len(set(named)) != len(named):
        return "a node stands in two groups"
    known = {*network.names, *(f"{chain}-{group}" for chain in network.chains for group in _GROUPS)}
    if isinstance(fault, Partition):
        known = set(network.names)
    for name in named:
        if name not in known:
            return f"there is no node {name!r} in this network; it has {', '.join(sorted(known))}"
    return None


def choose(
    network: NetworkPart, nodes: tuple[str, ...], rng: random.Random, leader: Callable[[ChainKind], str]
) -> tuple[str, ...]:
    """The members that `nodes` stands for, each once; `leader` is asked for the leader of a chain now."""
    chosen: list[str] = []
    for name in nodes:
        chain, _, group = name.rpartition("-")
        kind: ChainKind = "sharing" if chain == "sharing" else "storage"
        members = network.members(kind)
        may_fail = len(members) - quorum(len(members), network.mode)
        pick: Mapping[str, Callable[[], list[str]]] = {
            "leader": lambda: [leader(kind)],  # noqa: B023 - called in this turn
            "random": lambda: [rng.choice(members)],  # noqa: B023
            "minority": lambda: rng.sample(members, may_fail),  # noqa: B023
            "all": lambda: list(members),  # noqa: B023
        }
        chosen += pick[group]() if group in pick else [name]
    return tuple(dict.fromkeys(chosen))
