"""Who is let in when a second person, an emergency, a proxy, times or a number of uses come into it."""

import msgspec
import pytest

from crypto.errors import Denied
from crypto.sign import SigningKey
from protocol.contract import (
    EMERGENCY_LIFETIME_MS,
    TICKET_LIFETIME_MS,
    WAITING_LIFETIME_MS,
    Receipt,
    check_grant,
    get_proxy,
    get_review,
    get_waiting,
    grant_key,
    grant_list,
    inbox_list,
    ward_list,
)
from protocol.identity import Ticket
from protocol.tx import Certify, Decide, Emergency, Request, Review, Revoke, Rule, SetProxy
from tests.protocol.contract_world import (
    AUTHORITY,
    DOCTOR,
    GENESIS,
    PATIENT,
    RECORD,
    RULE,
    STRANGER,
    USER,
    World,
    credential,
    publish,
)
from tests.simulation.cluster import WALL0

OPEN = msgspec.structs.replace(RULE, until_ms=None, deny=())
APPROVED = msgspec.structs.replace(OPEN, approval="role:doctor")
GLASS = msgspec.structs.replace(OPEN, emergency="org:er")
WHY = Emergency("unconscious", b"sealed to the patient")
ER = [SigningKey(bytes([20 + i]) * 32) for i in range(3)]
PARENT = SigningKey(bytes([30]) * 32)
DAY = 86_400_000


def world_with(rule: Rule) -> World:
    """A published record, three people of an emergency room, and a parent."""
    world = World().published(rule)
    for key in ER:
        world.do(AUTHORITY, Certify(credential(key, "user", "org:er")))
    world.do(AUTHORITY, Certify(credential(PARENT, "user")))
    return world


def ask(world: World, sender: SigningKey = USER, purpose: str = "research") -> Receipt:
    return world.do(sender, Request(RECORD, purpose, WHY if purpose == "emergency" else None))


def ticket(world: World, request: bytes) -> Ticket:
    return check_grant(world.state, request, world.time)[0]


def inbox(world: World) -> set[bytes]:
    prefix = inbox_list(PATIENT.public)
    return {key.removeprefix(prefix) for key in world.state if key.startswith(prefix)}


def code(world: World, sender: SigningKey, action) -> str:
    return world.do(sender, action).code


# --- a second person -----------------------------------------------------------------------------------------------------


def test_with_an_approval_a_request_waits_in_the_patients_inbox_and_opens_nothing():
    world = world_with(APPROVED)
    asked = ask(world)
    assert (asked.ok, asked.code) == (True, "waiting")
    assert inbox(world) == {asked.tx}
    waiting = get_waiting(world.state, asked.tx)
    assert (waiting.requester, waiting.expires_ms) == (USER.public, world.time + WAITING_LIFETIME_MS)
    with pytest.raises(Denied, match="not allowed"):
        check_grant(world.state, asked.tx, world.time)


@pytest.mark.parametrize("second", [DOCTOR, PATIENT], ids=["whom the rule names", "the patient"])
def test_a_second_person_grants_the_request_to_who_asked_and_it_waits_no_more(second):
    world = world_with(APPROVED)
    asked = ask(world)
    world.time += 9
    decided = world.do(second, Decide(asked.tx, True))
    assert (decided.code, decided.record, decided.request) == ("allowed", RECORD, asked.tx)
    granted = ticket(world, asked.tx)
    assert (granted.requester, granted.expires_ms) == (USER.public, world.time + TICKET_LIFETIME_MS)
    assert grant_list(USER.public) + asked.tx in world.state
    assert inbox(world) == set()
    assert code(world, second, Decide(asked.tx, True)) == "unknown-request"


def test_a_declined_request_is_gone_and_may_be_made_again():
    world = world_with(APPROVED)
    asked = ask(world)
    assert code(world, DOCTOR, Decide(asked.tx, False)) == "declined"
    assert inbox(world) == set()
    assert code(world, DOCTOR, Decide(asked.tx, True)) == "unknown-request"
    assert grant_key(asked.tx) not in world.state
    assert ask(world).code == "waiting"


def test_nobody_agrees_to_a_request_of_their_own_whatever_they_are():
    world = world_with(msgspec.structs.replace(APPROVED, approval="role:user", policy="role:user"))
    asked = ask(world)
    assert code(world, USER, Decide(asked.tx, True)) == "own-request"
    assert code(world, USER, Decide(asked.tx, False)) == "own-request"
    world.do(PATIENT, SetProxy(USER.public, ("decide",), 0, WALL0 + DAY))
    assert code(world, USER, Decide(asked.tx, True)) == "own-request"
    assert code(world, ER[0], Decide(asked.tx, True)) == "allowed"


def test_who_neither_the_rule_nor_the_patient_names_decides_nothing():
    world = world_with(APPROVED)
    asked = ask(world)
    for allow in (True, False):
        assert code(world, ER[0], Decide(asked.tx, allow)) == "not-approver"
        assert code(world, STRANGER, Decide(asked.tx, allow)) == "not-certified"
    world.do(PATIENT, SetProxy(ER[0].public, ("read",), 0, WALL0 + DAY))
    assert code(world, ER[0], Decide(asked.tx, True)) == "not-approver"
    assert code(world, DOCTOR, Decide(b"x" * 32, True)) == "unknown-request"


def test_whom_the_patient_denies_is_no_second_person_either():
    world = world_with(msgspec.structs.replace(APPROVED, deny=(DOCTOR.public,)))
    asked = ask(world)
    assert code(world, DOCTOR, Decide(asked.tx, True)) == "not-approver"


def test_a_revoked_or_expired_second_person_decides_nothing():
    world = world_with(APPROVED)
    asked = ask(world)
    world.do(AUTHORITY, Certify(credential(DOCTOR, "doctor", not_after_ms=WALL0 + 1)))
    world.time += 1
    assert code(world, DOCTOR, Decide(asked.tx, True)) == "credential-expired"
    world.do(AUTHORITY, Revoke(DOCTOR.public))
    assert code(world, DOCTOR, Decide(asked.tx, True)) == "revoked"


def test_what_has_changed_since_the_request_counts_when_the_second_person_agrees():
    changes = {
        "revoked": lambda world: world.do(AUTHORITY, Revoke(USER.public)),
        "policy-not-met": lambda world: world.do(AUTHORITY, Certify(credential(USER, "user"))),
        "request-expired": lambda world: world.do(PATIENT, publish(2, APPROVED)),
        "denied-by-patient": lambda world: world.do(
            PATIENT, publish(2, msgspec.structs.replace(APPROVED, deny=(USER.public,)))
        ),
        "wrong-purpose": lambda world: world.do(
            PATIENT, publish(2, msgspec.structs.replace(APPROVED, purposes=("payment",)))
        ),
    }
    for expected, change in changes.items():
        world = world_with(APPROVED)
        asked = ask(world)
        assert change(world).ok
        assert code(world, DOCTOR, Decide(asked.tx, True)) == expected
        assert code(world, PATIENT, Decide(asked.tx, False)) == "declined"
        assert inbox(world) == set()


def test_a_request_waits_until_its_millisecond():
    world = world_with(APPROVED)
    asked = ask(world)
    world.time += WAITING_LIFETIME_MS
    assert code(world, DOCTOR, Decide(asked.tx, True)) == "request-expired"
    world.time -= 1
    assert code(world, DOCTOR, Decide(asked.tx, True)) == "allowed"


def test_a_reader_fills_an_inbox_with_one_request_a_record_however_often_they_ask():
    world = world_with(APPROVED)
    first = ask(world)
    assert [ask(world).code for _ in range(3)] == ["already-waiting"] * 3
    other = ask(world, purpose="treatment")
    assert other.code == "waiting"
    assert inbox(world) == {other.tx}
    assert get_waiting(world.state, first.tx) is None
    world.time += WAITING_LIFETIME_MS
    again = ask(world, purpose="treatment")
    assert (again.code, inbox(world)) == ("waiting", {again.tx})
    world.do(PATIENT, publish(2, APPROVED))
    newer = ask(world, purpose="treatment")
    assert (newer.code, inbox(world)) == ("waiting", {newer.tx})


# --- emergencies -----------------------------------------------------------------------------------------------------------


def test_two_certified_people_break_the_glass_and_the_patient_knows_at_once():
    world = world_with(GLASS)
    asked = ask(world, ER[0], "emergency")
    assert (asked.code, inbox(world)) == ("waiting", {asked.tx})
    with pytest.raises(Denied, match="not allowed"):
        check_grant(world.state, asked.tx, world.time)
    world.time += 5
    decided = world.do(ER[1], Decide(asked.tx, True))
    assert (decided.code, decided.purpose) == ("emergency-allowed", "emergency")
    granted = ticket(world, asked.tx)
    assert (granted.purpose, granted.requester) == ("emergency", ER[0].public)
    assert granted.expires_ms == world.time + EMERGENCY_LIFETIME_MS
    review = get_review(world.state, asked.tx)
    assert (review.emergency, review.requester, review.second) == (WHY, ER[0].public, ER[1].public)
    assert inbox(world) == {asked.tx}
    reviewed = world.do(PATIENT, Review(asked.tx, "contested"))
    assert (reviewed.code, reviewed.record, reviewed.request) == ("reviewed", RECORD, asked.tx)
    assert (get_review(world.state, asked.tx), inbox(world)) == (None, set())


def test_one_person_alone_breaks_no_glass():
    world = world_with(GLASS)
    asked = ask(world, ER[0], "emergency")
    assert code(world, ER[0], Decide(asked.tx, True)) == "own-request"
    assert ask(world, ER[0], "emergency").code == "already-waiting"
    for other in (USER, DOCTOR, PARENT):
        assert code(world, other, Decide(asked.tx, True)) == "not-approver"
    world.do(AUTHORITY, Revoke(ER[1].public))
    assert code(world, ER[1], Decide(asked.tx, True)) == "revoked"


def test_an_emergency_needs_the_policy_a_ground_and_a_note():
    world = world_with(GLASS)
    assert ask(world, USER, "emergency").code == "emergency-not-met"
    assert world.do(ER[0], Request(RECORD, "emergency")).code == "bad-request"
    assert world.do(USER, Request(RECORD, "research", WHY)).code == "bad-request"
    assert inbox(world) == set()
    world = world_with(OPEN)
    assert ask(world, ER[0], "emergency").code == "no-emergency"


def test_whom_the_patient_denies_breaks_no_glass_and_helps_nobody_to():
    world = world_with(msgspec.structs.replace(GLASS, deny=(ER[0].public,)))
    assert ask(world, ER[0], "emergency").code == "denied-by-patient"
    asked = ask(world, ER[1], "emergency")
    assert code(world, ER[0], Decide(asked.tx, True)) == "not-approver"


def test_an_emergency_waits_an_hour_for_the_second_person_and_no_longer():
    world = world_with(GLASS)
    asked = ask(world, ER[0], "emergency")
    world.time += EMERGENCY_LIFETIME_MS
    assert code(world, ER[1], Decide(asked.tx, True)) == "request-expired"
    assert inbox(world) == {asked.tx}, "the patient still sees that somebody has tried"


def test_neither_times_purposes_nor_uses_of_the_rule_stand_against_an_emergency():
    rule = msgspec.structs.replace(GLASS, from_ms=WALL0 + DAY, until_ms=WALL0 + 2 * DAY, uses=1)
    world = world_with(rule)
    for _ in range(2):
        asked = ask(world, ER[0], "emergency")
        assert code(world, ER[1], Decide(asked.tx, True)) == "emergency-allowed"
    world.time = WALL0 + DAY
    assert ask(world).code == "allowed"


def test_nobody_who_took_part_reviews_the_emergency_even_as_a_proxy():
    world = world_with(GLASS)
    asked = ask(world, ER[0], "emergency")
    world.do(ER[1], Decide(asked.tx, True))
    for key in ER:
        assert code(world, key, Review(asked.tx, "justified")) == "not-owner"
        world.do(PATIENT, SetProxy(key.public, ("decide",), 0, WALL0 + DAY))
    assert code(world, ER[0], Review(asked.tx, "justified")) == "own-request"
    assert code(world, ER[1], Review(asked.tx, "justified")) == "own-request"
    assert code(world, ER[2], Review(asked.tx, "justified")) == "reviewed"


def test_the_patient_reviews_also_what_they_agreed_to():
    world = world_with(GLASS)
    asked = ask(world, ER[0], "emergency")
    assert code(world, PATIENT, Decide(asked.tx, True)) == "emergency-allowed"
    assert code(world, PATIENT, Review(asked.tx, "justified")) == "reviewed"


def test_only_a_granted_emergency_is_reviewed_and_once():
    world = world_with(msgspec.structs.replace(GLASS, approval="role:doctor"))
    asked, emergency = ask(world), ask(world, ER[0], "emergency")
    for request in (asked.tx, emergency.tx, b"x" * 32):
        assert code(world, PATIENT, Review(request, "justified")) == "unknown-request"
    assert code(world, DOCTOR, Decide(asked.tx, True)) == "allowed"
    assert code(world, PATIENT, Review(asked.tx, "justified")) == "unknown-request"
    assert code(world, ER[1], Decide(emergency.tx, True)) == "emergency-allowed"
    assert code(world, PATIENT, Review(emergency.tx, "justified")) == "reviewed"
    assert code(world, PATIENT, Review(emergency.tx, "justified")) == "unknown-request"


def test_a_new_version_ends_an_emergency_access_at_once():
    world = world_with(GLASS)
    asked = ask(world, ER[0], "emergency")
    world.do(ER[1], Decide(asked.tx, True))
    world.do(PATIENT, publish(2, OPEN))
    with pytest.raises(Denied, match="newer version"):
        check_grant(world.state, asked.tx, world.time)
    assert inbox(world) == {asked.tx}, "and the review still waits"


# --- proxies -----------------------------------------------------------------------------------------------------------------


def with_parent(
    *powers: str, from_ms: int = WALL0, until_ms: int = WALL0 + DAY, rule: Rule = APPROVED
) -> World:
    world = world_with(rule)
    assert code(world, PATIENT, SetProxy(PARENT.public, powers, from_ms, until_ms)) == "proxy-set"
    return world


def test_the_patient_reads_at_their_own_wish_past_policy_purposes_times_and_uses():
    world = world_with(msgspec.structs.replace(APPROVED, from_ms=WALL0 + DAY, uses=1))
    assert [ask(world, PATIENT, "patient-request").code for _ in range(3)] == ["allowed"] * 3
    world.time += DAY
    assert ask(world).code == "waiting"


def test_a_proxy_who_may_read_reads_as_the_patient_could_until_the_proxys_millisecond():
    world = with_parent("read")
    assert ask(world, PARENT, "patient-request").code == "allowed"
    assert ask(world, PARENT, "research").code == "policy-not-met"
    assert ask(world, USER, "patient-request").code == "wrong-purpose"
    world.time = WALL0 + DAY - 7
    asked = ask(world, PARENT, "patient-request")
    assert ticket(world, asked.tx).expires_ms == WALL0 + DAY
    world.time = WALL0 + DAY
    assert ask(world, PARENT, "patient-request").code == "wrong-purpose"


def test_a_proxy_has_no_power_before_its_time_nor_one_that_it_was_not_given():
    world = with_parent("read", from_ms=WALL0 + 5)
    assert ask(world, PARENT, "patient-request").code == "wrong-purpose"
    world.time += 5
    assert ask(world, PARENT, "patient-request").code == "allowed"
    asked = ask(world)
    assert code(world, PARENT, Decide(asked.tx, True)) == "not-approver"
    world = with_parent("decide")
    assert ask(world, PARENT, "patient-request").code == "wrong-purpose"
    asked = ask(world)
    assert code(world, PARENT, Decide(asked.tx, True)) == "allowed"


def test_a_proxy_does_only_what_proxies_do():
    world = with_parent("decide", "read")
    assert code(world, PARENT, publish(2, OPEN)) == "wrong-role"
    assert code(world, PARENT, SetProxy(USER.public, ("read",), 0, WALL0 + DAY)) == "wrong-role"
    world.do(AUTHORITY, Certify(credential(PARENT, "patient")))
    assert code(world, PARENT, publish(2, OPEN)) == "not-owner"


def test_a_proxy_of_a_proxy_is_none():
    world = with_parent("decide", "read")
    world.do(AUTHORITY, Certify(credential(PARENT, "patient")))
    assert code(world, PARENT, SetProxy(ER[0].public, ("decide", "read"), 0, WALL0 + DAY)) == "proxy-set"
    assert ask(world, ER[0], "patient-request").code == "wrong-purpose"


def test_a_patient_ends_and_replaces_a_proxy():
    world = with_parent("read")
    assert ward_list(PARENT.public) + PATIENT.public in world.state
    assert code(world, PATIENT, SetProxy(PARENT.public, ("decide",), 0, WALL0 + DAY)) == "proxy-set"
    assert get_proxy(world.state, PATIENT.public, PARENT.public).powers == ("decide",)
    assert ask(world, PARENT, "patient-request").code == "wrong-purpose"
    world.do(AUTHORITY, Revoke(PARENT.public))
    assert code(world, PATIENT, SetProxy(PARENT.public, (), 0, 0)) == "proxy-ended"
    assert get_proxy(world.state, PATIENT.public, PARENT.public) is None
    assert ward_list(PARENT.public) + PATIENT.public not in world.state
    assert code(world, PATIENT, SetProxy(PARENT.public, (), 0, 0)) == "unknown-proxy"


@pytest.mark.parametrize(
    ("proxy", "expected"),
    [
        (SetProxy(PATIENT.public, ("read",), 0, WALL0 + DAY), "bad-proxy"),
        (SetProxy(PARENT.public, ("read", "decide"), 0, WALL0 + DAY), "bad-proxy"),
        (SetProxy(PARENT.public, ("read", "read"), 0, WALL0 + DAY), "bad-proxy"),
        (SetProxy(PARENT.public, ("read",), 0, WALL0), "bad-proxy"),
        (SetProxy(PARENT.public, ("read",), WALL0 + 9, WALL0 + 9), "bad-proxy"),
        (SetProxy(PARENT.public, ("read",), WALL0 + 9, WALL0 + 8), "bad-proxy"),
        (SetProxy(PARENT.public, ("read",), 2**63 - 1, 2**63 - 1), "bad-proxy"),
        (SetProxy(STRANGER.public, ("read",), 0, WALL0 + DAY), "not-certified"),
    ],
)
def test_a_proxy_that_could_never_act_is_refused(proxy, expected):
    world = world_with(OPEN)
    assert code(world, PATIENT, proxy) == expected
    assert code(world, USER, proxy) == "wrong-role"


def test_the_proxies_of_a_stolen_key_end_with_it():
    """Else a thief would name one, and go on reading after the key is revoked."""
    world = with_parent("decide", "read")
    asked = ask(world)
    world.do(AUTHORITY, Revoke(PATIENT.public))
    assert ask(world, PARENT, "patient-request").code == "wrong-purpose"
    assert code(world, PARENT, Decide(asked.tx, True)) == "not-approver"


def test_a_proxy_acts_on_when_the_patients_credential_has_expired():
    """Who lies unconscious renews nothing."""
    world = world_with(APPROVED)
    world.do(AUTHORITY, Certify(credential(PATIENT, "patient", not_after_ms=WALL0 + 10)))
    assert code(world, PATIENT, SetProxy(PARENT.public, ("read",), 0, WALL0 + DAY)) == "proxy-set"
    world.time += 10
    assert ask(world, PATIENT, "patient-request").code == "credential-expired"
    assert ask(world, PARENT, "patient-request").code == "allowed"


# --- times and uses ----------------------------------------------------------------------------------------------------------


def test_a_permission_begins_at_its_millisecond():
    world = world_with(msgspec.structs.replace(OPEN, from_ms=WALL0 + 10))
    world.time += 9
    assert ask(world).code == "rule-not-yet"
    world.time += 1
    assert ask(world).code == "allowed"


@pytest.mark.parametrize("until", [WALL0 + 10, WALL0 + 9])
def test_a_rule_that_ends_before_it_begins_is_refused(until):
    rule = msgspec.structs.replace(OPEN, from_ms=WALL0 + 10, until_ms=until)
    assert code(World().attested(), PATIENT, publish(1, rule)) == "bad-rule"


def test_a_rule_is_granted_as_often_as_it_says_and_refused_requests_do_not_count():
    world = world_with(msgspec.structs.replace(OPEN, uses=2))
    assert ask(world, purpose="payment").code == "wrong-purpose"
    assert [ask(world).code for _ in range(3)] == ["allowed", "allowed", "used-up"]


def test_a_new_version_under_the_same_rule_counts_on_and_another_rule_begins_anew():
    once = msgspec.structs.replace(OPEN, uses=1)
    world = world_with(once)
    assert ask(world).code == "allowed"
    world.do(PATIENT, publish(2, once))
    assert ask(world).code == "used-up"
    world.do(PATIENT, publish(3, msgspec.structs.replace(once, purposes=("research",))))
    assert [ask(world).code for _ in range(2)] == ["allowed", "used-up"]


def test_waiting_requests_use_nothing_up_until_they_are_granted():
    world = world_with(msgspec.structs.replace(APPROVED, uses=1, policy="role:user"))
    first, second = ask(world), ask(world, ER[0])
    assert (first.code, second.code) == ("waiting", "waiting")
    assert code(world, DOCTOR, Decide(first.tx, True)) == "allowed"
    assert code(world, DOCTOR, Decide(second.tx, True)) == "used-up"
    assert code(world, DOCTOR, Decide(second.tx, False)) == "declined"


def test_a_grant_is_for_this_chain_and_names_what_was_asked():
    world = world_with(OPEN)
    asked = ask(world)
    assert ticket(world, asked.tx) == Ticket(
        GENESIS.chain_id,
        asked.tx,
        RECORD,
        1,
        b"\x01" * 32,
        USER.public,
        "research",
        WALL0 + TICKET_LIFETIME_MS,
    )
