"""The network file: where everything is. Which chains there are and the addresses of nodes, cloud and authorities.

Keys and members of the chains and the authority that certifies people stand in the genesis of each chain, whose hash the file pins. Where
several authorities issue attribute keys together, their keys and how many are needed stand here alone.
"""

import tomllib
from typing import Annotated

import msgspec
import tomli_w

from crypto.errors import Malformed
from crypto.split import MAX_ISSUERS
from protocol.genesis import Name
from protocol.identity import ChainKind

Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/]+\Z", max_length=256)]
HostPort = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):[0-9]{1,5}\Z", max_length=256)]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class NodeAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    p2p: HostPort
    http: Url

    def __post_init__(self) -> None:
        if not 0 < split_host_port(self.p2p)[1] < 65536:
            raise ValueError("a port is a number from 1 to 65535")


class ChainAddresses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`genesis` is a file name relative to the network file, `genesis_hash` what it must hash to."""

    genesis: str
    genesis_hash: Hex32
    nodes: dict[Name, NodeAddress]


class Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: Url
    key: Hex32


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`authority` certifies people; it alone issues attribute keys, too, unless `authorities` are named, any `authority_threshold` of which
    do so together."""

    chains: dict[ChainKind, ChainAddresses]
    cloud: Service
    authority: Service
    authorities: dict[Name, Service] = {}
    authority_threshold: int = 1

    def __post_init__(self) -> None:
        count = len(self.authorities)
        if len({service.key for service in self.authorities.values()}) != count or count > MAX_ISSUERS:
            raise ValueError(f"the authorities are at most {MAX_ISSUERS}, each with a key of its own")
        if not ((count == 0 and self.authority_threshold == 1) or 2 <= self.authority_threshold <= count):
            raise ValueError("of several authorities, 2 to all are needed (authority_threshold); of one, 1")
        if count and self.authority not in self.authorities.values():
            raise ValueError("the authority that certifies people is one of those that issue keys")

    @property
    def issuers(self) -> list[tuple[str, Service]]:
        """Who issues attribute keys, with a name, in the order of their keys: that of their shares."""
        named = self.authorities or {"authority": self.authority}
        return sorted(named.items(), key=lambda entry: entry[1].key)


def to_toml(network: Network) -> str:
    return tomli_w.dumps(msgspec.to_builtins(network))


def from_toml(text: str) -> Network:
    """The network in `text`, or `Malformed` saying which field is wrong."""
    try:
        network = msgspec.convert(tomllib.loads(text), Network)
    except (
        ValueError,
        msgspec.ValidationError,
        RecursionError,
    ) as error:  # ValueError: no TOML, or a number too long
        raise Malformed(f"the network file is not valid: {error}") from None
    if set(network.chains) != {"storage", "sharing"}:
        raise Malformed("the network file must name both chains, [chains.storage] and [chains.sharing]")
    return network


def split_host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
