"""The devnet supervisor as an operator meets it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from e2e_files import ROOT

from configs.files import load_network
from node.store import Store


def test_the_devnet_runs_until_ctrl_c_and_leaves_no_process_behind(run: Callable, tmp_path: Path):
    folder = tmp_path / "net"
    shape = ["--storage", "1", "--sharing", "1"]
    run("run_node.py", "devnet", "--dir", folder, *shape, "--only-make")
    network, _ = load_network(folder / "network.toml")
    urls = [a.http for chain in network.chains.values() for a in chain.nodes.values()]
    urls += [network.cloud.url, network.authority.url]
    devnet = subprocess.Popen(
        [sys.executable, "run_node.py", "devnet", "--dir", str(folder)], cwd=ROOT, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        waiting = list(urls)
        while waiting:
            assert time.monotonic() < deadline
            assert devnet.poll() is None
            try:
                if httpx2.get(f"{waiting[0]}/readyz", trust_env=False).status_code == 200:
                    waiting.pop(0)
            except httpx2.HTTPError:
                continue
        devnet.send_signal(signal.SIGINT)
        _, shown = devnet.communicate(timeout=60)
    finally:
        devnet.kill()
        devnet.wait()
    assert devnet.returncode == 0
    assert b"all daemons have stopped" in shown
    for url in urls:
        try:
            httpx2.get(f"{url}/healthz", trust_env=False, timeout=2)
        except httpx2.HTTPError:
            continue
        raise AssertionError(f"{url} still answers")


def test_a_daemon_that_cannot_start_is_named_with_its_reason(run: Callable, tmp_path: Path):
    folder = tmp_path / "net"
    run("run_node.py", "devnet", "--dir", folder, "--storage", "1", "--sharing", "1", "--only-make")
    os.chmod(folder / "cloud" / "keys" / "cloud.key", 0o644)
    failed = run("run_node.py", "devnet", "--dir", folder, code=1)
    assert "cloud exited with code 1" in failed.stderr
    assert "chmod 600" in failed.stderr


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_node_with_a_damaged_journal_says_so_and_does_not_start(run: Callable, tmp_path: Path, damage: str):
    folder = tmp_path / "net"
    run("run_node.py", "devnet", "--dir", folder, "--storage", "1", "--sharing", "1", "--only-make")
    config = folder / "storage-1" / "config.toml"
    _, chains = load_network(folder / "network.toml")
    Store(folder / "storage-1" / "data", chains["storage"]).close()
    journal = folder / "storage-1" / "data" / "consensus.db"
    data = journal.read_bytes()
    journal.write_bytes(
        data[:5000] if damage == "truncated" else data[:4096] + bytes(b ^ 0x5A for b in data[4096:])
    )
    refused = run("run_node.py", "node", "--config", config, code=1)
    assert "database cannot be used" in refused.stderr
    assert "--rejoin" in refused.stderr


def test_a_second_process_on_the_same_data_is_refused(run: Callable, net):
    folder = net.folder / "storage-1"
    refused = run("run_node.py", "node", "--config", folder / "config.toml", "--http-port", "0", code=1)
    assert "in use by another process" in refused.stderr
