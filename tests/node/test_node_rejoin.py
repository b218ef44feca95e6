"""A node whose journal is gone: refused without --rejoin, and with it back among the voters without ever voting twice."""

import shutil

import pytest
from node_world import World

from crypto.errors import Conflict
from protocol.block import Committee, Votes


async def test_a_node_whose_data_folder_was_deleted_starts_only_with_rejoin_and_then_votes_again(tmp_path):
    world = World(tmp_path, term_length=2)
    await world.start()
    await world.grow(0)
    await world.stop(3)
    shutil.rmtree(world.data(3))
    with pytest.raises(Conflict, match="start once with --rejoin"):
        world.make(3)
    with pytest.raises(Conflict, match="start once with --rejoin"):
        world.make(3)  # the first attempt has not made an empty journal look like the right one
    await world.start(3, rejoin=True)
    await world.until(lambda: world.nodes[3].core.abstain_until is not None)
    until = world.nodes[3].core.abstain_until
    await world.until(lambda: world.nodes[3].executed_height == world.nodes[0].executed_height)
    while not any(kind == "finalize" for _, kind in world.nodes[3].core._own):
        await world.grow(0)
    assert all(view > until for view, _ in world.nodes[3].core._own)
    assert not any(node.evidence for node in world.nodes.values())
    await world.stop(3)
    await world.start(3)
    assert world.nodes[3].core.abstain_until == until, "the flag was needed once"
    await world.stop()


async def test_a_node_of_a_chain_too_small_for_reports_cannot_rejoin(tmp_path):
    world = World(tmp_path, size=3)
    assert Committee(world.genesis).quorum == 3
    with pytest.raises(Conflict, match="reports from 3 others"):
        world.make(0, rejoin=True)


async def test_evidence_against_a_member_reaches_the_journal_of_every_node(tmp_path):
    world = World(tmp_path)
    await world.start()
    committee = Committee(world.genesis)
    for block in (b"x" * 32, b"y" * 32):
        vote = committee.sign(world.keys[3], 3, "notarize", 1, block)
        world.nodes[3]._send(0, Votes((vote,), None))
    honest = [world.nodes[i] for i in (0, 1, 2)]
    await world.until(lambda: all(node.evidence for node in honest))
    await world.stop()
    for i in (0, 1, 2):
        node = world.make(i)
        assert [(e.kind, e.first.signer) for e in node.evidence] == [("E1", 3)]
        await node.stop()
