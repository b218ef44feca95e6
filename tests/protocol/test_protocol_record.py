"""Views, index entries and requests to the cloud: what binds each, and that nothing of it can be moved or changed."""

import hashlib

import msgspec
import pytest

from crypto.codec import encode
from crypto.errors import Malformed, Unauthentic
from crypto.sign import SigningKey
from protocol.identity import Credential, SignedCredential
from protocol.record import (
    MAX_PART,
    BlobRef,
    Download,
    DownloadBody,
    Index,
    Upload,
    UploadBody,
    UploadReceipt,
    View,
    decode_download,
    decode_index,
    decode_upload,
    decode_view,
)

PATIENT, CLOUD, OTHER = (SigningKey(bytes([i]) * 32) for i in (1, 2, 3))
VIEW = View("chain", b"r" * 16, 1, PATIENT.public, b"s" * 32, (BlobRef.of(b"envelope"),))
CREDENTIAL = SignedCredential.issue(Credential(PATIENT.public, "patient", (), bytes(32), None, 0, 9), OTHER)
UPLOAD = Upload.make(UploadBody(CLOUD.public, CREDENTIAL, (VIEW,), (BlobRef.of(b"part"),), 5), PATIENT)
INDEX = Index.make(VIEW, PATIENT)
DOWNLOAD = Download.make(DownloadBody(CLOUD.public, INDEX, None, OTHER.public, (), 5, bytes(16)), OTHER)
VIEW_CHANGES = [
    {"chain_id": "other"},
    {"record": bytes(16)},
    {"version": 2},
    {"patient": bytes(32)},
    {"salt": bytes(32)},
    {"envelopes": (BlobRef.of(b"other"),)},
    {"envelopes": VIEW.envelopes * 2},
]


def test_a_blob_is_named_by_the_sha256_of_its_bytes():
    assert BlobRef.of(b"abc") == BlobRef(hashlib.sha256(b"abc").digest(), 3)


@pytest.mark.parametrize("change", VIEW_CHANGES)
def test_address_and_commit_of_a_view_change_with_every_field(change):
    other = msgspec.structs.replace(VIEW, **change)
    assert other.address != VIEW.address
    assert other.commit != VIEW.commit


def test_the_commit_on_chain_is_not_the_address_that_opens_the_cloud():
    assert VIEW.address != VIEW.commit


@pytest.mark.parametrize(
    "change", [{"chain_id": "other"}, {"record": bytes(16)}, {"version": 2}, {"address": bytes(32)}]
)
def test_an_index_entry_holds_for_its_patient_and_place_only(change):
    INDEX.verify(PATIENT.public)
    assert decode_index(encode(INDEX)).address == VIEW.address
    with pytest.raises(Unauthentic):
        INDEX.verify(OTHER.public)
    with pytest.raises(Unauthentic):
        msgspec.structs.replace(INDEX, **change).verify(PATIENT.public)


def test_an_upload_and_a_download_hold_only_as_signed_by_their_sender():
    for request, decode in ((UPLOAD, decode_upload), (DOWNLOAD, decode_download)):
        decode(encode(request)).verify()
        with pytest.raises(Unauthentic):
            msgspec.structs.replace(request, body=msgspec.structs.replace(request.body, time_ms=6)).verify()
    with pytest.raises(Unauthentic):
        Upload.make(UPLOAD.body, OTHER).verify()
    with pytest.raises(Unauthentic):
        Download.make(DOWNLOAD.body, PATIENT).verify()


def test_the_clouds_receipt_is_for_this_upload_by_this_cloud_at_this_time():
    receipt = UploadReceipt.make(UPLOAD, 7, CLOUD)
    receipt.verify(UPLOAD, CLOUD.public)
    assert receipt.addresses == (VIEW.address,)
    for change in ({"addresses": (bytes(32),)}, {"upload": bytes(32)}, {"time_ms": 8}):
        with pytest.raises(Unauthentic):
            msgspec.structs.replace(receipt, **change).verify(UPLOAD, CLOUD.public)
    with pytest.raises(Unauthentic):
        receipt.verify(UPLOAD, OTHER.public)


def test_a_receipt_of_one_upload_does_not_pass_for_another():
    receipt = UploadReceipt.make(UPLOAD, 7, CLOUD)
    other = Upload.make(msgspec.structs.replace(UPLOAD.body, time_ms=6), PATIENT)
    with pytest.raises(Unauthentic):
        receipt.verify(other, CLOUD.public)


@pytest.mark.parametrize(
    ("value", "decode"),
    [
        (msgspec.structs.replace(VIEW, envelopes=()), decode_view),
        (msgspec.structs.replace(VIEW, envelopes=(BlobRef(bytes(32), 0),)), decode_view),
        (msgspec.structs.replace(VIEW, envelopes=(BlobRef(bytes(32), MAX_PART + 1),)), decode_view),
        (msgspec.structs.replace(VIEW, envelopes=VIEW.envelopes * 33), decode_view),
        (msgspec.structs.replace(INDEX, version=-1), decode_index),
        (msgspec.structs.replace(INDEX, address=bytes(31)), decode_index),
        (msgspec.structs.replace(UPLOAD, signature=bytes(63)), decode_upload),
    ],
)
def test_objects_out_of_their_bounds_do_not_decode(value, decode):
    with pytest.raises(Malformed):
        decode(encode(value))
