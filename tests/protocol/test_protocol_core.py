"""What the consensus core promises, seen from a cluster in virtual time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.block import Proposal, Status, Votes
from tests.simulation.cluster import Cluster, Link, request_tx


@pytest.mark.parametrize(
    ("n", "mode"), [(1, "bft"), (3, "majority"), (4, "bft"), (4, "majority"), (7, "bft")]
)
def test_a_submitted_transaction_becomes_final_on_every_node(n, mode):
    cluster = Cluster(n, mode)
    cluster.submit(request_tx(1), to=0)
    cluster.run_until(lambda: min(cluster.heights()) == 1)
    assert all(cluster.final_txs(i) == [request_tx(1)] for i in range(n))


def test_an_idle_chain_makes_no_blocks_and_only_speaks_status():
    cluster = Cluster()
    cluster.run_for(60)
    assert cluster.heights() == [0, 0, 0, 0]
    assert all(isinstance(m, Status) for _, m in cluster.sent)


def test_latency_is_three_message_delays():
    cluster = Cluster(link=Link(delay=(0.1, 0.1)))
    cluster.submit(request_tx(1), to=0)
    took = cluster.run_until(lambda: min(cluster.heights()) == 1)
    assert took == pytest.approx(0.3)


def test_a_dead_leader_costs_one_timeout():
    cluster = Cluster()
    cluster.crash(0)
    cluster.submit(request_tx(1))
    took = cluster.run_until(lambda: sorted(cluster.heights()) == [-1, 1, 1, 1])
    assert 1.0 <= took < 1.1


def test_a_minority_of_dead_nodes_does_not_stop_the_chain_and_a_majority_does():
    cluster = Cluster(7, "majority")
    for i in (1, 2, 3):
        cluster.crash(i)
    for k in range(5):
        cluster.submit(request_tx(k))
    cluster.run_until(lambda: cluster.heights()[0] >= 1)
    height = cluster.heights()[0]
    cluster.crash(4)
    cluster.submit(request_tx(9))
    cluster.run_for(120)
    assert cluster.heights()[0] == height
    cluster.start(4)
    cluster.run_until(lambda: request_tx(9) in cluster.final_txs(0))


def test_a_node_that_was_away_catches_up_over_many_pages():
    cluster = Cluster()
    cluster.crash(3)
    for k in range(60):
        cluster.submit(request_tx(k))
        cluster.run_until(lambda k=k: request_tx(k) in cluster.final_txs(0))
    assert cluster.heights()[0] >= 40
    cluster.start(3)
    cluster.run_until(lambda: cluster.heights()[3] == cluster.heights()[0], 10)
    cluster.check_prefixes()


def test_after_all_nodes_restart_the_chain_goes_on_from_the_same_tip():
    cluster = Cluster()
    for k in range(10):
        cluster.submit(request_tx(k))
    cluster.run_until(lambda: min(cluster.heights()) > 0)
    cluster.run_for(1)
    before = cluster.logs()
    for i in range(4):
        cluster.crash(i)
    for i in range(4):
        cluster.start(i)
    cluster.submit(request_tx(100))
    cluster.run_until(lambda: all(request_tx(100) in cluster.final_txs(i) for i in range(4)))
    assert [log[: len(old)] for log, old in zip(cluster.logs(), before, strict=True)] == before


def test_a_restarted_leader_never_proposes_a_second_block_in_a_view():
    cluster = Cluster()
    cluster.cut = lambda a, b: True
    cluster.submit(request_tx(1), to=0)
    cluster.crash(0)
    cluster.start(0)
    cluster.submit(request_tx(2), to=0)
    cluster.cut = lambda a, b: False
    cluster.run_until(lambda: min(cluster.heights()) >= 2)
    proposals = {(m.block.header.view, m.block.header.id) for _, m in cluster.sent if isinstance(m, Proposal)}
    assert len({view for view, _ in proposals}) == len(proposals)
    assert not any(disk.evidence for disk in cluster.disks)


def test_a_replayed_transaction_is_final_once():
    cluster = Cluster()
    cluster.submit(request_tx(1))
    cluster.run_until(lambda: min(cluster.heights()) == 1)
    for core in cluster.cores:
        with pytest.raises(Exception, match="already final"):
            core.mempool.add(request_tx(1), cluster.wall())


def test_a_partition_stops_the_minority_and_heals():
    cluster = Cluster()
    cluster.cut = lambda a, b: (a < 1) != (b < 1)
    cluster.submit(request_tx(1), to=0)
    for i in (1, 2, 3):
        cluster.submit(request_tx(2), to=i)
    cluster.run_until(lambda: min(cluster.heights()[1:]) >= 1)
    assert cluster.heights()[0] == 0
    cluster.cut = lambda a, b: False
    cluster.submit(request_tx(1))
    cluster.run_until(
        lambda: all({request_tx(1), request_tx(2)} <= set(cluster.final_txs(i)) for i in range(4))
    )
    cluster.check_prefixes()


def test_contradicting_votes_of_one_member_are_recorded_as_evidence():
    cluster = Cluster()
    committee, key = cluster.committee, cluster.keys[2]
    for block in (b"a" * 32, b"b" * 32):
        vote = committee.sign(key, 2, "notarize", 1, block)
        cluster.cores[0].receive(2, Votes((vote,), None), cluster.now, cluster.wall())
    cluster.run_effects(0)
    assert [(e.kind, e.first.signer) for e in cluster.disks[0].evidence] == [("E1", 2)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_mode=st.sampled_from([(4, "bft"), (5, "majority"), (7, "bft")]),
    drop=st.floats(0, 0.25),
)
def test_with_loss_duplication_and_crashes_no_fork_and_everything_becomes_final(seed, n_mode, drop):
    n, mode = n_mode
    cluster = Cluster(n, mode, seed, Link(drop, (0.001, 0.05), 0.2))
    silent = n - cluster.committee.quorum
    random = cluster.random
    for k in range(12):
        cluster.submit(request_tx(k), to=None)
        victims = random.sample(range(n), silent)
        for v in victims:
            cluster.crash(v)
        cluster.run_for(random.uniform(0, 2))
        for v in victims:
            cluster.start(v)
        cluster.check_prefixes()
    cluster.link = Link()
    for k in range(12):
        if not any(request_tx(k) in cluster.final_txs(i) for i in range(n)):
            for core in cluster.cores:
                if core and request_tx(k) not in cluster.final_txs(cluster.cores.index(core)):
                    core.mempool.add(request_tx(k), cluster.wall())
    cluster.run_until(
        lambda: all({request_tx(k) for k in range(12)} <= set(cluster.final_txs(i)) for i in range(n)), 300
    )
    cluster.check_prefixes()
    assert not any(disk.evidence for disk in cluster.disks), "an honest node never contradicts itself (I9)"
    assert all(len(set(cluster.final_txs(i))) == len(cluster.final_txs(i)) for i in range(n)), "I7"
