"""Nodes that lie to a light client, one with words alone and some with the stolen keys of fewer nodes than a quorum: what the client believes
stays true, and who lied is named."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec
import pytest
from adversary_world import Passed, Proxy, Rewrite, World, proxy

from client.chain import ChainClient
from client.patient import Patient
from crypto.codec import encode
from crypto.errors import Unavailable
from crypto.sign import SigningKey
from protocol.checkpoint import (
    Checkpoint,
    SignedCheckpoint,
    decode_receipt_proof,
    decode_signed_checkpoint,
)
from protocol.contract import Receipt, decode_receipt, decode_record, record_key
from protocol.identity import Release, decode_release
from protocol.network import NodeAddress
from protocol.state_tree import PAIR, ProvedValue, decode_proved_value, key_hash, value_hash
from protocol.tx import Request

replace = msgspec.structs.replace
LIAR, SECOND = "sharing-3", "sharing-4"


@dataclass
class Victim:
    """A client of the sharing chain that reaches some nodes only as they lie; `named` is what it says of them."""

    client: ChainClient
    liars: dict[str, Proxy]
    named: list[str]

    def ask_first(self, name: str) -> None:
        """Have the client ask this node before the others."""
        self.client._urls.sort(key=lambda url: url != self.liars[name].url)

    def check_named(self, name: str, words: str) -> None:
        assert [said for said in self.named if words in said and said.startswith(name)], self.named
        assert all(said.startswith(name) for said in self.named), "nobody honest is named"


@contextmanager
def victim(world: World, *names: str) -> Iterator[Victim]:
    home, named = world.reader.home, list[str]()
    addresses = home.network.chains["sharing"]
    with ExitStack() as stack:
        liars = {name: stack.enter_context(proxy(addresses.nodes[name].http)) for name in names}
        nodes = addresses.nodes | {
            name: NodeAddress(addresses.nodes[name].p2p, liar.url) for name, liar in liars.items()
        }
        client = ChainClient(home.chains["sharing"], replace(addresses, nodes=nodes), named.append)
        yield Victim(client, liars, named)
        client.close()


@pytest.fixture
def lied_to(world: World) -> Iterator[Victim]:
    with victim(world, LIAR) as found:
        yield found


@pytest.fixture
def watched(world: World) -> Iterator[Victim]:
    """All nodes are as slow as the liar, so that its answer is sometimes the one that is looked at first."""
    with victim(world, LIAR, "sharing-1", "sharing-2", SECOND) as found:
        yield found


def read_until_named(victim: Victim, record: bytes) -> None:
    for _ in range(60):
        assert victim.client.verified_record(record).version == 1
        if victim.named:
            return
        random.shuffle(victim.client._urls)


def at(path: str, lie: Callable[[bytes], bytes | None]) -> Rewrite:
    """Lies about what lies under a path; None is "there is no such thing"."""

    def rewrite(seen: Passed) -> tuple[int, bytes] | None:
        if not seen.path.startswith(path) or seen.status != 200:
            return None
        told = lie(seen.answer)
        return (404, b'{"detail": "no such thing"}') if told is None else (200, told)

    return rewrite


def turned(value: ProvedValue, record: bytes) -> ProvedValue:
    """The state as if the record stood there in another version, with a proof of another root."""
    assert value.value is not None
    key, fake = record_key(record), encode(replace(decode_record(value.value), version=9))
    pairs = [value.proof.bucket[i : i + PAIR] for i in range(0, len(value.proof.bucket), PAIR)]
    pairs = [key_hash(key) + value_hash(fake) if p.startswith(key_hash(key)) else p for p in pairs]
    return ProvedValue(value.height, fake, replace(value.proof, bucket=b"".join(pairs)))


def test_a_node_that_shows_another_record_than_the_chain_has_is_caught_and_named(
    record: bytes, watched: Victim
):
    def lie(answer: bytes) -> bytes:
        honest = decode_proved_value(answer)
        return encode(replace(turned(honest, record), proof=honest.proof))

    with watched.liars[LIAR].lying(at("/v1/proof/state/", lie)):
        read_until_named(watched, record)
    watched.check_named(LIAR, "does not hold")


def test_a_node_that_makes_up_a_whole_state_is_caught_and_named(record: bytes, watched: Victim):
    def lie(answer: bytes) -> bytes:
        return encode(turned(decode_proved_value(answer), record))

    with watched.liars[LIAR].lying(at("/v1/proof/state/", lie)):
        read_until_named(watched, record)
    watched.check_named(LIAR, "made up")


def test_a_node_that_hides_the_newest_version_of_a_record_is_caught_and_named(world: World, lied_to: Victim):
    record = world.store()
    key = record_key(record).hex()
    assert lied_to.client.verified_record(record).version == 1
    old = lied_to.liars[LIAR].last(f"/v1/proof/state/{key}").answer
    Patient(world.patient).set_policies(record, {"shared": "role:researcher"})
    with lied_to.liars[LIAR].lying(at(f"/v1/proof/state/{key}", lambda _: old)):
        assert lied_to.client.verified_record(record).version == 2
    lied_to.check_named(
        LIAR, "old value" if "old value" in str(lied_to.named) else "hides what happened since"
    )


def test_a_node_that_denies_a_record_is_not_believed(world: World, record: bytes, lied_to: Victim):
    lied_to.ask_first(LIAR)
    with lied_to.liars[LIAR].lying(at("/v1/proof/state/", lambda _: None)):
        assert lied_to.client.verified_record(record).version == 1


def refused_request(world: World, record: bytes) -> Receipt:
    thief = world.thief
    receipt = thief.chains["sharing"].send(thief.home.sign, Request(record, "research"))
    assert not receipt.ok
    return receipt


def test_a_node_that_invents_a_receipt_is_caught_and_named(world: World, record: bytes, lied_to: Victim):
    true = refused_request(world, record)
    lied_to.ask_first(LIAR)

    def lie(answer: bytes) -> bytes:
        proof = decode_receipt_proof(answer)
        return encode(replace(proof, receipt=replace(proof.receipt, ok=True, code="allowed")))

    with lied_to.liars[LIAR].lying(at("/v1/proof/tx/", lie)):
        found = lied_to.client.verified_receipt(true.tx, first=lied_to.liars[LIAR].url)
    assert found.proof.receipt == true
    lied_to.check_named(LIAR, "receipt that cannot be true")


def test_a_node_that_says_a_refused_request_was_allowed_is_caught_by_who_sent_it(
    world: World, record: bytes, lied_to: Victim
):
    lied_to.ask_first(LIAR)

    def lie(answer: bytes) -> bytes:
        said = json.loads(answer)
        receipt = replace(decode_receipt(bytes.fromhex(said["encoded"])), ok=True, code="allowed")
        return json.dumps(said | {"encoded": encode(receipt).hex()}).encode()

    with lied_to.liars[LIAR].lying(at("/v1/tx", lie)):
        receipt = lied_to.client.send(world.thief.home.sign, Request(record, "research"))
    assert (receipt.ok, receipt.code) == (False, "policy-not-met")
    lied_to.check_named(LIAR, "invented receipt")


def test_a_node_that_withholds_a_receipt_is_caught_and_named(world: World, record: bytes, lied_to: Victim):
    true = refused_request(world, record)
    with lied_to.liars[LIAR].lying(at("/v1/proof/tx/", lambda _: None)):
        found = lied_to.client.verified_receipt(true.tx, first=lied_to.liars[LIAR].url)
    assert found.proof.receipt == true
    lied_to.check_named(LIAR, "withholds a receipt")


def test_a_node_that_forges_a_header_is_caught_and_named(world: World, record: bytes, lied_to: Victim):
    true = refused_request(world, record)

    def lie(answer: bytes) -> bytes:
        proof = decode_receipt_proof(answer)
        return encode(replace(proof, header=replace(proof.header, time_ms=proof.header.time_ms + 1)))

    with lied_to.liars[LIAR].lying(at("/v1/proof/tx/", lie)):
        found = lied_to.client.verified_receipt(true.tx, first=lied_to.liars[LIAR].url)
    assert found.proof.receipt == true
    lied_to.check_named(LIAR, "receipt that cannot be true")


@pytest.mark.parametrize("what", ["the last", "all", "a refusal turned into a grant"])
def test_a_node_that_withholds_or_changes_what_stands_in_a_log_is_caught_and_named(
    world: World, record: bytes, lied_to: Victim, what: str
):
    denied = refused_request(world, record)
    lied_to.ask_first(LIAR)

    def lie(answer: bytes) -> bytes:
        said = json.loads(answer)
        log = said["encoded"]
        if what == "a refusal turned into a grant":
            log = [encode(replace(r, ok=True)).hex() for r in map(decode_receipt, map(bytes.fromhex, log))]
        return json.dumps(
            said | {"encoded": [] if what == "all" else log[:-1] if what == "the last" else log}
        ).encode()

    with lied_to.liars[LIAR].lying(at(f"/v1/record/{record.hex()}/log", lie)):
        log = lied_to.client.verified_log(record)
    assert denied in log.receipts
    lied_to.check_named(LIAR, "withholds, invents or changes")


def forging(world: World, record: bytes, numbers: dict[str, int]) -> Callable[[str], Rewrite]:
    """Nodes that agree on one made-up state and sign its checkpoint with their own keys."""
    keys: dict[str, SigningKey] = {name: world.node_key(number) for name, number in numbers.items()}
    roots: dict[int, bytes] = {}

    def rewrite_of(name: str) -> Rewrite:
        def rewrite(passed: Passed) -> tuple[int, bytes] | None:
            if passed.status != 200:
                return None
            if passed.path.startswith("/v1/proof/state/"):
                fake = turned(decode_proved_value(passed.answer), record)
                roots[fake.height] = fake.proof.root(record_key(record), fake.value)
                return 200, encode(fake)
            if passed.path.startswith("/v1/checkpoint/"):
                true: Checkpoint = decode_signed_checkpoint(passed.answer).checkpoint
                false = replace(true, state_root=roots.get(true.height, bytes(32)))
                return 200, encode(SignedCheckpoint.make(false, numbers[name] - 1, keys[name]))
            return None

        return rewrite

    return rewrite_of


def test_a_node_that_signs_a_made_up_state_with_its_own_key_is_named_by_its_signature(
    world: World, record: bytes, lied_to: Victim
):
    lies = forging(world, record, {LIAR: 3})
    with lied_to.liars[LIAR].lying(lies(LIAR)):
        assert lied_to.client.verified_record(record).version == 1
    assert lied_to.named
    assert all(said.startswith(LIAR) for said in lied_to.named)


def test_two_of_four_nodes_that_forge_a_state_together_can_keep_a_client_waiting_and_never_deceive_it(
    world: World, record: bytes
):
    with victim(world, LIAR, SECOND) as lied_to:
        lies = forging(world, record, {LIAR: 3, SECOND: 4})
        with (
            lied_to.liars[LIAR].lying(lies(LIAR)),
            lied_to.liars[SECOND].lying(lies(SECOND)),
            pytest.raises(Unavailable, match="no quorum"),
        ):
            lied_to.client.verified_state(record_key(record), seconds=1)
        assert lied_to.client.verified_record(record).version == 1


def test_any_answer_of_a_node_changed_in_any_byte_deceives_nobody(
    world: World, record: bytes, lied_to: Victim
):
    draw = random.Random(11)

    def noise(answer: bytes) -> bytes:
        changed = bytearray(answer)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    lied_to.ask_first(LIAR)
    true = world.patient.chains["sharing"].verified_record(record)
    with lied_to.liars[LIAR].lying(at("/v1/", noise)):
        for _ in range(10):
            assert lied_to.client.verified_record(record) == true


def test_a_share_of_the_index_that_a_node_spoils_with_its_own_key_is_named_and_the_others_open(
    world: World, record: bytes, lied_to: Victim
):
    reader = world.reader
    receipt = reader.chains["sharing"].execute(reader.home.sign, Request(record, "research"))

    def lie(answer: bytes) -> bytes:
        true = decode_release(answer)
        return encode(
            Release.make(
                true.ticket,
                true.epoch,
                true.signature.signer,
                world.node_key(3),
                entry=true.entry,
                rule=true.rule,
                round=true.round,
                sealed_share=bytes(len(true.sealed_share or b"")),
            )
        )

    with lied_to.liars[LIAR].lying(at("/v1/release/", lie)):
        index, _ = lied_to.client.release(receipt.tx, reader.home.seal)
    assert index.record == record
    assert all(said.startswith(LIAR) for said in lied_to.named)
