"""A network on paper: its files, with addresses where nobody answers."""

from pathlib import Path

from configs.files import write
from crypto.sign import SigningKey
from protocol import genesis, network
from protocol.genesis import Genesis, Member
from protocol.identity import ChainKind
from protocol.network import ChainAddresses, Network, NodeAddress, Service
from tests.dealer import share_point

AUTHORITY = SigningKey(b"a" * 32)
KINDS: tuple[ChainKind, ChainKind] = ("storage", "sharing")


def network_files(folder: Path, authority: SigningKey = AUTHORITY) -> Path:
    chains = {}
    for kind in KINDS:
        member = Member("n1", SigningKey(kind[0].encode() * 32).public, f"peer-{kind}", share_point(0))
        chain = Genesis(f"{kind}/x", kind, "bft", (member,), authority.public, 0)
        write(folder / f"{kind}.toml", genesis.to_toml(chain).encode())
        nodes = {"n1": NodeAddress("127.0.0.1:1", "http://127.0.0.1:1")}
        chains[kind] = ChainAddresses(f"{kind}.toml", chain.hash.hex(), nodes)
    nobody = Service("http://127.0.0.1:1", authority.public.hex())
    write(folder / "network.toml", network.to_toml(Network(chains, nobody, nobody)).encode())
    return folder / "network.toml"
