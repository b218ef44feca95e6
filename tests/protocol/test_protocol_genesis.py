"""Genesis and network files: what goes through them unchanged, and that everything else is refused with its field."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto.errors import Malformed
from crypto.sign import SigningKey
from protocol import genesis, network
from protocol.genesis import Genesis, Member
from protocol.network import ChainAddresses, Network, NodeAddress, Service, split_host_port
from tests.dealer import share_point
from tests.simulation.cluster import make_genesis

GENESIS, _ = make_genesis(7, max_block_txs=123)
TEXT = genesis.to_toml(GENESIS)
KEY0, SHARE_KEY0 = GENESIS.members[0].key.hex(), GENESIS.members[0].share_key.hex()


def test_a_genesis_survives_its_file_and_keeps_its_hash():
    again = genesis.from_toml(TEXT)
    assert again == GENESIS
    assert again.hash == GENESIS.hash


def test_left_out_parameters_take_their_defaults():
    kept = [line for line in TEXT.splitlines() if not line.startswith(("term_length", "max_", "base_"))]
    read = genesis.from_toml("\n".join(kept))
    assert (read.term_length, read.base_timeout_ms, read.max_block_txs) == (64, 1000, 1000)


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": "other"},
        {"kind": "sharing"},
        {"mode": "majority"},
        {"members": GENESIS.members[:6]},
        {"members": GENESIS.members[::-1]},
        {"authority": bytes(32)},
        {"time_ms": 1},
        {"term_length": 5},
        {"base_timeout_ms": 51},
        {"max_block_bytes": 1 << 17},
        {"max_block_txs": 5},
    ],
)
def test_every_field_counts_in_the_hash(change):
    assert msgspec.structs.replace(GENESIS, **change).hash != GENESIS.hash


def with_line(start: str, line: str) -> str:
    lines = [line if old.startswith(start) else old for old in TEXT.splitlines()]
    assert "\n".join(lines) != TEXT.rstrip("\n")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "lacks the field 'suite'"),
        (with_line("suite", 'suite = "genesis/2"'), r"of suite genesis/2, .* \(it knows genesis/1\); update"),
        (with_line("suite", 'suite = "tx/1"'), "a genesis file was expected, and this is of suite tx/1"),
        (with_line("suite", "suite = 1"), "its suite is not genesis/1"),
        ("chain_id = ", "not valid"),
        ("x = " + "[" * 50_000, "not valid"),
        ("suite = 'genesis/1'\nmembers = 3\nauthority = ''", "not valid"),
        ("suite = 'genesis/1'\nmembers = [1]\nauthority = ''", "not valid"),
        (TEXT.replace("chain_id", "chain"), "unknown field 'chain'"),
        (with_line("chain_id", ""), "'chain_id'"),
        (with_line("authority", ""), "'authority'"),
        (TEXT.replace("name", "nom"), "unknown field 'nom'"),
        (with_line("kind", 'kind = "public"'), "kind"),
        (with_line("mode", 'mode = "none"'), "mode"),
        (with_line("time_ms", "time_ms = -1"), "time_ms"),
        (with_line("time_ms", f"time_ms = {10**30}"), "time_ms"),
        (with_line("time_ms", "time_ms = true"), "time_ms"),
        (with_line("time_ms", "time_ms = 1.0"), "time_ms"),
        (with_line("time_ms", "time_ms = 2020-01-01"), "time_ms"),
        (with_line("term_length", "term_length = 0"), "term_length"),
        (with_line("base_timeout_ms", "base_timeout_ms = 1"), "base_timeout_ms"),
        (with_line("max_block_bytes", "max_block_bytes = 1"), "max_block_bytes"),
        (with_line("max_block_bytes", f"max_block_bytes = {1 << 30}"), "max_block_bytes"),
        (with_line("max_block_txs", "max_block_txs = 0"), "max_block_txs"),
        (with_line("authority", 'authority = "00"'), "authority"),
        (with_line("authority", "authority = 3"), "not valid"),
        (with_line("authority", f'authority = "{"g" * 64}"'), "not valid"),
        (TEXT.replace(SHARE_KEY0, "00" * 48), "share_key of n0"),
        (TEXT.replace(SHARE_KEY0, "c0" + "00" * 47), "share_key of n0"),
        (TEXT.replace(SHARE_KEY0, SHARE_KEY0[:-2]), r"members\[0\]\.share_key"),
        (TEXT.replace(GENESIS.members[1].share_key.hex(), SHARE_KEY0), "two members share one share_key"),
        (TEXT.replace(KEY0, KEY0[:-2]), r"members\[0\]\.key"),
        (TEXT.replace('"n1"', '"n 1"'), r"members\[1\]\.name"),
        (TEXT.replace('"n1"', '"n1\\n"'), r"members\[1\]\.name"),
        (TEXT.replace('"n1"', '"n0"'), "two members share one name"),
        (TEXT.replace(GENESIS.members[1].key.hex(), KEY0), "two members share one key"),
        (TEXT.replace('"peer-1"', '"peer-0"'), "two members share one identity"),
        (TEXT.replace("[[members]]", "[[x]]"), "'members'"),
        (TEXT.replace("[[members]]", "", 1), "not valid|lacks"),
    ],
)
def test_a_wrong_genesis_file_is_refused_with_the_field_that_is_wrong(text, fault):
    with pytest.raises(Malformed, match=fault):
        genesis.from_toml(text)


def test_a_genesis_without_members_or_with_too_many_is_refused():
    def text_for(count: int) -> str:
        members = tuple(Member(f"n{i}", i.to_bytes(32, "big"), f"p{i}", share_point(i)) for i in range(count))
        return genesis.to_toml(msgspec.structs.replace(GENESIS, members=members))

    assert len(genesis.from_toml(text_for(128)).members) == 128
    for count in (0, 129):
        with pytest.raises(Malformed, match="members"):
            genesis.from_toml(text_for(count))


@given(st.text())
def test_no_text_at_all_makes_anything_but_a_refusal(text):
    with pytest.raises(Malformed):
        genesis.from_toml(text)
    with pytest.raises(Malformed):
        network.from_toml(text)


def network_of(genesis_: Genesis) -> Network:
    nodes = {
        m.name: NodeAddress(f"10.0.0.{i}:{4000 + i}", f"https://h{i}:80")
        for i, m in enumerate(genesis_.members)
    }
    nodes["n1"] = NodeAddress("[::1]:65535", "http://[::1]:1")
    chain = ChainAddresses("storage.toml", genesis_.hash.hex(), nodes)
    service = Service("https://cloud.example:8443", SigningKey(bytes(32)).public.hex())
    return Network({"storage": chain, "sharing": chain}, service, service)


NETWORK = network.to_toml(network_of(GENESIS))


def test_a_network_survives_its_file():
    assert network.from_toml(NETWORK) == network_of(GENESIS)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("[chains.sharing]", "[chains.public]", "public"),
        ('url = "https://cloud', 'url = "ftp://cloud', "cloud.url"),
        ('url = "https://cloud.example:8443"', 'url = "https://cloud.example/path"', "cloud.url"),
        ("10.0.0.0:4000", "10.0.0.0", r"p2p"),
        ("10.0.0.0:4000", "10.0.0.0:65536", "1 to 65535"),
        ("10.0.0.0:4000", "10.0.0.0:0", "1 to 65535"),
        ("10.0.0.0:4000", "10.0.0.0:40\\n", "p2p"),
        ("genesis_hash", "hash", "hash"),
        ("[cloud]", "[[cloud]]", "cloud"),
    ],
)
def test_a_wrong_network_file_is_refused_with_the_place_that_is_wrong(old, new, fault):
    assert old in NETWORK
    with pytest.raises(Malformed, match=fault):
        network.from_toml(NETWORK.replace(old, new))


def authorities(count: int) -> dict[str, Service]:
    return {
        f"authority-{i}": Service(f"https://a{i}:80", SigningKey(bytes([i]) * 32).public.hex())
        for i in range(1, count + 1)
    }


def split_among(count: int, threshold: int) -> str:
    listed = authorities(count)
    first = next(iter(listed.values()), network_of(GENESIS).authority)
    changes = {"authority": first, "authorities": listed, "authority_threshold": threshold}
    return network.to_toml(msgspec.structs.replace(network_of(GENESIS), **changes))


def test_one_authority_issues_keys_alone_and_several_in_an_order_that_the_file_cannot_change():
    alone = network.from_toml(NETWORK)
    assert [name for name, _ in alone.issuers] == ["authority"]
    assert "authorities" not in NETWORK
    text = split_among(3, 2)
    found = network.from_toml(text)
    turned = msgspec.structs.replace(found, authorities=dict(reversed(found.authorities.items())))
    assert found.issuers == turned.issuers == network.from_toml(network.to_toml(turned)).issuers
    assert {name for name, _ in found.issuers} == set(authorities(3))


@pytest.mark.parametrize(("count", "threshold"), [(0, 0), (0, 2), (1, 1), (3, 1), (3, 4), (33, 20)])
def test_authorities_that_protect_nothing_or_cannot_issue_are_refused(count, threshold):
    with pytest.raises(ValueError, match="authorities"):
        split_among(count, threshold)
    text = split_among(3, 2).replace("authority_threshold = 2", f"authority_threshold = {threshold}")
    if count == 3:
        with pytest.raises(Malformed, match="authority_threshold"):
            network.from_toml(text)


def test_authorities_with_one_key_or_without_the_certifying_one_are_refused():
    text, (first, second, _) = split_among(3, 2), authorities(3).values()
    with pytest.raises(Malformed, match="a key of its own"):
        network.from_toml(text.replace(second.key, first.key))
    with pytest.raises(Malformed, match="one of those that issue keys"):
        network.from_toml(text.replace(first.key, "00" * 32, 1))


def test_a_network_file_with_one_chain_is_refused():
    only = msgspec.structs.replace(
        network_of(GENESIS), chains={"storage": network_of(GENESIS).chains["storage"]}
    )
    with pytest.raises(Malformed, match=r"both chains"):
        network.from_toml(network.to_toml(only))


def test_a_deeply_nested_network_file_is_refused():
    with pytest.raises(Malformed, match="not valid"):
        network.from_toml("x = " + "[" * 50_000)


def test_addresses_split_into_host_and_port():
    assert split_host_port("[::1]:65535") == ("::1", 65535)
    assert split_host_port("node.example:1") == ("node.example", 1)
