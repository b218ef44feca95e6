"""Fuzz targets over everything that decodes: what it is given, from where valid inputs come, and what must hold whatever comes in.

A target takes bytes and returns; an exception other than a failed assertion is a finding as much as one. Refusals are `DiptychError`s and end
inside the target. `tests.fuzz.systems` has the targets over running parts.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from client import audit, cli, enrolment  # noqa: F401 - cli imports all of the client, for its decoders
from client.chaos.scenario import load_scenario
from client.fhir import join, load_profile, minify, read_bundle, split
from client.fhir.profile import Profile
from configs.settings import CloudSettings, NetworkSettings, NodeSettings
from crypto import abe, ceas, ces, keyfile, parts, policy
from crypto.codec import Decoder, encode
from crypto.errors import DiptychError
from crypto.group import G1, G1_GENERATOR, G2, G2_GENERATOR
from crypto.schemes import SCHEMES
from crypto.seal import SealKey
from crypto.sign import SigningKey
from protocol import contract, evidence, genesis, identity, network, record, tx
from protocol.mempool import Mempool
from tests.dealer import deal, sealed
from tests.fuzz.recorded import COMMITTEE, GENESIS, KEYS, LIAR, chain_messages
from tests.memory_state import MemoryState

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = Path(
    tempfile.mkdtemp(prefix="diptych-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
DOCTOR, PATIENT, USER = (SigningKey(name.ljust(32, b".")) for name in (b"d", b"p", b"u"))
AUTHORITY = SigningKey(bytes([77]) * 32)
assert AUTHORITY.public == GENESIS.authority
SEAL = SealKey(b"s" * 32)
NOW, RECORD, OTHER = 1_800_000_000_000, b"r" * 16, b"o" * 16


@dataclass(frozen=True)
class Target:
    """`run` fails on a finding; `is_tree`: the input is msgpack, to be mutated as such."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    is_tree: bool
    max_bytes: int


TARGETS: dict[str, Target] = {}


def target(
    seeds: Callable[[], Sequence[bytes]], *, is_tree: bool = True, max_bytes: int = 1 << 16
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Registers a target under the name of its function, which says what is fed."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = run.__name__.replace("_", "-")
        TARGETS[name] = Target(name, run, seeds, is_tree, max_bytes)
        return run

    return register


refused = contextlib.suppress(DiptychError)
"""Refusals are as they should be."""


# --- wire objects and stored objects: decoded means canonical -----------------------------------------------------------------


@cache
def decoders() -> list[Decoder[Any]]:
    """Every one of every module that is imported by now."""
    ours = [m for name, m in sorted(sys.modules.items()) if name.partition(".")[0] in PACKAGES]
    return list({id(d): d for m in ours for d in vars(m).values() if isinstance(d, Decoder)}.values())


PACKAGES = ("crypto", "protocol", "configs", "node", "cloudstub", "client")


def credential(
    key: SigningKey, role: identity.Role, authority: SigningKey = AUTHORITY
) -> identity.SignedCredential:
    ces_key = identity.CesKey(ces.ED25519, key.public) if role == "doctor" else None
    plain = identity.Credential(
        key.public, role, (f"role:{role}",), SEAL.public, ces_key, NOW - 1, NOW + 10**9
    )
    return identity.SignedCredential.issue(plain, authority)


def _signed(number: int, sender: SigningKey, action: tx.Action) -> tx.Tx:
    return tx.Tx.make(GENESIS.chain_id, sender, bytes([number]) * 16, NOW + 300_000, action)


@cache
def life() -> list[tx.Tx]:
    """With every action that needs no members; all goes well."""
    rule = tx.Rule(
        "role:user", ("research",), NOW + 10**6, (), NOW, 2, "role:doctor", "role:doctor or role:user"
    )
    entry = sealed(GENESIS, RECORD, 1, rule)
    delete = record.Delete.make(
        record.DeleteBody(AUTHORITY.public, PATIENT.public, OTHER, None, NOW, bytes(16)), PATIENT
    )
    gone = encode(record.DeletionReceipt.make(delete, 1, 2, 3, NOW, AUTHORITY))
    asked = _signed(90, USER, tx.Request(RECORD, "research"))
    broken = _signed(91, USER, tx.Request(RECORD, "emergency", tx.Emergency("unconscious", b"sealed note")))
    begin: list[tuple[SigningKey, tx.Action]] = [
        (AUTHORITY, tx.Certify(credential(DOCTOR, "doctor"))),
        (AUTHORITY, tx.Certify(credential(PATIENT, "patient"))),
        (AUTHORITY, tx.Certify(credential(USER, "user"))),
        (DOCTOR, tx.Attest(RECORD, PATIENT.public, bytes(32))),
        (DOCTOR, tx.Attest(OTHER, PATIENT.public, bytes(32))),
        (PATIENT, tx.Publish(RECORD, 1, bytes(32), entry, rule, (b"t" * 32,))),
        (PATIENT, tx.SetProxy(USER.public, ("decide", "read"), NOW, NOW + 10**6)),
        (USER, tx.Request(RECORD, "patient-request")),
    ]
    end: list[tuple[SigningKey, tx.Action]] = [
        (DOCTOR, tx.Decide(broken.id, allow=True)),
        (PATIENT, tx.Review(broken.id, "contested")),
        (PATIENT, tx.Retire(RECORD, OTHER)),
        (PATIENT, tx.Erase(OTHER, gone)),
        (AUTHORITY, tx.Revoke(USER.public)),
    ]
    decided = _signed(92, DOCTOR, tx.Decide(asked.id, allow=True))
    return [
        *(_signed(n, *step) for n, step in enumerate(begin)),
        asked,
        decided,
        broken,
        *(_signed(n, *step) for n, step in enumerate(end, len(begin))),
    ]


@cache
def states() -> list[MemoryState]:
    """Before, between and after the transactions of `life`."""
    found = [MemoryState()]
    deal(GENESIS, found[0])
    for height, each in enumerate(life(), 1):
        found.append(MemoryState(found[-1]))
        assert contract.apply(found[-1], GENESIS, each, height, 0, NOW).ok
    return found


def transactions() -> list[bytes]:
    return [encode(each) for each in life()]


@cache
def objects() -> list[bytes]:
    """The known answer for every wire object, and the messages of a true run."""
    known = json.loads((ROOT / "tests" / "vectors" / "wire.json").read_bytes())["objects"]
    return [*(bytes.fromhex(each["encoding"]) for each in known), *map(encode, chain_messages())]


@target(objects)
def wire_objects(data: bytes) -> None:
    """Whatever a decoder takes encodes to the same bytes again, and is of at most as many kinds as it should."""
    for decode in decoders():
        with refused:
            assert encode(decode(data)) == data


STORED: dict[bytes, Decoder[Any]] = {
    b"person": contract.decode_person,
    b"record": contract.decode_record,
    b"pending": contract.decode_pending,
    b"review": contract.decode_pending,
    b"grant": contract.decode_ticket,
    b"proxy": contract.decode_proxy,
    b"uses": contract.decode_uses,
    b"log": contract.decode_log_head,
    b"members": contract.decode_members,
}


@target(transactions)
def transactions_executed(data: bytes) -> None:
    """A transaction of certified people, signed anew after its mutation, in a mempool and at every moment of a life in the contract."""
    keys = {k.public: k for k in (AUTHORITY, DOCTOR, PATIENT, USER)}
    with refused:
        body = tx.decode_tx(data).body
        if body.sender in keys:
            data = encode(tx.Tx(body, keys[body.sender].sign("tx", encode(body))))
        pool = Mempool(GENESIS.chain_id)
        entry = pool.add(data, NOW)
        assert pool.fill((), 10, 1 << 20, NOW) == [entry]
        for before in states():
            state = MemoryState(before)
            receipt = contract.apply(state, GENESIS, tx.decode_tx(data), 99, 0, NOW)
            assert contract.decode_receipt(encode(receipt)) == receipt
            changed = {key for key in before | state if before.get(key) != state.get(key)}
            assert receipt.ok or all(key.startswith(b"log/") for key in changed)
            for key in changed & state.keys():
                decode = STORED.get(key.partition(b"/")[0])
                assert decode is None or encode(decode(state[key])) == state[key]


# --- text -----------------------------------------------------------------------------------------------------------------------


def policies() -> list[bytes]:
    return [
        b"role:doctor and (org:st-mary or patient:3f2a)",
        b"2 of (a:x, b:y, c:z) or status:active@2026w47",
        b"(((a:b)))",
        b"1 of (a:b, 2 of (c:d, e:f))",
        b"9" * 5000 + b" of (a:b)",
    ]


@target(policies, is_tree=False, max_bytes=4096)
def policies_parsed(data: bytes) -> None:
    """The canonical text of a policy parses to the same policy, and whoever has all attributes meets it."""
    with refused:
        found = policy.parse(data.decode(errors="replace"))
        assert policy.parse(str(found)) == found
        assert str(policy.parse(str(found))) == str(found)
        assert found.satisfied(found.leaves)
        assert not found.satisfied(())
        shares = policy.share(found, 5, iter(range(1, 10**6)).__next__, 2**61 - 1)
        weights = policy.coefficients(found, frozenset(found.leaves), 2**61 - 1)
        assert weights is not None
        assert sum(shares[leaf] * weight for leaf, weight in weights.items()) % (2**61 - 1) == 5


RULE, RULE_NAMES = "if(a, least(1, b, all(c, d)))", {name: [n] for n, name in enumerate("abcde")}


@target(
    lambda: [RULE.encode(), b"never(a, b)", b"together(a, c, e)", b"any(a, least(2, b, c, d))", b"a" * 9000],
    is_tree=False,
    max_bytes=4096,
)
def rules_parsed(data: bytes) -> None:
    """A doctor's extraction rule: its text says the same again, and it decides about every selection."""
    with refused:
        found = ceas.parse(data.decode(errors="replace"), RULE_NAMES, 5)
        assert ceas.parse(ceas.text(found, 5, "abcde".__getitem__), RULE_NAMES, 5) == found


def toml_files() -> list[bytes]:
    folder = ROOT / "client" / "profiles"
    url, key = "http://127.0.0.1:1", "00" * 32
    address = network.NodeAddress("127.0.0.1:7", url)
    chains = {
        kind: network.ChainAddresses("genesis.toml", GENESIS.hash.hex(), {"n0": address})
        for kind in ("storage", "sharing")
    }
    service = network.Service(url, key)
    texts = [genesis.to_toml(GENESIS), network.to_toml(network.Network(chains, service, service))]
    texts.append(
        'chain = "storage"\nname = "n"\nnetwork = "n.toml"\nkeys = "k"\ndata = "d"\nhttp_port = 1\np2p_port = 1\n'
    )
    texts.append("a = " + "9" * 5000)
    texts.append("a = [" * 2000)
    files = [*sorted(folder.glob("*.toml")), *sorted((ROOT / "configs").rglob("*.toml"))]
    return [text.encode() for text in texts] + [file.read_bytes() for file in files]


@target(toml_files, is_tree=False)
def configs_loaded(data: bytes) -> None:
    """Genesis, network, settings, scenarios and profiles, each from the same text."""
    text = data.decode(errors="replace")
    with refused:
        found = genesis.from_toml(text)
        assert genesis.from_toml(genesis.to_toml(found)) == found
        assert found.hash == genesis.from_toml(genesis.to_toml(found)).hash
    with refused:
        where = network.from_toml(text)
        assert network.from_toml(network.to_toml(where)) == where
    SCRATCH.mkdir(exist_ok=True)
    file = SCRATCH / "config.toml"
    file.write_bytes(data)
    for load in (NodeSettings.load, CloudSettings.load, NetworkSettings.load, load_scenario, load_profile):
        with refused:
            load(file)


# --- FHIR -----------------------------------------------------------------------------------------------------------------------

PROFILES: dict[str, Profile] = {name: load_profile(name) for name in ("paper", "safe")}
SMALL = b"""{ "resourceType": "Bundle", "type":"collection", "entry": [
 {"fullUrl": "urn:1", "resource": {"resourceType": "Patient", "birthDate": "1964-02-29", "_birthDate": {"id": "x"},
   "name": [{"family": "\\u00c9\\ud83d\\ude00"}], "multipleBirthInteger": 1.50e+2}},
 {"resource": {"resourceType": "Observation", "code": {"coding": [{"code": "8867-4"}]}, "valueQuantity": {"value": 70.00}}},
 {"resource": {"resourceType": "Claim", "status": null}}]}"""


@target(lambda: [SMALL, minify(SMALL)], is_tree=False)
def bundles_imported(data: bytes) -> None:
    """What is imported comes back token for token, under every profile."""
    with refused:
        text = minify(data)
        assert minify(text) == text
        bundle = read_bundle(data)
        for profile in PROFILES.values():
            pieces = split(bundle, profile)
            assert join({piece.label: piece.content for piece in pieces}) == text


def split_records() -> list[bytes]:
    return [
        encode([[p.label, p.content] for p in split(read_bundle(SMALL), profile)])
        for profile in PROFILES.values()
    ]


@target(split_records)
def records_exported(data: bytes) -> None:
    """Parts that a liar may have signed: joined to a bundle that import takes, or refused."""
    with refused:
        pieces = Decoder(tuple[tuple[str, bytes], ...], "parts", 1 << 20)(data)
        whole = join(dict(pieces))
        assert minify(whole) == whole
        read_bundle(whole)


# --- cryptographic objects --------------------------------------------------------------------------------------------------------

POLICY, PLACE = "role:user and (org:x or a:b) or 2 of (role:user, org:y, a:b)", b"place"
MASTERS = [scheme.master.generate() for scheme in SCHEMES.values()]
KEYS_OF = {m.suite: m.issue(["role:user", "org:x", "a:b"]) for m in MASTERS}
SEALED = {m.suite: abe.encapsulate(m.public, POLICY, PLACE) for m in MASTERS}


def abe_objects() -> list[bytes]:
    headers = [header for header, _ in SEALED.values()]
    return [*headers, *(o.to_bytes() for m in MASTERS for o in (m, m.public, KEYS_OF[m.suite]))]


@target(abe_objects)
def abe_objects_opened(data: bytes) -> None:
    """Keys decode to themselves; a header opens to its key exactly if it is the one that was made."""
    for scheme, master in zip(SCHEMES.values(), MASTERS, strict=True):
        header, key = SEALED[master.suite]
        for kind in (scheme.master, scheme.public, scheme.attributes):
            with refused:
                assert kind.from_bytes(data).to_bytes() == data
        with refused:
            opened = abe.decapsulate(master.public, KEYS_OF[master.suite], POLICY, data, PLACE)
            assert (data, opened) == (header, key)
        with refused:
            other = scheme.attributes.from_bytes(data)
            assert abe.decapsulate(master.public, other, POLICY, header, PLACE) == key


@target(lambda: [(G1_GENERATOR * 5).to_bytes(), (G2_GENERATOR * 5).to_bytes()], is_tree=False, max_bytes=192)
def group_elements(data: bytes) -> None:
    for kind in (G1, G2):
        with refused:
            assert kind.from_bytes(data).to_bytes() == data


MESSAGES = tuple(b"part %d" % n for n in range(5))
SIGNED = [
    ces.sign(
        MESSAGES,
        ces.CesSigner(DOCTOR),
        record=RECORD,
        patient=PATIENT.public,
        doctor=DOCTOR.public,
        created_ms=NOW,
        profile="safe",
        rules=[ceas.parse(RULE, RULE_NAMES, len(MESSAGES))],
        form=form,
    )
    for form in ("flat", "merkle")
]


class _Extracted(msgspec.Struct, array_like=True):
    """A selection cut from a signature by whoever holds it, and a smaller one cut from that."""

    signature: ces.FullSignature
    messages: tuple[bytes, ...]
    keep: tuple[int, ...]
    smaller: tuple[int, ...]


_decode_extracted = Decoder(_Extracted, "a signature with its parts", 1 << 18)


def signatures() -> list[bytes]:
    selections = (((0, 1, 2, 3, 4), (0, 4)), ((0, 2), (2,)))
    return [encode(_Extracted(s, MESSAGES, *keep)) for s in SIGNED for keep in selections]


@target(signatures)
def signatures_extracted(data: bytes) -> None:
    """What verifies is what was signed; a true signature's extracts verify, and a false one's do not."""
    key = (ces.ED25519, DOCTOR.public)
    with refused:
        given = _decode_extracted(data)
        signature, messages = given.signature, given.messages
        is_true = False
        commitments = signature.commitments(messages)
        with refused:
            ces.verify_full(signature, commitments, *key)
            is_true = True
        assert not is_true or (messages == MESSAGES and signature.header in [s.header for s in SIGNED])
        extract = signature.extract(commitments, given.keep)
        assert ces.decode_extract(encode(extract)) == extract
        for cut in (extract, extract.reduce(_opened(signature, messages, extract), given.smaller)):
            try:
                ces.verify(cut, _opened(signature, messages, cut), key)
            except DiptychError:
                assert not is_true
            else:
                assert all(messages[i] == MESSAGES[i] for i in cut.kept)


def _opened(signature: ces.FullSignature, messages: Sequence[bytes], extract: ces.Extract) -> ces.Opened:
    return {i: (signature.tag(i), messages[i]) for i in extract.kept}


@target(lambda: [zstandard.ZstdCompressor().compress(b"message" * 50), b""], is_tree=False)
def sealed_parts_opened(data: bytes) -> None:
    """A part whose frame a key holder made up: a message within the limit, or a refusal."""
    key, place = b"k" * 32, encode(("zstd+aes-256-gcm", RECORD, 1, 1))
    with refused:
        parts.open_part(key, RECORD, 1, 1, data)
    sealed = b"\x01" + parts._seal(key, b"t" * 32 + data, place, bytes)
    with refused:
        tag, message = parts.open_part(key, RECORD, 1, 1, sealed, limit=1 << 20)
        assert (tag, len(message) <= 1 << 20) == (b"t" * 32, True)
        assert (
            message == zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 20)
            if data
            else True
        )


def key_files() -> list[bytes]:
    return [
        keyfile.seal(b"secret", None),
        encode(keyfile._KeyFile("diptych-key/argon2id+aes-256-gcm", _cheap(), b"x" * 40)),
    ]


def _cheap() -> keyfile._Argon2:
    return keyfile._Argon2(memory_kib=8 << 10, passes=1, lanes=1, salt=bytes(16))


@target(key_files)
def key_files_opened(data: bytes) -> None:
    with refused:
        keyfile.open_sealed(data, None)
    with refused:
        kdf = keyfile._decode(data).kdf
        if kdf is None or kdf.memory_kib * kdf.passes <= 32 << 10:  # the dearest that it takes costs seconds
            keyfile.open_sealed(data, b"wrong")


@target(
    lambda: [enrolment.Invitation.make("user", (), NOW, b"n" * 32, AUTHORITY).to_text().encode()],
    is_tree=False,
)
def invitations_read(data: bytes) -> None:
    with refused:
        found = enrolment.Invitation.from_text(data.decode(errors="replace"))
        assert enrolment.Invitation.from_text(found.to_text()) == found


def evidence_files() -> list[bytes]:
    lies = [COMMITTEE.sign(KEYS[LIAR], LIAR, "finalize", 5, b * 32) for b in (b"x", b"y")]
    pair = evidence.conflict(COMMITTEE, *lies)
    assert pair is not None
    return [encode(audit.EvidenceFile("diptych/evidence/2", GENESIS.hash, (), (pair,)))]


@target(evidence_files)
def evidence_verified(data: bytes) -> None:
    """Nobody is convicted by votes of which only the liar's are signed."""
    with refused:
        assert {pair.first.signer for _, pair in audit.verify(data, GENESIS)} == {LIAR}
