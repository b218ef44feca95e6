"""The layers of the house, read from every import: which package may know which, and what the pure ones may not touch."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "crypto": {"crypto"},
    "protocol": {"crypto", "protocol"},
    "configs": {"crypto", "protocol", "configs"},
    "node": {"crypto", "protocol", "configs", "node"},
    "cloudstub": {"crypto", "protocol", "configs", "cloudstub"},
    "client": {"crypto", "protocol", "configs", "client"},
}
PROJECT = {*MAY_IMPORT, "bench", "tests", "run_node"}
IMPURE = set(
    [
        "aiosqlite",
        "anyio",
        "asyncio",
        "asyncore",
        "builtins",
        "concurrent",
        "contextvars",
        "ctypes",
        "datetime",
        "fcntl",
        "glob",
        "http",
        "httpx",
        "httpx2",
        "importlib",
        "io",
        "libp2p",
        "logging",
        "mmap",
        "multiaddr",
        "multiprocessing",
        "obstore",
        "pathlib",
        "pickle",
        "pydantic_settings",
        "queue",
        "requests",
        "rich",
        "sched",
        "select",
        "selectors",
        "shelve",
        "shutil",
        "signal",
        "socket",
        "socketserver",
        "sqlite3",
        "ssl",
        "starlette",
        "structlog",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "trio",
        "typer",
        "urllib",
        "uvicorn",
        "uvloop",
    ]
)
TRANSPORT = {"libp2p", "trio", "multiaddr"}
PAIRING = {"pymcl", "py_arkworks_bls12381"}
NATIVE = {"crypto/pairing/mcl.py": {"ctypes"}}
"""What one module may have that others may not: it calls the C interface of a library that is loaded already."""
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside functions, in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: write imports in full"
            yield node.module or ""


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_imports_only_the_layers_beneath_it(path):
    package = path.relative_to(ROOT).parts[0]
    assert roots(path) & PROJECT <= MAY_IMPORT[package]


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.relative_to(ROOT).parts[0] in ("crypto", "protocol")], ids=name_of
)
def test_crypto_and_protocol_touch_no_file_clock_socket_thread_or_event_loop(path):
    assert not roots(path) & (IMPURE - NATIVE.get(name_of(path), set()))
    called = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    names = {f.id for f in called if isinstance(f, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}


@pytest.mark.parametrize("path", sorted((ROOT / "protocol").rglob("*.py")), ids=name_of)
def test_protocol_has_no_source_of_randomness(path):
    assert not roots(path) & {"os", "random", "secrets", "uuid"}


@pytest.mark.parametrize("path", sorted((ROOT / "crypto").rglob("*.py")), ids=name_of)
def test_crypto_takes_nothing_but_random_bytes_from_the_system(path):
    tree = ast.parse(path.read_text())
    assert not roots(path) & {"random", "uuid"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr == "urandom"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert [alias.name for alias in node.names] == ["urandom"]
        if isinstance(node, ast.Import):
            assert not any(alias.name == "os" and alias.asname for alias in node.names)


def test_one_module_knows_the_transport():
    assert [name_of(p) for p in [*MODULES, ROOT / "run_node.py"] if roots(p) & TRANSPORT] == ["node/p2p.py"]


def test_the_pairing_libraries_are_known_to_one_folder_alone_and_draw_no_randomness():
    known = [path for path in MODULES if roots(path) & PAIRING]
    assert known
    attributes = {
        n.attr
        for path in known
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Attribute)
    }
    assert not attributes & {"random", "setByCSPRNG", "hash"}
    assert {path.parent for path in known} == {ROOT / "crypto" / "pairing"}


def test_setting_up_the_environment_needs_the_standard_library_alone():
    assert roots(ROOT / "configs" / "bootstrap.py") <= {
        "hashlib",
        "importlib",
        "os",
        "pathlib",
        "subprocess",
        "sys",
    }
    assert not roots(ROOT / "configs" / "__init__.py")
