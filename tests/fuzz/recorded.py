"""Messages of a true run of four members in which the first one is down and the last one also lies: what a fuzzer mutates.

The first member, which is fuzzed, has signed nothing yet; the honest two never contradict themselves, so nothing that is made of their
signatures may make the first halt or accuse them.
"""

from functools import cache

from crypto.codec import encode
from protocol.block import Accusation, Body, Message, Rejoin, Want
from protocol.tx import Request, Tx
from tests.simulation.cluster import CLIENT, WALL0, Cluster, make_genesis

GENESIS, KEYS = make_genesis(4, term_length=4)
COMMITTEE = Cluster().committee
ME, LIAR = 0, 3


def transaction(number: int) -> bytes:
    action = Request(number.to_bytes(16, "big"), "research")
    return encode(Tx.make(GENESIS.chain_id, CLIENT, number.to_bytes(16, "big"), WALL0 + 500_000, action))


@cache
def chain_messages() -> tuple[Message, ...]:
    """Of every type, in the order in which they were sent."""
    cluster = Cluster(4, term_length=4)
    cluster.crash(ME)
    for number in range(12):
        cluster.submit(transaction(number))
        cluster.run_for(0.7)
    found = [message for _, message in cluster.sent]
    assert {type(m).__name__ for m in found} >= {"Proposal", "Votes", "Status"}
    page = cluster.disks[1].page(1, size=3)
    assert page is not None
    votes = [COMMITTEE.sign(KEYS[LIAR], LIAR, "notarize", 2, b * 32) for b in (b"x", b"y")]
    proof = cluster.cores[1].tip.certificate  # type: ignore[union-attr]
    report = COMMITTEE.report(KEYS[1], 1, bytes(32), cluster.cores[1].view, proof)  # type: ignore[union-attr]
    block = page.blocks[0]
    return (*found, page, Want(block.header.id), Body(block), Rejoin(bytes(32)), report, Accusation(*votes))
