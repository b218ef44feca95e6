"""A whole network on one host: makes keys, genesis and configs, and runs every daemon as a process of its own under one supervisor.

The files it makes are the ordinary ones: to run a node on another machine, copy its folder, `network.toml` and the genesis files there
and change the addresses in `network.toml`.
"""

import os
import random
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import httpx2
import msgspec
import tomli_w

from configs.files import load_network, read_key, write, write_key
from configs.settings import NetworkSettings
from crypto.dkg import HolderKey
from crypto.errors import Conflict, Unavailable
from crypto.schemes import SCHEMES
from crypto.sign import SigningKey
from node.tls import identity_of
from protocol import genesis, network
from protocol.genesis import Genesis, Member
from protocol.identity import ChainKind
from protocol.network import ChainAddresses, Network, NodeAddress, Service, split_host_port

ADMINS, ADMIN_QUORUM = 3, 2
"""Keys that may change the members of the chains, and how many of them must agree."""
DAEMON_PORTS = range(20_000, 32_000)
RUN_NODE = Path(__file__).resolve().parent.parent / "run_node.py"


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Distinct ports nobody listens on now, below those that systems give to outgoing connections: one of these could
    take a daemon's port while it restarts. `Unavailable` if there are not as many."""
    with ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(DAEMON_PORTS, len(DAEMON_PORTS)):
            with suppress(OSError):
                stack.enter_context(socket.create_server((host, port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise Unavailable(f"there are no {count} free ports from {DAEMON_PORTS.start} to {DAEMON_PORTS.stop - 1}")


def make(folder: Path, shape: NetworkSettings) -> None:
    """Write keys, genesis files, the network file and a config per daemon into `folder`, which must not hold a network yet."""
    if (folder / "network.toml").exists():
        raise Conflict(f"{folder} holds a network already; run it, or choose another folder")
    ports: Iterator[int] = iter(free_ports(2 * (shape.storage + shape.sharing) + 1 + shape.authorities))
    names = ["authority", *(f"authority-{number}" for number in range(2, shape.authorities + 1))]
    keys_of = {name: SigningKey.generate() for name in ("cloud", *names)}
    admins = [SigningKey.generate() for _ in range(ADMINS)]
    for number, admin in enumerate(admins, 1):
        write_key(folder / "admins" / f"admin-{number}.key", admin.seed)
    chains: dict[Any, ChainAddresses] = {}
    suffix = secrets.token_hex(4)
    configs: dict[str, dict[str, Any]] = {}
    for kind, count in (("storage", shape.storage), ("sharing", shape.sharing)):
        members, addresses = [], {}
        for number in range(1, count + 1):
            name = f"{kind}-{number}"
            members.append(_make_keys(folder / name / "keys", name))
            p2p, http = next(ports), next(ports)
            addresses[name] = NodeAddress(f"127.0.0.1:{p2p}", f"http://127.0.0.1:{http}")
            configs[name] = {"chain": kind, "name": name, "p2p_port": p2p, "http_port": http}
            configs[name]["transport"] = shape.transport
        chain = Genesis(
            f"diptych/1/{kind}/{suffix}",
            kind,  # type: ignore[arg-type]
            shape.mode,
            tuple(members),
            keys_of["authority"].public,
            time.time_ns() // 1_000_000,
            tuple(a.public for a in admins),
            ADMIN_QUORUM,
            base_timeout_ms=shape.base_timeout_ms,
            term_length=shape.term_length,
        )
        write(folder / f"genesis-{kind}.toml", genesis.to_toml(chain).encode(), mode=0o644)
        chains[kind] = ChainAddresses(f"genesis-{kind}.toml", chain.hash.hex(), addresses)
    for name, service_key in keys_of.items():
        kind = "cloud" if name == "cloud" else "authority"
        write_key(folder / name / "keys" / f"{kind}.key", service_key.seed)
        configs[name] = {"http_port": next(ports)}
    if shape.authorities == 1:  # several make their shares themselves, when they start
        abe = SCHEMES[shape.scheme].master.generate()
        write_key(folder / "authority" / "keys" / "abe.key", abe.to_bytes())
    for name, values in configs.items():
        config = {"network": "../network.toml", "keys": "keys", "data": "data", **values}
        write(folder / name / "config.toml", tomli_w.dumps(config).encode(), mode=0o644)
    services = {
        name: Service(f"http://127.0.0.1:{configs[name]['http_port']}", key.public.hex())
        for name, key in keys_of.items()
    }
    issuing = {name: services[name] for name in names} if shape.authorities > 1 else {}
    found = Network(chains, services["cloud"], services["authority"], issuing, shape.threshold)
    write(folder / "network.toml", network.to_toml(found).encode(), mode=0o644)


def make_node(network_file: Path, kind: ChainKind, name: str, p2p: str, http: str, folder: Path) -> Member:
    """The keys and the config of one more node in the new folder `folder`, and its address in the network file; what it is as a member.

    Raises `Conflict` if the name or the folder is taken, `Malformed` if an address or the name is none.
    """
    found, _ = load_network(network_file)
    if name in found.chains[kind].nodes or folder.exists():
        raise Conflict(f"the name {name} or the folder {folder} is taken; choose another")
    url = urlsplit(http)
    listen_host, p2p_port = split_host_port(p2p)
    nodes = {**found.chains[kind].nodes, name: NodeAddress(p2p, http)}
    chains = {**found.chains, kind: msgspec.structs.replace(found.chains[kind], nodes=nodes)}
    text = network.to_toml(msgspec.structs.replace(found, chains=chains))
    network.from_toml(text)  # refuses bad names and addresses before anything is made
    member = _make_keys(folder / "keys", name)
    config: dict[str, Any] = {
        "network": str(network_file),
        "keys": "keys",
        "data": "data",
        "chain": kind,
        "name": name,
    }
    config |= {
        "p2p_host": listen_host,
        "p2p_port": p2p_port,
        "http_host": url.hostname,
        "http_port": url.port,
    }
    write(folder / "config.toml", tomli_w.dumps(config).encode(), mode=0o644)
    write(network_file, text.encode(), mode=0o644, replace=True)
    return member


def _make_keys(keys: Path, name: str) -> Member:
    key, transport, share_key = SigningKey.generate(), secrets.token_bytes(32), HolderKey.generate()
    write_key(keys / "consensus.key", key.seed)
    write_key(keys / "network.key", transport)
    write_key(keys / "index.key", share_key.to_bytes())
    return Member(name, key.public, identity_of(transport), share_key.public.to_bytes())


def member_of(keys: Path, name: str, key: SigningKey, passphrase: bytes | None) -> Member:
    """What the node with this folder of keys is as a member, with `key` as its consensus key."""
    identity = identity_of(read_key(keys / "network.key", passphrase))
    share_key = HolderKey.from_bytes(read_key(keys / "index.key", passphrase))
    return Member(name, key.public, identity, share_key.public.to_bytes())


@dataclass
class Daemon:
    """One process: `command` is its run_node subcommand, `url` where it answers."""

    name: str
    command: str
    config: Path
    url: str
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    log_file: "IO[bytes] | None" = None
    is_ready: bool = False
    wanted: bool = field(default=False)

    @property
    def state(self) -> str:
        if self.process is None:
            return "not started"
        code = self.process.poll()
        if code is None:
            return "ready" if self.is_ready else "starting"
        if not self.wanted:
            return "stopped"
        return f"killed by signal {-code}" if code < 0 else f"exited with code {code}"


class Supervisor:
    """Starts the daemons of a network folder, waits until they are ready, stops them. Restarts none by itself."""

    def __init__(self, folder: Path) -> None:
        found, _ = load_network(folder / "network.toml")
        urls = {name: a.http for chain in found.chains.values() for name, a in chain.nodes.items()}
        commands = dict.fromkeys(urls, "node")
        services = {"cloud": found.cloud, "authority": found.authority, **found.authorities}
        urls |= {name: service.url for name, service in services.items()}
        self.folder = folder
        self.daemons = {
            name: Daemon(
                name,
                commands.get(name, "cloud" if name == "cloud" else "authority"),
                folder / name / "config.toml",
                url,
                folder / name / "log.txt",
            )
            for name, url in urls.items()
            if (folder / name / "config.toml").exists()
        }

    def start(self, *names: str, flags: Sequence[str] = ()) -> None:
        """Start the named daemons, or all, with further `flags` of their subcommand; returns at once."""
        for name in names or self.daemons:
            daemon = self.daemons[name]
            if daemon.process is not None and daemon.process.poll() is None:
                continue
            if daemon.log_file is None:
                daemon.log_file = os.fdopen(
                    os.open(daemon.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab"
                )
            daemon.wanted, daemon.is_ready = True, False
            command = [sys.executable, str(RUN_NODE), daemon.command, "--config", str(daemon.config), *flags]
            # A session of its own: Ctrl-C reaches the supervisor alone, which then stops the daemons in order.
            daemon.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=daemon.log_file,
                stderr=daemon.log_file,
                start_new_session=True,
            )

    def wait_ready(self, seconds: float = 90, on_change: Callable[[], None] = lambda: None) -> None:
        """Until every started daemon is ready; `Unavailable` naming those that are not, with the end of their log."""
        deadline = time.monotonic() + seconds
        with httpx2.Client(timeout=2, trust_env=False) as client:
            while True:
                waiting = [d for d in self.daemons.values() if d.wanted and not d.is_ready]
                if not waiting:
                    return
                for daemon in waiting:
                    try:
                        daemon.is_ready = client.get(f"{daemon.url}/readyz").status_code == 200
                    except httpx2.HTTPError:
                        daemon.is_ready = False
                on_change()
                dead = [d for d in waiting if d.process is None or d.process.poll() is not None]
                if dead or time.monotonic() > deadline:
                    raise Unavailable(
                        "; ".join(f"{d.name} {d.state}: {self.log_tail(d)}" for d in dead or waiting)
                    )
                time.sleep(0.1)

    def kill(self, name: str) -> None:
        """kill -9, as a power cut would."""
        process = self.daemons[name].process
        if process is not None:
            process.kill()
            process.wait()
            self.daemons[name].is_ready = False

    def stop(self) -> None:
        """SIGTERM to all, then SIGKILL to what has not ended after 15 s. Safe to call again."""
        running = [d for d in self.daemons.values() if d.process is not None and d.process.poll() is None]
        for daemon in self.daemons.values():
            daemon.wanted = False
        for daemon in running:
            assert daemon.process is not None
            daemon.process.terminate()
        deadline = time.monotonic() + 15
        for daemon in running:
            assert daemon.process is not None
            try:
                daemon.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait()
        for daemon in self.daemons.values():
            if daemon.log_file is not None:
                daemon.log_file.close()
                daemon.log_file = None

    def log_tail(self, daemon: Daemon, size: int = 400) -> str:
        """The last lines that the daemon wrote."""
        data = daemon.log.read_bytes() if daemon.log.exists() else b""
        return data[-size:].decode(errors="replace").strip() or f"see {daemon.log}"

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
