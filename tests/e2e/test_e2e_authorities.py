"""Three authority processes, any two of which issue attribute keys, and none of which ever holds the master key."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest
from e2e_files import ROOT

from client.authority import Authority
from client.collect import collect_key
from client.doctor import Doctor
from client.enrolment import KeyRequest, KeyRequestBody
from client.fhir import load_profile
from client.home import Home
from client.issuer import Issuer
from client.patient import Patient
from client.reader import Reader
from client.session import Session
from client.web import checked, http_client, now_ms
from configs.files import load_network, read_key
from configs.settings import AuthoritySettings, NetworkSettings
from configs.signer import signer_of
from crypto import fabeo
from crypto.abe import decapsulate, encapsulate
from crypto.ces import ED25519
from crypto.errors import Conflict, Denied, NotFound, Unauthentic, Unavailable
from crypto.group import ORDER
from crypto.schemes import read_attributes
from crypto.sharing import lagrange
from crypto.sign import SigningKey
from crypto.split import IssuerKey
from node.devnet import Supervisor, make
from protocol.identity import Role, SignedCredential, key_attribute

AUTHORITIES = ["authority", "authority-2", "authority-3"]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    folder = tmp_path_factory.mktemp("network")
    make(folder, NetworkSettings(storage=1, sharing=1, transport="tls", authorities=3, authority_threshold=2))
    with Supervisor(folder) as supervisor:
        supervisor.start()
        supervisor.wait_ready()
        yield supervisor


@pytest.fixture
def whole_net(net: Supervisor) -> Iterator[Supervisor]:
    yield net
    net.start()
    net.wait_ready()


@pytest.fixture
def cheating(whole_net: Supervisor) -> Iterator[Callable[[str], None]]:
    """Puts a cheating process in an authority's place."""
    processes = []

    def replace(name: str) -> None:
        daemon = whole_net.daemons[name]
        whole_net.kill(name)
        script = ROOT / "tests" / "e2e" / "cheating_authority.py"
        env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        processes.append(subprocess.Popen([sys.executable, script, daemon.config], cwd=ROOT, env=env))
        with http_client(5) as http:
            while True:
                assert processes[-1].poll() is None
                try:
                    if http.get(f"{daemon.url}/readyz").status_code == 200:
                        return
                except httpx2.HTTPError:
                    continue

    yield replace
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def invite(net: Supervisor) -> Callable[[Role, list[str], int], str]:
    return Authority.open(AuthoritySettings.load(net.folder / "authority" / "config.toml"), None).invite


@pytest.fixture
def join(
    net: Supervisor, invite: Callable, tmp_path: Path
) -> Iterator[Callable[..., tuple[Session, list[str]]]]:
    """Enrols someone; their session, and what they were told meanwhile."""
    sessions: list[Session] = []

    def enrol(role: Role, *attributes: str) -> tuple[Session, list[str]]:
        told: list[str] = []
        suite = ED25519 if role == "doctor" else None
        home = Home.create(tmp_path / f"home-{len(sessions)}", net.folder / "network.toml", suite)
        sessions.append(Session(home, told.append))
        sessions[-1].enrol(invite(role, list(attributes), 1))
        return sessions[-1], told

    yield enrol
    for session in sessions:
        session.close()


def shares(net: Supervisor) -> dict[str, IssuerKey]:
    return {
        name: IssuerKey.from_bytes(read_key(net.folder / name / "keys" / "abe.key")) for name in AUTHORITIES
    }


# --- the key is born shared ----------------------------------------------------------------------------------------


def test_the_master_key_is_in_no_file_and_two_shares_make_it(net: Supervisor):
    found = shares(net)
    assert len({issuer.joint.to_bytes() for issuer in found.values()}) == 1
    by_number = {issuer.number: issuer._master._secret for issuer in found.values()}
    joint = found["authority"].joint
    for pair in ([0, 1], [0, 2], [1, 2]):
        master = sum(by_number[n] * weight for n, weight in lagrange(pair).items()) % ORDER
        assert fabeo.MasterKey(master).public.to_bytes() == joint.public.to_bytes()
    secret = master.to_bytes(32, "big")
    files = [file for file in net.folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert not [file for file in files if secret in file.read_bytes()]
    assert not list(net.folder.rglob("ceremony.key")), "the keys that open the pieces are gone"


@pytest.mark.campaign
def test_after_a_restart_the_authorities_go_on_with_their_shares(whole_net: Supervisor, join: Callable):
    before = {name: issuer.to_bytes() for name, issuer in shares(whole_net).items()}
    for name in AUTHORITIES:
        whole_net.kill(name)
    whole_net.start(*AUTHORITIES)
    whole_net.wait_ready()
    assert {name: issuer.to_bytes() for name, issuer in shares(whole_net).items()} == before
    join("patient")


@pytest.mark.campaign
def test_a_ceremony_that_is_interrupted_by_kills_comes_to_its_end(tmp_path: Path):
    make(tmp_path, NetworkSettings(storage=1, sharing=1, authorities=3))
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("authority", "authority-2")
        words = [tmp_path / name / "data" / "ceremony" / "1.word" for name in ("authority", "authority-2")]
        while not all(word.exists() for word in words):
            assert all(
                supervisor.daemons[name].process.poll() is None for name in ("authority", "authority-2")
            )
        first = words[0].read_bytes()
        supervisor.kill("authority")
        supervisor.start("authority", "authority-3")
        supervisor.wait_ready()
        assert words[0].read_bytes() == first
        assert len({issuer.joint.to_bytes() for issuer in shares(supervisor).values()}) == 1


# --- issuing -------------------------------------------------------------------------------------------------------


def test_people_whose_keys_were_issued_jointly_share_and_read_a_record(join: Callable, sample: bytes):
    (doctor, _), (patient, _), (reader, _) = join("doctor"), join("patient"), join("user", "role:researcher")
    rules = load_profile("safe")
    record, package, _ = Doctor(doctor).sign(sample, patient.home.sign.public, rules)
    access = {group.label: group.access for group in (*rules.groups, *rules.derived)}
    owner = Patient(patient)
    owner.receive(package)
    policies = {"private": "role:doctor", "shared": "role:researcher or role:doctor"}
    owner.store(record, access, policies, ("research", "treatment"))
    assert Reader(reader).request(record, "sharing", "research").ok
    assert Reader(reader).open(record, "sharing").parts
    assert Reader(doctor).request(record, "storage", "treatment").ok
    assert not Reader(doctor).open(record, "storage").closed


def test_with_one_authority_down_keys_are_issued_and_it_is_named(whole_net: Supervisor, join: Callable):
    whole_net.kill("authority-3")
    session, told = join("user", "role:researcher")
    assert "role:researcher" in session.home.attribute_key.attributes
    assert [line for line in told if line.startswith("authority-3: does not answer")]


def test_a_cheating_authority_is_named_and_not_needed_until_another_one_is_down(
    whole_net: Supervisor, cheating: Callable, join: Callable, tmp_path: Path
):
    cheating("authority-2")
    session, told = join("user", "role:researcher")
    fault = "authority-2: the key does not fit the public key of the authority that issued it"
    assert fault in told
    public, key = session.home.abe_public, session.home.attribute_key
    header, secret = encapsulate(public, "role:researcher", b"context")
    assert decapsulate(public, key, "role:researcher", header, b"context") == secret

    whole_net.kill("authority-3")
    with pytest.raises(Unavailable, match=rf"2 of the 3 .*{fault}; authority-3: does not answer"):
        join("user", "role:researcher")
    assert not Home(tmp_path / "home-1").is_enrolled


@pytest.mark.campaign
def test_enrolment_goes_on_where_it_stopped_once_enough_authorities_are_back(
    whole_net: Supervisor, invite: Callable, tmp_path: Path
):
    invitation = invite("user", ["role:researcher"], 1)
    with Session(Home.create(tmp_path / "home", whole_net.folder / "network.toml", None)) as session:
        whole_net.kill("authority-2")
        whole_net.kill("authority-3")
        with pytest.raises(Unavailable):
            session.enrol(invitation)
        assert not session.home.is_enrolled
        whole_net.start("authority-2", "authority-3")
        whole_net.wait_ready()
        session.enrol(invitation)
        assert session.home.is_enrolled


# --- each authority decides for itself -----------------------------------------------------------------------------


@pytest.fixture
def issuer(net: Supervisor) -> Issuer:
    """authority-2 in this process, asking the real chains."""
    settings = AuthoritySettings.load(net.folder / "authority-2" / "config.toml")
    network, chains = load_network(settings.network)
    key = signer_of(settings, "authority.key", None)
    return Issuer(key, network, chains, settings.keys, settings.data, None)


def request_of(session: Session, asked: Issuer, **changes: object) -> KeyRequest:
    fields = {
        "credential": session.home.credential,
        "issuer": asked._key.public,
        "time_ms": now_ms(),
    } | changes
    return KeyRequest.make(KeyRequestBody(**fields), session.home.sign)


def test_an_authority_issues_for_the_certified_attributes_only_to_their_holder(
    join: Callable, issuer: Issuer
):
    session, _ = join("user", "role:researcher", "org:st-mary")
    request = request_of(session, issuer)
    issued = issuer.issue(request)
    issued.verify(request)
    part = read_attributes(session.home.seal.open(issued.sealed_part, "the part"))
    key = session.home.sign.public
    assert part.attributes == {"role:researcher", "org:st-mary", key_attribute(key)}
    other, _ = join("user", "role:insurer")
    with pytest.raises(Unauthentic):
        other.home.seal.open(issued.sealed_part, "the part")
    with pytest.raises(Unauthentic, match="the request for a key"):
        issuer.issue(KeyRequest.make(request.body, other.home.sign))
    with pytest.raises(Unauthentic, match="the authority's answer"):
        issued.verify(request_of(other, issuer))


def test_an_authority_refuses_what_the_certifying_one_did_not_sign_or_the_chains_do_not_show(
    join: Callable, issuer: Issuer, net: Supervisor, monkeypatch: pytest.MonkeyPatch
):
    session, _ = join("user", "role:researcher")
    mine = session.home.credential
    more = msgspec.structs.replace(mine.credential, attributes=("org:st-mary", "role:researcher"))
    with pytest.raises(Unauthentic, match="the credential"):
        issuer.issue(request_of(session, issuer, credential=SignedCredential(more, mine.signature)))
    with pytest.raises(Unauthentic, match="the credential"):
        issuer.issue(
            request_of(session, issuer, credential=SignedCredential.issue(more, SigningKey.generate()))
        )
    registrar = SigningKey(read_key(net.folder / "authority" / "keys" / "authority.key"))
    foreign = msgspec.structs.replace(more, attributes=(key_attribute(bytes(32)),))
    with pytest.raises(Denied, match="another person's key"):
        issuer.issue(request_of(session, issuer, credential=SignedCredential.issue(foreign, registrar)))
    with pytest.raises(Conflict, match="another credential of this key stands on the storage chain"):
        issuer.issue(request_of(session, issuer, credential=SignedCredential.issue(more, registrar)))
    stranger = msgspec.structs.replace(more, subject=SigningKey(b"s" * 32).public)
    unknown = KeyRequestBody(SignedCredential.issue(stranger, registrar), issuer._key.public, now_ms())
    with pytest.raises(NotFound, match="not certified"):
        issuer.issue(KeyRequest.make(unknown, SigningKey(b"s" * 32)))


def test_old_requests_and_those_for_another_authority_are_refused(join: Callable, issuer: Issuer):
    session, _ = join("user", "role:researcher")
    for off in (-3_600_000, 3_600_000):
        with pytest.raises(Denied, match="clock"):
            issuer.issue(request_of(session, issuer, time_ms=now_ms() + off))
    with pytest.raises(Denied, match="another authority"):
        issuer.issue(request_of(session, issuer, issuer=bytes(32)))


def test_who_is_revoked_gets_no_part_from_any_authority(join: Callable, issuer: Issuer, net: Supervisor):
    session, _ = join("user", "role:researcher")
    authority = Authority.open(AuthoritySettings.load(net.folder / "authority" / "config.toml"), None)
    authority.revoke(session.home.sign.public)
    with pytest.raises(Denied, match="revoked"):
        issuer.issue(request_of(session, issuer))
    home = session.home
    with pytest.raises(Unavailable, match="revoked"):
        collect_key(home.network, home.credential, home.sign, home.seal, lambda _: None)


def test_an_authority_that_only_issues_certifies_nobody(net: Supervisor):
    with http_client(5) as http, pytest.raises(NotFound, match="certifies nobody"):
        checked(http.post(f"{net.daemons['authority-2'].url}/v1/renew", content=b""))


def test_what_an_authority_says_over_http_is_bounded_and_named(net: Supervisor):
    with http_client(5) as http:
        url = net.daemons["authority"].url
        assert http.post(f"{url}/v1/key", content=b"junk").status_code == 400
        assert http.post(f"{url}/v1/key", content=bytes(1 << 20)).status_code == 413
        assert http.get(f"{url}/v1/ceremony/1").status_code == 200
        assert http.get(f"{url}/v1/ceremony/0").status_code == 404
        assert http.get(f"{url}/v1/ceremony/5").status_code == 404


def test_a_share_beside_a_network_file_of_other_authorities_is_refused(
    net: Supervisor, tmp_path: Path, issuer: Issuer
):
    settings = AuthoritySettings.load(net.folder / "authority-2" / "config.toml")
    make(tmp_path / "other", NetworkSettings(storage=1, sharing=1, authorities=3, authority_threshold=3))
    network, chains = load_network(tmp_path / "other" / "network.toml")
    with pytest.raises(Conflict, match="none of those"):
        Issuer(issuer._key, network, chains, settings.keys, settings.data, None)
    key = SigningKey(read_key(tmp_path / "other" / "authority-2" / "keys" / "authority.key"))
    with pytest.raises(Conflict, match="among other authorities"):
        Issuer(key, network, chains, settings.keys, settings.data, None)
