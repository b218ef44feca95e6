"""Evidence on its way through a core: who is convicted by what, who hears of it, and what a flood of it can do."""

import msgspec

from crypto.codec import encode
from protocol.block import Accusation, Status, Vote, Votes, decode_message
from protocol.core import MAX_EVIDENCE, Effect, Record, Send
from tests.simulation.cluster import Cluster, Link, request_tx

A, B = b"a" * 32, b"b" * 32


def alone() -> Cluster:
    cluster = Cluster(link=Link(delay=(0.01, 0.01)))
    cluster.cut = lambda a, b: True
    return cluster


def vote(cluster: Cluster, signer: int, kind: str, view: int, block: bytes | None) -> Vote:
    return cluster.committee.sign(cluster.keys[signer], signer, kind, view, block)


def receive(cluster: Cluster, src: int, message) -> list[Effect]:
    core = cluster.cores[0]
    core.receive(src, decode_message(encode(message)), cluster.now, cluster.wall())
    return core.take_effects()


def convicted(effects: list[Effect]) -> list[tuple[str, int]]:
    return [(e.evidence.kind, e.evidence.first.signer) for e in effects if isinstance(e, Record)]


def told(effects: list[Effect]) -> list[Accusation]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Accusation)]


def test_an_accusation_with_two_true_votes_convicts_and_is_passed_on_once():
    cluster = alone()
    accusation = Accusation(vote(cluster, 2, "notarize", 1, A), vote(cluster, 2, "notarize", 1, B))
    effects = receive(cluster, 1, accusation)
    assert convicted(effects) == [("E1", 2)]
    assert told(effects) == [accusation]
    for again in (accusation, Accusation(accusation.second, accusation.first)):
        assert not receive(cluster, 3, again)


def test_nobody_is_convicted_by_a_vote_they_did_not_sign_or_by_two_that_agree():
    cluster = alone()
    true, other = vote(cluster, 2, "notarize", 1, A), vote(cluster, 2, "notarize", 1, B)
    forged = msgspec.structs.replace(other, signature=bytes(64))
    stolen = msgspec.structs.replace(vote(cluster, 1, "notarize", 1, B), signer=2)
    beyond = msgspec.structs.replace(true, signer=63), msgspec.structs.replace(other, signer=63)
    innocent = vote(cluster, 2, "finalize", 1, A), vote(cluster, 2, "nullify", 2, None)
    for first, second in ((true, forged), (forged, true), (true, stolen), (true, true), beyond, innocent):
        assert not receive(cluster, 1, Accusation(first, second))


def test_a_member_who_contradicts_itself_in_every_view_is_recorded_a_few_times_also_over_restarts():
    cluster = alone()

    def accuse(views: range) -> None:
        for view in views:
            pair = vote(cluster, 2, "finalize", view, A), vote(cluster, 2, "finalize", view, B)
            cluster.inject(0, 1, Accusation(*pair))

    accuse(range(1, 20))
    cluster.crash(0)
    cluster.start(0)
    accuse(range(20, 40))
    assert len(cluster.disks[0].evidence) == MAX_EVIDENCE


def test_a_vote_inside_a_certificate_convicts_together_with_one_heard_before():
    cluster = alone()
    receive(cluster, 2, Votes((vote(cluster, 2, "notarize", 1, A),), None))
    certificate = cluster.certificate("notarize", 1, B, 1, 2, 3)
    assert convicted(receive(cluster, 1, Votes((), certificate))) == [("E1", 2)]


def test_a_nullify_that_comes_after_its_view_became_final_convicts_a_finalizer():
    cluster = Cluster(link=Link(delay=(0.01, 0.01)))
    cluster.submit(request_tx(1))
    cluster.run_until(lambda: min(cluster.heights()) == 1)
    cluster.run_for(0.1)
    assert (1, "finalize", 2) in cluster.cores[0]._votes
    late = vote(cluster, 2, "nullify", 1, None)
    forged = msgspec.structs.replace(late, signature=bytes(64))
    assert not convicted(receive(cluster, 2, Votes((forged,), None)))
    assert convicted(receive(cluster, 2, Status(0, 2, 1, None, None, None, (late,)))) == [("E4", 2)]
    innocent = vote(cluster, 2, "nullify", 2, None)
    assert not convicted(receive(cluster, 2, Votes((innocent,), None)))
