"""The client of the cloud server: one upload, downloads in two steps (view and envelopes first, then the parts wanted).

Every byte that comes back is checked against the digest that names it; the view against the commit that stands on chain.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence

import httpx2

from client.light import MAX_LOG
from client.web import checked, http_client, now_ms
from crypto.codec import encode
from crypto.errors import Malformed, Unauthentic, Unavailable
from crypto.sign import Ed25519Signer
from protocol.identity import SignedTicket
from protocol.network import Service
from protocol.record import (
    MAX_CLASSES,
    MAX_ENVELOPE,
    MAX_PART,
    MAX_REQUEST_HEAD,
    BlobRef,
    CloudEntry,
    CloudLogBody,
    CloudLogRequest,
    Delete,
    DeleteBody,
    DeletionReceipt,
    Download,
    DownloadBody,
    DownloadHead,
    Envelope,
    Index,
    Upload,
    UploadReceipt,
    decode_cloud_log_page,
    decode_deletion_receipt,
    decode_download_head,
    decode_envelope,
    decode_upload_receipt,
    digest,
)

_MSGPACK = {"content-type": "application/msgpack"}
_MAX_DOWNLOAD_HEAD = MAX_REQUEST_HEAD + MAX_CLASSES * MAX_ENVELOPE


class CloudClient:
    def __init__(self, service: Service) -> None:
        self._url, self.key = service.url, bytes.fromhex(service.key)
        self._http = http_client(120)

    def close(self) -> None:
        self._http.close()

    def upload(self, upload: Upload, blobs: Mapping[bytes, bytes]) -> UploadReceipt:
        """Send everything in one request; the cloud's signed receipt says that all of it is on disk."""

        def body() -> Iterator[bytes]:
            head = encode(upload)
            yield len(head).to_bytes(4, "big") + head
            for ref in upload.body.blobs:
                yield blobs[ref.hash]

        try:
            response = checked(self._http.post(f"{self._url}/v1/upload", content=body(), headers=_MSGPACK))
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the cloud does not answer ({type(error).__name__}); try again later"
            ) from None
        receipt = decode_upload_receipt(response.content)
        receipt.verify(upload, self.key)
        return receipt

    def delete(self, record: bytes, patient: Ed25519Signer, before: int | None = None) -> DeletionReceipt:
        """Have the cloud delete all it holds of a record for good, or only the versions `before` one; its signed receipt says what is gone.
        Asking again is safe and gives a receipt again. The whole record can never be uploaded again."""
        body = DeleteBody(self.key, patient.public, record, before, now_ms(), os.urandom(16))
        receipt = decode_deletion_receipt(self._post("delete", encode(Delete.make(body, patient))))
        receipt.verify(record, self.key, before)
        if receipt.request != digest("delete", encode(body)):
            raise Unauthentic("the cloud's deletion receipt is for another request")
        return receipt

    def access_log(self, record: bytes, patient: Ed25519Signer) -> list[CloudEntry]:
        """Every download of a record that the cloud served or refused, oldest first.

        The cloud's signature holds over all of them and their order: what it leaves out or changes later contradicts an earlier answer,
        which is the beginning of this one.
        """
        entries: list[CloudEntry] = []
        head, more = bytes(32), True
        while more:
            body = CloudLogBody(self.key, patient.public, record, len(entries), now_ms(), os.urandom(16))
            request = CloudLogRequest.make(body, patient)
            page = decode_cloud_log_page(self._post("log", encode(request)))
            page.verify(request, self.key)
            for entry in page.entries:
                head = entry.head_after(head)
            entries += page.entries
            more = len(entries) < page.count
            if (more and not page.entries) or (not more and (len(entries), head) != (page.count, page.head)):
                raise Unauthentic("the entries of the cloud's log are not those that it has signed")
            if len(entries) > MAX_LOG:
                raise Malformed(f"the cloud's log has more than {MAX_LOG} entries, which no record has")
        return entries

    def _post(self, what: str, content: bytes) -> bytes:
        try:
            return checked(
                self._http.post(f"{self._url}/v1/{what}", content=content, headers=_MSGPACK)
            ).content
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the cloud does not answer ({type(error).__name__}); try again later"
            ) from None

    def fetch(
        self, index: Index, ticket: SignedTicket | None, reader: Ed25519Signer, wanted: Sequence[BlobRef] = ()
    ) -> tuple[DownloadHead, list[Envelope], dict[bytes, bytes]]:
        """The view that `index` points at, its envelopes, and the `wanted` parts by hash, all checked against their names."""
        names = tuple(ref.hash for ref in wanted)
        request = Download.make(
            DownloadBody(self.key, index, ticket, reader.public, names, now_ms(), os.urandom(16)), reader
        )
        size = 4 + _MAX_DOWNLOAD_HEAD + sum(ref.size for ref in wanted)
        try:
            with self._http.stream(
                "POST",
                f"{self._url}/v1/download",
                content=encode(request),
                headers=_MSGPACK,
                extensions={"max_answer": size},
            ) as response:
                if not response.is_success:
                    response.read()
                    checked(response)
                return _read_download(index, wanted, _Reader(response.iter_bytes()))
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the cloud does not answer ({type(error).__name__}); try again later"
            ) from None


class _Reader:
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._buffer = chunks, bytearray()

    def take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                raise Unavailable("the cloud's answer ended too early; try again")
            self._buffer += chunk
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


def _read_download(
    index: Index, wanted: Sequence[BlobRef], stream: _Reader
) -> tuple[DownloadHead, list[Envelope], dict[bytes, bytes]]:
    size = int.from_bytes(stream.take(4), "big")
    if size > _MAX_DOWNLOAD_HEAD:
        raise Malformed("the cloud's answer announces a head that is too large")
    head = decode_download_head(stream.take(size))
    if head.view.address != index.address:
        raise Unauthentic("the cloud served another view than the index points at")
    index.verify(head.view.patient)
    if [BlobRef.of(e) for e in head.envelopes] != list(head.view.envelopes):
        raise Unauthentic("the cloud changed an envelope of the record")
    envelopes = [decode_envelope(e) for e in head.envelopes]
    sizes = {ref.hash: ref.size for ref in wanted}
    if {ref.hash: ref.size for ref in head.blobs} != sizes or any(size > MAX_PART for size in sizes.values()):
        raise Unauthentic("the cloud served other parts than were asked for")
    blobs: dict[bytes, bytes] = {}
    for ref in head.blobs:
        data = stream.take(ref.size)
        if hashlib.sha256(data).digest() != ref.hash:
            raise Unauthentic("the cloud changed a ciphertext of the record")
        blobs[ref.hash] = data
    return head, envelopes, blobs
