"""`python -m bench paper`: the paper's experiments. Sets the project up first where that is needed, as run_node.py does."""

from configs import bootstrap

if __name__ == "__main__":
    bootstrap.ensure()

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.paper.lab import SAMPLES
from bench.paper.report import EXPERIMENTS, make_report
from bench.paper.run import run
from client.fhir import load_bundle, read_bundle
from crypto.errors import DiptychError, Malformed

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
SUFFIXES = (".json", ".json.gz")


@app.callback()
def main() -> None:
    """Measurements of Diptych, each beside a baseline. The others are modules of their own: python -m bench.consensus, and so on."""


@app.command()
def paper(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer points and runs: some minutes.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for rows, pictures and report.", show_default="bench/results/…"),
    ] = None,
    bundles: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder with FHIR bundles for table 2; by default the project's samples.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="For the contents of the records that are made.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(EXPERIMENTS)}; repeatable.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what has been run.")] = False,
    report_only: Annotated[
        Path | None, typer.Option(help="Run nothing: make the report of this folder anew.")
    ] = None,
) -> None:
    """The paper's tables, figures and claims, on real processes, for four schemes: rows (CSV), pictures (PNG, SVG) and a report (HTML, Markdown).

    What was broken off goes on where it was when called again.
    """
    if report_only is not None:
        if not (report_only / "conditions.json").is_file():
            raise Malformed(
                f"{report_only} holds no results of this command; name the folder of an earlier --out"
            )
        make_report(report_only)
        return
    if unknown := set(only or ()) - set(EXPERIMENTS):
        raise Malformed(f"there is no experiment {min(unknown)!r}; there are {', '.join(EXPERIMENTS)}")
    folder = bundles or SAMPLES
    found = [path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES) and _is_bundle(path)]
    if not found:
        raise Malformed(f"{folder} holds no FHIR bundle (.json or .json.gz); choose another --bundles")
    default = Path(__file__).parent / "results" / ("paper-quick" if quick else "paper")
    run(out or default, quick, seed, found, only or (), fresh)


def _is_bundle(path: Path) -> bool:
    try:
        read_bundle(load_bundle(path))
        return True
    except DiptychError as error:
        typer.echo(f"{path.name} is left out: {error}")
        return False


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the networks are stopped
    try:
        app()
    except DiptychError as error:
        sys.exit(f"{error}")
