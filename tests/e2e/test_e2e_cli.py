"""The command line as people and scripts use it, against a real network."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from e2e_files import ROOT, SAMPLES

from client.fhir import tokens_equal
from node.devnet import Supervisor

BAD_BUNDLES = {
    "not JSON": (b"hello", "JSON"),
    "truncated": (SAMPLES[0].read_bytes()[:20_000], "cut off"),
    "no bundle": (b'{"resourceType": "Patient"}', "Bundle"),
    "duplicate keys": (b'{"resourceType": "Bundle", "type": "a", "type": "b", "entry": []}', "twice"),
    "NaN": (b'{"resourceType": "Bundle", "total": NaN, "entry": []}', "NaN"),
    "lone surrogate": (b'{"resourceType": "Bundle", "id": "\\ud800", "entry": []}', "surrogate"),
    "too deep": (b'{"a":' * 100 + b"1" + b"}" * 100, "64"),
    "no patient": (
        b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Condition"}}]}',
        "Patient",
    ),
    "two patients": (
        b'{"resourceType":"Bundle","entry":['
        + b",".join([b'{"resource":{"resourceType":"Patient"}}'] * 2)
        + b"]}",
        "Patient",
    ),
    "100 MB": (b" " * 100_000_000, "67108864"),
}


@pytest.fixture(scope="module")
def people(
    net: Supervisor, invite: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Homes made by `diptych init`: a doctor, a patient, a researcher."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("cli")
    invites = {
        "doctor": invite("doctor", ["org:st-mary"], 1),
        "patient": invite("patient", [], 1),
        "researcher": invite("user", ["role:researcher"], 1),
    }
    keys = {}
    for name, invitation in invites.items():
        words = ["-m", "client", "--home", folder / name, "-o", "json", "init", "--ces", "ed25519"]
        words += ["--network", net.folder / "network.toml", "--invite", invitation]
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        keys[name] = json.loads(done.stdout)["key"]
    return SimpleNamespace(folder=folder, keys=keys, invites=invites)


@pytest.fixture
def diptych(run: Callable, people: SimpleNamespace) -> Callable:
    """`diptych("patient", "record", "list")` gives the parsed JSON; with `code`, the error document."""

    def call(name: str, *words: object, code: int = 0):
        done = run("-m", "client", "--home", people.folder / name, "-o", "json", *words, code=code)
        return (
            json.loads(done.stderr.strip().splitlines()[-1])
            if code and not done.stdout
            else json.loads(done.stdout)
        )

    return call


@pytest.fixture
def package(diptych: Callable, people: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    path = tmp_path / "record.diptych"
    made = diptych(
        "doctor", "record", "import", SAMPLES[0], "--patient", people.keys["patient"], "--out", path
    )
    return SimpleNamespace(path=path, record=made["record"], parts=made["parts"])


def test_a_record_goes_from_the_doctor_to_the_researcher_by_commands_alone(
    diptych: Callable, run: Callable, people: SimpleNamespace, package: SimpleNamespace, tmp_path: Path
):
    record = package.record
    assert diptych("patient", "record", "store", package.path)["version"] == 1
    assert [r["record"] for r in diptych("patient", "record", "list")].count(record) == 1
    assert diptych("researcher", "record", "request", record)["decision"] == "allowed"
    opened = diptych("researcher", "record", "open", record)
    shared = {p["part"] for p in package.parts if p["access"] == "shared"}
    assert {p["part"] for p in opened["opened"]} == shared == set(opened["parts"])

    denied = diptych("researcher", "record", "request", record, "--chain", "storage", code=5)
    assert (denied["decision"], denied["code"]) == ("denied", "policy-not-met")

    before = diptych("patient", "record", "show", record)
    held_up = diptych("patient", "record", "move", record, "m8", "--to", "shared", code=5)
    findings = diptych("patient", "record", "lint", record, "--share", "m8")
    assert {(f["kind"], f["part"]) for f in findings} == {("name", "m8")}
    assert all(f["id"] in held_up["message"] for f in findings)
    assert diptych("patient", "record", "show", record)["version"] == 1, "nothing was sent"
    acknowledged = [word for finding in findings for word in ("--acknowledge", finding["id"])]
    moved = diptych("patient", "record", "move", record, "m8", "--to", "shared", *acknowledged)
    assert moved["version"] == 2
    assert [p["ciphertext"] for p in moved["parts"]] == [p["ciphertext"] for p in before["parts"]]
    diptych("researcher", "record", "request", record)
    out = tmp_path / "study"
    diptych("researcher", "record", "open", record, "--out", out)
    assert {f.stem for f in out.iterdir()} == {*shared, "m8"}

    changed = diptych(
        "patient", "record", "policy", record, "shared=role:doctor", "private=role:doctor and org:st-mary"
    )
    assert changed["policies"] == {"private": "org:st-mary and role:doctor", "shared": "role:doctor"}
    assert diptych("researcher", "record", "request", record, code=5)["code"] == "policy-not-met"

    assert (
        diptych("doctor", "record", "request", record, "--chain", "storage", "--purpose", "treatment")[
            "decision"
        ]
        == "allowed"
    )
    bundle = tmp_path / "bundle.json"
    run("-m", "client", "--home", people.folder / "doctor", "record", "export", record, "--out", bundle)
    assert tokens_equal(bundle.read_bytes(), SAMPLES[0].read_bytes())
    own = run("-m", "client", "--home", people.folder / "patient", "record", "export", record).stdout
    assert tokens_equal(own.encode(), SAMPLES[0].read_bytes())

    log = diptych("patient", "record", "log", record)
    proved = diptych("patient", "record", "log", record, "--verify")
    assert [e for e in proved["log"] if e["chain"] != "cloud"] == [e for e in log if e["chain"] != "cloud"]
    assert sum(c["receipts"] for c in proved["complete"]) == sum(e["chain"] != "cloud" for e in log)
    assert all(len(c["signed_by"]) == 3 for c in proved["complete"])
    assert [e["decision"] for e in log].count("denied") == 2
    seen = diptych("patient", "chain", "tx", log[0]["tx"], "--chain", log[0]["chain"])
    assert seen["record"] == record
    block = diptych("patient", "chain", "block", seen["height"], "--chain", log[0]["chain"])
    assert seen["tx"] in {tx["tx"] for tx in block["txs"]}


def test_a_bundle_with_the_patients_name_among_shared_notes_waits_for_the_doctors_word(
    diptych: Callable, people: SimpleNamespace, tmp_path: Path
):
    path = tmp_path / "delicate.diptych"
    words = ["record", "import", SAMPLES[3], "--patient", people.keys["patient"], "--out", path]
    held_up = diptych("doctor", *words, code=5)
    assert "name in m5" in held_up["message"]
    assert "Zs" not in held_up["message"]
    assert not path.exists()
    findings = diptych("doctor", "record", "lint", SAMPLES[3])
    some, last = findings[:-1], findings[-1]
    ids = [word for finding in some for word in ("--acknowledge", finding["id"])]
    assert last["id"] in diptych("doctor", *words, *ids, code=5)["message"]
    made = diptych("doctor", *words, *ids, "--acknowledge", last["id"])
    assert "sensitive" in {p["part"] for p in made["parts"] if p["access"] == "private"}

    diptych("patient", "record", "store", path, code=5)
    stored = diptych("patient", "record", "store", path, "--access", "m5=private")
    assert stored["version"] == 1, "without the part that names her, nothing stands in the way"
    moved = ["patient", "record", "move", made["record"], "sensitive", "--to", "shared"]
    assert "sensitive" in diptych(*moved, code=5)["message"]
    assert diptych(*moved, "--acknowledge", "all")["version"] == 2


def test_a_fine_record_with_rules_is_made_shown_and_kept_to_by_commands(
    diptych: Callable, people: SimpleNamespace, tmp_path: Path
):
    path = tmp_path / "fine.diptych"
    words = ["--patient", people.keys["patient"], "--out", path, "--profile", "fine"]
    rules = ["--rule", "together(m6-1, m7-1)", "--rule", "if(any(m5), m2)"]
    made = diptych("doctor", "record", "import", SAMPLES[0], *words, *rules)
    listed = {p["part"]: p["access"] for p in made["parts"]}
    assert listed["m8-1"] == "private"
    diptych("patient", "record", "store", path, "--access", "m8=shared", code=5)
    stored = diptych("patient", "record", "store", path, "--access", "m8=shared", "--acknowledge", "all")
    access = {p["part"]: p["access"] for p in stored["parts"]}
    assert {access[label] for label in access if label.startswith("m8")} == {"shared"}
    assert access["m9-1"] == "private"
    assert stored["rules"][0] == "together(m6-1, m7-1)"
    refused = diptych("patient", "record", "move", made["record"], "m6-1", "--to", "private", code=5)
    assert "rule 1 of the doctor" in refused["message"]
    moved = diptych("patient", "record", "move", made["record"], "m8-2", "--to", "private")
    assert {p["part"] for p in moved["parts"] if p["access"] != access[p["part"]]} == {"m8-2"}
    again = diptych("doctor", "record", "import", SAMPLES[0], *words, code=8)
    assert "not overwritten" in again["message"]
    path.unlink()
    strange = diptych("doctor", "record", "import", SAMPLES[0], *words, "--rule", "never m8", code=3)
    assert "column 7" in strange["message"]
    assert not list(tmp_path.iterdir())


def test_chain_status_names_every_node_of_both_chains(diptych: Callable):
    nodes = {s["node"] for s in diptych("patient", "chain", "status")}
    assert nodes == {f"{kind}-{n}" for kind in ("storage", "sharing") for n in (1, 2, 3, 4)}


def test_people_read_tables_and_help_has_examples(run: Callable, people: SimpleNamespace):
    assert "storage-1" in run("-m", "client", "--home", people.folder / "patient", "chain", "status").stdout
    assert "Example" in run("-m", "client", "record", "move", "--help").stdout
    assert "Exit codes" in run("-m", "client", "--help").stdout


@pytest.mark.parametrize("name", BAD_BUNDLES)
def test_a_bad_bundle_is_refused_with_a_sentence_and_nothing_is_made(
    diptych: Callable, people: SimpleNamespace, tmp_path: Path, name: str
):
    data, word = BAD_BUNDLES[name]
    bad, out = tmp_path / "bad.json", tmp_path / "out.diptych"
    bad.write_bytes(data)
    error = diptych(
        "doctor", "record", "import", bad, "--patient", people.keys["patient"], "--out", out, code=3
    )
    assert word in error["message"]
    assert not out.exists()


def test_a_gzip_bomb_is_refused(diptych: Callable, people: SimpleNamespace, tmp_path: Path):
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(bytes(100_000_000)))
    assert diptych("doctor", "record", "import", bomb, "--patient", people.keys["patient"], code=3)


def test_a_policy_that_does_not_parse_points_at_the_column_and_stores_nothing(
    diptych: Callable, package: SimpleNamespace
):
    error = diptych(
        "patient", "record", "store", package.path, "--policy", "shared=role:doctor andd role:nurse", code=3
    )
    assert "column 13" in error["message"]
    assert diptych("patient", "record", "show", package.record)["version"] == 0


def test_wrong_names_and_forged_packages_have_their_own_exit_codes(
    diptych: Callable, people: SimpleNamespace, package: SimpleNamespace, tmp_path: Path
):
    diptych("patient", "record", "store", package.path)
    assert (
        "m8"
        in diptych("patient", "record", "move", package.record, "m77", "--to", "shared", code=6)["message"]
    )
    assert diptych("patient", "record", "store", package.path, code=8)["error"] == "Conflict"
    assert diptych("researcher", "record", "open", "00" * 16, code=6)["error"] == "NotFound"
    assert diptych("patient", "record", "show", "xyz", code=3)["error"] == "Malformed"
    assert diptych("nobody", "whoami", code=6)["error"] == "NotFound"
    forged = tmp_path / "forged.diptych"
    data = bytearray(package.path.read_bytes())
    data[-1] ^= 1
    forged.write_bytes(data)
    assert diptych("patient", "record", "store", forged, code=4)["error"] == "Unauthentic"
    assert diptych("researcher", "record", "store", package.path, code=4)["error"] == "Unauthentic"


def test_an_invitation_works_once_and_only_for_the_key_that_used_it(
    diptych: Callable, net: Supervisor, people: SimpleNamespace
):
    network = net.folder / "network.toml"
    again = diptych("patient", "init", "--network", network, "--invite", people.invites["patient"])
    assert again["key"] == people.keys["patient"]
    other = diptych("other", "init", "--network", network, "--invite", people.invites["patient"], code=8)
    assert "used by another key" in other["message"]


def test_daemon_configs_are_validated_by_check(run: Callable, net: Supervisor, tmp_path: Path):
    for name in ("storage-1", "cloud", "authority"):
        command = name if name in ("cloud", "authority") else "node"
        assert (
            "is valid"
            in run("run_node.py", command, "--config", net.folder / name / "config.toml", "--check").stderr
        )
    config = tmp_path / "config.toml"
    config.write_text(
        'network = "n.toml"\nkeys = "k"\ndata = "d"\nchain = "third"\nname = "x"\np2p_port = 99999\nhttp_port = 1'
    )
    refused = run("run_node.py", "node", "--config", config, "--check", code=1)
    assert "chain" in refused.stderr
    assert "p2p_port" in refused.stderr


def test_the_example_scripts_run_one_a_role(run: Callable, net: Supervisor, tmp_path: Path):
    def script(name: str, *words: object) -> str:
        return run(f"client/examples/{name}.py", *words).stdout

    config, network = net.folder / "authority" / "config.toml", net.folder / "network.toml"
    script("authority", config, network, "doctor", tmp_path / "doctor", "org:st-mary")
    patient = script("authority", config, network, "patient", tmp_path / "patient").strip()
    script("authority", config, network, "user", tmp_path / "researcher", "role:researcher")
    package = tmp_path / "r.diptych"
    record = script("doctor", tmp_path / "doctor", patient, SAMPLES[1], package).strip()
    assert "version 2" in script("patient", tmp_path / "patient", package)
    assert "Observation" in script("researcher", tmp_path / "researcher", record)
