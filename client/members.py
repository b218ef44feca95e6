"""For the operators of a chain: who its members are, and how the admins change that (`protocol.epochs`).

A change is a small file that goes from admin to admin until enough have signed it; whoever has the last signature submits it. Nothing in it
is secret, and it is good for the end of one epoch only.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import tomli_w
import typer
from rich.table import Table

from client.chain import ChainClient
from client.terminal import Terminal
from configs.files import load_network, read, read_key, read_text, write
from configs.passphrases import passphrase_from
from crypto.codec import Decoder, Wire, encode
from crypto.errors import Conflict, DiptychError, Malformed, NotFound
from crypto.sign import SigningKey
from protocol.block import Committee
from protocol.contract import Receipt
from protocol.genesis import Member, check_members
from protocol.identity import ChainKind
from protocol.index_key import IndexKey
from protocol.tx import ChangeMembers


class _Change(Wire, frozen=True, tag="change-of-members/1"):
    """What lies in the file that goes from admin to admin."""

    change: ChangeMembers


_decode_change = Decoder(_Change, "a change of members", 64 << 10)
console = Terminal(stderr=True)
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Who the members of a chain are. The admins change it: one proposes with **change**, others add their approval with "
    "**sign**, the last sends it with **submit**.",
)
NetworkFile = Annotated[Path, typer.Option("--network", help="The network file.")]
Chain = Annotated[ChainKind, typer.Option("--chain", help="storage or sharing.")]
AdminKey = Annotated[Path, typer.Option("--key", help="The key file of an admin.")]
ChangeFile = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the change.")]
PassphraseCommand = Annotated[
    str | None, typer.Option(help="Prints the passphrase of the key file, if it has one.")
]


def member_to_toml(member: Member) -> str:
    """What the operator of a new or changed node gives to the admins."""
    fields = {"key": member.key.hex(), "share_key": member.share_key.hex()}
    return tomli_w.dumps({"name": member.name, "identity": member.identity, **fields})


def member_from_toml(path: Path) -> Member:
    import tomllib

    try:
        found = tomllib.loads(read_text(path))
        return msgspec.convert(
            [
                found["name"],
                bytes.fromhex(found["key"]),
                found["identity"],
                bytes.fromhex(found["share_key"]),
            ],
            Member,
            builtin_types=(bytes,),
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"{path} does not describe a member: {error}") from None


def propose(committee: Committee, put: list[Member], remove: list[str]) -> ChangeMembers:
    """The change that puts members in the place of those of the same name, or beside the others, and removes those named."""
    members = {m.name: m for m in committee.members}
    for name in remove:
        if members.pop(name, None) is None:
            raise NotFound(f"{name} is no member of the chain now; `members show` lists them")
    for member in put:
        members[member.name] = member
    try:
        check_members(tuple(members.values()))
        if not members:
            raise ValueError("no member would be left")
    except ValueError as error:
        raise Conflict(f"the change makes no sense: {error}") from None
    return ChangeMembers(committee.epoch, tuple(members.values()), ())


def check_holders(key: IndexKey, committee: Committee, made: ChangeMembers) -> None:
    """`Conflict` if the change would leave too few who hold shares of the index key to share it anew: no index entry could be opened
    ever again."""
    if {h.key for h in key.holders} != set(committee.keys):
        raise Conflict(
            "the members are still sharing the index key anew after the last change; try again in a minute"
        )
    stay = {m.share_key for m in made.members}
    kept = sum(holder.share_key in stay for holder in key.holders)
    if kept < key.threshold:
        raise Conflict(
            f"the change would leave {kept} of those who hold shares of the index key, and {key.threshold} are needed to share it "
            "anew: without them no record could be opened again. Make the change in several steps"
        )


def submit(chain: ChainClient, change: ChangeMembers, sender: SigningKey) -> Receipt:
    """Send a change that enough admins have approved, and wait until it is final; `Denied` if it is not good any more, `Conflict` as
    `check_holders`."""
    change.check(chain.committee)
    check_holders(chain.index_key(), chain.committee, change)
    return chain.execute(sender, change)


@app.command()
def show(network: NetworkFile, kind: Chain) -> None:
    """List the present members, proved from genesis.

    Example: `python3 run_node.py members show --network devnet/network.toml --chain storage`
    """
    committee = _chain(network, kind).committee
    rows = Table("member", "consensus key", "transport identity", title=_title(committee))
    for member in committee.members:
        rows.add_row(member.name, member.key.hex(), member.identity)
    Terminal().print(rows)


@app.command()
def change(
    network: NetworkFile,
    kind: Chain,
    key: AdminKey,
    out: Annotated[Path, typer.Option(help="The file to make.")],
    put: Annotated[
        list[Path] | None,
        typer.Option(help="The member file of a new node, or of a member with a new key; repeatable."),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="The name of a member to remove; repeatable.")
    ] = None,
    passphrase_command: PassphraseCommand = None,
) -> None:
    """Propose a change and approve it with one's own key.

    Example: `python3 run_node.py members change --network network.toml --chain storage --put storage-5/member.toml --remove storage-2
    --key admin-1.key --out change`
    """
    chain = _chain(network, kind)
    made = propose(chain.committee, [member_from_toml(p) for p in put or []], remove or [])
    check_holders(chain.index_key(), chain.committee, made)
    made = made.approve(chain.genesis, _key(key, passphrase_command))
    write(out, encode(_Change(made)), mode=0o644)
    _describe(chain.committee, made)


@app.command()
def sign(
    network: NetworkFile,
    kind: Chain,
    file: ChangeFile,
    key: AdminKey,
    passphrase_command: PassphraseCommand = None,
) -> None:
    """Show a change and add one's approval to its file.

    Example: `python3 run_node.py members sign change --network network.toml --chain storage --key admin-2.key`
    """
    chain, made = _chain(network, kind), _decode_change(read(file)).change
    made = made.approve(chain.genesis, _key(key, passphrase_command))
    write(file, encode(_Change(made)), mode=0o644, replace=True)
    _describe(chain.committee, made)


@app.command("submit")
def submit_command(
    network: NetworkFile,
    kind: Chain,
    file: ChangeFile,
    key: AdminKey,
    passphrase_command: PassphraseCommand = None,
) -> None:
    """Send a change that enough admins have approved; it takes effect with the next block.

    Example: `python3 run_node.py members submit change --network network.toml --chain storage --key admin-2.key`
    """
    chain, made = _chain(network, kind), _decode_change(read(file)).change
    receipt = submit(chain, made, _key(key, passphrase_command))
    console.print(f"final at height {receipt.height}: {receipt.reason}")


def _chain(network: Path, kind: ChainKind) -> ChainClient:
    found, chains = load_network(network)
    return ChainClient(chains[kind], found.chains[kind])


def _key(path: Path, passphrase_command: str | None) -> SigningKey:
    return SigningKey(read_key(path, passphrase_from(passphrase_command)))


def _title(committee: Committee) -> str:
    genesis = committee.genesis
    return f"{genesis.chain_id}, epoch {committee.epoch}: {committee.quorum} of {committee.size} decide ({genesis.mode})"


def _describe(committee: Committee, made: ChangeMembers) -> None:
    """What the change does to the present members, and what is still missing."""
    now, then = {m.name: m for m in committee.members}, {m.name: m for m in made.members}
    after = Committee(committee.genesis, made.epoch + 1, made.members)
    for name in sorted({*now, *then}):
        if name not in now:
            console.print(f"+ {name} joins with the key {then[name].key.hex()}")
        elif name not in then:
            console.print(f"- {name} leaves")
        elif now[name] != then[name]:
            console.print(
                f"~ {name} has from now on the key {then[name].key.hex()} and the identity {then[name].identity}"
            )
    console.print(f"then {after.quorum} of {after.size} decide")
    remaining = sum(m in made.members for m in committee.members)
    if remaining < after.quorum:
        console.print(
            f"only {remaining} of the present members stay as they are: the chain stands still until enough of the others run",
        )
    try:
        made.check(committee)
        console.print("enough admins have approved: submit it")
    except DiptychError as error:
        console.print(f"not ready: {error}")
