"""The client of the cloud server: one upload, downloads in two steps (view and envelopes first, then the parts wanted).

Every byte that comes back is checked against the digest that names it; the view against the commit that stands on chain.
"""

import hashlib
import io
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

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
MAX_DOWNLOAD = 20 << 30
"""Bytes of the parts of one record."""
MAX_IN_MEMORY = 16 << 20
"""Bytes of parts up to which a download is not put on disk."""
_MAX_DOWNLOAD_HEAD = MAX_REQUEST_HEAD + MAX_CLASSES * MAX_ENVELOPE


class Blobs(Mapping[bytes, bytes]):
    """Sealed parts that were fetched, by hash: in memory while they are few, else in a nameless file, which is gone with this object or at
    `close`."""

    def __init__(self, size: int, folder: Path | None) -> None:
        """For so many bytes; a file is in `folder`, by default where temporary files go."""
        is_small = size <= MAX_IN_MEMORY
        self._file: IO[bytes] = io.BytesIO() if is_small else TemporaryFile(dir=folder)  # noqa: SIM115
        self._places: dict[bytes, tuple[int, int]] = {}
        self._size = 0
        self.close = weakref.finalize(self, self._file.close)

    def add(self, ref: BlobRef, pieces: Iterable[memoryview]) -> None:
        """`Unauthentic` unless the pieces are the bytes that `ref` names."""
        hasher, size = hashlib.sha256(), 0
        for piece in pieces:
            hasher.update(piece)
            size += self._file.write(piece)
        if hasher.digest() != ref.hash:
            raise Unauthentic("the cloud changed a ciphertext of the record")
        self._places[ref.hash] = (self._size, size)
        self._size += size

    def __getitem__(self, name: bytes) -> bytes:
        offset, size = self._places[name]
        self._file.seek(offset)
        return self._file.read(size)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class CloudClient:
    """What is too large for memory goes into `folder` while it is at work, as ciphertext; by default where temporary files go."""

    def __init__(self, service: Service, folder: Path | None = None) -> None:
        self._folder = folder
        self._url, self.key = service.url, bytes.fromhex(service.key)
        self._http = http_client(120)

    def close(self) -> None:
        self._http.close()

    def upload(self, upload: Upload, content: Iterable[bytes]) -> UploadReceipt:
        """Send everything in one request, `content` being the bytes of all its blobs in order, in pieces of any size; the cloud's signed
        receipt says that all of it is on disk."""

        def body() -> Iterator[bytes]:
            head = encode(upload)
            yield len(head).to_bytes(4, "big") + head
            yield from content

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
        self,
        index: Index,
        ticket: SignedTicket | None,
        reader: Ed25519Signer,
        wanted: Sequence[BlobRef] = (),
        count: Callable[[int], None] = lambda _: None,
    ) -> tuple[DownloadHead, list[Envelope], Blobs]:
        """The view that `index` points at, its envelopes, and the `wanted` parts by hash, all checked against their names. `count` is told
        how many bytes of them have come."""
        if any(ref.size > MAX_PART for ref in wanted) or sum(ref.size for ref in wanted) > MAX_DOWNLOAD:
            raise Malformed(f"the record has more than {MAX_DOWNLOAD} bytes, which no honest one has")
        names = tuple(ref.hash for ref in wanted)
        request = Download.make(
            DownloadBody(self.key, index, ticket, reader.public, names, now_ms(), os.urandom(16)), reader
        )
        size = sum(ref.size for ref in wanted)
        blobs = Blobs(size, self._folder)
        try:
            with self._http.stream(
                "POST",
                f"{self._url}/v1/download",
                content=encode(request),
                headers=_MSGPACK,
                extensions={"max_answer": 4 + _MAX_DOWNLOAD_HEAD + size},
            ) as response:
                if not response.is_success:
                    response.read()
                    checked(response)
                return _read_download(index, wanted, _Reader(response.iter_bytes()), blobs, count)
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"the cloud does not answer ({type(error).__name__}); try again later"
            ) from None


class _Reader:
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def take(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, as they come; not copied, as a chunk may hold hundreds of parts."""
        while size:
            piece = self._rest or memoryview(next(self._chunks, b""))
            if not piece:
                raise Unavailable("the cloud's answer ended too early; try again")
            self._rest = piece[size:]
            yield piece[:size]
            size -= min(size, len(piece))


def _read_download(
    index: Index, wanted: Sequence[BlobRef], stream: _Reader, blobs: Blobs, count: Callable[[int], None]
) -> tuple[DownloadHead, list[Envelope], Blobs]:
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
    if {ref.hash: ref.size for ref in head.blobs} != sizes:
        raise Unauthentic("the cloud served other parts than were asked for")
    for ref in head.blobs:
        blobs.add(ref, stream.pieces(ref.size))
        count(ref.size)
    return head, envelopes, blobs
