"""Genesis: what everybody must agree on before a chain's first block, and what a light client starts from.

Addresses are not part of it: a node may move to another machine (they stand in the network file, `protocol.network`).
"""

import re
import tomllib
from functools import cached_property
from typing import Annotated, Any

import msgspec
import tomli_w

from crypto.codec import Bytes32, Bytes48, Short, UInt, Wire, check_named, encode
from crypto.errors import Malformed
from crypto.group import G1
from protocol.identity import ChainKind
from protocol.quorum import MAX_MEMBERS, Mode
from protocol.record import digest

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+\Z")]

SUITE = "genesis/1"
"""Stands first in the encoding and in the file. As everything signed on a chain leads back to the hash of its genesis, it says by which
algorithms votes, certificates and the rows of a node's databases are made, which name none themselves."""


class Member(Wire, frozen=True):
    """A consensus node: its name, its Ed25519 consensus key, its libp2p peer id, and the point of G1 that pieces of the index key are
    sealed to (`crypto.dkg.HolderKey`)."""

    name: Name
    key: Bytes32
    identity: Short
    share_key: Bytes48


class Genesis(Wire, frozen=True, dict=True, gc=True, tag=SUITE):
    """`base_timeout_ms` is T0, `term_length` is L of docs/protocol.md; `authority` certifies identities. `members` are those of epoch 0: `admin_quorum` of the Ed25519 keys `admins` agree
    on the members of the next epoch (`protocol.epochs`); without admins they never change."""

    chain_id: Short
    kind: ChainKind
    mode: Mode
    members: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MAX_MEMBERS)]
    authority: Bytes32
    time_ms: UInt
    admins: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=32)] = ()
    admin_quorum: Annotated[int, msgspec.Meta(ge=0, le=32)] = 0
    term_length: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    base_timeout_ms: Annotated[int, msgspec.Meta(ge=50, le=60_000)] = 1000
    max_block_bytes: Annotated[int, msgspec.Meta(ge=64 << 10, le=3 << 20)] = 1 << 20
    max_block_txs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000

    def __post_init__(self) -> None:
        check_members(self.members)
        if len(set(self.admins)) != len(self.admins) or self.admin_quorum > len(self.admins):
            raise ValueError("admins must be different keys, and admin_quorum no more than there are")
        if self.admins and not self.admin_quorum:
            raise ValueError("admin_quorum says how many of the admins must agree, at least 1")

    @cached_property
    def hash(self) -> bytes:
        """32 bytes; also the id of the genesis block."""
        return digest("genesis", encode(self))


def check_members(members: tuple[Member, ...]) -> None:
    """`ValueError` if two share a name, a key or an identity, or a share key is none."""
    for field in ("name", "key", "identity", "share_key"):
        if len({getattr(m, field) for m in members}) != len(members):
            raise ValueError(f"two members share one {field}")
    for member in members:
        try:
            G1.from_bytes(member.share_key)
        except Malformed as error:
            raise ValueError(f"the share_key of {member.name} is none: {error}") from None


def _hexed(value: object) -> Any:
    """Plain TOML data, with byte strings in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return {name: _hexed(getattr(value, name)) for name in value.__struct_fields__}
    return [_hexed(v) for v in value] if isinstance(value, tuple) else value


def to_toml(genesis: Genesis) -> str:
    return tomli_w.dumps({"suite": SUITE, **_hexed(genesis)})


def from_toml(text: str) -> Genesis:
    """The genesis in `text`, or `Malformed` saying which field is wrong."""
    try:
        data = tomllib.loads(text)
        suite = data.pop("suite")
        check_named("a genesis file", str(suite), [SUITE])
        if suite != SUITE:
            raise ValueError(f"its suite is not {SUITE}")
        data = {
            **data,
            "authority": bytes.fromhex(data["authority"]),
            "members": [
                {**m, "key": bytes.fromhex(m["key"]), "share_key": bytes.fromhex(m["share_key"])}
                for m in data["members"]
            ],
            "admins": [bytes.fromhex(key) for key in data.get("admins", [])],
        }
        members = [_ordered(Member, m) for m in data.pop("members")]
        fields = _ordered(Genesis, {**data, "members": members})
        return msgspec.convert([SUITE, *fields], Genesis, builtin_types=(bytes,))
    except KeyError as error:
        raise Malformed(f"the genesis file lacks the field {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"the genesis file is not valid: {_named(str(error))}") from None


def _named(fault: str) -> str:
    """The sentence of msgspec with fields in place of positions in the array: `$[4][0][1]` is `members[0].key`, as the
    suite is the first."""
    fault = re.sub(
        r"\$\[4\]\[(\d+)\]\[(\d)\]", lambda m: f"members[{m[1]}].{Member.__struct_fields__[int(m[2])]}", fault
    )
    return re.sub(r"\$\[(\d+)\]", lambda m: Genesis.__struct_fields__[int(m[1]) - 1], fault)


def _ordered(kind: type[msgspec.Struct], data: dict[str, Any]) -> list[Any]:
    """The fields of a wire array in order; defaults filled in; unknown names refused."""
    unknown = set(data) - set(kind.__struct_fields__)
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]!r}")
    defaults = dict(zip(reversed(kind.__struct_fields__), reversed(kind.__struct_defaults__), strict=False))
    return [
        data[name] if name in data or name not in defaults else defaults[name]
        for name in kind.__struct_fields__
    ]
