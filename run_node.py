#!/usr/bin/env python3
"""Launches Diptych's daemons, a whole local network, the demonstration and the tests. `python3 run_node.py --help` says how.

On a machine with Python 3.11 and nothing else, the first run sets up `.venv` beside this file (see `configs/bootstrap.py`).
"""

from configs import bootstrap

if __name__ == "__main__":
    bootstrap.ensure()

import asyncio
import gc
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import structlog
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from client import members
from configs import passphrases
from configs.files import load_network, read, read_key, write, write_key
from configs.logs import configure
from configs.settings import AuthoritySettings, CloudSettings, NetworkSettings, NodeSettings, Settings
from crypto.errors import Conflict, DiptychError, Malformed, NotFound
from crypto.group import use
from protocol.genesis import Genesis

if TYPE_CHECKING:
    from client.chaos.scenario import NetworkPart
    from crypto.sign import SigningKey
    from node.devnet import Supervisor

S = TypeVar("S", bound=Settings)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Diptych's daemons: **node**, **cloud**, **authority**; **devnet** runs all of them here; **demo** tells the story.",
)
app.add_typer(members.app, name="members")
ConfigFile = Annotated[
    Path, typer.Option("--config", help="TOML file; DIPTYCH_… variables and flags override it.")
]
Check = Annotated[bool, typer.Option("--check", help="Validate config, keys and network files, then exit.")]
HttpPort = Annotated[int | None, typer.Option(help="Override http_port of the config.")]
Folder = Annotated[Path, typer.Option("--dir", help="Where the network's keys, configs and data live.")]
Shape = Annotated[Path, typer.Option("--config", help="TOML file with the shape of a new network.")]
Quorum = Annotated[
    Literal["bft", "majority"] | None,
    typer.Option(help="Override the quorum: more than 2/3, or more than 1/2."),
]
Scheme = Annotated[
    Literal["fabeo", "fame"] | None,
    typer.Option(help="Override the CP-ABE scheme: FABEO (fast), or FAME (standard assumption)."),
]
NEXT_KEY = "consensus.next.key"
"""Beside `consensus.key`: the key that takes over with the epoch that names it."""
DEFAULT_SHAPE = bootstrap.ROOT / "configs" / "devnet.toml"
console = Console(stderr=True)


def _load(kind: type[S], config: Path, http_port: int | None) -> tuple[S, bytes | None]:
    settings = kind.load(config, http_port=http_port)
    configure(settings.log_level, settings.log_json)
    if notice := use(settings.pairing).notice:
        structlog.get_logger().warning(notice)
    return settings, passphrases.passphrase_from(settings.passphrase_command, settings.passphrase_fd)


@app.command()
def node(
    config: ConfigFile,
    check: Check = False,
    http_port: HttpPort = None,
    rejoin: Annotated[
        bool,
        typer.Option(
            "--rejoin", help="The data folder was lost or restored: give once, to sign nothing unsafe."
        ),
    ] = False,
) -> None:
    """Run one consensus node of one chain.

    Examples: `python3 run_node.py node --config devnet/storage-1/config.toml` · after the loss of its data folder, the same
    with `--rejoin`
    """
    from configs.signer import signer_of
    from crypto.dkg import HolderKey
    from crypto.sign import SigningKey

    settings, passphrase = _load(NodeSettings, config, http_port)
    _, chains = load_network(settings.network)
    genesis = chains[settings.chain]
    keys = [signer_of(settings, "consensus.key", passphrase)]
    if (settings.keys / NEXT_KEY).exists():
        keys.append(SigningKey(read_key(settings.keys / NEXT_KEY, passphrase)))
    transport_seed = read_key(settings.keys / "network.key", passphrase)
    share_key = HolderKey.from_bytes(read_key(settings.keys / "index.key", passphrase))
    member = next((m for m in genesis.members if m.name == settings.name), None)
    if member is None and not genesis.admins:
        raise Malformed(
            f"{settings.name} is no member of the {settings.chain} chain; its genesis names the members"
        )
    is_first = member is None or member.key in [key.public for key in keys]
    if not (is_first or genesis.admins):
        raise Conflict(f"the keys in {settings.keys} are not those of {settings.name} in the genesis")
    if check:
        return _checked(config)

    from configs.web import serve
    from node.api import create_app
    from node.daemon import Node
    from node.net import Net, Peer
    from protocol.network import NodeAddress

    if settings.transport == "libp2p":
        from node.p2p import P2PNet  # here, as its import alone costs half a second and 60 MB

        make_net: Callable[..., Net] = P2PNet
    else:
        from node.tls import TlsNet

        make_net = TlsNet
    faults = None
    if settings.chaos:
        from node.chaos import ChaosNet, Faults, admin

        faults = Faults(settings.name)

    def transport(peers: Sequence[Peer]) -> Net:
        net = make_net(
            me=settings.name,
            chain_id=genesis.chain_id,
            identity_seed=transport_seed,
            listen_host=settings.p2p_host,
            listen_port=settings.p2p_port,
            peers=peers,
        )
        return ChaosNet(net, faults) if faults else net

    def addresses() -> Mapping[str, NodeAddress]:
        return load_network(settings.network)[0].chains[settings.chain].nodes  # type: ignore[index]

    async def main() -> None:
        marker = settings.keys / "consensus.journal"
        running = Node(
            genesis, settings.name, keys, share_key, transport, addresses, settings.data, marker, rejoin
        )
        try:
            web = create_app(running)
            if faults:
                web.router.routes.append(admin(running, faults, keys[0]))
            await running.start()
            gc.freeze()  # modules and settings stay: no collection need look at them again
            server = asyncio.create_task(serve(web, settings.http_host, settings.http_port))
            failure = asyncio.create_task(running.wait())
            await asyncio.wait({server, failure}, return_when=asyncio.FIRST_COMPLETED)
            for task in (server, failure):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        finally:
            await running.stop()

    asyncio.run(main())


@app.command("backup")
def backup_node(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="A new folder for the backup.")],
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="For a new member: without old bodies and this node's votes.")
    ] = False,
) -> None:
    """Copy the databases of a node, running or not, into a folder of their own. Its keys are not in it.

    Examples: `python3 run_node.py backup --config devnet/storage-1/config.toml --out /backup/storage-1-monday` · the same with
    `--snapshot` to start another member of the chain
    """
    from node.backup import backup

    settings, genesis = _node_of(config)
    made = backup(settings.data, out.absolute(), genesis, settings.name, is_snapshot=snapshot)
    _said(f"{out}: {made.chain_id} up to height {made.height}, executed up to {made.executed_height}")


@app.command("restore")
def restore_node(
    config: ConfigFile,
    source: Annotated[Path, typer.Option("--from", help="The folder that `backup` made.")],
) -> None:
    """Put a backup or snapshot into the empty data folder of a node that does not run. Start it then with `node … --rejoin`.

    Example: `python3 run_node.py restore --config devnet/storage-1/config.toml --from /backup/storage-1-monday`
    """
    from node.backup import restore

    settings, genesis = _node_of(config)
    made = restore(source.absolute(), settings.data, genesis, settings.name)
    _said(f"{settings.data} holds {made.chain_id} up to height {made.height}; the next start needs --rejoin")


@app.command("prune")
def prune_node(
    config: ConfigFile,
    archive: Annotated[Path, typer.Option(help="The file that takes the bodies; made, or added to.")],
    keep_days: Annotated[int, typer.Option(min=0, max=36_500, help="Younger bodies stay.")] = 365,
) -> None:
    """Move the bodies of old blocks of a node that does not run into an archive file. Headers and certificates stay.

    Example: `python3 run_node.py prune --config devnet/storage-1/config.toml --archive /archive/storage-1.db --keep-days 30`
    """
    from node.prune import prune

    settings, genesis = _node_of(config)
    first, last = prune(settings.data, archive.absolute(), genesis, keep_days * 86_400_000)
    if first > last:
        return _said("no block is old enough")
    _said(f"moved the bodies of heights {first} to {last} to {archive}")


def _said(sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _node_of(config: Path) -> tuple[NodeSettings, Genesis]:
    settings = NodeSettings.load(config)
    _, chains = load_network(settings.network)
    return settings, chains[settings.chain]


@app.command()
def cloud(config: ConfigFile, check: Check = False, http_port: HttpPort = None) -> None:
    """Run the cloud object server.

    Example: `python3 run_node.py cloud --config devnet/cloud/config.toml`
    """
    from cloudstub.server import CloudConfig, Limits, create_app
    from cloudstub.store import Quota
    from configs.members import Members
    from configs.metrics import instrument
    from configs.signer import signer_of
    from configs.web import serve
    from protocol.block import Committee

    settings, passphrase = _load(CloudSettings, config, http_port)
    network, chains = load_network(settings.network)
    key = signer_of(settings, "cloud.key", passphrase)
    if key.public.hex() != network.cloud.key:
        raise Conflict(f"the key in {settings.keys} is not the cloud's key in the network file")
    if check:
        return _checked(config)
    members = {g.chain_id: Members(Committee(g), network.chains[g.kind].nodes).now for g in chains.values()}
    limits = Limits(quota=Quota(max_bytes=settings.quota_bytes, max_blobs=settings.quota_blobs))
    authority = bytes.fromhex(network.authority.key)
    cloud_app = create_app(CloudConfig(settings.data, key, authority, members, limits=limits))
    instrument(cloud_app)
    asyncio.run(serve(cloud_app, settings.http_host, settings.http_port, connections=limits.connections))


@app.command()
def authority(config: ConfigFile, check: Check = False, http_port: HttpPort = None) -> None:
    """Run an authority: it certifies keys on both chains, issues attribute keys or its part of them, or both.

    Of several that issue keys together, each makes its share of the master key at the first start, when all of them must run.

    Example: `python3 run_node.py authority --config devnet/authority/config.toml`
    """
    from client.authority import Authority, create_app
    from client.issuer import Issuer
    from configs.metrics import instrument
    from configs.signer import signer_of
    from configs.web import serve

    settings, passphrase = _load(AuthoritySettings, config, http_port)
    network, chains = load_network(settings.network)
    key = signer_of(settings, "authority.key", passphrase)
    certifies = key.public.hex() == network.authority.key
    registrar = (
        Authority(key, network, chains, settings.data, settings.credential_days) if certifies else None
    )
    issuer = Issuer(key, network, chains, settings.keys, settings.data, passphrase)
    if check:
        return _checked(config)
    web = create_app(registrar, issuer, key.public)
    instrument(web)
    asyncio.run(serve(web, settings.http_host, settings.http_port))


@app.command()
def invite(
    config: ConfigFile,
    role: Annotated[Literal["doctor", "patient", "user"], typer.Option(help="What the person is.")],
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            help="A certified attribute such as org:st-mary, or status:active@week, renewed weekly; repeatable."
        ),
    ] = None,
    hours: Annotated[int, typer.Option(min=1, max=8760, help="How long the invitation can be used.")] = 72,
) -> None:
    """Print an invitation with which one person enrols (`diptych init --invite …`). Run by the authority's staff.

    Example: `python3 run_node.py invite --config devnet/authority/config.toml --role doctor --attribute org:st-mary`
    """
    from client.authority import Authority

    settings, passphrase = _load(AuthoritySettings, config, None)
    print(Authority.open(settings, passphrase).invite(role, attribute or [], hours))


@app.command("passphrase")
def change_passphrase(
    keys: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Key files, or folders: then all *.key in them.")
    ],
    passphrase_command: Annotated[
        str | None, typer.Option(help="A command that prints the present passphrase.")
    ] = None,
    passphrase_fd: Annotated[
        int | None, typer.Option(min=0, help="A file descriptor that gives it as one line.")
    ] = None,
    new_passphrase_command: Annotated[
        str | None, typer.Option(help="A command that prints the new passphrase.")
    ] = None,
    new_passphrase_fd: Annotated[
        int | None, typer.Option(min=0, help="A file descriptor that gives it; may be the same one.")
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Leave the key files without a passphrase.")
    ] = False,
) -> None:
    """Change, set or remove the passphrase of a daemon's key files; asks on the terminal for what is not given.

    Each file is replaced whole. Repeat the command if it was interrupted. Old copies of the files keep the old passphrase.

    Examples: `python3 run_node.py passphrase devnet/storage-1/keys` ·
    `python3 run_node.py passphrase keys --passphrase-command 'pass old' --new-passphrase-command 'pass new'` ·
    `printf 'old\\nnew\\n' | python3 run_node.py passphrase keys --passphrase-fd 0 --new-passphrase-fd 0`
    """
    files = [file for path in keys for file in (sorted(path.glob("*.key")) if path.is_dir() else [path])]
    if not files:
        raise NotFound(f"there is no key file in {', '.join(map(str, keys))}; check the path")
    old = passphrases.passphrase_from(passphrase_command, passphrase_fd)
    new = passphrases.passphrase_from(new_passphrase_command, new_passphrase_fd)
    changed = passphrases.change(files, old, new, remove=remove)
    _said(f"changed {changed} of {len(files)} key files" + ("" if changed else ": all were done before"))


@app.command()
def signer(
    key: Annotated[Path, typer.Option(help="The key file to sign with.")],
    make: Annotated[
        str | None,
        typer.Option(
            metavar="SUITE", help="Make the key file, tell its public key, and end: ed25519, or a CES suite."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN", help="Sign only for this purpose, such as vote; repeatable."),
    ] = None,
    passphrase_command: Annotated[
        str | None, typer.Option(help="A command that prints the passphrase of the key file.")
    ] = None,
    passphrase_fd: Annotated[
        int | None, typer.Option(min=0, help="A file descriptor that gives it as one line.")
    ] = None,
) -> None:
    """Sign for another process, which talks to this one over standard input and output: its `signer_command`.

    Run it as another user or on another machine, and the key is out of the daemon's reach.

    Examples: `python3 run_node.py signer --key consensus.key --make ed25519` ·
    in a node's config `signer_command = "sudo -u keys python3 /srv/diptych/run_node.py signer --key /keys/consensus.key"`
    """
    from configs import signer as signers

    passphrase = passphrases.passphrase_from(passphrase_command, passphrase_fd)
    if make:
        signers.make_key(key, make, passphrase)
    lines = [b"public"] if make else iter(sys.stdin.buffer.readline, b"")
    for answer in signers.serve(key, passphrase, only or [], lines):
        print(answer, flush=True)


@app.command()
def revoke(
    config: ConfigFile,
    key: Annotated[str, typer.Argument(help="The person's public key: 64 hex digits.")],
) -> None:
    """End the credential of a key on both chains, for good: it is certified and renewed no more.

    What its holder opened before stays open to them. New records stay closed to the key where the contract decides, and where
    policies have time-bound attributes also by cryptography. Run by the authority's staff.

    Example: `python3 run_node.py revoke --config devnet/authority/config.toml 5c1f…`
    """
    from client.authority import Authority

    try:
        subject = bytes.fromhex(key)
    except ValueError:
        subject = b""
    if len(subject) != 32:
        raise Malformed("a person's public key is 64 hex digits, as printed by diptych whoami")
    settings, passphrase = _load(AuthoritySettings, config, None)
    Authority.open(settings, passphrase).revoke(subject)
    _said("revoked on both chains")


@app.command()
def devnet(
    folder: Folder = Path("devnet"),
    config: Shape = DEFAULT_SHAPE,
    storage: Annotated[int | None, typer.Option(help="Override the number of storage nodes.")] = None,
    sharing: Annotated[int | None, typer.Option(help="Override the number of sharing nodes.")] = None,
    mode: Quorum = None,
    scheme: Scheme = None,
    authorities: Annotated[
        int | None, typer.Option(help="Override how many authorities issue attribute keys together.")
    ] = None,
    authority_threshold: Annotated[
        int | None, typer.Option(help="Override how many of them a key needs; by default a majority.")
    ] = None,
    only_make: Annotated[
        bool, typer.Option("--only-make", help="Write the files and do not start anything.")
    ] = False,
    check: Check = False,
) -> None:
    """Make a network on this host (once) and run all of its daemons until Ctrl-C.

    Examples: `python3 run_node.py devnet` · `python3 run_node.py devnet --dir /srv/net --storage 7 --mode majority`
    """
    from node.devnet import Supervisor, make

    folder = folder.absolute()
    shape = NetworkSettings.load(
        config,
        storage=storage,
        sharing=sharing,
        mode=mode,
        scheme=scheme,
        authorities=authorities,
        authority_threshold=authority_threshold,
    )
    if check:
        return _checked(config)
    if not (folder / "network.toml").exists():
        make(folder, shape)
        console.print(f"made a network in {folder}")
    elif only_make:
        raise Conflict(f"{folder} holds a network already; choose another folder")
    if only_make:
        return
    with Supervisor(folder) as supervisor:

        def table() -> Table:
            rows = Table(
                "daemon", "state", "address", "log", title=f"Diptych devnet in {folder} · Ctrl-C stops it"
            )
            for d in supervisor.daemons.values():
                rows.add_row(d.name, d.state, d.url, str(d.log))
            return rows

        with Live(table(), console=console, refresh_per_second=4) as live, suppress(KeyboardInterrupt):
            supervisor.start()
            supervisor.wait_ready(on_change=lambda: live.update(table()))
            while True:
                live.update(table())
                time.sleep(0.5)
        console.print("stopping …")
    console.print("all daemons have stopped")


@app.command("new-node")
def new_node(
    network: Annotated[Path, typer.Option(help="The network file; the node's address is added to it.")],
    chain: Annotated[Literal["storage", "sharing"], typer.Option(help="Of which chain.")],
    name: Annotated[str, typer.Option(help="The member name, which no other has.")],
    p2p: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the other nodes reach it.")],
    http: Annotated[str, typer.Option(metavar="URL", help="Where clients reach it.")],
    folder: Annotated[Path, typer.Option("--dir", help="A new folder for its keys, config and data.")],
) -> None:
    """Make the keys and the config of a node that is to become a member; `members change --put DIR/member.toml` then adds it.

    Example: `python3 run_node.py new-node --network devnet/network.toml --chain storage --name storage-5 --p2p 127.0.0.1:7005
    --http http://127.0.0.1:8005 --dir devnet/storage-5`
    """
    from client.members import member_to_toml
    from node.devnet import make_node

    member = make_node(network.absolute(), chain, name, p2p, http, folder.absolute())
    write(folder / "member.toml", member_to_toml(member).encode(), mode=0o644)
    _said(
        f"made {folder}; its address is in {network}, and must be added to the network files of the other nodes too"
    )


@app.command("rotate-key")
def rotate_key(config: ConfigFile) -> None:
    """Make a new consensus key for a node. It waits until `members change --put FILE` names it; the node then takes it by itself.

    Example: `python3 run_node.py rotate-key --config devnet/storage-1/config.toml`
    """
    from client.members import member_to_toml
    from crypto.sign import SigningKey
    from node.devnet import member_of

    settings, passphrase = _load(NodeSettings, config, None)
    key, waiting = SigningKey.generate(), settings.keys / NEXT_KEY
    if waiting.exists():
        raise Conflict(
            f"{waiting} waits for its epoch already; once `members show` lists it, move it to consensus.key"
        )
    write_key(waiting, key.seed, passphrase)
    member = member_of(settings.keys, settings.name, key, passphrase)
    file = settings.keys.parent / "member.toml"
    write(file, member_to_toml(member).encode(), mode=0o644, replace=True)
    _said(f"made {waiting}; restart the node, then have the admins put {file}")


@app.command()
def demo(
    bundle: Annotated[
        Path | None, typer.Argument(help="A FHIR R4 bundle (.json or .json.gz); a bundled sample by default.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Keep the network here; by default in a folder that is removed."),
    ] = None,
    config: Shape = DEFAULT_SHAPE,
    mode: Quorum = None,
    scheme: Scheme = None,
) -> None:
    """Bring up a network and tell the whole story with one record, step by step.

    Examples: `python3 run_node.py demo` · `python3 run_node.py demo patient.json.gz`
    """
    import tempfile

    from client.authority import Authority
    from client.story import tell
    from node.devnet import Supervisor, make

    with tempfile.TemporaryDirectory(prefix="diptych-demo-") as temporary:
        where = (folder or Path(temporary)).absolute()
        make(where, NetworkSettings.load(config, mode=mode, scheme=scheme))
        with Supervisor(where) as supervisor:
            settings, _ = _load(AuthoritySettings, where / "authority" / "config.toml", None)
            tell(where, bundle, supervisor, Authority.open(settings, None).invite)


@app.command()
def chaos(
    scenarios: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Scenarios, such as those in configs/chaos.")
    ],
    out: Annotated[Path, typer.Option(help="Where each run makes a folder for its report.")] = Path(
        "reports"
    ),
    check: Check = False,
) -> None:
    """Break a fresh network on purpose, under load, and judge it by what its clients saw. Exit code 1 if a property fails.

    Examples: `python3 run_node.py chaos configs/chaos/leader-killed.toml` · `python3 run_node.py chaos configs/chaos/*.toml`
    """
    from client.chaos.report import write_report
    from client.chaos.runner import run as run_scenario
    from client.chaos.scenario import load_scenario

    loaded = [(path, load_scenario(path)) for path in scenarios]
    if check:
        for path in scenarios:
            _checked(path)
        return
    failed = []
    for path, scenario in loaded:
        console.rule(f"{path.stem}: {scenario.title}", align="left")
        folder = out / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        with _chaos_network(scenario.network, folder) as (network, supervisor, authority_key):
            program = [sys.executable, str(Path(__file__).resolve())]
            outcome = run_scenario(network, supervisor, authority_key, program, scenario, console.print)
        write_report(outcome, folder)
        for verdict in outcome.verdicts:
            console.print(
                f"[green]held    [/green] {verdict.name}"
                if verdict.holds
                else f"[red]VIOLATED[/red] {verdict.name}"
            )
            for violation in verdict.violations:
                console.print(f"           {violation}", highlight=False, markup=False)
        console.print(f"{'passed' if outcome.holds else 'FAILED'}; the report is in {folder}", soft_wrap=True)
        if not outcome.holds:
            failed.append(path.stem)
    console.print(
        f"{len(loaded) - len(failed)} of {len(loaded)} scenarios passed"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    if failed:
        raise typer.Exit(1)


@contextmanager
def _chaos_network(shape: "NetworkPart", report: Path) -> "Iterator[tuple[Path, Supervisor, SigningKey]]":
    """A network of this shape in a temporary folder whose nodes let faults be injected; their logs go to `report` at the end."""
    import shutil
    import tempfile

    from crypto.sign import SigningKey
    from node.devnet import Supervisor, make

    with tempfile.TemporaryDirectory(prefix="diptych-chaos-") as temporary:
        where = Path(temporary)
        make(
            where,
            NetworkSettings(
                storage=shape.nodes if "storage" in shape.chains else 1,
                sharing=shape.nodes if "sharing" in shape.chains else 1,
                mode=shape.mode,
                base_timeout_ms=shape.base_timeout_ms,
                term_length=shape.term_length,
                transport=shape.transport,
            ),
        )
        for name in shape.names:
            config = where / name / "config.toml"
            write(config, read(config) + b"chaos = true\n", mode=0o644, replace=True)
        try:
            with Supervisor(where) as supervisor:
                yield where, supervisor, SigningKey(read_key(where / "authority" / "keys" / "authority.key"))
        finally:
            for name in shape.names:
                if (where / name / "log.txt").exists():
                    (report / "logs").mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(where / name / "log.txt", report / "logs" / f"{name}.txt")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Run the tests, on all cores; further arguments go to pytest.

    Examples: `python3 run_node.py test` · `python3 run_node.py test tests/crypto -x -n 0`
    """
    words = ["-m", "pytest", "-n", "logical", "--dist", "loadfile", *context.args]
    done = subprocess.run([sys.executable, *words], cwd=bootstrap.ROOT, check=False)  # noqa: S603
    raise typer.Exit(done.returncode)


@app.command()
def check() -> None:
    """Check format, lint and types of the source."""
    for words in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        done = subprocess.run([sys.executable, "-m", *words], cwd=bootstrap.ROOT, check=False)  # noqa: S603
        if done.returncode:
            raise typer.Exit(done.returncode)


def _checked(config: Path) -> None:
    console.print(f"{config} is valid")


def run(command: Callable[[], object]) -> None:
    """Run a command line; a refusal becomes one sentence and exit code 1."""
    try:
        command()
    except DiptychError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except sqlite3.DatabaseError as error:
        console.print(
            f"[red]error:[/red] the database cannot be used ({error}); nothing is invented in its place. Move the data folder "
            "away; a node then starts with --rejoin and fetches the chain from the others",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run(app)
