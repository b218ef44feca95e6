"""Random histories of the contract, against the model: the same receipts, the same state, and two nodes that agree on the root.

The histories hold what anyone might send: by the wrong people, in the wrong order, for records that are gone, with credentials, rules and
proxies of other times, and rules that nobody satisfies.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from crypto.codec import encode
from crypto.sign import SigningKey
from node.ledger import Ledger
from protocol import contract
from protocol.block import Block
from protocol.identity import SignedCredential
from protocol.tx import (
    Action,
    Attest,
    Certify,
    Decide,
    Emergency,
    Erase,
    Publish,
    Request,
    Retire,
    Review,
    Revoke,
    Rule,
    SetProxy,
    Tx,
    TxBody,
    decode_tx,
)
from tests.dealer import deal, sealed
from tests.memory_state import MemoryState
from tests.protocol.contract_model import HOUR, POLICIES, TEN_MINUTES, WEEK, Model, observe
from tests.protocol.contract_world import (
    AUTHORITY,
    CLOUD,
    DOCTOR,
    GENESIS,
    PATIENT,
    STRANGER,
    USER,
    credential,
    deletion,
)
from tests.simulation.cluster import WALL0, Cluster

BLOCKS = Cluster()
NURSE = SigningKey(bytes([16]) * 32)
ROLES = {DOCTOR: "doctor", PATIENT: "patient", USER: "user", NURSE: "user", STRANGER: "patient"}
RECORDS = [b"r" * 16, b"s" * 16]
KEYS = {key.public: key for key in (*ROLES, AUTHORITY, CLOUD)}
WHY = Emergency("unconscious", b"note")
TAGS = [b"t" * 32, b"u" * 32]
LATER = WALL0 + 10 * WEEK
OPEN = Rule("role:user", ("research",), None, ())

certified = st.sampled_from([*ROLES])
anyone = st.sampled_from([*ROLES, AUTHORITY, CLOUD])
records = st.sampled_from([*RECORDS, RECORDS[0]])
moments = st.sampled_from([0, WALL0, WALL0 + 5, WALL0 + HOUR, WALL0 + WEEK, LATER, 2**63 - 1])
texts = st.sampled_from([*POLICIES] * 2 + ["(", ""])
rules = st.builds(
    Rule,
    texts,
    st.sampled_from([("research", "treatment")] * 4 + [(), ("research", "emergency"), ("patient-request",)]),
    st.one_of(st.none(), moments),
    st.lists(certified.map(lambda key: key.public), max_size=1).map(tuple),
    st.one_of(st.none(), moments),
    st.sampled_from([None, None, 1, 2]),
    st.one_of(st.none(), texts),
    st.one_of(st.none(), texts),
)
open_rules = st.builds(
    Rule,
    st.sampled_from(["role:user", "role:doctor or org:lab"]),
    st.just(("research", "treatment")),
    st.sampled_from([None, LATER, WALL0 + HOUR]),
    st.sampled_from([(), (), (DOCTOR.public,), (USER.public,)]),
    st.sampled_from([None, None, WALL0 + 5]),
    st.sampled_from([None, 1]),
    st.sampled_from([None, "role:doctor or org:lab"]),
    st.sampled_from(["role:user", "role:doctor or org:lab"]),
)
seldom = st.integers(0, 3)
"""0 is the time for what ends a person or a record, after which less can happen."""
verdicts = st.sampled_from(["justified", "contested"])
purposes = st.sampled_from(["research", "treatment", "patient-request", "emergency"])


class Histories(RuleBasedStateMachine):
    """Transactions go into the block at hand, which `next_block` closes; at the end two ledgers execute them all."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.model = MemoryState(), Model()
        deal(GENESIS, self.state)
        self.blocks: list[Block] = []
        self.raws: list[bytes] = []
        self.receipts: list[contract.Receipt] = []
        self.time, self.nonce = WALL0, 0
        self.requests = [b"x" * 32]

    def send(self, sender: SigningKey, action: Action) -> str:
        self.nonce += 1
        body = TxBody(GENESIS.chain_id, sender.public, self.nonce.to_bytes(16, "big"), 0, action)
        raw = encode(Tx(body, bytes(64)))
        tx = decode_tx(raw)
        before = MemoryState(self.state)
        height, position = len(self.blocks) + 1, len(self.raws)
        receipt = contract.apply(self.state, GENESIS, tx, height, position, self.time)
        found = receipt.ok, receipt.code, receipt.record, receipt.purpose, receipt.request
        assert found == self.model.apply(tx, self.time), (action, receipt)
        self.model.log(receipt)
        if not receipt.ok:
            changed = {k for k in before | self.state if before.get(k) != self.state.get(k)}
            assert all(key == contract.log_key(receipt.record or b"") for key in changed)
            assert receipt.reason
        self.raws.append(raw)
        self.receipts.append(receipt)
        if isinstance(action, Request):
            self.requests.append(tx.id)
        return receipt.code

    @initialize(is_begun=st.integers(0, 9), rules=st.tuples(open_rules, open_rules))
    def begin(self, is_begun: int, rules: tuple[Rule, Rule]) -> None:
        if not is_begun:
            return
        for key, role in ROLES.items():
            self.send(AUTHORITY, Certify(credential(key, role, "org:lab", not_after_ms=LATER)))
        for record, given in zip(RECORDS, rules, strict=True):
            assert self.send(DOCTOR, Attest(record, PATIENT.public, b"h" * 32)) == "attested"
            entry = sealed(GENESIS, record, 1, given)
            assert self.send(PATIENT, Publish(record, 1, b"c" * 32, entry, given)) == "published"

    @rule(ms=st.sampled_from([0, 1, 4, 5, TEN_MINUTES, HOUR - 1, HOUR, WEEK]))
    def next_block(self, ms: int) -> None:
        parent = self.blocks[-1].header if self.blocks else None
        view = len(self.blocks) + 1
        self.blocks.append(BLOCKS.block(view, *self.raws, parent=parent, time_ms=self.time))
        self.raws = []
        self.time += ms

    @rule(
        sender=st.sampled_from([AUTHORITY, AUTHORITY, AUTHORITY, USER]),
        subject=anyone,
        role=st.sampled_from([None, None, None, "doctor", "patient", "user"]),
        attributes=st.sampled_from([(), ("org:lab",), ("a:x",), ("a:x", "org:lab")]),
        times=st.sampled_from([(WALL0, LATER)] * 5 + [(WALL0, WALL0 + HOUR), (WALL0 + HOUR, LATER), (5, 5)]),
        signer=st.sampled_from([AUTHORITY, AUTHORITY, AUTHORITY, USER]),
    )
    def certify(self, sender, subject, role, attributes, times, signer) -> None:
        role = role or ROLES.get(subject, "user")
        signed = credential(subject, role, *attributes, not_before_ms=times[0], not_after_ms=times[1])
        self.send(sender, Certify(SignedCredential.issue(signed.credential, signer)))

    @rule(sender=st.sampled_from([AUTHORITY, USER, PATIENT]), subject=anyone, seldom=seldom)
    def revoke(self, sender, subject, seldom) -> None:
        if seldom == 0 or sender != AUTHORITY:
            self.send(sender, Revoke(subject.public))

    @rule(sender=st.sampled_from([DOCTOR, DOCTOR, USER]), record=records, patient=certified)
    def attest(self, sender, record, patient) -> None:
        self.send(sender, Attest(record, patient.public, b"h" * 32))

    @rule(
        sender=st.sampled_from([PATIENT, PATIENT, PATIENT, STRANGER, DOCTOR]),
        record=records,
        rules=st.tuples(rules, open_rules, st.integers(0, 2)),
        ahead=st.sampled_from([1, 1, 1, 1, 0, 2, 2**62]),
        is_sealed=st.sampled_from([True, True, True, False]),
        tags=st.lists(st.sampled_from(TAGS), max_size=2),
    )
    def publish(self, sender, record, rules, ahead, is_sealed, tags) -> None:
        any_rule, open_rule, which = rules
        given = open_rule if which else any_rule
        known = self.model.records.get(record)
        version = (known.version if known else 0) + ahead
        entry = sealed(
            GENESIS, record, version, given if is_sealed else msgspec.structs.replace(given, uses=77)
        )
        self.send(sender, Publish(record, version, b"c" * 32, entry, given, tuple(tags)))

    @rule(
        sender=st.sampled_from([PATIENT, STRANGER, USER]),
        record=records,
        by=st.sampled_from([None, *RECORDS]),
        seldom=seldom,
    )
    def retire(self, sender, record, by, seldom) -> None:
        if seldom == 0 or sender != PATIENT:
            self.send(sender, Retire(record, by))

    @rule(
        sender=st.sampled_from([PATIENT, STRANGER, USER]),
        record=records,
        junk=st.sampled_from([b"", b"", b"x"]),
        seldom=seldom,
    )
    def erase(self, sender, record, junk, seldom) -> None:
        if seldom == 0 or sender != PATIENT or junk:
            self.send(sender, Erase(record, deletion(record) + junk))

    @rule(sender=st.sampled_from([*ROLES] * 3 + [CLOUD]), record=records, purpose=purposes, is_whole=seldom)
    def request(self, sender, record, purpose, is_whole) -> None:
        explains = (purpose == "emergency") == (is_whole > 0)
        self.send(sender, Request(record, purpose, WHY if explains else None))

    @rule(
        sender=st.sampled_from([USER, NURSE, DOCTOR]),
        second=st.sampled_from([USER, NURSE, DOCTOR, PATIENT]),
        record=records,
        purpose=purposes,
    )
    def ask_for_two(self, sender, second, record, purpose) -> None:
        """What seldom comes about by chance."""
        why = WHY if purpose == "emergency" else None
        if self.send(sender, Request(record, purpose, why)) == "waiting":
            self.send(second, Decide(self.requests[-1], True))

    @rule(sender=certified, data=st.data(), allow=st.sampled_from([True, True, False]))
    def decide(self, sender, data, allow) -> None:
        some = [*self.model.waiting] * 5 or self.requests
        self.send(sender, Decide(data.draw(st.sampled_from([*some, self.requests[-1]])), allow))

    @rule(sender=st.one_of(st.just(PATIENT), certified), data=st.data(), verdict=verdicts)
    def review(self, sender, data, verdict) -> None:
        some = [*self.model.reviews] * 5 or self.requests
        self.send(sender, Review(data.draw(st.sampled_from([*some, self.requests[-1]])), verdict))

    @rule(
        sender=st.sampled_from([PATIENT, PATIENT, PATIENT, STRANGER, USER]),
        proxy=certified,
        powers=st.sampled_from(
            [("read",), ("decide",), ("decide", "read"), ("read", "decide"), ("read", "read"), ()]
        ),
        from_ms=st.sampled_from([0, WALL0, WALL0 + HOUR]),
        until_ms=moments,
    )
    def set_proxy(self, sender, proxy, powers, from_ms, until_ms) -> None:
        self.send(sender, SetProxy(proxy.public, powers, from_ms, until_ms))

    @rule(data=st.data(), off=st.sampled_from([-1, 0]))
    def tempt(self, data, off) -> None:
        """Somebody tries what they should not, or at the very moment at which it begins or ceases to be allowed."""
        time, sender, action = data.draw(st.sampled_from([*self.temptations()]))
        if self.time < time + off <= LATER:
            self.next_block(time + off - self.time)
        self.send(sender, action)

    def temptations(self) -> Iterator[tuple[int, SigningKey, Action]]:
        model = self.model
        for record, other in (RECORDS, RECORDS[::-1]):
            yield 0, PATIENT, Erase(record, deletion(other))
            if (known := model.records.get(record)) and known.status == "retired":
                entry = sealed(GENESIS, record, known.version + 1, OPEN)
                yield 0, PATIENT, Publish(record, known.version + 1, b"c" * 32, entry, OPEN)
                yield 0, PATIENT, Retire(other, record)
            if known and known.rule:
                for moment in (known.rule.from_ms, known.rule.until_ms):
                    yield moment or 0, USER, Request(record, "research")
                for patient, proxy in model.proxies:
                    for moment in model.proxies[patient, proxy][1:]:
                        yield moment, KEYS[proxy], Request(record, "patient-request")
        for key in model.revoked:
            yield 0, AUTHORITY, Certify(credential(KEYS[key], "user", "org:lab", not_after_ms=2**62))
        for asked in model.waiting.values():
            yield asked.until, PATIENT, Decide(asked.tx, True)
            yield asked.until, NURSE, Decide(asked.tx, True)
        for asked in model.reviews.values():
            yield 0, KEYS[asked.requester], Review(asked.tx, "justified")
            yield 0, KEYS[asked.second or b""], Review(asked.tx, "justified")

    @rule(record=records, given=open_rules, again=st.booleans())
    def change_the_rule_and_ask(self, record, given, again) -> None:
        known = self.model.records.get(record)
        given = known.rule if known and known.rule and again else given
        version = known.version + 1 if known else 1
        entry = sealed(GENESIS, record, version, given)
        self.send(PATIENT, Publish(record, version, b"c" * 32, entry, given))
        for asked in [a for a in self.model.waiting.values() if a.record == record]:
            self.send(PATIENT, Decide(asked.tx, True))
        self.send(USER, Request(record, "research"))

    @rule(
        proxy=st.sampled_from([USER, NURSE]),
        powers=st.sampled_from([("read",), ("decide",), ("decide", "read")]),
    )
    def name_a_proxy(self, proxy, powers) -> None:
        self.send(PATIENT, SetProxy(proxy.public, powers, 0, self.time + HOUR))

    @invariant()
    def the_state_says_what_the_model_says(self) -> None:
        expected, found = self.model.view(), observe(self.state, self.state)
        for name, facts in expected.items():
            assert found[name] == facts, name

    def teardown(self) -> None:
        """Two nodes execute it all, one block by block and one all at once, and both agree with what was seen before."""
        self.next_block(0)
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            heads, states = [], []
            for name, portions in (("one", [[block] for block in self.blocks]), ("all", [self.blocks])):
                (Path(folder) / name).mkdir()
                ledger = Ledger(Path(folder) / name, GENESIS)
                try:
                    dealt = MemoryState()
                    deal(GENESIS, dealt)
                    ledger.write(dealt)
                    receipts = [receipt for blocks in portions for receipt in ledger.execute(blocks)]
                    assert receipts == self.receipts
                    heads.append(ledger.head())
                    states.append({key: ledger.get(key) for key in self.state})
                    for record in RECORDS:
                        log = ledger.record_log(record, (0, 0), 10_000)
                        assert log == [r for r in self.receipts if r.record == record]
                        assert len(log) == contract.get_log_head(ledger, record).count
                finally:
                    ledger.close()
            assert heads[0] == heads[1]
            assert states[0] == states[1] == self.state


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


class ManyHistories(Histories):
    pass


TestManyHistories = pytest.mark.campaign(ManyHistories.TestCase)
TestManyHistories.settings = settings(max_examples=5000, stateful_step_count=60, deadline=None)
