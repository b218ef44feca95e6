"""Known answers of every object that is sent, stored or signed, so that another implementation can be built against them.

`tests/vectors/wire.json` has their bytes with everything that is hashed and signed in making them. The objects follow from the seeds
in it and fit together, but it is not a history: what another vector file has the algorithms of (CP-ABE, CES, TDH2, the index key's proofs)
stands in it as bytes of the right length.

    python -m tests.protocol.test_protocol_vectors --regenerate
"""

import hashlib
import importlib
import io
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl import bindings

import client
import cloudstub
import configs
import crypto
import node
import protocol
from client import audit, batch, doctor, enrolment, erasure, home, members, patient, prooffile, reader
from client import stored as homes
from crypto import ces, dkg, keyfile, parts, schemes
from crypto.ceas import part_set
from crypto.codec import Decoder, encode
from crypto.errors import DiptychError, Malformed
from crypto.seal import SealKey
from crypto.sign import SigningKey
from protocol import (
    block,
    ceremony,
    checkpoint,
    contract,
    epochs,
    evidence,
    identity,
    index_key,
    merkle,
    record,
    state_tree,
    tx,
)
from protocol import genesis as genesis_file
from protocol.block import Certificate, Committee, Header, Vote
from protocol.genesis import Genesis, Member
from protocol.record import BlobRef, digest
from tests.dealer import share_point

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS = FOLDER / "wire.json"
NOW = 1_790_000_000_000
RECORD = bytes(range(16))


# --- making the answers


class Key(SigningKey):
    """Writes down what it signs."""

    signed: ClassVar[list[dict[str, str]]] = []

    def sign(self, domain: str, payload: bytes) -> bytes:
        signature = super().sign(domain, payload)
        self.signed.append(
            {
                "public": self.public.hex(),
                "domain": domain,
                "payload": payload.hex(),
                "signature": signature.hex(),
            }
        )
        return signature


def filled(name: str, size: int) -> bytes:
    """Bytes that stand in for what is opaque here, or random."""
    return hashlib.shake_256(f"wire {name}".encode()).digest(size)


NAMES = (
    "authority",
    "admin",
    "doctor",
    "patient",
    "user",
    "cloud",
    "member-0",
    "member-1",
    "member-2",
    "member-3",
)
KEYS = {name: Key(filled(f"key {name}", 32)) for name in NAMES}
BOXES = {name: SealKey(filled(f"seal {name}", 32)) for name in ("doctor", "patient", "user")}


def credential(name: str, role: identity.Role) -> identity.SignedCredential:
    ces_key = identity.CesKey(ces.ED25519, filled("ces", 32)) if role == "doctor" else None
    attributes = ("org:st-mary", f"role:{role}", "status:active@2026w39")
    key = KEYS[name].public
    plain = identity.Credential(
        key, role, attributes, BOXES[name].public, ces_key, NOW - 1000, NOW + 604_800_000
    )
    return identity.SignedCredential.issue(plain, KEYS["authority"])


MEMBERS = tuple(Member(f"n{i}", KEYS[f"member-{i}"].public, f"peer-{i}", share_point(i)) for i in range(4))
GENESIS = Genesis(
    "storage/vectors",
    "storage",
    "bft",
    MEMBERS[:3],
    KEYS["authority"].public,
    NOW - 10_000,
    (KEYS["admin"].public,),
    1,
)
COMMITTEE = Committee(GENESIS)


def vote(kind: block.Kind, view: int, of: bytes | None, member: int) -> Vote:
    return COMMITTEE.sign(KEYS[f"member-{member}"], member, kind, view, of)


def certificate(kind: block.Kind, view: int, of: bytes | None) -> Certificate:
    return COMMITTEE.certify(vote(kind, view, of, member) for member in range(COMMITTEE.quorum))


RULE = tx.Rule(
    "role:user and org:st-mary", ("treatment", "research"), NOW + 86_400_000, (filled("denied", 32),)
)
BLOB, PART = filled("blob", 40), filled("part", 600)
ENVELOPE = record.Envelope(
    RECORD,
    1,
    "shared",
    RULE.policy,
    filled("header", 64),
    (record.SealedPart(0, 1, BlobRef.of(PART), filled("wrapped", 60)),),
    filled("extract", 64),
)
VIEW = record.View(
    GENESIS.chain_id,
    RECORD,
    1,
    KEYS["patient"].public,
    filled("salt", 32),
    (BlobRef.of(encode(ENVELOPE)),),
)
REQUEST = filled("request", 32)
TICKET = identity.Ticket(
    GENESIS.chain_id, REQUEST, RECORD, 1, VIEW.commit, KEYS["user"].public, "research", NOW + 600_000
)
CES_HEADER = ces.Header(
    ces.ED25519, "flat", RECORD, VIEW.patient, KEYS["doctor"].public, NOW, "r4", 1, (), filled("root", 32)
)


def dealing() -> dkg.Dealing:
    point = share_point(9)
    return dkg.Dealing(
        dkg.SUITE, (point,) * 3, point, (filled("piece", 32),) * 3, filled("proof", 64), filled("proof 2", 64)
    )


def change() -> tx.ChangeMembers:
    return tx.ChangeMembers(0, (MEMBERS[1], MEMBERS[2], MEMBERS[3]), ()).approve(GENESIS, KEYS["admin"])


def actions() -> dict[str, tuple[str, tx.Action]]:
    return {
        "certify": ("authority", tx.Certify(credential("doctor", "doctor"))),
        "revoke": ("authority", tx.Revoke(KEYS["user"].public)),
        "change of members": ("admin", change()),
        "attest": ("doctor", tx.Attest(RECORD, VIEW.patient, doctor.header_digest(CES_HEADER))),
        "publish": (
            "patient",
            tx.Publish(RECORD, 1, VIEW.commit, filled("sealed index", 300), RULE, (filled("tag", 32),)),
        ),
        "retire": ("patient", tx.Retire(RECORD, filled("later record", 16))),
        "erase": ("patient", tx.Erase(RECORD, encode(deletion_receipt()))),
        "request": ("user", tx.Request(RECORD, "research")),
        "emergency": (
            "doctor",
            tx.Request(RECORD, "emergency", tx.Emergency("unconscious", filled("note", 80))),
        ),
        "decide": ("user", tx.Decide(REQUEST, True)),
        "review": ("patient", tx.Review(REQUEST, "justified")),
        "proxy": ("patient", tx.SetProxy(KEYS["user"].public, ("decide", "read"), NOW, NOW + 86_400_000)),
        "deal": ("member-0", tx.Deal(0, dealing())),
        "judge": (
            "member-0",
            tx.Judge(0, (dkg.Complaint(1, share_point(8), filled("complaint", 64)),)),
        ),
        "close": ("member-0", tx.Close(0, "dealing")),
    }


def transaction(name: str) -> tx.Tx:
    sender, action = actions()[name]
    return tx.Tx.make(GENESIS.chain_id, KEYS[sender], filled(f"nonce {name}", 16), NOW + 300_000, action)


def a_block() -> block.Block:
    txs = (encode(transaction("request")), encode(transaction("change of members")))
    header = Header(
        GENESIS.chain_id,
        0,
        65,
        1,
        GENESIS.hash,
        0,
        merkle.root(txs),
        len(txs),
        NOW,
        COMMITTEE.validators_hash,
        block.validators_hash(GENESIS, change().members),
        1,
    )
    return block.Block(header, txs, (certificate("nullify", 1, None),))


def messages() -> dict[str, Callable[[], block.Message]]:
    def proposal() -> block.Message:
        made = a_block()
        return block.Proposal(made, None, vote("notarize", 65, made.header.id, 1))

    def chain() -> block.Message:
        made = a_block()
        return block.Chain((made,), (), certificate("finalize", 65, made.header.id))

    def status() -> block.Message:
        of = a_block().header.id
        final, noted = (certificate(kind, 65, of) for kind in ("finalize", "notarize"))  # type: ignore[arg-type]
        return block.Status(0, 66, 1, final, noted, None, (vote("notarize", 66, filled("next", 32), 0),))

    return {
        "proposal": proposal,
        "votes": lambda: block.Votes((vote("nullify", 66, None, 2),), certificate("notarize", 65, REQUEST)),
        "status": status,
        "want": lambda: block.Want(a_block().header.id),
        "body": lambda: block.Body(a_block()),
        "chain": chain,
        "rejoin": lambda: block.Rejoin(filled("rejoin", 32)),
        "report": lambda: COMMITTEE.report(KEYS["member-1"], 1, filled("rejoin", 32), 64, None),
        "accusation": lambda: block.Accusation(*pair()),
    }


def pair() -> tuple[Vote, Vote]:
    low, high = sorted((filled("one block", 32), filled("another", 32)))
    return vote("notarize", 7, low, 2), vote("notarize", 7, high, 2)


def proof() -> evidence.Evidence:
    found = evidence.conflict(COMMITTEE, *pair())
    assert found
    return found


def handover() -> epochs.Handover:
    header = a_block().header
    return epochs.Handover(header, (), certificate("finalize", 65, header.id), change())


def the_index_key() -> index_key.IndexKey:
    return index_key.IndexKey(0, GENESIS.members, tuple(map(share_point, (20, 21, 22))), (0, 1, 2), False)


def upload() -> record.Upload:
    blobs = (BlobRef.of(encode(ENVELOPE)), BlobRef.of(PART))
    body = record.UploadBody(KEYS["cloud"].public, credential("patient", "patient"), (VIEW,), blobs, NOW)
    return record.Upload.make(body, KEYS["patient"])


def download() -> record.Download:
    signatures = tuple(
        identity.TicketSignature(i, KEYS[f"member-{i}"].sign("ticket", encode(TICKET))) for i in range(3)
    )
    ticket = identity.SignedTicket(TICKET, 0, signatures)
    index = record.Index.make(VIEW, KEYS["patient"])
    wanted = (BlobRef.of(PART).hash,)
    body = record.DownloadBody(
        KEYS["cloud"].public, index, ticket, TICKET.requester, wanted, NOW, filled("download", 16)
    )
    return record.Download.make(body, KEYS["user"])


def cloud_entry() -> record.CloudEntry:
    return record.CloudEntry(
        NOW, VIEW.chain_id, 1, TICKET.requester, TICKET.request, "research", 2, "served", 3
    )


def cloud_log_request() -> record.CloudLogRequest:
    body = record.CloudLogBody(KEYS["cloud"].public, VIEW.patient, RECORD, 0, NOW, filled("cloud-log", 16))
    return record.CloudLogRequest.make(body, KEYS["patient"])


def cloud_log_page() -> record.CloudLogPage:
    entry = cloud_entry()
    return record.CloudLogPage.make(
        cloud_log_request(), (entry,), 1, entry.head_after(bytes(32)), NOW, KEYS["cloud"]
    )


def delete() -> record.Delete:
    body = record.DeleteBody(KEYS["cloud"].public, VIEW.patient, RECORD, None, NOW, filled("delete", 16))
    return record.Delete.make(body, KEYS["patient"])


def deletion_receipt() -> record.DeletionReceipt:
    return record.DeletionReceipt.make(delete(), 2, 4, 5_000, NOW, KEYS["cloud"])


def release() -> identity.Release:
    return identity.Release.make(
        TICKET,
        0,
        1,
        KEYS["member-1"],
        entry=filled("sealed index", 300),
        rule=RULE.digest,
        round=0,
        sealed_share=filled("sealed share", 224),
    )


def the_checkpoint() -> checkpoint.Checkpoint:
    header = a_block().header
    root = contract.next_root_over(GENESIS.hash, header.id, merkle.root(receipts()))
    return checkpoint.Checkpoint(
        GENESIS.chain_id, 0, header.height, header.id, header.time_ms, root, the_proof().root(b"k", b"v")
    )


def receipts() -> list[bytes]:
    """Of the two transactions of the block."""
    second = msgspec.structs.replace(receipt(), tx=transaction("change of members").id, position=1)
    return [encode(receipt()), encode(second)]


def the_proof() -> state_tree.StateProof:
    """Of a state that holds v under k and nothing else."""
    hashed = state_tree.key_hash(b"k")
    bucket = state_tree.changed(b"", {hashed: state_tree.value_hash(b"v")})
    number = state_tree.bucket_of(hashed)
    tree = state_tree.StateTree([(number, state_tree.bucket_hash(bucket))])
    return state_tree.StateProof(bucket, tree.siblings(number))


def signed_checkpoint() -> checkpoint.SignedCheckpoint:
    made = checkpoint.SignedCheckpoint.make
    return checkpoint.SignedCheckpoint.join(
        made(the_checkpoint(), place, KEYS[f"member-{place}"]) for place in range(3)
    )


def receipt_proof() -> checkpoint.ReceiptProof:
    block_ = a_block()
    final = certificate("finalize", 65, block_.header.id)
    return checkpoint.ReceiptProof(
        receipt(),
        merkle.proof(receipts(), 0),
        GENESIS.hash,
        block_.header,
        (),
        final,
        block_.txs[0],
        merkle.proof(block_.txs, 0),
    )


def receipt() -> contract.Receipt:
    made = transaction("request")
    return contract.Receipt(
        made.id,
        1,
        0,
        NOW,
        "access.request",
        made.body.sender,
        RECORD,
        "research",
        None,
        True,
        "allowed",
        "the rule is satisfied",
    )


def signed_part() -> doctor.SignedPart:
    return doctor.SignedPart("m0", b'{"resourceType":"Patient"}')


def full_signature() -> ces.FullSignature:
    signature = KEYS["doctor"].sign("ces", encode(CES_HEADER))
    return ces.FullSignature(CES_HEADER, filled("tag", 32), signature)


def stored() -> homes.StoredRecord:
    commitment = full_signature().commit(0, encode(signed_part()))
    placed = homes.StoredPart(
        "m0", commitment, True, "shared", filled("part key", 32), 1, BlobRef.of(PART), 0
    )
    return homes.StoredRecord(
        full_signature(),
        1,
        (placed,),
        (("shared", RULE.policy),),
        RULE.purposes,
        homes.Terms(NOW, NOW + 86_400_000, 3, RULE.deny, "role:board", "dept:emergency"),
        (filled("tag", 32),),
        "2026w47",
        (KEYS["user"].public,),
    )


def pending() -> homes.PendingVersion:
    _, publish = actions()["publish"]
    assert isinstance(publish, tx.Publish)
    return homes.PendingVersion(stored(), (VIEW,), (encode(ENVELOPE),), (("storage", publish),))


def proxies() -> homes.Proxies:
    proxy = contract.Proxy(VIEW.patient, KEYS["user"].public, ("decide", "read"), NOW, NOW + 86_400_000)
    return homes.Proxies((proxy,))


def an_erasure() -> erasure.Erasure:
    chains = (
        erasure.Erased("storage", REQUEST, 7, NOW),
        erasure.Erased("sharing", filled("erase", 32), 8, NOW),
    )
    return erasure.Erasure(RECORD, encode(deletion_receipt()), chains, True)


def invitation() -> enrolment.Invitation:
    return enrolment.Invitation.make(
        "doctor", ("org:st-mary",), NOW + 86_400_000, filled("invitation", 32), KEYS["authority"]
    )


def enrol() -> enrolment.Enrolment:
    signed = credential("doctor", "doctor").credential
    body = enrolment.EnrolmentBody(invitation().invite, signed.subject, signed.seal_key, signed.ces_key)
    made = enrolment.Enrolment.make(body, KEYS["doctor"], invitation())
    assert Key(invitation().seed).sign("invited", encode(body)) == made.invited
    return made


def key_request() -> enrolment.KeyRequest:
    body = enrolment.KeyRequestBody(credential("user", "user"), KEYS["authority"].public, NOW)
    return enrolment.KeyRequest.make(body, KEYS["user"])


def issued() -> enrolment.Issued:
    return enrolment.Issued.make(
        key_request(), filled("joint", 120), filled("sealed part", 148), KEYS["authority"]
    )


def evidence_file() -> audit.EvidenceFile:
    return audit.EvidenceFile("diptych/evidence/2", GENESIS.hash, (handover(),), (proof(),))


def ces_key() -> home._Secrets:
    return home._Secrets(
        "diptych-home/1", filled("network", 32), ces.CesSigner(KEYS["doctor"]).to_bytes(), None, None
    )


def enrolled() -> home._Enrolled:
    return home._Enrolled(credential("user", "user"), filled("attributes", 80), filled("abe", 100))


def signed_key() -> index_key.SignedIndexKey:
    return index_key.SignedIndexKey.make(GENESIS, the_index_key(), 1, KEYS["member-1"])


def secret_file(passphrase: bytes | None) -> keyfile._KeyFile:
    return keyfile._decode(
        keyfile.seal(b"a secret of 32 bytes, in a file.", passphrase, lambda n: filled("file", n))
    )


def package_head() -> doctor._Head:
    return doctor._Head(full_signature(), (("m0", filled("package key", 32)),))


def package() -> doctor._Package:
    return doctor._Package(doctor._SUITE, boxed(BOXES["patient"].public, encode(package_head())))


def objects() -> Iterator[
    tuple[str, Decoder[Any] | None, Callable[[], Any], dict[str, tuple[str, Callable[[Any], bytes]]]]
]:
    """Name, decoder, how to make it, and its hashes: each with its domain and what of the object is hashed."""
    yield "genesis", None, lambda: GENESIS, {"hash": ("genesis", encode)}
    for name in actions():
        yield (
            f"tx: {name}",
            tx.decode_tx,
            lambda name=name: transaction(name),
            {"id": ("tx", lambda t: encode(t.body))},
        )
    for name, made in messages().items():
        yield f"message: {name}", block.decode_message, made, {}
    yield "block", block.decode_block, a_block, {"id": ("block", lambda b: encode(b.header))}
    yield "vote", block.decode_vote, lambda: vote("finalize", 65, REQUEST, 0), {}
    yield "certificate", block.decode_certificate, lambda: certificate("nullify", 1, None), {}
    yield "evidence", evidence.decode_evidence, proof, {}
    yield "handover", epochs.decode_handover, handover, {}
    yield "credential", identity.decode_credential, lambda: credential("doctor", "doctor"), {}
    yield "ticket", contract.decode_ticket, lambda: TICKET, {}
    yield "release", identity.decode_release, release, {"rule": ("rule", lambda _: encode(RULE))}
    yield "receipt", contract.decode_receipt, receipt, {}
    yield "person", contract.decode_person, lambda: contract.Person(credential("user", "user"), False), {}
    entry = contract.RecordEntry(
        VIEW.patient,
        KEYS["doctor"].public,
        doctor.header_digest(CES_HEADER),
        1,
        VIEW.commit,
        filled("sealed index", 300),
        RULE,
        NOW,
        "published",
        (filled("tag", 32),),
        None,
        b"",
    )
    yield (
        "record entry",
        contract.decode_record,
        lambda: entry,
        {"header": ("ces-header", lambda _: encode(CES_HEADER))},
    )
    waiting = contract.Pending(
        REQUEST,
        RECORD,
        1,
        VIEW.patient,
        KEYS["doctor"].public,
        "emergency",
        tx.Emergency("unconscious", filled("note", 80)),
        NOW,
        NOW + contract.WAITING_LIFETIME_MS,
    )
    yield "header", prooffile._decode_header, lambda: a_block().header, {}
    yield "checkpoint", prooffile._decode_checkpoint, the_checkpoint, {}
    yield "signed checkpoint", checkpoint.decode_signed_checkpoint, signed_checkpoint, {}
    yield "receipt proof", checkpoint.decode_receipt_proof, receipt_proof, {}
    shown = state_tree.ProvedValue(1, b"v", the_proof())
    yield "proved value", state_tree.decode_proved_value, lambda: shown, {}
    imported = batch.Import(REQUEST, RECORD, VIEW.patient, filled("header", 32), PART)
    yield "batch import", batch._decode_import, lambda: imported, {}
    yield "waiting request", contract.decode_pending, lambda: waiting, {}
    proxy = contract.Proxy(VIEW.patient, KEYS["user"].public, ("decide",), NOW, NOW + 86_400_000)
    yield "proxy", contract.decode_proxy, lambda: proxy, {}
    yield "uses", contract.decode_uses, lambda: contract.Uses(RULE.digest, 2), {}
    yield "log head", contract.decode_log_head, lambda: contract.LogHead(3, filled("log", 32)), {}
    yield "request to delete", record.decode_delete, delete, {}
    yield "entry of the cloud's log", record.decode_cloud_entry, cloud_entry, {}
    yield "request for the cloud's log", record.decode_cloud_log_request, cloud_log_request, {}
    yield "page of the cloud's log", record.decode_cloud_log_page, cloud_log_page, {}
    yield "deletion receipt", record.decode_deletion_receipt, deletion_receipt, {}
    yield "members", contract.decode_members, lambda: (1, 1, MEMBERS[1:]), {}
    yield "index key", index_key.decode_index_key, the_index_key, {}
    yield "signed index key", index_key.decode_signed_index_key, signed_key, {}
    opened = index_key.KeyRound(0, GENESIS.members, 3, "judging", NOW, (0, 1, 2), (1,), ())
    yield "key round", index_key._decode_round, lambda: opened, {}
    yield "dealing", index_key._decode_dealing, dealing, {}
    hashes = {"address": ("view-address", encode), "commit": ("view-commit", encode)}
    yield "view", record.decode_view, lambda: VIEW, hashes
    yield "envelope", record.decode_envelope, lambda: ENVELOPE, {}
    yield "index", record.decode_index, lambda: record.Index.make(VIEW, KEYS["patient"]), {}
    yield "upload", record.decode_upload, upload, {"hash": ("upload", encode)}
    yield (
        "upload receipt",
        record.decode_upload_receipt,
        lambda: record.UploadReceipt.make(upload(), NOW, KEYS["cloud"]),
        {},
    )
    yield "download", record.decode_download, download, {}
    head = record.DownloadHead(VIEW, (encode(ENVELOPE),), (BlobRef.of(PART),))
    yield "download head", record.decode_download_head, lambda: head, {}
    yield "invitation", enrolment._decode_invitation, invitation, {}
    yield "enrolment", enrolment.decode_enrolment, enrol, {}
    yield "renewal", enrolment.decode_renewal, lambda: enrolment.Renewal.make(KEYS["doctor"], NOW), {}
    yield "key request", enrolment.decode_key_request, key_request, {}
    yield "issued", enrolment.decode_issued, issued, {}
    yield "home: secrets", home._decode_secrets, ces_key, {}
    yield "home: enrolled", home._decode_enrolled, enrolled, {}
    yield "signed part", doctor.decode_part, signed_part, {}
    yield "package head", doctor._decode_head, package_head, {}
    yield "record package", doctor._decode_package, package, {}
    yield "stored record", homes.decode_stored, stored, {}
    yield "pending version", homes.decode_pending_version, pending, {}
    yield "proxies", homes.decode_proxies, proxies, {}
    yield "erasure", erasure.decode_erasure, an_erasure, {}
    yield "saved request", reader._decode_request, lambda: reader._Request(RECORD, REQUEST), {}
    yield "evidence file", audit._decode_file, evidence_file, {}
    yield "change of members", members._decode_change, lambda: members._Change(change()), {}
    yield "key file, plain", keyfile._decode, lambda: secret_file(None), {}
    yield "key file", keyfile._decode, lambda: secret_file(b"a passphrase"), {}
    yield "record header", ces.decode_header, lambda: CES_HEADER, {}
    yield (
        "extract",
        ces.decode_extract,
        lambda: ces.Extract(CES_HEADER, part_set([0]), b"", filled("signature", 64)),
        {},
    )


def answer(
    name: str, make: Callable[[], Any], hashes: dict[str, tuple[str, Callable[[Any], bytes]]]
) -> dict[str, Any]:
    Key.signed.clear()
    made = make()
    found: dict[str, Any] = {"name": name, "encoding": encode(made).hex()}
    for of, (domain, payload) in hashes.items():
        hashed = payload(made)
        value = digest(domain, hashed).hex()
        found.setdefault("hashes", []).append(
            {"name": of, "domain": domain, "payload": hashed.hex(), "sha256": value}
        )
    if signed := [
        s for i, s in enumerate(Key.signed) if s not in Key.signed[:i] and s["signature"] in found["encoding"]
    ]:
        found["signatures"] = signed
    return found


def boxed(public: bytes, content: bytes) -> bytes:
    """A sealed box with an ephemeral key that is none, put together from its definition: the key, and the box under the BLAKE2b of both keys."""
    ephemeral = filled("ephemeral", 32)
    sender = bindings.crypto_scalarmult_base(ephemeral)
    nonce = hashlib.blake2b(sender + public, digest_size=24).digest()
    return sender + bindings.crypto_box(content, nonce, public, ephemeral)


def sealing() -> dict[str, Any]:
    key, class_key, tag = filled("part key", 32), filled("class key", 32), filled("tag", 32)
    message = encode(signed_part())
    context = patient.envelope_context(RECORD, 1, "shared", ENVELOPE.extract)
    return {
        "box": {
            "secret": filled("seal user", 32).hex(),
            "content": message.hex(),
            "sealed": boxed(BOXES["user"].public, message).hex(),
        },
        "part": {
            "key": key.hex(),
            "record": RECORD.hex(),
            "index": 3,
            "sealed_in": 1,
            "tag": tag.hex(),
            "message": message.hex(),
            "sealed": parts.seal_part(key, RECORD, 3, 1, tag, message, lambda n: filled("nonce", n)).hex(),
        },
        "wrap": {
            "class_key": class_key.hex(),
            "context": context.hex(),
            "index": 3,
            "key": key.hex(),
            "wrapped": parts.wrap_key(class_key, context, 3, key, lambda n: filled("nonce", n)).hex(),
        },
    }


def answers() -> dict[str, Any]:
    return {
        "seeds": {name: key.seed.hex() for name, key in KEYS.items()},
        "genesis_file": genesis_file.to_toml(GENESIS),
        "objects": [answer(name, make, hashes) for name, _, make, hashes in objects()],
        "sealing": sealing(),
    }


# --- checking them

KNOWN = json.loads(VECTORS.read_text()) if VECTORS.exists() else {"objects": []}
BYTES = {known["name"]: bytes.fromhex(known["encoding"]) for known in KNOWN["objects"]}
NAMED = {
    name: (decoder, BYTES[name])
    for name, decoder, *_ in objects()
    if decoder and decoder.known and name in BYTES
}
"""The objects whose decoders know their suites."""
BY_GENESIS = {"vote", "certificate", "members", "header"}
"""Nested in what names a suite, or rows of a database that begins with the hash of a genesis."""


def test_the_known_answers_are_ours_byte_for_byte():
    assert answers() == KNOWN


def test_every_known_object_decodes_to_itself():
    for name, decoder, *_ in objects():
        if decoder:
            assert encode(decoder(BYTES[name])) == BYTES[name]
    assert genesis_file.from_toml(KNOWN["genesis_file"]) == GENESIS


def test_every_known_object_begins_with_its_suite_for_any_msgpack_library():
    for name, data in BYTES.items():
        first = msgpack.unpackb(data)[0]
        while isinstance(first, list):  # an extract begins with the header
            first = first[0]
        if name not in BY_GENESIS:
            assert re.fullmatch("[a-z0-9-]+(/[a-z0-9.+-]+)*", first), name


def test_hashes_and_signatures_hold_for_other_libraries():
    seen = set()
    for known in KNOWN["objects"]:
        for hashed in known.get("hashes", []):
            tagged = b"diptych/1/" + hashed["domain"].encode() + b"\0" + bytes.fromhex(hashed["payload"])
            assert hashlib.sha256(tagged).hexdigest() == hashed["sha256"]
        for signed in known.get("signatures", []):
            payload, signature = bytes.fromhex(signed["payload"]), bytes.fromhex(signed["signature"])
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed["public"]))
            key.verify(signature, b"diptych/1/" + signed["domain"].encode() + b"\0" + payload)
            assert signature in bytes.fromhex(known["encoding"])
            seen.add(signed["domain"])
    assert seen == {
        *(
            "credential",
            "ces",
            "checkpoint",
            "cloud-log",
            "cloud-log-request",
            "delete",
            "deletion-receipt",
            "download",
            "enrolment",
            "index",
            "index-key",
            "invite",
            "invited",
            "issued",
            "key-request",
            "members",
        ),
        *("release", "renewal", "report", "ticket", "tx", "upload", "upload-receipt", "vote"),
    }


def test_the_known_objects_hold_for_those_who_receive_them():
    assert tx.check_tx(BYTES["tx: publish"], GENESIS.chain_id).id == transaction("publish").id
    assert epochs.follow(COMMITTEE, epochs.decode_handover(BYTES["handover"])).epoch == 1
    assert block.decode_block(BYTES["block"]).header.id == handover().header.id
    assert COMMITTEE.is_valid_certificate(block.decode_certificate(BYTES["certificate"]))
    assert COMMITTEE.is_valid_vote(block.decode_vote(BYTES["vote"]))
    keys = tuple(member.key for member in GENESIS.members)
    assert identity.decode_release(BYTES["release"]).is_signed(keys)
    assert index_key.decode_signed_index_key(BYTES["signed index key"]).is_signed(GENESIS, keys)
    believed = checkpoint.decode_signed_checkpoint(BYTES["signed checkpoint"]).verify(COMMITTEE)
    checkpoint.decode_receipt_proof(BYTES["receipt proof"]).verify(believed, COMMITTEE)
    shown = state_tree.decode_proved_value(BYTES["proved value"])
    assert shown.proof.root(b"k", shown.value) == believed.state_root
    asked = record.decode_download(BYTES["download"])
    asked.verify()
    asked.body.index.verify(KEYS["patient"].public)
    assert asked.body.ticket
    asked.body.ticket.verify(GENESIS.chain_id, 0, keys, 3, NOW)
    sent = record.decode_upload(BYTES["upload"])
    sent.verify()
    record.decode_upload_receipt(BYTES["upload receipt"]).verify(sent, KEYS["cloud"].public)
    enrolment.decode_enrolment(BYTES["enrolment"]).verify()
    enrolment.decode_issued(BYTES["issued"]).verify(enrolment.decode_key_request(BYTES["key request"]))
    framed = len(BYTES["record package"]).to_bytes(4, "big") + BYTES["record package"]
    assert doctor.Package(io.BytesIO(framed), BOXES["patient"]).labels == ["m0"]
    assert keyfile.open_sealed(BYTES["key file"], b"a passphrase").startswith(b"a secret")


def test_the_known_seals_open():
    box, part, wrap = (
        {name: bytes.fromhex(v) if isinstance(v, str) else v for name, v in KNOWN["sealing"][kind].items()}
        for kind in ("box", "part", "wrap")
    )
    assert SealKey(box["secret"]).open(box["sealed"], "it") == box["content"]
    place = (part["record"], part["index"], part["sealed_in"])
    assert parts.open_part(part["key"], *place, part["sealed"]) == (part["tag"], part["message"])
    assert parts.unwrap_key(wrap["class_key"], wrap["context"], wrap["index"], wrap["wrapped"]) == wrap["key"]
    # The associated data as docs/suites.md says it, for those who have only that.
    context = msgpack.packb(["zstd+padme+aes-256-gcm", *place])
    plain = AESGCM(part["key"]).decrypt(part["sealed"][1:13], part["sealed"][13:], context)
    assert (part["sealed"][:1], plain[:32]) == (b"\x01", part["tag"])
    context = msgpack.packb(["wrap+aes-256-gcm", wrap["context"], wrap["index"]])
    assert (
        AESGCM(wrap["class_key"]).decrypt(wrap["wrapped"][:12], wrap["wrapped"][12:], context) == wrap["key"]
    )


# --- unknown suites


@pytest.mark.parametrize("name", NAMED)
def test_an_object_of_an_unknown_suite_is_refused_by_name(name: str):
    decoder, data = NAMED[name]
    suite, *fields = msgspec.msgpack.decode(data)
    other = re.sub(r"[^/]*$", "9", suite) if "/" in suite else f"{suite}-9"
    for form in (fields, [], [*fields, 1], [{"a": 1}]):
        with pytest.raises(Malformed, match=re.escape(other)) as refused:
            decoder(encode([other, *form]))
        assert "update this" in str(refused.value)
        assert suite.rpartition("/")[0] in str(refused.value)


@pytest.mark.parametrize("name", [name for name, (decoder, _) in NAMED.items() if not decoder._suite])
def test_an_object_of_another_kind_is_refused_by_name(name: str):
    decoder, data = NAMED[name]
    _, *fields = msgspec.msgpack.decode(data)
    for other in (BYTES["view"] if name != "view" else BYTES["index"], encode(["letter/1", *fields])):
        suite = msgspec.msgpack.decode(other)[0]
        with pytest.raises(
            Malformed, match=f"was expected, and this is of suite {suite}: an object of another kind"
        ):
            decoder(other)


def test_a_nested_object_of_an_unknown_suite_is_refused_by_name():
    suite, (inner, *fields), *more = msgspec.msgpack.decode(BYTES["message: body"])
    assert (suite, inner) == ("body/1", "block/1")
    with pytest.raises(Malformed, match="'block/2'"):
        block.decode_message(encode([suite, ["block/2", *fields], *more]))


def test_a_name_that_is_none_is_not_repeated():
    for name in ("tx/\x1b[2J", "tx/" + "9" * 99, "TX/1", "\u202etx/2"):
        with pytest.raises(Malformed, match=r"^a transaction does not decode") as refused:
            tx.decode_tx(encode([name]))
        assert "which this version" not in str(refused.value)


# --- nothing is forgotten

PLAIN = {
    "client.fhir.consent._decode_rule": "a rule, as it stands in what publishes it",
    "client.find_cli._decode_place": "two numbers that a home remembers",
    "configs.members._decode_handovers": "a list of encoded handovers",
    "node.api.decode_batch": "a list of encoded transactions",
    "node.daemon.decode_batch": "a list of encoded transactions",
    "node.store._decode_count": "a number in the meta table of a journal",
    "node.store._decode_abstention": "a number in the meta table of a journal",
    "protocol.ceremony._decode_hello": "the content of a word of the ceremony",
    "protocol.ceremony._decode_dealt": "the content of a word of the ceremony",
    "protocol.ceremony._decode_verdict": "the content of a word of the ceremony",
    "protocol.ceremony._decode_result": "the content of a word of the ceremony",
}
"""What needs no suite and no answer of its own: numbers, lists of what has them, and what another object of these files carries."""
BY_READER = {
    "crypto.abe._decode_key",
    "crypto.abe._decode_header",
    "crypto.fabeo._decode_public",
    "crypto.fabeo._decode_master",
    "crypto.fame._decode_public",
    "crypto.fame._decode_master",
    "crypto.ces._decode_signer",
    "crypto.ces.decode_header",
    "crypto.ces.decode_full",
    "crypto.ces.decode_extract",
}
"""Their suite is one of several, chosen by key: it is looked at by those who call the decoder."""


def decoders() -> dict[str, Decoder[Any]]:
    """Every decoder by the module that makes it (or the first that imports it) and its name."""
    found: dict[int, tuple[str, Decoder[Any]]] = {}
    for package in (crypto, protocol, configs, node, cloudstub, client):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                for name, value in vars(importlib.import_module(module.name)).items():
                    if isinstance(value, Decoder):
                        found.setdefault(id(value), (f"{module.name}.{name}", value))
    return dict(found.values())


def hex_strings(value: object) -> Iterator[bytes]:
    if isinstance(value, str) and re.fullmatch("([0-9a-f]{2})+", value):
        yield bytes.fromhex(value)
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from hex_strings(each)


def test_every_decoder_has_a_known_answer():
    here = {id(decoder) for _, decoder, *_ in objects()}
    texts = [path.read_text() for path in FOLDER.glob("*.json") if path != VECTORS]
    others = {data for text in texts for data in hex_strings(json.loads(text))}

    def is_known(decoder: Decoder[Any]) -> bool:
        for data in others:
            try:
                decoder(data)
            except Malformed:
                continue
            return True
        return False

    made = decoders()
    lacking = {
        name for name, d in made.items() if id(d) not in here and name not in PLAIN and not is_known(d)
    }
    assert not lacking, "give each a known answer in objects()"
    assert set(PLAIN) <= set(made)


def test_every_decoder_knows_its_suites():
    exempt = {id(decoder) for name, decoder, *_ in objects() if name in BY_GENESIS}
    made = {name for name, d in decoders().items() if not d.known and id(d) not in exempt}
    assert made == {*PLAIN, *BY_READER}, "give its struct a tag, as docs/suites.md says"


def test_the_words_of_a_ceremony_carry_what_names_no_suite():
    custody = json.loads((FOLDER / "custody.json").read_text())
    contents = ("_decode_hello", "_decode_dealt", "_decode_verdict", "_decode_result")
    for words, name in zip(custody["ceremonies"][0]["rounds"], contents, strict=True):
        said = ceremony._decode_said(bytes.fromhex(words[0]))
        assert said.suite == ceremony.SUITE
        getattr(ceremony, name)(said.content)


@pytest.mark.parametrize(
    "read",
    [schemes.read_master, schemes.read_public, schemes.read_attributes, ces.CesSigner.from_bytes],
)
def test_a_key_of_an_unknown_suite_is_refused_by_name(read: Callable[[bytes], object]):
    with pytest.raises(DiptychError, match="'quantum-9'"):
        read(encode(("quantum-9", b"key")))


def test_a_record_signature_of_an_unknown_suite_is_refused_by_name():
    extract = ces.decode_extract(BYTES["extract"])
    header = msgspec.structs.replace(extract.header, suite="quantum-9")
    shown = encode(msgspec.structs.replace(extract, header=header))
    opened = {0: (filled("tag", 32), encode(signed_part()))}
    with pytest.raises(DiptychError, match="quantum-9"):
        ces.verify(ces.decode_extract(shown), opened, ("quantum-9", KEYS["doctor"].public))


if __name__ == "__main__" and sys.argv[1:] == ["--regenerate"]:
    VECTORS.write_text(json.dumps(answers(), indent=1, ensure_ascii=False) + "\n")
