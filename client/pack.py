"""A pack: sealed parts of a record one after another in a file, the same bytes that go to the cloud, read one part at a time.

It holds ciphertext alone; where each part begins, its size and its key stand in the sealed file of the record (`client.stored`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from configs.files import reading, writing
from crypto.errors import Unauthentic
from protocol.record import BlobRef

PIECE = 256 << 10
"""Bytes that are read of a pack at a time on its way to the cloud."""


class PackWriter:
    """Adds sealed parts to a pack."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, 0

    def add(self, sealed: bytes) -> tuple[BlobRef, int]:
        """The part's name and size, and where in the pack it begins."""
        offset = self._size
        self._file.write(sealed)
        self._size += len(sealed)
        return BlobRef.of(sealed), offset


@contextmanager
def new_pack(path: Path) -> Iterator[PackWriter]:
    """A pack that is there at the end of the block, whole and durably, in place of an earlier one; not if the block raises."""
    with writing(path, replace=True) as file:
        yield PackWriter(file)


def read_part(path: Path, offset: int, size: int) -> bytes:
    """The sealed part that begins at `offset`; whether it was changed shows when it is opened. `NotFound` without the pack,
    `Unauthentic` if it ends before."""
    with reading(path) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise Unauthentic(f"{path} was cut short; restore it from a backup")
    return data


def pieces(path: Path, size: int) -> Iterator[bytes]:
    """All of a pack of this size, a piece at a time. Raises as `read_part`."""
    with reading(path) as file:
        while data := file.read(min(size, PIECE)):
            size -= len(data)
            yield data
        if size or file.read(1):
            raise Unauthentic(f"{path} has not the size that it was written with; restore it from a backup")
