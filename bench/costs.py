"""What a consensus node pays for its work on this machine, measured with the code that does it, for the simulator to charge.

Every figure is the least of several repeats, in seconds of processor time, so that other work on the machine disturbs little. A write that must
reach the disk counts with its waiting, as a node does nothing else meanwhile.
"""

import asyncio
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

from crypto.codec import encode
from crypto.sign import SigningKey, is_valid
from node.daemon import decode_batch
from node.ledger import Ledger
from node.net import Chan, Event, Peer, PeerUp, Received
from node.p2p import P2PNet, identity_of
from node.store import Store
from protocol.block import Votes, decode_message
from protocol.core import Core, Restored, SaveBlock, SaveVote, Send, anchor_tip
from protocol.genesis import Genesis
from protocol.identity import Credential, Role, SignedCredential
from protocol.mempool import Mempool
from protocol.tx import Attest, Certify, Publish, Rule, Tx, decode_tx
from tests.simulation.cluster import WALL0, Cluster
from tests.simulation.simulation import cheap_signatures
from tests.simulation.wide import Costs

AUTHORITY, DOCTOR, PATIENT = (SigningKey(bytes([i]) * 32) for i in (77, 11, 12))
BLOCK = 1000
"""Transactions of a full block, by the default genesis."""
EXPIRES_MS = WALL0 + 500_000


def attest_tx(genesis: Genesis, number: int) -> bytes:
    """What a doctor sends to a chain for a record."""
    action = Attest(number.to_bytes(16, "big"), PATIENT.public, bytes(32))
    return encode(Tx.make(genesis.chain_id, DOCTOR, number.to_bytes(16, "big"), EXPIRES_MS, action))


def refused_tx(genesis: Genesis, number: int) -> bytes:
    """What `bench.consensus` sends: 250 bytes that the contract refuses, as no doctor has attested the record."""
    rule = Rule("role:bench", (), None, ())
    action = Publish(number.to_bytes(16, "big"), 1, bytes(32), bytes(41), rule)
    return encode(Tx.make(genesis.chain_id, DOCTOR, number.to_bytes(16, "big"), EXPIRES_MS, action))


MakeTx = Callable[[Genesis, int], bytes]


def least(
    work: Callable[[], object], repeats: int = 5, clock: Callable[[], float] = time.process_time
) -> float:
    """Seconds of the fastest run."""
    best = inf
    for _ in range(repeats):
        started = clock()
        work()
        best = min(best, clock() - started)
    return best


def measure(make_tx: MakeTx) -> Costs:
    """Some ten seconds of work."""
    key, payload = SigningKey(bytes(32)), bytes(200)
    signature = key.sign("vote", payload)
    verify = least(lambda: [is_valid(key.public, "vote", payload, signature) for _ in range(300)]) / 300
    (few, block), (many, _) = _of_votes(16), _of_votes(100)
    frame, byte = asyncio.run(_of_frames())
    with tempfile.TemporaryDirectory(prefix="diptych-costs-") as folder:
        stations = _of_transactions(Path(folder), make_tx)
    return Costs(
        verify=verify,
        sign=least(lambda: [key.sign("vote", payload) for _ in range(300)]) / 300,
        message=few - 16 * (many - few) / 84,
        message_member=(many - few) / 84,
        block=block,
        frame=frame,
        byte=byte,
        **stations,
    )


def _core(cluster: Cluster, place: int) -> Core:
    committee = cluster.committee
    restored = Restored(anchor_tip(committee))
    return Core(committee, cluster.keys[place], Mempool(cluster.genesis.chain_id), restored, 0.0, WALL0)


def _of_votes(members: int) -> tuple[float, float]:
    """Without signatures: a vote from its bytes to its place, and what an empty block takes besides its votes."""
    cluster = Cluster(members)
    block = cluster.block(1)
    committee = cluster.committee
    votes = [
        encode(Votes((committee.sign(cluster.keys[s], s, kind, 1, block.header.id),), None))
        for kind in ("notarize", "finalize")
        for s in range(2, members)
    ]
    proposal = encode(cluster.proposal(block))

    def run() -> tuple[float, float]:
        core, times = _core(cluster, 1), []
        for place, data in enumerate([proposal, *votes]):
            started = time.process_time()
            core.receive(2 + place % (members - 2), decode_message(data), 0.0, WALL0 + 1)
            core.take_effects()
            times.append(time.process_time() - started)
        vote = statistics.median(times)
        return vote, sum(times) - len(times) * vote

    with cheap_signatures():
        runs = [run() for _ in range(12)]
        return min(vote for vote, _ in runs), min(block for _, block in runs)


def _of_transactions(folder: Path, make_tx: MakeTx) -> dict[str, float]:
    cluster = Cluster()
    genesis, committee = cluster.genesis, cluster.committee
    raws = [make_tx(genesis, number) for number in range(BLOCK)]
    batches = [encode(tuple(raws[i : i + 100])) for i in range(0, BLOCK, 100)]
    first = cluster.block(1, *certified(genesis))
    block = cluster.block(2, *raws, parent=first.header)

    def admit(mempool: Mempool) -> None:
        for batch in batches:
            for raw in decode_batch(batch):
                decode_tx(raw)  # for its sender, before it may come in
                mempool.add(raw, WALL0)

    with cheap_signatures():
        admitted = least(lambda: admit(Mempool(genesis.chain_id)))
        known = Mempool(genesis.chain_id)
        admit(known)
        again = least(lambda: admit(known))
        propose, follow = inf, inf
        for _ in range(5):
            leader, follower = _core(cluster, 0), _core(cluster, 1)
            admit(leader.mempool)
            admit(follower.mempool)
            started = time.process_time()
            leader.submit(0.0, WALL0 + 1)
            (proposal,) = [e.message for e in leader.take_effects() if isinstance(e, Send)]
            data = encode(proposal)
            sent = time.process_time()
            follower.receive(0, decode_message(data), 0.0, WALL0 + 1)
            propose, follow = min(propose, sent - started), min(follow, time.process_time() - sent)

    store = Store(folder, genesis)
    voted = [committee.sign(cluster.keys[0], 0, "notarize", view, block.header.id) for view in range(1, 22)]
    vote_commit = least(lambda: store.apply([SaveVote(voted.pop())]), 20, time.perf_counter)
    commit = least(lambda: store.apply([]), 20)
    journal = least(lambda: store.apply([SaveBlock(block)]), 1)
    store.close()
    execute = inf
    for repeat in range(3):
        (folder / str(repeat)).mkdir()
        ledger = Ledger(folder / str(repeat), genesis)
        ledger.execute([first])
        started = time.process_time()
        ledger.execute([block])
        execute = min(execute, time.process_time() - started)
        ledger.close()
    return {
        "commit": commit,
        "vote_commit": vote_commit,
        "tx_admit": admitted / BLOCK,
        "tx_again": again / BLOCK,
        "tx_propose": propose / BLOCK,
        "tx_follow": follow / BLOCK,
        "tx_journal": journal / BLOCK,
        "tx_execute": execute / BLOCK,
    }


def certified(genesis: Genesis) -> tuple[bytes, ...]:
    """Doctor and patient, known to the chain."""
    people: tuple[tuple[SigningKey, Role], ...] = ((DOCTOR, "doctor"), (PATIENT, "patient"))
    credentials = [
        Credential(key.public, role, (f"role:{role}",), bytes(32), None, WALL0, EXPIRES_MS + 10**6)
        for key, role in people
    ]
    actions = [Certify(SignedCredential.issue(c, AUTHORITY)) for c in credentials]
    return tuple(
        encode(Tx.make(genesis.chain_id, AUTHORITY, bytes([i]) * 16, EXPIRES_MS, action))
        for i, action in enumerate(actions)
    )


async def _of_frames() -> tuple[float, float]:
    """Seconds of processor for one end of a small frame, and for each byte of a large one, over libp2p on loopback."""
    seeds = {name: os.urandom(32) for name in "ab"}
    book = {name: Peer(name, identity_of(seed), "127.0.0.1", _free_port()) for name, seed in seeds.items()}
    events: dict[str, asyncio.Queue[Event]] = {name: asyncio.Queue() for name in book}
    nets = {
        name: P2PNet(
            me=name,
            chain_id="bench/1",
            identity_seed=seeds[name],
            peers=[peer for peer in book.values() if peer.node != name],
            listen_host="127.0.0.1",
            listen_port=book[name].port,
        )
        for name in book
    }
    try:
        for name, net in nets.items():
            await net.start(events[name].put_nowait)
        for queue in events.values():
            while not isinstance(await queue.get(), PeerUp):
                pass

        async def turns(count: int, chan: Chan, body: bytes) -> float:
            """Least seconds of one end of one frame, sent to and fro."""
            best = inf
            for _ in range(5):
                started = time.process_time()
                for _ in range(count):
                    for src, dst in ("ab", "ba"):
                        nets[src].send(dst, chan, body)
                        while not isinstance(await events[dst].get(), Received):
                            pass
                best = min(best, (time.process_time() - started) / count / 4)
            return best

        small, large = 150, 500_000
        frame = await turns(300, Chan.VOTE, bytes(small))
        whole = await turns(4, Chan.PROPOSAL, os.urandom(large))
        return frame, max(0.0, whole - frame) / large
    finally:
        for net in nets.values():
            await net.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
