"""The commands `diptych proof`: what a chain holds, in a file that proves itself to whoever has the genesis."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from client.command import ChainOption, context, hex_bytes, record_id
from client.light import Proved, ProvedLog, ProvedReceipt
from client.prooffile import MAX_FILE, Shown, export, fields, verify
from client.terminal import Terminal, time_text
from configs.files import read, read_text, write
from crypto.errors import Malformed
from protocol.contract import Receipt, decode_record, log_key, record_key
from protocol.genesis import from_toml

app = typer.Typer(
    no_args_is_help=True,
    help="Proofs in a file, for a court or an auditor: who may read a record, and everything that happened to it.",
)


@app.command("export")
def export_command(
    record: Annotated[
        str | None, typer.Argument(metavar="[RECORD]", help="A record id: 32 hex digits.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to make.")] = ...,  # type: ignore[assignment]
    tx: Annotated[str | None, typer.Option(help="A transaction id: 64 hex digits.")] = None,
    chain: ChainOption = "storage",
) -> None:
    """Write a record with its complete access log, or the receipt of one transaction, with what proves them.

    Example: `diptych proof export 3fa2… --out record.proof.json`
    """
    if (record is None) == (tx is None):
        raise Malformed("name a record, or a transaction with --tx")
    statements: list[Proved | ProvedLog | ProvedReceipt] = []
    with context.open() as session:
        client = session.chains[chain]
        if record is not None:
            wanted = record_id(record)
            statements = [client.verified_state(record_key(wanted)), client.verified_log(wanted)]
        else:
            statements = [client.verified_receipt(hex_bytes(str(tx), 32, "the transaction id"))]
        data = export(client.genesis, client.members.handovers, statements)
    write(out, data)
    context.show({"file": str(out), "bytes": len(data)}, lambda c: c.print(f"{out}: {len(data):,} bytes"))


@app.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(help="A proof file.")],
    genesis: Annotated[Path, typer.Option(help="The genesis file of the chain.")],
) -> None:
    """Say what a file proves to whoever trusts the genesis; needs no network and no home.

    Example: `diptych proof verify record.proof.json --genesis genesis-storage.toml`
    """
    found = verify(read(file, MAX_FILE), from_toml(read_text(genesis)))
    context.show([_data(shown) for shown in found], lambda c: _print(c, found))


def _data(shown: Shown) -> dict[str, Any]:
    return {
        "proved": _what(shown.statement),
        **_details(shown.statement),
        "checkpoint": fields(shown.checkpoint),
        "signed_by": list(shown.signers),
    }


def _what(statement: Proved | ProvedLog | ProvedReceipt) -> str:
    match statement:
        case Proved(key, value):
            kind, _, name = key.partition(b"/")
            return (
                f"{'no ' if value is None else ''}{kind.decode(errors='replace')} {name.hex()} in the state"
            )
        case ProvedLog(head, receipts):
            return f"the complete log of record {head.key.removeprefix(log_key(b'')).hex()}: {len(receipts)} receipts"
        case ProvedReceipt(proof):
            return f"the receipt of transaction {proof.receipt.tx.hex()}"


def _details(statement: Proved | ProvedLog | ProvedReceipt) -> dict[str, Any]:
    match statement:
        case Proved(key, value):
            if value is None or not key.startswith(record_key(b"")):
                return {"value": value and value.hex()}
            entry = decode_record(value)
            rule = entry.rule
            return {
                "status": entry.status,
                "version": entry.version,
                "patient": entry.patient.hex(),
                "doctor": entry.doctor.hex(),
                "commit": entry.commit.hex(),
                "policy": rule and rule.policy,
                "purposes": rule and list(rule.purposes),
            }
        case ProvedLog(_, receipts):
            return {"receipts": [fields(r) for r in receipts]}
        case ProvedReceipt(proof):
            return {"receipt": fields(proof.receipt), "transaction_included": proof.tx is not None}


def _print(console: Terminal, found: list[Shown]) -> None:
    for shown in found:
        at = shown.checkpoint
        console.print(f"proved: {_what(shown.statement)}")
        match shown.statement:
            case ProvedLog(_, receipts):
                _print_receipts(console, receipts)
            case ProvedReceipt(proof):
                _print_receipts(console, (proof.receipt,))
                if proof.tx is None:
                    console.print("  the transaction itself is not in the file: its node has archived it")
            case _:
                for name, value in _details(shown.statement).items():
                    console.print(f"  {name:9} {value}")
        console.print(
            f"  as of height {at.height} of {at.chain_id}, {time_text(at.time_ms)}, signed by {', '.join(shown.signers)} (epoch {at.epoch})"
        )


def _print_receipts(console: Terminal, receipts: tuple[Receipt, ...]) -> None:
    table = Table("time", "height", "kind", "sender", "purpose", "decision", "reason")
    for r in receipts:
        decision = "allowed" if r.ok else "denied"
        place = f"{r.height}.{r.position}"
        table.add_row(
            time_text(r.time_ms),
            place,
            r.kind,
            r.sender.hex()[:16] + "…",
            r.purpose or "",
            decision,
            r.reason,
        )
    console.print(table)
