"""Chains on wide-area links: the same for the same seed, never faster than their links, slower on longer ones, and safe with 100 members."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.costs import attest_tx
from bench.scaling import PLACES, ClosedLoop, Job, network, run_full, run_light
from protocol.quorum import quorum
from tests.simulation.cluster import Cluster
from tests.simulation.oracle import Invariants
from tests.simulation.wide import Costs, Network, WideArea, metered_signatures

US = 1e-6
COSTS = Costs(
    verify=45 * US,
    sign=18 * US,
    message=8 * US,
    message_member=0.1 * US,
    block=100 * US,
    frame=20 * US,
    byte=0.001 * US,
    commit=5 * US,
    vote_commit=250 * US,
    tx_admit=8 * US,
    tx_again=2 * US,
    tx_propose=2 * US,
    tx_follow=2 * US,
    tx_journal=0.5 * US,
    tx_execute=75 * US,
)
FREE = Costs(**dict.fromkeys(COSTS.__dataclass_fields__, 0.0))
GBIT = 1e9


def job(
    place: str, members: int, *, seed: int = 0, is_full: bool = False, count: int = 6, costs: Costs = COSTS
):
    return Job(place, members, seed, is_full, GBIT, costs, count)


def square(members: int, seconds: float) -> list[list[float]]:
    return [[0.0 if a == b else seconds for b in range(members)] for a in range(members)]


@pytest.mark.parametrize("is_full", [False, True])
def test_a_run_is_the_same_for_the_same_seed_and_another_for_another(is_full):
    run = run_full if is_full else run_light
    first, again, other = (run(job("continent", 7, seed=seed, is_full=is_full)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def first_finality(links: Network) -> float:
    """Seconds from the last host's taking a transaction to its knowing it final, on hosts that take no time."""
    with metered_signatures() as meter:
        cluster = WideArea(links, FREE, meter, base_timeout_ms=60_000)
        return cluster.time_to_final(len(links.latency) - 1, attest_tx(cluster.genesis, 1))


ROWS = st.integers(4, 8).flatmap(
    lambda n: st.lists(st.lists(st.floats(0.001, 0.3), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_finality_is_never_earlier_than_any_links_allow(latency):
    for host, row in enumerate(latency):
        row[host] = 0.0
    links = Network(latency, 1e15)
    assert first_finality(links) >= links.least_finality(0, len(latency) - 1)


@given(st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 0.2)), min_size=4, max_size=8))
@settings(max_examples=25, deadline=None)
def test_finality_is_as_early_as_the_links_allow_on_hosts_that_take_no_time(points):
    links = Network([[math.dist(a, b) for b in points] for a in points], 1e15)
    least = links.least_finality(0, len(points) - 1)
    assert least - 1e-9 <= first_finality(links) <= least * 1.051 + 1e-9


def test_what_the_links_allow_is_three_delays_and_the_way_to_the_leader_where_all_links_are_equal():
    links = Network(square(7, 0.1), GBIT)
    assert links.least_finality(2, 2) == pytest.approx(0.3)
    assert links.least_finality(2, 5) == pytest.approx(0.4)


@pytest.mark.parametrize("members", [4, 16])
def test_the_further_the_nodes_are_from_each_other_the_later_is_finality(members):
    rows = [run_light(job(place, members)) for place in PLACES]
    for found in rows:
        assert all(row.finality_ms > row.least_ms for row in found)
    medians = [sorted(row.finality_ms for row in found)[3] for found in rows]
    assert medians == sorted(set(medians))


def test_more_work_for_each_signature_more_members_and_a_thinner_uplink_each_cost_capacity():
    base = run_full(job("city", 4, is_full=True))
    slower = run_full(job("city", 4, is_full=True, costs=COSTS.times(2)))
    larger = run_full(job("city", 25, is_full=True))
    thinner = run_full(Job("city", 25, 0, True, 1e8, COSTS, 6))
    assert slower.tx_s == pytest.approx(base.tx_s / 2, rel=0.15)
    assert larger.tx_s < base.tx_s
    assert thinner.tx_s < larger.tx_s / 1.5
    assert base.bottleneck == "processor (transactions)"
    assert thinner.bottleneck == "uplink"
    assert run_full(job("world", 4, is_full=True)).bottleneck == "latency"


def test_nodes_that_share_processors_get_less_done_than_nodes_with_their_own():
    def rate(cores: int | None) -> float:
        with metered_signatures() as meter:
            cluster = WideArea(Network(square(4, 0.0001), 1e11, cores), COSTS, meter)
            load = ClosedLoop(cluster, attest_tx, 400, 100)
            cluster.run_for(0.5)
        return sum(txs for _, txs in load.blocks)

    assert rate(1) < 0.6 * rate(2) < 0.6 * rate(None)


def test_a_hundred_members_around_the_world_finalize_under_the_oracles_what_every_one_of_them_was_given():
    links = network("world", 100, 0, GBIT)
    with metered_signatures() as meter:
        cluster = WideArea(
            links,
            COSTS,
            meter,
            base_timeout_ms=4000,
            make_oracle=lambda genesis: Invariants(genesis, frozenset(), 100),
        )
        raws = {attest_tx(cluster.genesis, number) for number in range(3)}
        for place, raw in enumerate(sorted(raws)):
            cluster.send_in(40 * place, [raw])
        cluster.run_until(lambda: all(raws <= set(cluster.final_txs(host)) for host in range(100)))
        cluster.check_prefixes()
        assert len(cluster.oracle.log) >= 1
        final = cluster.disks[99].final[-1][1]
        assert final is not None
        assert len(final.signatures) == quorum(100, "bft") == 67


def test_a_chain_goes_on_while_a_third_of_its_hundred_members_is_cut_off():
    with metered_signatures() as meter:
        cluster = WideArea(network("continent", 100, 0, GBIT), COSTS, meter, base_timeout_ms=1000)
        cluster.cut = lambda a, b: max(a, b) >= 67
        raw = attest_tx(cluster.genesis, 1)
        cluster.send_in(5, [raw])
        cluster.run_until(lambda: all(raw in cluster.final_txs(host) for host in range(67)))
        cluster.cut = lambda a, b: max(a, b) >= 66
        other = attest_tx(cluster.genesis, 2)
        cluster.send_in(5, [other])
        cluster.run_for(3)
        assert not any(other in cluster.final_txs(host) for host in range(100))
        cluster.check_prefixes()


@pytest.mark.parametrize("place", PLACES)
def test_every_pair_of_nodes_has_a_latency_from_the_published_matrix(place):
    links = network(place, 24, 3, GBIT)
    for a, row in enumerate(links.latency):
        assert row[a] == 0
        assert all(0.001 <= seconds <= 0.2 for b, seconds in enumerate(row) if b != a)


def test_without_costs_and_latency_the_host_steps_the_core_as_the_plain_cluster_does():
    plain = Cluster()
    raw = attest_tx(plain.genesis, 1)
    plain.submit(raw)
    plain.run_until(lambda: all(raw in plain.final_txs(host) for host in range(4)))
    with metered_signatures() as meter:
        wide = WideArea(Network(square(4, 0.002), 1e15), FREE, meter)
        wide.send_in(0, [raw])
        wide.run_until(lambda: all(raw in wide.final_txs(host) for host in range(4)))
    assert wide.heights() == plain.heights()
