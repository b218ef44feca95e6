"""What operators are told about a chain that does not move."""

from typing import Any

import pytest

from client.diagnosis import diagnose
from crypto.errors import Malformed
from crypto.sign import SigningKey
from protocol.block import Committee
from protocol.genesis import Genesis, Member
from tests.dealer import share_point

NAMES = [f"storage-{i}" for i in range(1, 5)]
MEMBERS = tuple(
    Member(n, SigningKey(bytes([i]) * 32).public, f"p{i}", share_point(i)) for i, n in enumerate(NAMES, 1)
)
GENESIS = Genesis("diptych/1/storage/x", "storage", "bft", MEMBERS, bytes(32), 0)
INDEX_KEY = {"public": "cc", "holds_share": True, "phase": None, "waits_for": []}
COMMITTEE = Committee(GENESIS)
SILENT = {"error": "does not answer", "url": "http://127.0.0.1:1"}


def status(name: str, **changes: Any) -> dict[str, Any]:
    healthy = {
        "node": name,
        "height": 7,
        "block": "aa",
        "executed_height": 7,
        "receipts_root": "bb",
        "view": 8,
        "leader": NAMES[0],
        "peers": [n for n in NAMES if n != name],
        "mempool": 0,
        "since_final_s": 12.0,
        "timeout_in_s": None,
        "nullified_by": [],
        "no_notarize_from": NAMES,
        "no_nullify_from": NAMES,
        "halted": None,
        "alarm": None,
        "index_key": INDEX_KEY,
    }
    return healthy | changes


def test_an_idle_chain_is_said_to_be_idle():
    assert diagnose(COMMITTEE, [status(n) for n in NAMES]) == [
        "idle at height 7: nothing waits, the last block is 12 s old"
    ]


def test_too_few_nodes_are_named_with_what_is_needed():
    assert diagnose(COMMITTEE, [status(NAMES[0]), SILENT, status(NAMES[2]), SILENT]) == [
        "waits for votes: needs 3 of 4 nodes, storage-2 and storage-4 do not answer; start them"
    ]


def test_one_node_down_is_named_with_what_the_chain_still_bears():
    said = diagnose(COMMITTEE, [*(status(n) for n in NAMES[:3]), SILENT])
    assert said[-1] == "storage-4 does not answer; one more failure stops the chain"


def test_a_stuck_view_names_leader_who_gave_up_and_who_is_unheard():
    stuck = {
        "mempool": 3,
        "timeout_in_s": -2.0,
        "nullified_by": NAMES[:2],
        "no_nullify_from": NAMES[2:],
        "since_final_s": 40.0,
    }
    (said,) = diagnose(COMMITTEE, [status(n, **stuck) for n in NAMES])
    assert "view 8 of leader storage-1 needs 3 of 4" in said
    assert "storage-1 and storage-2 gave the leader up" in said
    assert "nothing in this view from storage-3 and storage-4" in said


def test_a_node_without_links_is_told_to_check_its_network():
    said = diagnose(COMMITTEE, [status(NAMES[0], peers=[]), *(status(n) for n in NAMES[1:])])
    assert said[0].startswith(
        "storage-1 cannot reach a quorum: it has no link to storage-2, storage-3 and storage-4"
    )


def test_a_halt_a_full_disk_and_a_fork_come_first():
    said = diagnose(
        COMMITTEE,
        [
            status(NAMES[0], halted="two"),
            status(NAMES[1], alarm="full"),
            status(NAMES[2], block="cc"),
            SILENT,
        ],
    )
    assert said[0] == "storage-1 has halted for ever: two"
    assert "storage-1 and storage-3 show different histories at height 7" in said[1]
    assert said[2] == "storage-2 does not vote now: full"


def test_a_node_far_behind_is_named():
    said = diagnose(
        COMMITTEE,
        [status(NAMES[0], height=900), *(status(n, height=899) for n in NAMES[1:3]), status(NAMES[3])],
    )
    assert said[0] == "storage-4 is behind and catching up with height 900"


def test_an_index_key_in_the_making_says_whom_it_waits_for():
    making = INDEX_KEY | {
        "public": None,
        "holds_share": False,
        "phase": "dealing",
        "waits_for": ["storage-2"],
    }
    said = diagnose(COMMITTEE, [status(n, index_key=making) for n in NAMES])
    assert said[-1] == "makes its index key: waits for storage-2 (dealing)"
    again = INDEX_KEY | {"phase": "judging", "waits_for": NAMES[2:]}
    said = diagnose(COMMITTEE, [status(n, index_key=again) for n in NAMES])
    assert said[-1] == "re-shares its index key: waits for storage-3 and storage-4 (judging)"


def test_a_node_without_a_share_of_the_index_key_is_named():
    without = status(NAMES[1], index_key=INDEX_KEY | {"holds_share": False})
    said = diagnose(COMMITTEE, [status(NAMES[0]), without, *(status(n) for n in NAMES[2:])])
    assert said[-1].startswith("storage-2 cannot help to open index entries")


@pytest.mark.parametrize(
    "change",
    [
        {"index_key": None},
        {"index_key": {}},
        {"peers": None},
        {"height": "x"},
        {"since_final_s": []},
        {"nullified_by": 3, "mempool": 1},
    ],
)
def test_a_status_in_another_form_is_refused(change):
    with pytest.raises(Malformed, match="agreed form"):
        diagnose(COMMITTEE, [status(n, **change) for n in NAMES])
