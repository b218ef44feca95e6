"""The schemes of the comparison, over one real network: each must open exactly what its patient shared, to exactly those who may."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from e2e_files import SAMPLES

from bench.baselines import SCHEMES, Bpds, Diptych, Held, OneChain, People, Rights, Scheme, Traditional
from client.doctor import SignedPart, decode_part
from client.fhir import PRIVATE, Part, join, load_bundle, load_profile, read_bundle, split, tokens_equal
from client.home import Home
from client.session import Session
from crypto.codec import encode
from crypto.errors import Denied, DiptychError, Unauthentic
from crypto.parts import seal_part
from node.devnet import Supervisor

BEFORE = Rights(("role:doctor", "role:government"), ("role:researcher",))
SWAPPED = Rights(("role:doctor", "role:researcher"), ("role:government",))
SHARED = {"m2", "m3", "m4", "m5", "m6", "m7"}


@dataclass
class Cast:
    people: People
    full: Home
    government: Home
    researcher: Home
    stranger: Home


@pytest.fixture(scope="module")
def cast(join_as: Callable[..., Session]) -> Cast:
    homes = [join_as("doctor").home]
    homes += [join_as("user", f"role:{name}").home for name in ("government", "researcher", "advertiser")]
    people = People(join_as("doctor").home, join_as("patient").home, homes)
    return Cast(people, *homes)


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    return split(read_bundle(load_bundle(SAMPLES[1])), load_profile("paper"))


@pytest.fixture(params=SCHEMES, ids=lambda kind: kind.name)
def scheme(request: pytest.FixtureRequest, cast: Cast) -> Iterator[Scheme]:
    with request.param(cast.people) as made:
        yield made


@pytest.fixture
def held(scheme: Scheme, parts: list[Part]) -> Held:
    return scheme.store(parts, SHARED, BEFORE)


def _shared(parts: list[Part], *labels: str) -> dict[str, bytes]:
    return {p.label: p.content for p in parts if p.label in SHARED | set(labels)}


def test_each_reader_opens_what_the_patient_lets_them(
    scheme: Scheme, held: Held, parts: list[Part], cast: Cast
):
    assert scheme.read(held, cast.researcher) == _shared(parts)
    for reader in (cast.full, cast.government):
        assert _shared(parts).items() <= scheme.read(held, reader).items()
        whole = scheme.read_whole(held, reader)
        if scheme.keeps_whole:
            assert tokens_equal(join(whole), load_bundle(SAMPLES[1]))
        else:
            assert whole == _shared(parts), "the private parts are nowhere in the cloud"
    for read in (scheme.read, scheme.read_whole):
        with pytest.raises(Denied):
            read(held, cast.stranger)
    try:
        opened = scheme.read_whole(held, cast.researcher)
    except Denied:
        opened = {}
    assert opened.items() <= _shared(parts).items()


def test_a_part_that_is_moved_can_be_read_by_whom_it_is_shared_with(
    scheme: Scheme, held: Held, parts: list[Part], cast: Cast
):
    scheme.share(held, "m8")
    assert scheme.read(held, cast.researcher) == _shared(parts, "m8")
    with pytest.raises(Denied):
        scheme.read(held, cast.stranger)


def test_rights_that_are_swapped_hold_for_the_next_request(
    scheme: Scheme, held: Held, parts: list[Part], cast: Cast
):
    scheme.permit(held, SWAPPED)
    assert scheme.read(held, cast.government) == _shared(parts), "and no private part any more"
    if scheme.keeps_whole:
        assert scheme.read_whole(held, cast.researcher).keys() == {p.label for p in parts}
    with pytest.raises(Denied):
        scheme.read(held, cast.stranger)
    try:
        opened = scheme.read_whole(held, cast.government)
    except Denied:
        opened = {}
    assert opened.items() <= _shared(parts).items()


def test_content_that_the_doctor_did_not_sign_is_refused(
    scheme: Scheme, cast: Cast, parts: list[Part], monkeypatch
):
    """A patient who encrypts something else than what the doctor has signed deceives no reader."""

    def forging(key: bytes, record: bytes, index: int, version: int, tag: bytes, message: bytes) -> bytes:
        signed = decode_part(message)
        forged = SignedPart(signed.label, signed.content.replace(b"{", b'{"x":"y",', 1))
        return seal_part(key, record, index, version, tag, encode(forged))

    with monkeypatch.context() as patch:
        patch.setattr("client.patient.seal_part", forging)
        chosen = [p for p in parts if p.label in SHARED]
        held = scheme.store(chosen, SHARED, BEFORE)
    with pytest.raises(Unauthentic):
        scheme.read(held, cast.researcher)


def test_only_the_schemes_with_keys_of_their_own_leave_ciphertext_alone(cast: Cast, parts: list[Part]):
    """What a change sends to the cloud: keys alone, a new copy, or all shared parts."""
    sent: dict[str, tuple[int, int, int]] = {}
    for kind in SCHEMES:
        with kind(cast.people) as scheme:
            held = scheme.store(parts, SHARED, BEFORE)
            stored = scheme.uploaded
            scheme.permit(held, SWAPPED)
            permitted = scheme.uploaded
            scheme.share(held, "m8")
            sent[scheme.name] = stored, permitted - stored, scheme.uploaded - permitted
    at_first, permit, share = sent[Bpds.name]
    assert permit > 0.95 * at_first, "BPDS sends every shared sub-message again"
    assert share < permit, "and one more by itself"
    at_first, permit, share = sent[Traditional.name]
    assert permit < 0.5 * at_first, "the list alone"
    assert share > 2 * permit, "the second copy is made anew"
    for name in (Diptych.name, OneChain.name):
        at_first, permit, share = sent[name]
        assert max(permit, share) < 0.5 * at_first, "keys alone"


def test_sub_messages_may_be_asked_for_at_once_or_only_some(cast: Cast, parts: list[Part]):
    with Bpds(cast.people) as scheme:
        held = scheme.store(parts, SHARED, BEFORE)
        assert scheme.read_at_once(held, cast.researcher) == _shared(parts)
        assert len(scheme.read(held, cast.researcher, 2)) == 2
        assert PRIVATE not in held.records
        with pytest.raises(DiptychError):
            scheme.read_at_once(held, cast.stranger)


def test_no_data_ciphertext_changes_when_a_part_moves_or_rights_are_swapped(
    cast: Cast, parts: list[Part], net: Supervisor
):
    """Claim C9, in the files of the cloud."""

    def ciphertexts() -> dict[str, bytes]:
        found = [path for path in (net.folder / "cloud" / "data" / "blobs").rglob("*") if path.is_file()]
        return {path.name: path.read_bytes() for path in found}

    with Diptych(cast.people) as scheme:
        others = ciphertexts()
        record = scheme.store(parts, SHARED, BEFORE).records["record"]
        held = {part.blob.hash.hex() for part in scheme.patient.load(record).parts}
        before = ciphertexts()
        scheme.patient.move(record, "m8", "shared")
        scheme.patient.set_policies(record, SWAPPED.policies)
        after = ciphertexts()
    assert held <= before.keys() - others.keys()
    assert {name: before[name] for name in held} == {name: after[name] for name in held}
    envelopes = before.keys() - others.keys() - held
    assert len(envelopes) == 2
    assert not envelopes & after.keys(), "the envelopes of the first version are gone"
    assert len(after.keys() - before.keys()) == 2, "and two new ones came instead, and nothing else"


def test_every_request_allowed_or_denied_stands_on_chain_with_who_and_why(cast: Cast, parts: list[Part]):
    """Claim C12."""
    with Diptych(cast.people) as scheme:
        held = scheme.store(parts, SHARED, BEFORE)
        scheme.read(held, cast.researcher)
        scheme.read_whole(held, cast.full)
        for reader in (cast.stranger, cast.researcher):
            with pytest.raises(Denied):
                scheme.read_whole(held, reader)
        log = scheme.patient.log(held.records["record"])
    asked = [(kind, r.sender, r.ok, r.code) for kind, r in log if r.kind == "access.request"]
    assert asked == [
        ("sharing", cast.researcher.sign.public, True, "allowed"),
        ("storage", cast.full.sign.public, True, "allowed"),
        ("storage", cast.stranger.sign.public, False, "policy-not-met"),
        ("storage", cast.researcher.sign.public, False, "policy-not-met"),
    ]
