"""What a person sees when a pairing library on their machine is broken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crypto import abe, fabeo

ROOT = Path(__file__).resolve().parents[2]
POLICY, CONTEXT = "role:doctor and org:st-mary", b"here"
OPEN = """
import sys
from crypto import abe, fabeo, group
public, key, header = map(bytes.fromhex, sys.argv[1:])
opened = abe.decapsulate(
    fabeo.PublicKey.from_bytes(public), fabeo.AttributeKey.from_bytes(key), "role:doctor and org:st-mary", header, b"here"
)
print(group.chosen().name, opened.hex())
"""


@pytest.fixture
def broken(tmp_path):
    """The environment of a process in which `pymcl` is something else."""
    (tmp_path / "pymcl.py").write_text("class _pymcl:\n    __file__ = '/dev/null'\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


def test_the_light_client_says_that_a_broken_pairing_library_was_replaced(broken, tmp_path):
    words = [sys.executable, "-m", "client", "--home", str(tmp_path / "nobody"), "record", "list"]
    done = subprocess.run(words, env=broken, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "pairings are computed by arkworks" in done.stderr
    assert "mcl: " in done.stderr
    assert "mcl-plain: " in done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_sealed_elsewhere_opens_where_a_pairing_library_is_broken(broken):
    master = fabeo.MasterKey.generate()
    header, secret = abe.encapsulate(master.public, POLICY, CONTEXT)
    key = master.issue(["role:doctor", "org:st-mary"])
    sent = [part.hex() for part in (master.public.to_bytes(), key.to_bytes(), header)]
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *sent], env=broken, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["arkworks", secret.hex()]
