"""What the documents refer to is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from protocol import tx

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_NAMED = re.compile(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+\.py|…)::([A-Za-z0-9_]+)`")
CONTRACT = ROOT / "docs" / "contract.md"
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#([^)]*))?\)")


def named_tests(text: str) -> list[tuple[Path, str]]:
    """Files below `tests` with a test in each, in their order; `…` stands for the file before."""
    found: list[tuple[Path, str]] = []
    for file, test in _NAMED.findall(text):
        found.append((found[-1][0] if file == "…" else ROOT / "tests" / file, test))
    return found


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path):
    for file, test in named_tests(document.read_text()):
        assert file.is_file(), f"{document.name} names {file}"
        assert re.search(rf"^(async )?def {test}\(", file.read_text(), re.MULTILINE), f"{file.name}::{test}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_leads_somewhere(document: Path):
    for name, anchor in _LINK.findall(document.read_text()):
        target = document.parent / name
        assert target.exists(), f"{document.name} links to {name}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{document.name} links to {name}#{anchor}"


def test_the_threat_model_names_tests():
    assert len(named_tests((ROOT / "docs" / "threat-model.md").read_text())) > 100


_SOURCED = re.compile(r"((?:^\|[^\n]*\|\n)+)\nFrom (\[[^\n]*(?:\n[^\n]+)*)", re.MULTILINE)
"""A table, and the sentence after it that begins with From and links to the CSV files that its figures are in."""
_FIGURE = re.compile(r"([0-9][0-9,]*(?:\.[0-9]+)?)(?: ?(?:ms|us|s|MB|MiB|kB|B|tx/s|%))?")


def unsourced(table: str, files: list[Path]) -> list[str]:
    """The figures of a table that are in none of the files, rounded as they are shown."""
    text = " ".join(file.read_text() for file in files)
    known = [
        float(word) for word in re.findall(r"(?<![\w.-])[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?(?![\w.])", text)
    ]
    cells = [cell.strip() for row in table.splitlines()[2:] for cell in row.strip("|").split("|")]
    shown = [found[1].replace(",", "") for cell in cells if (found := _FIGURE.fullmatch(cell))]

    def is_known(figure: str) -> bool:
        whole, _, fraction = figure.partition(".")
        last = -len(fraction) if fraction else len(whole) - len(whole.rstrip("0"))
        half = 0.5 * 10.0**last
        return any(abs(value - float(figure)) <= half * 1.0001 for value in known)

    return [figure for figure in shown if not is_known(figure)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_figure_of_a_table_that_names_its_source_is_in_it(document: Path):
    for table, source in _SOURCED.findall(document.read_text()):
        files = [document.parent / name for name, _ in _LINK.findall(source) if name.endswith(".csv")]
        assert files, f"{document.name} has a table from no file: {source}"
        assert not unsourced(table, files), f"{document.name}: not in {source}"


def test_a_figure_that_nobody_measured_is_noticed(tmp_path: Path):
    file = tmp_path / "some.csv"
    file.write_text("what,ms\na,12.3456\nb,3770.2\n")
    table = "| what | ms |\n|---|---:|\n"
    assert unsourced(table + "| a | 12.3 ms |\n| b | 3,770 |\n", [file]) == []
    assert unsourced(table + "| a | 12.4 ms |\n| b | 3,780 |\n", [file]) == ["12.4", "3780"]


def _constants(*names: str) -> Iterator[ast.AST]:
    for name in names:
        yield from ast.walk(ast.parse((ROOT / "protocol" / name).read_text()))


def _is_sentence(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and " " in str(node.value))


def contract_codes() -> set[str]:
    """The first of every pair of a code and a reason."""
    found = set()
    for node in _constants("contract.py", "index_key.py"):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused":
            pair = node.args
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and _is_sentence(node.elts[1]):
            pair = node.elts
        else:
            continue
        assert isinstance(pair[0], ast.Constant), "a code is written out beside its reason"
        found.add(str(pair[0].value))
    return found


def test_every_code_of_the_contract_is_specified_and_no_other():
    text = CONTRACT.read_text()
    transactions, codes = text[text.index("## Conditions") :].split("## Codes")
    table = set(re.findall(r"`([a-z-]+)`", " ".join(re.findall(r"^\| (`.*?) \|", codes, re.MULTILINE))))
    assert table == contract_codes()
    assert table <= set(re.findall(r"`([a-z-]+)`", transactions)), "each is the outcome of a transaction"


def test_every_key_of_the_state_is_specified_and_no_other():
    keys = {
        node.value.decode()
        for node in _constants("contract.py", "index_key.py")
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and len(node.value) > 1
    }
    state = CONTRACT.read_text().split("## State")[1].split("## Conditions")[0]
    assert set(re.findall(r"^\| `([a-z/-]+)`", state, re.MULTILINE)) == keys


def test_every_transaction_is_specified_and_no_other():
    kinds = {str(kind.__struct_config__.tag) for kind in get_args(tx.Action)}
    transactions = CONTRACT.read_text().split("## Transactions")[1].split("## Receipts")[0]
    assert set(re.findall(r"\*\*`([a-z.]+)`\*\*", transactions)) == kinds
