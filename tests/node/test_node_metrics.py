"""What operators read from running nodes: metrics and the status page."""

import pytest
from node_world import World
from prometheus_client.parser import text_string_to_metric_families

from node.net import Chan


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    await made.stop()


async def scrape(world: World, i: int) -> dict[str, float]:
    """Each sample by its name and label values, as in `votes_received_total notarize`."""
    answer = await world.get(i, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        " ".join([s.name.removeprefix("diptych_"), *s.labels.values()]): s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
    }


async def test_metrics_tell_what_a_chain_has_done(world):
    await world.start()
    await world.grow(0, 3)
    for i, node in world.nodes.items():
        found = await scrape(world, i)
        assert found["height"] == found["executed_height"] == node.core.tip.height >= 3
        assert found["view"] == node.core.view
        assert found["blocks_total"] == node.core.tip.height
        assert found["transactions_total"] == 3
        assert (
            found["mempool_transactions"] == found["evidence_total"] == found["halted"] == found["alarm"] == 0
        )
        assert found["commit_seconds_count"] == node.core.tip.height
        assert found["journal_write_seconds_count"] >= 3
        assert found["votes_sent_total finalize"] >= 3
        assert found["votes_received_total finalize"] >= 3
        peers = [f"n{k}" for k in world.nodes if k != i]
        assert [found[f"peer_linked {name}"] for name in peers] == [1, 1, 1]
        assert found["net_total sent_vote"] > 0


async def test_a_member_that_sends_rubbish_shows_in_the_metrics_of_others(world):
    await world.start()
    world.nodes[2].net.send("n0", Chan.VOTE, b"rubbish")
    await world.until(lambda: world.nodes[0].refused["n2"])
    assert (await scrape(world, 0))["messages_refused_total n2"] == 1


async def test_requests_are_counted_by_pattern_so_that_no_id_shows_and_strangers_add_no_series(world):
    await world.start(0)
    secret = "ab" * 16
    for path in (f"/v1/record/{secret}", f"/nowhere/{secret}", f"/nowhere/{secret}/more"):
        assert (await world.get(0, path)).status_code == 404
    assert (await world.request(0, "PATCH", "/v1/tx")).status_code == 405
    text = (await world.get(0, "/metrics")).text
    assert secret not in text
    assert "nowhere" not in text
    found = await scrape(world, 0)
    assert found["http_requests_total /v1/record/{record} 404"] == 1
    assert found["http_requests_total other 404"] == 2
    assert found["http_seconds_count /v1/record/{record}"] == 1


async def test_status_tells_what_each_member_has_last_said(world):
    await world.start()
    await world.grow(0, 2)
    tip = world.nodes[0].core.tip
    await world.until(
        lambda: all(world.nodes[0].metrics.sight(f"n{k}").height is not None for k in (1, 2, 3))
    )
    status = (await world.get(0, "/v1/status")).json()
    assert [m["node"] for m in status["members_seen"]] == ["n1", "n2", "n3"]
    for member in status["members_seen"]:
        assert member["linked"]
        assert member["heard_s_ago"] >= 0
        assert member["last_votes"]["finalize"] <= tip.view
    assert status["timeout_in_s"] is None, "an idle chain has no deadline"
    assert status["since_final_s"] >= 0
    assert status["nullified_by"] == []


async def test_status_of_a_stuck_chain_names_who_is_missing_and_who_gave_up(world):
    await world.start(0, 1)
    world.nodes[1].submit(world.tx())
    await world.until(lambda: "nullify" in world.nodes[0].metrics.sight("n1").votes)
    await world.until(lambda: 0 not in world.nodes[0].core.missing_votes()["nullify"])
    status = (await world.get(0, "/v1/status")).json()
    seen = {m["node"]: m for m in status["members_seen"]}
    assert seen["n1"]["linked"]
    assert not seen["n2"]["linked"]
    assert seen["n2"]["heard_s_ago"] is seen["n2"]["height"] is None
    assert status["nullified_by"] == ["n0", "n1"]
    assert status["no_nullify_from"] == ["n2", "n3"]
    assert status["timeout_in_s"] is not None


async def test_a_full_node_asks_clients_to_come_back_later(world, monkeypatch):
    await world.start(0, 1)  # too few to make anything final
    monkeypatch.setattr("protocol.mempool.MAX_TXS", 1)
    assert (await world.request(0, "POST", "/v1/tx", world.tx())).status_code == 202
    answer = await world.request(0, "POST", "/v1/tx", world.tx())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "try again" in answer.json()["detail"]
