"""What the cloud holds of a record, and how its pieces point at each other.

    View (one per chain and version)  ->  Envelope (one per access class)  ->  sealed part (AES-256-GCM ciphertext)

Envelopes and parts are blobs named by the SHA-256 of their bytes, so the views of both chains share them and a change of
keys or policy leaves every data ciphertext as it is. A view has two independent digests: its *address*, which with the
patient's signature opens the cloud's door and travels only inside the encrypted index, and its *commit*, which stands on chain.
The salt keeps one from being computed from the other (paper eqs. 5-7; docs/deviations.md).
"""

import hashlib
from typing import Annotated

import msgspec

from crypto.codec import Bytes16, Bytes32, Bytes64, Decoder, Short, UInt, Wire, encode
from crypto.errors import Unauthentic
from crypto.sign import Ed25519Signer, domain_tag, verify
from protocol.identity import Purpose, SignedCredential, SignedTicket

MAX_PARTS = 4096
MAX_CLASSES = 32
MAX_ENVELOPE = 4 << 20
MAX_PART = 64 << 20
"""Bytes of one sealed part."""
MAX_REQUEST_HEAD = 1 << 20
MAX_LOG_PAGE = 500
"""Entries of the cloud's log in one answer."""

PartIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARTS)]


def digest(domain: str, data: bytes) -> bytes:
    """SHA-256 under a domain tag, 32 bytes."""
    return hashlib.sha256(domain_tag(domain) + data).digest()


class BlobRef(Wire, frozen=True):
    """A blob by the SHA-256 of its bytes, and its size in bytes."""

    hash: Bytes32
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_PART)]

    @classmethod
    def of(cls, data: bytes) -> "BlobRef":
        return cls(hashlib.sha256(data).digest(), len(data))


class SealedPart(Wire, frozen=True):
    """One part inside an envelope: where its ciphertext lies, the record version it was sealed in, its wrapped key."""

    index: PartIndex
    sealed_in: UInt
    blob: BlobRef
    wrapped_key: Annotated[bytes, msgspec.Meta(max_length=256)]


class Envelope(Wire, frozen=True, tag="envelope/1"):
    """An access class of one record version: who may open it (`policy`), the CP-ABE `header` that carries the class key,
    the parts whose keys the class key wraps, and the extracted signature over just these parts (without its tags, which
    travel inside the parts)."""

    record: Bytes16
    version: UInt
    access_class: Short
    policy: Annotated[str, msgspec.Meta(max_length=16 << 10)]
    header: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
    parts: Annotated[tuple[SealedPart, ...], msgspec.Meta(max_length=MAX_PARTS)]
    extract: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class View(Wire, frozen=True, tag="view/1"):
    """What one chain's index points at: the envelopes of a record version that readers on this chain may fetch."""

    chain_id: Short
    record: Bytes16
    version: UInt
    patient: Bytes32
    salt: Bytes32
    envelopes: Annotated[tuple[BlobRef, ...], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]

    @property
    def address(self) -> bytes:
        return digest("view-address", encode(self))

    @property
    def commit(self) -> bytes:
        return digest("view-commit", encode(self))


class Index(Wire, frozen=True, tag="index/1"):
    """The index entry that goes encrypted onto a chain: the address and the patient's signature on it (eqs. 6, 7)."""

    chain_id: Short
    record: Bytes16
    version: UInt
    address: Bytes32
    signature: Bytes64

    @classmethod
    def make(cls, view: View, patient: Ed25519Signer) -> "Index":
        unsigned = cls(view.chain_id, view.record, view.version, view.address, bytes(64))
        return msgspec.structs.replace(unsigned, signature=patient.sign("index", unsigned._payload()))

    def _payload(self) -> bytes:
        return encode((self.chain_id, self.record, self.version, self.address))

    def verify(self, patient: bytes) -> None:
        """Raise `Unauthentic` unless `patient` signed this address for this record version and chain."""
        verify(patient, "index", self._payload(), self.signature, "the address of the record")


class UploadBody(Wire, frozen=True):
    """The head of an upload: everything that it makes readable. `blobs` follow in this order as raw bytes; a blob that a
    view needs and the cloud already holds for the same patient need not be sent again. `cloud` is the key of the one that it is meant for,
    here and in all requests to a cloud."""

    cloud: Bytes32
    credential: SignedCredential
    views: Annotated[tuple[View, ...], msgspec.Meta(min_length=1, max_length=8)]
    blobs: Annotated[tuple[BlobRef, ...], msgspec.Meta(max_length=MAX_PARTS + MAX_CLASSES)]
    time_ms: UInt


class Upload(Wire, frozen=True, tag="upload/1"):
    body: UploadBody
    signature: Bytes64

    @classmethod
    def make(cls, body: UploadBody, patient: Ed25519Signer) -> "Upload":
        return cls(body, patient.sign("upload", encode(body)))

    def verify(self) -> None:
        """Raise `Unauthentic` unless the credential's subject signed the upload."""
        subject = self.body.credential.credential.subject
        verify(subject, "upload", encode(self.body), self.signature, "the upload")


class UploadReceipt(Wire, frozen=True, tag="upload-receipt/1"):
    """The cloud's word that the views and all they need are on its disk."""

    addresses: tuple[Bytes32, ...]
    upload: Bytes32
    time_ms: UInt
    signature: Bytes64

    @classmethod
    def make(cls, upload: Upload, time_ms: int, cloud: Ed25519Signer) -> "UploadReceipt":
        addresses, digest_ = tuple(v.address for v in upload.body.views), digest("upload", encode(upload))
        return cls(
            addresses, digest_, time_ms, cloud.sign("upload-receipt", encode((addresses, digest_, time_ms)))
        )

    def verify(self, upload: Upload, cloud: bytes) -> None:
        """Raise `Unauthentic` unless `cloud` signed this for exactly `upload`."""
        addresses = tuple(v.address for v in upload.body.views)
        if (self.addresses, self.upload) != (addresses, digest("upload", encode(upload))):
            raise Unauthentic("the cloud's receipt is for another upload; do not count this one as stored")
        payload = encode((self.addresses, self.upload, self.time_ms))
        verify(cloud, "upload-receipt", payload, self.signature, "the cloud's receipt")


class DeleteBody(Wire, frozen=True):
    """A patient's request that the cloud delete all it holds of a record, or only the versions `before` one and what they alone need."""

    cloud: Bytes32
    patient: Bytes32
    record: Bytes16
    before: UInt | None
    time_ms: UInt
    nonce: Bytes16


class Delete(Wire, frozen=True, tag="delete/1"):
    body: DeleteBody
    signature: Bytes64

    @classmethod
    def make(cls, body: DeleteBody, patient: Ed25519Signer) -> "Delete":
        return cls(body, patient.sign("delete", encode(body)))

    def verify(self) -> None:
        """Raise `Unauthentic` unless the patient signed this request."""
        verify(self.body.patient, "delete", encode(self.body), self.signature, "the request to delete")


class DeletionReceipt(Wire, frozen=True, tag="deletion-receipt/1"):
    """The cloud's word that it holds nothing of a record any more, or nothing that only versions `before` one needed: how many views and
    blobs it has deleted, how many bytes, when."""

    request: Bytes32
    record: Bytes16
    before: UInt | None
    views: UInt
    blobs: UInt
    size: UInt
    time_ms: UInt
    signature: Bytes64

    @classmethod
    def make(
        cls, delete: Delete, views: int, blobs: int, size: int, time_ms: int, cloud: Ed25519Signer
    ) -> "DeletionReceipt":
        body = delete.body
        unsigned = cls(
            digest("delete", encode(body)), body.record, body.before, views, blobs, size, time_ms, bytes(64)
        )
        return msgspec.structs.replace(
            unsigned, signature=cloud.sign("deletion-receipt", unsigned._payload())
        )

    def verify(self, record: bytes, cloud: bytes, before: int | None = None) -> None:
        """Raise `Unauthentic` unless `cloud` signed this for `record`, and for all of it unless `before` says which versions."""
        if (self.record, self.before) != (record, before):
            raise Unauthentic(
                "the cloud's deletion receipt is for another record, or for other versions of it"
            )
        verify(cloud, "deletion-receipt", self._payload(), self.signature, "the cloud's deletion receipt")

    def _payload(self) -> bytes:
        return encode(
            (self.request, self.record, self.before, self.views, self.blobs, self.size, self.time_ms)
        )


class DownloadBody(Wire, frozen=True):
    """A reader's own request: the index entry, the ticket (the patient alone needs none), and which blobs are wanted;
    an empty `wanted` asks for the view and its envelopes, otherwise these parts follow too."""

    cloud: Bytes32
    index: Index
    ticket: SignedTicket | None
    requester: Bytes32
    wanted: Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=MAX_PARTS)]
    time_ms: UInt
    nonce: Bytes16


class Download(Wire, frozen=True, tag="download/1"):
    body: DownloadBody
    signature: Bytes64

    @classmethod
    def make(cls, body: DownloadBody, requester: Ed25519Signer) -> "Download":
        return cls(body, requester.sign("download", encode(body)))

    def verify(self) -> None:
        """Raise `Unauthentic` unless the requester signed this request."""
        verify(self.body.requester, "download", encode(self.body), self.signature, "the download request")


class DownloadHead(Wire, frozen=True, tag="download-head/1"):
    """The head of an answer; the raw bytes of `blobs` follow in this order."""

    view: View
    envelopes: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_CLASSES)]
    blobs: Annotated[tuple[BlobRef, ...], msgspec.Meta(max_length=MAX_PARTS)]


class CloudEntry(Wire, frozen=True, tag="cloud-entry/1"):
    """One request for a record at the cloud: who asked for which version, how many parts (0: envelopes alone), and `code`: `served`, or why
    it was refused. `request` and `purpose` are those of the ticket that came with it, true or not. `unlisted` counts the refusals since the
    entry before that were too many to list."""

    time_ms: UInt
    chain_id: Short
    version: UInt
    requester: Bytes32
    request: Bytes32 | None
    purpose: Purpose | None
    parts: UInt
    code: Short
    unlisted: UInt

    def head_after(self, head: bytes) -> bytes:
        """The digest that chains this entry to those before it, whose digest is `head`; 32 zeros come before the first."""
        return digest("cloud-log", head + encode(self))


class CloudLogBody(Wire, frozen=True):
    """A patient asks for the entries of a record that follow the first `after`."""

    cloud: Bytes32
    patient: Bytes32
    record: Bytes16
    after: UInt
    time_ms: UInt
    nonce: Bytes16


class CloudLogRequest(Wire, frozen=True, tag="cloud-log-request/1"):
    body: CloudLogBody
    signature: Bytes64

    @classmethod
    def make(cls, body: CloudLogBody, patient: Ed25519Signer) -> "CloudLogRequest":
        return cls(body, patient.sign("cloud-log-request", encode(body)))

    def verify(self) -> None:
        """Raise `Unauthentic` unless the patient signed this request."""
        verify(
            self.body.patient, "cloud-log-request", encode(self.body), self.signature, "the request for a log"
        )


class CloudLogPage(Wire, frozen=True, tag="cloud-log-page/1"):
    """Entries of a record's log, and the cloud's word on how many there are in all and the `head` that chains them."""

    request: Bytes32
    entries: Annotated[tuple[CloudEntry, ...], msgspec.Meta(max_length=MAX_LOG_PAGE)]
    count: UInt
    head: Bytes32
    time_ms: UInt
    signature: Bytes64

    @classmethod
    def make(
        cls,
        request: CloudLogRequest,
        entries: tuple[CloudEntry, ...],
        count: int,
        head: bytes,
        time_ms: int,
        cloud: Ed25519Signer,
    ) -> "CloudLogPage":
        request_digest = digest("cloud-log-request", encode(request.body))
        unsigned = cls(request_digest, entries, count, head, time_ms, bytes(64))
        return msgspec.structs.replace(unsigned, signature=cloud.sign("cloud-log", unsigned._payload()))

    def verify(self, request: CloudLogRequest, cloud: bytes) -> None:
        """Raise `Unauthentic` unless `cloud` signed count and head in answer to `request`; the entries stand only under the head."""
        if self.request != digest("cloud-log-request", encode(request.body)):
            raise Unauthentic("the cloud's log answers another request")
        verify(cloud, "cloud-log", self._payload(), self.signature, "the head of the cloud's log")

    def _payload(self) -> bytes:
        return encode((self.request, self.count, self.head, self.time_ms))


decode_cloud_entry = Decoder(CloudEntry, "an entry of the cloud's log", 1 << 10)
decode_cloud_log_request = Decoder(CloudLogRequest, "a request for the cloud's log", 1 << 10)
decode_cloud_log_page = Decoder(CloudLogPage, "a page of the cloud's log", MAX_LOG_PAGE << 10)
decode_view = Decoder(View, "a view", 16 << 10)
decode_envelope = Decoder(Envelope, "an envelope", MAX_ENVELOPE)
decode_index = Decoder(Index, "an index entry", 4 << 10)
decode_upload = Decoder(Upload, "an upload", MAX_REQUEST_HEAD)
decode_upload_receipt = Decoder(UploadReceipt, "an upload receipt", 4 << 10)
decode_download = Decoder(Download, "a download request", MAX_REQUEST_HEAD)
decode_delete = Decoder(Delete, "a request to delete", 1 << 10)
decode_deletion_receipt = Decoder(DeletionReceipt, "a deletion receipt", 1 << 10)
decode_download_head = Decoder(DownloadHead, "a download", MAX_REQUEST_HEAD + MAX_CLASSES * MAX_ENVELOPE)
