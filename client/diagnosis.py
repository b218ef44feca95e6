"""Why a chain moves or does not, in sentences for its operators, from what its nodes say about themselves (`/v1/status`).

A node can lie about itself, so this points to where to look and proves nothing; `diptych audit` proves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crypto.errors import Malformed
from protocol.block import Committee

FAR_BEHIND = 10
"""Blocks behind the highest node from which on a node is worth a sentence."""


def diagnose(committee: Committee, answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The worst first, at least one sentence. `answers` are the nodes' statuses; one without a member's name in `node` is of
    a node that does not answer. Raises `Malformed` if a status lacks what this version's nodes tell."""
    nodes = {str(a["node"]): a for a in answers if a.get("node") in {m.name for m in committee.members}}
    try:
        return _diagnose(committee, nodes)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise Malformed("a node's status is not in the agreed form; it may run another version") from None


def _diagnose(committee: Committee, nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    size, quorum = committee.size, committee.quorum
    silent = [m.name for m in committee.members if m.name not in nodes]
    said = [f"{name} has halted for ever: {s['halted']}" for name, s in nodes.items() if s["halted"]]
    said += _disagreements(nodes)
    said += [f"{name} does not vote now: {s['alarm']}" for name, s in nodes.items() if s["alarm"]]
    if len(nodes) < quorum:
        said.append(
            f"waits for votes: needs {quorum} of {size} nodes, {_listed(silent)} {_do(silent)} not answer; start them"
        )
        return said
    cut_off = {n: s for n, s in nodes.items() if len(s["peers"]) + 1 < quorum}
    for name, status in cut_off.items():
        unlinked = [m.name for m in committee.members if m.name not in (name, *status["peers"])]
        said.append(
            f"{name} cannot reach a quorum: it has no link to {_listed(unlinked)}; check the p2p addresses and the firewall"
        )
    highest = max(int(s["height"]) for s in nodes.values())
    lagging = [n for n, s in nodes.items() if highest - int(s["height"]) >= FAR_BEHIND]
    if lagging:
        said.append(f"{_listed(lagging)} {_is(lagging)} behind and catching up with height {highest}")
    said.append(_progress(committee, nodes, highest))
    said += _index_key(nodes)
    if silent:
        spare = len(nodes) - quorum
        said.append(
            f"{_listed(silent)} {_do(silent)} not answer; "
            + (f"the chain bears {spare} more failures" if spare else "one more failure stops the chain")
        )
    return said


def _disagreements(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Two nodes that show different histories at one height."""
    said = []
    for height, value in (("height", "block"), ("executed_height", "receipts_root")):
        first: dict[int, tuple[str, object]] = {}
        for name, status in nodes.items():
            other, known = first.setdefault(int(status[height]), (name, status[value]))
            if known != status[value]:
                said.append(
                    f"{other} and {name} show different histories at height {status[height]}: stop them and run "
                    "`diptych audit` on their databases"
                )
                break
    return said


def _progress(committee: Committee, nodes: Mapping[str, Mapping[str, Any]], highest: int) -> str:
    """Whether the chain moves, told by the node that is furthest; what it waits for if it does not."""
    status = max(nodes.values(), key=lambda s: (int(s["height"]), int(s["view"])))
    since, waiting = float(status["since_final_s"]), any(int(s["mempool"]) for s in nodes.values())
    if not waiting and status["timeout_in_s"] is None:
        return f"idle at height {highest}: nothing waits, the last block is {since:.0f} s old"
    if since < 4 * committee.genesis.base_timeout_ms / 1000:
        return f"moves: height {highest}, the last block is {since:.1f} s old"
    view, size = status["view"], committee.size
    gave_up, absent = status["nullified_by"], status["no_notarize_from"]
    unheard = [n for n in absent if n in status["no_nullify_from"]]
    sentence = f"waits for votes: no block for {since:.0f} s; view {view} of leader {status['leader']} needs {committee.quorum} of {size}"
    if gave_up:
        sentence += f"; {_listed(gave_up)} gave the leader up"
    if unheard:
        sentence += f"; nothing in this view from {_listed(unheard)}"
    return sentence


def _index_key(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the chain has an index key, and who has no part in it."""
    seen = max(nodes.values(), key=lambda s: int(s["executed_height"]))["index_key"]
    said = []
    if seen["phase"]:
        verb = "re-shares" if seen["public"] else "makes"
        said.append(f"{verb} its index key: waits for {_listed(seen['waits_for'])} ({seen['phase']})")
    without = [n for n, s in nodes.items() if s["index_key"]["public"] and not s["index_key"]["holds_share"]]
    if without:
        said.append(
            f"{_listed(without)} cannot help to open index entries, for want of a share: see the log, and re-share the key"
        )
    return said


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _do(names: Sequence[str]) -> str:
    return "does" if len(names) == 1 else "do"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
