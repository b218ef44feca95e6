"""One real network for all adversaries; between the cloud and two nodes of the sharing chain sit proxies that can lie."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from adversary_world import World, proxy

from client.authority import Authority
from client.fhir import load_bundle
from client.home import Home
from client.session import Session
from configs.files import load_network
from configs.settings import AuthoritySettings, NetworkSettings
from crypto.ces import ED25519
from node.devnet import Supervisor, make
from protocol import network
from protocol.identity import Role

SAMPLE = Path(__file__).resolve().parents[2] / "client" / "samples" / "tomas-orourke.json"
LIARS = ("sharing-1", "sharing-2")


@pytest.fixture(scope="session")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def authority(world_net: Supervisor) -> Authority:
    return Authority.open(AuthoritySettings.load(world_net.folder / "authority" / "config.toml"), None)


@pytest.fixture(scope="session")
def cloud_sees(tmp_path_factory: pytest.TempPathFactory, stack: ExitStack) -> dict[str, object]:
    """The folder of a network whose cloud reaches two nodes of the sharing chain through proxies, and these."""
    folder = tmp_path_factory.mktemp("network")
    make(folder, NetworkSettings())
    found, _ = load_network(folder / "network.toml")
    sharing = found.chains["sharing"]
    liars = {name: stack.enter_context(proxy(sharing.nodes[name].http)) for name in LIARS}
    nodes = sharing.nodes | {
        name: msgspec.structs.replace(sharing.nodes[name], http=liar.url) for name, liar in liars.items()
    }
    seen = msgspec.structs.replace(
        found, chains=found.chains | {"sharing": msgspec.structs.replace(sharing, nodes=nodes)}
    )
    (folder / "network-cloud.toml").write_text(network.to_toml(seen))
    config = folder / "cloud" / "config.toml"
    config.write_text(config.read_text().replace("../network.toml", "../network-cloud.toml"))
    return {"folder": folder, "liars": liars}


@pytest.fixture(scope="session")
def world_net(cloud_sees: dict[str, object], stack: ExitStack) -> Supervisor:
    supervisor = stack.enter_context(Supervisor(cloud_sees["folder"]))  # type: ignore[arg-type]
    supervisor.start()
    supervisor.wait_ready()
    return supervisor


@pytest.fixture(scope="session")
def join_as(
    world_net: Supervisor,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
    stack: ExitStack,
) -> Callable[..., Session]:
    def join(role: Role, *attributes: str) -> Session:
        home = Home.create(
            tmp_path_factory.mktemp(role) / "home",
            world_net.folder / "network.toml",
            ED25519 if role == "doctor" else None,
        )
        session = stack.enter_context(Session(home))
        session.enrol(authority.invite(role, list(attributes), 1))
        return session

    return join


@pytest.fixture(scope="session")
def world(world_net: Supervisor, cloud_sees: dict[str, object], join_as: Callable[..., Session]) -> World:
    return World(
        world_net,
        join_as("doctor"),
        join_as("patient"),
        join_as("user", "role:researcher"),
        join_as("user", "role:advertiser"),
        load_bundle(SAMPLE),
        cloud_sees["liars"],  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def record(world: World) -> bytes:
    """A record of the patient that researchers may read, for attacks that leave it as it is."""
    return world.store()
