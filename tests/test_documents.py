"""What the documents refer to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_NAMED = re.compile(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+\.py|…)::([A-Za-z0-9_]+)`")
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
