"""The paper's claims: for each the tests that show it, which are run here, and for C5 to C8 what this run measured.

A measured claim holds or does not by the numbers of the run alone, whatever the tests say.
"""

import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from xml.etree import ElementTree

from bench.paper import changes, fig7, fig8
from bench.paper.lab import Lab, Piece, Row
from bench.results import read_rows

TITLE = "The claims of the paper"
ROOT = Path(__file__).resolve().parents[2]
Results = Mapping[str, list[Row]]
FLAT = 1.2
"""How much longer than with one shared part a response may take that is called flat."""


class Verdict(NamedTuple):
    holds: bool
    words: str


class Claim(NamedTuple):
    name: str
    words: str
    tests: tuple[str, ...]
    measured: Callable[[Results], Verdict | None] = lambda _: None


def _storage(results: Results) -> Verdict | None:
    totals: dict[str, dict[str, int]] = defaultdict(dict)
    for row in results["storage"]:
        totals[row["bundle"]][row["scheme"]] = row["total"]
    if not totals:
        return None
    holds = {name: t["bpds"] < t["diptych"] < t["traditional"] for name, t in totals.items()}
    saved = {name: 1 - t["diptych"] / t["traditional"] for name, t in totals.items()}
    least, most = min(saved, key=saved.__getitem__), max(saved, key=saved.__getitem__)
    words = (
        f"BPDS < Diptych < traditional for {sum(holds.values())} of {len(totals)} records; against the traditional scheme Diptych holds "
        f"{-saved[most]:+.0%} ({most}) to {-saved[least]:+.0%} ({least})"
    )
    return Verdict(all(holds.values()), words)


def _index(results: Results) -> Verdict | None:
    entries = _transactions(results, "record.publish")
    if not entries:
        return None
    ours = {count for (name, _), count in entries.items() if name == "diptych"}
    grows = all(count == k for (name, k), count in entries.items() if name == "bpds")
    most = max(k for _, k in entries)
    return Verdict(
        ours == {2} and grows,
        f"Diptych {_listed(ours)} entries whatever k, BPDS {entries['bpds', most]} at k = {most}",
    )


def _requests(results: Results) -> Verdict | None:
    requests = _transactions(results, "access.request")
    medians = {
        r["shared_parts"]: r["p50_ms"]
        for r in results["fig7"]
        if r["scheme"] == "diptych" and r["users"] == 1
    }
    slow = {
        r["shared_parts"]: r["p50_ms"] for r in results["fig7"] if r["scheme"] == "bpds" and r["users"] == 1
    }
    if not requests or not medians or not slow:
        return None
    one = all(count == 1 for (name, _), count in requests.items() if name == "diptych")
    few = max(k for k in medians if k <= 9)
    most, slowest = max(medians), max(slow)
    words = (
        f"one request whatever k, BPDS k; one user waits, in the median, {medians[few] / medians[1]:.2f} times as long at k = {few} as at 1, "
        f"{medians[most] / medians[1]:.2f} times at {most} (flat: {FLAT} at most); BPDS {slow[few] / slow[1]:.1f} times at k = {few}, "
        f"{slow[slowest] / slow[1]:.0f} times at {slowest}"
    )
    return Verdict(one and max(medians.values()) <= FLAT * medians[1], words)


def _two_chains(results: Results) -> Verdict | None:
    means: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in results["fig8"]:
        if row["split"] in (0.5, 1.0) and (row["nodes"] != "2x4" or row["split"] == 0.5):
            means[row["nodes"], row["users"]].append(row["mean_ms"])
    if not means:
        return None
    users = max(u for _, u in means)
    two, four, eight = (sum(m) / len(m) for m in (means[nodes, users] for nodes in fig8.CONFIGURATIONS))
    words = (
        f"at {users} users {two:.0f} ms on two chains of 4 nodes, {four:.0f} ms on one of 4, {eight:.0f} ms on one of 8, "
        "every node with the same share of a core"
    )
    return Verdict(two < min(four, eight), words)


def _rewrites(results: Results) -> Verdict | None:
    sent: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in results["changes"]:
        sent[row["scheme"], row["record_bytes"]].append(row["uploaded_bytes"])
    sizes = sorted({size for _, size in sent})
    if not sizes:
        return None
    small, large = (max(sent["diptych", size]) for size in (sizes[0], sizes[-1]))
    words = (
        f"Diptych sends at most {small:,} B for a change of a {sizes[0]:,} B record and {large:,} B for one of {sizes[-1]:,} B; "
        f"BPDS up to {max(sent['bpds', sizes[-1]]):,} B"
    )
    return Verdict(large < 2 * small, words)


def _transactions(results: Results, kind: str) -> Counter[tuple[str, int]]:
    """How many of a kind, by scheme and k."""
    found: Counter[tuple[str, int]] = Counter()
    for row in results["index"]:
        if row["transaction"] == kind:
            found[row["scheme"], row["shared_parts"]] += row["count"]
    return found


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


_CES, _E2E = "tests/crypto/test_crypto_ces.py", "tests/e2e/test_e2e_baselines.py"
CLAIMS = (
    Claim(
        "C1",
        "A changed part, tag, hash or signature, or parts that are swapped, are refused",
        (
            f"{_CES}::test_a_changed_tag_or_message_is_refused",
            f"{_CES}::test_a_changed_added_or_missing_hash_is_refused",
            f"{_CES}::test_a_changed_truncated_or_absent_signature_is_refused",
            f"{_CES}::test_swapped_positions_are_refused",
        ),
    ),
    Claim(
        "C2",
        "An extracted signature verifies without the removed parts and reveals nothing of them",
        (
            f"{_CES}::test_full_signature_and_extract_verify_after_a_trip_over_the_wire",
            f"{_CES}::test_an_extract_holds_neither_removed_parts_nor_any_tag",
            f"{_CES}::test_an_extract_depends_on_a_removed_part_only_through_its_commitment",
        ),
    ),
    Claim(
        "C3",
        "The cloud sees no plaintext",
        (
            "tests/e2e/test_e2e_leaks.py::test_nothing_that_a_record_says_lies_on_any_server_or_in_its_log",
            "tests/e2e/test_e2e_leaks.py::test_no_key_of_a_person_or_part_lies_on_any_server_or_in_its_log",
        ),
    ),
    Claim(
        "C4",
        "Readers of the shared part open exactly m2 to m7, readers of the whole open all, others nothing",
        (f"{_E2E}::test_each_reader_opens_what_the_patient_lets_them",),
    ),
    Claim("C5", "One stored copy; bytes in the cloud ordered BPDS < Diptych < traditional", (), _storage),
    Claim("C6", "Two index entries a record, against k of BPDS", (), _index),
    Claim("C7", "One request against k of BPDS; response time flat in k", (), _requests),
    Claim("C8", "At high load two chains answer sooner than one", (), _two_chains),
    Claim(
        "C9",
        "Redefining m8 or swapping government and researchers rewrites key ciphertexts only",
        (
            f"{_E2E}::test_no_data_ciphertext_changes_when_a_part_moves_or_rights_are_swapped",
            f"{_E2E}::test_a_part_that_is_moved_can_be_read_by_whom_it_is_shared_with[diptych]",
            f"{_E2E}::test_rights_that_are_swapped_hold_for_the_next_request[diptych]",
        ),
        _rewrites,
    ),
    Claim(
        "C10",
        "A block needs more than half of the nodes; a minority of crashed nodes does not stop the chain",
        (
            "tests/protocol/test_protocol_core.py::test_a_minority_of_dead_nodes_does_not_stop_the_chain_and_a_majority_does",
            "tests/protocol/test_protocol_quorum.py::test_any_two_quorums_share_a_member_and_all_members_together_are_one",
            "tests/protocol/test_protocol_core_rules.py::test_votes_for_two_blocks_do_not_add_up",
        ),
    ),
    Claim(
        "C11",
        "A wrong signature of the patient on the address opens nothing at the cloud",
        (
            "tests/cloudstub/test_cloudstub_server.py::test_a_bad_download_is_refused_with_its_reason_which_the_patient_finds_in_the_log",
        ),
    ),
    Claim(
        "C12",
        "Every request, allowed or denied, is on chain and traceable",
        (f"{_E2E}::test_every_request_allowed_or_denied_stands_on_chain_with_who_and_why",),
    ),
)


def pieces(lab: Lab) -> Iterator[Piece]:
    yield Piece("the tests behind the claims", 45, lambda: _judge(lab))


def _judge(lab: Lab) -> Iterable[Row]:
    names = ("storage", "index", fig7.__name__, fig8.__name__, changes.__name__)
    stems = [name.rpartition(".")[2] for name in names]
    files = {stem: lab.out / f"{stem}.csv" for stem in stems}
    results = {stem: read_rows(path) if path.exists() else [] for stem, path in files.items()}
    outcomes = _run_tests([test for claim in CLAIMS for test in claim.tests])
    for claim in CLAIMS:
        passed = sum(outcomes[test][0] for test in claim.tests)
        failed = sum(outcomes[test][1] for test in claim.tests)
        measured = claim.measured(results)
        is_shown = (failed == 0 and passed > 0) if claim.tests else measured is not None
        yield {
            "claim": claim.name,
            "says": claim.words,
            "tests": " ".join(claim.tests),
            "passed": passed,
            "failed": failed,
            "measured": measured.words if measured else "",
            "holds": int(is_shown and (measured is None or measured.holds)),
            "is_known": int(bool(claim.tests) or measured is not None),
        }


def _run_tests(tests: list[str]) -> dict[str, tuple[int, int]]:
    """For each test, how many of its cases passed and how many did not."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"--junitxml={report}",
            "-o",
            "junit_family=xunit1",
            *tests,
        ]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)  # noqa: S603
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []  # noqa: S314
    found = {test: [0, 0] for test in tests}
    for case in cases:
        name = f"{case.get('file')}::{case.get('name')}"
        for test in tests:
            if name == test or name.startswith(f"{test}["):
                found[test][case.find("failure") is not None or case.find("error") is not None] += 1
    return {test: (passed, failed or not passed) for test, (passed, failed) in found.items()}
