"""Time-bound attributes over weeks: who is certified reads on, who is not any more reads nothing that is sealed afterwards."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from client.authority import Authority
from client.collect import collect_key
from client.doctor import Doctor
from client.enrolment import Renewal
from client.fhir import load_profile
from client.patient import Patient, envelope_context
from client.reader import Reader
from client.session import Session
from client.web import now_ms
from configs.settings import AuthoritySettings
from crypto.abe import decapsulate, encapsulate
from crypto.epoch import week_at
from crypto.errors import Conflict, Denied, Malformed, NotFound, Unauthentic
from crypto.sign import SigningKey
from node.devnet import Supervisor

WEEK_MS = 7 * 86_400_000
ACTIVE = "status:active@week"


@pytest.fixture
def authority(net: Supervisor) -> Authority:
    """The authority of the network, in this process, so that a test can set its clock."""
    return Authority.open(AuthoritySettings.load(net.folder / "authority" / "config.toml"), None)


@pytest.fixture
def weeks_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets authority, readers and patients in this process see a later week."""

    def later(count: int) -> None:
        for module in ("authority", "session", "patient"):
            monkeypatch.setattr(f"client.{module}.week_at", lambda ms: week_at(ms + count * WEEK_MS))

    return later


@pytest.fixture
def stored(join_as: Callable[..., Session], sample: bytes) -> SimpleNamespace:
    """A record whose shared class asks for active researchers."""
    doctor, patient = join_as("doctor", "org:st-mary"), join_as("patient")
    rules = load_profile("safe")
    record, package, _ = Doctor(doctor).sign(sample, patient.home.sign.public, rules)
    access = {group.label: group.access for group in (*rules.groups, *rules.derived)}
    policies = {"private": "role:doctor", "shared": f"role:researcher and {ACTIVE}"}
    owner = Patient(patient)
    owner.receive(package)
    return SimpleNamespace(
        record=record, owner=owner, last=owner.store(record, access, policies, ("research",))
    )


def reads(session: Session, record: bytes) -> bool:
    reader = Reader(session)
    if not reader.request(record, "sharing", "research").ok:
        return False
    return bool(reader.open(record, "sharing").parts)


def renew(session: Session, authority: Authority) -> None:
    """As `Session.renew`, with an authority in this process; the key comes from the network's."""
    home = session.home
    signed = authority.renew(Renewal.make(home.sign, now_ms()))
    key, public = collect_key(home.network, signed, home.sign, home.seal, lambda _: None)
    home.enrol(signed, key.to_bytes(), public.to_bytes())


def test_who_is_certified_from_week_to_week_reads_old_and_new_records_and_who_is_not_only_old_ones(
    authority: Authority,
    weeks_later: Callable[[int], None],
    join_as: Callable[..., Session],
    stored: SimpleNamespace,
):
    staying, leaving = (join_as("user", "role:researcher", ACTIVE) for _ in range(2))
    this_week = staying.home.credential.credential.attributes
    assert f"status:active@{week_at(now_ms())}" in this_week
    assert reads(staying, stored.record)
    assert reads(leaving, stored.record)

    weeks_later(1)
    assert staying.is_renewal_due
    stored.owner.renew(stored.record)
    assert not reads(staying, stored.record)
    assert not reads(leaving, stored.record)
    ends = staying.home.credential.credential.not_after_ms
    renew(staying, authority)
    assert not staying.is_renewal_due
    assert staying.home.credential.credential.not_after_ms == ends
    assert reads(staying, stored.record)
    assert not reads(leaving, stored.record)

    weeks_later(5)
    renew(staying, authority)
    assert reads(staying, stored.record), "sealed weeks before"
    late = join_as("user", "role:researcher", ACTIVE)
    renew(late, authority)
    assert reads(late, stored.record), "certified only after it was sealed"


def test_without_the_contract_and_the_cloud_the_key_of_a_past_week_opens_nothing_new(
    join_as: Callable[..., Session],
):
    home = join_as("user", "role:researcher", ACTIVE).home
    context = envelope_context(bytes(16), 1, "shared", b"extract")
    for weeks, opens in ((-60, True), (0, True), (1, False), (60, False)):
        policy = f"role:researcher and status:active@{week_at(now_ms() + weeks * WEEK_MS)}"
        header, key = encapsulate(home.abe_public, policy, context)
        if opens:
            assert decapsulate(home.abe_public, home.attribute_key, policy, header, context) == key
        else:
            with pytest.raises(Denied):
                decapsulate(home.abe_public, home.attribute_key, policy, header, context)


def test_a_renewal_twice_in_a_week_gives_the_same_answer(
    authority: Authority, weeks_later: Callable[[int], None], join_as: Callable[..., Session]
):
    reader = join_as("user", "role:researcher", ACTIVE)
    before = reader.home.credential
    reader.renew()
    assert reader.home.credential == before
    weeks_later(1)
    first, second = (authority.renew(Renewal.make(reader.home.sign, now_ms())) for _ in range(2))
    assert first == second
    assert first != before
    assert reader.chains["sharing"].verified_person(reader.home.sign.public).signed == first


def test_who_is_revoked_expired_unknown_or_set_to_another_time_is_not_renewed(
    authority: Authority,
    weeks_later: Callable[[int], None],
    join_as: Callable[..., Session],
    stored: SimpleNamespace,
    invite: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
):
    revoked, expired = (join_as("user", "role:researcher", ACTIVE) for _ in range(2))
    with pytest.raises(NotFound, match="not enrolled"):
        authority.renew(Renewal.make(SigningKey.generate(), now_ms()))
    for off in (-WEEK_MS, WEEK_MS):
        with pytest.raises(Denied, match="clock"):
            authority.renew(Renewal.make(revoked.home.sign, now_ms() + off))
    forged = Renewal(Renewal.make(revoked.home.sign, now_ms()).body, bytes(64))
    with pytest.raises(Unauthentic):
        authority.renew(forged)

    authority.revoke(revoked.home.sign.public)
    assert not reads(revoked, stored.record)
    weeks_later(1)
    for _ in range(2):
        with pytest.raises(Denied, match="revoked"):
            renew(revoked, authority)
    with pytest.raises(Denied, match="revoked"):
        revoked.enrol(invite("user", ["role:researcher"], 24))
    assert revoked.chains["sharing"].verified_person(revoked.home.sign.public).is_revoked

    later = expired.home.credential.credential.not_after_ms
    monkeypatch.setattr("client.authority.now_ms", lambda: later)
    with pytest.raises(Denied, match="expired"):
        authority.renew(Renewal.make(expired.home.sign, later))


def test_a_record_without_time_bound_policy_needs_no_renewal_and_the_authority_fills_in_weeks_itself(
    authority: Authority, stored: SimpleNamespace
):
    assert stored.owner.time_bound() == [stored.record]
    stored.owner.set_policies(stored.record, {"shared": "role:researcher"})
    assert stored.owner.time_bound() == []
    with pytest.raises(Conflict, match="@week"):
        stored.owner.renew(stored.record)
    with pytest.raises(Malformed, match="@week"):
        authority.invite("user", ["status:active@2026w47"], 1)


def test_renewal_and_revocation_by_commands(
    run: Callable,
    net: Supervisor,
    join_as: Callable[..., Session],
    stored: SimpleNamespace,
):
    reader, record = join_as("user", "role:researcher", ACTIVE), stored.record.hex()
    home = ("-m", "client", "--home", reader.home.path, "-o", "json")
    patient = ("-m", "client", "--home", stored.owner._home.path, "-o", "json")
    shown = json.loads(run(*home, "renew").stdout)
    assert f"status:active@{week_at(now_ms())}" in shown["attributes"]
    assert json.loads(run(*patient, "record", "renew").stdout) == [{"record": record, "version": 2}]
    assert reads(reader, stored.record)
    revoke = ("run_node.py", "revoke", "--config", net.folder / "authority" / "config.toml", shown["key"])
    refused = run(*revoke, code=1)
    assert "role:researcher" in refused.stderr
    assert "--yes" in refused.stderr
    assert reads(reader, stored.record), "nobody has agreed to it"
    run(*revoke, "--yes")
    assert not reads(reader, stored.record)
    assert "revoked" in run(*home, "renew", code=5).stderr
