"""Files attached to a record: a scan, a film, a letter, whatever their size.

File number n is a group of parts of the record: `an`, a FHIR Attachment that says what the file is, and `an-1`, `an-2`, … with its bytes,
`CHUNK` at a time. Each is signed, sealed and shared like any other part, so that no more than one chunk is ever in memory. They are no parts
of the bundle, and nobody looks into them.
"""

import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from client.fhir import PRIVATE, Part, is_attached, is_chunk
from configs.files import reading, write, writing
from crypto.ceas import MAX_PARTS
from crypto.errors import Conflict, Malformed

CHUNK = 4 << 20
"""Bytes of a file in one part."""
MAX_TITLE = 255
_TYPES = {".dcm": "application/dicom", ".json": "application/json"}


class _Attachment(msgspec.Struct, omit_defaults=True):
    """FHIR's Attachment, as far as it is used; `size` as in R5, where it may be over 2^31."""

    contentType: str = ""  # noqa: N815 (FHIR's name)
    size: int = -1
    title: str = ""


def _chunk_labels(label: str, size: int) -> list[str]:
    return [f"{label}-{n}" for n in range(1, -(-size // CHUNK) + 1)]


@dataclass(frozen=True)
class File:
    """A file that is about to be attached, as it was when it was looked at."""

    path: Path
    size: int
    label: str

    @property
    def labels(self) -> list[str]:
        """Of all its parts, in order."""
        return [self.label, *_chunk_labels(self.label, self.size)]

    @property
    def part(self) -> Part:
        """The one that says what the file is."""
        kind = _TYPES.get(self.path.suffix.lower()) or mimetypes.guess_type(self.path.name)[0]
        said = _Attachment(kind or "application/octet-stream", self.size, self.path.name)
        return Part(self.label, PRIVATE, self.path.name, msgspec.json.encode(said))

    def contents(self) -> Iterator[bytes]:
        """Of its parts, in order. `Conflict` if the file has another size by now."""
        yield self.part.content
        left = self.size
        with reading(self.path) as file:
            while left:
                data = file.read(min(left, CHUNK))
                left -= len(data)
                if not data or (not left and file.read(1)):
                    raise Conflict(
                        f"{self.path} was changed while it was read; try again when it is finished"
                    )
                yield data


def files(paths: Sequence[Path], others: int) -> list[File]:
    """The files to attach, for a record that has this many parts besides. `NotFound` or `Malformed` for one that cannot be attached, and
    if the record would have more than `MAX_PARTS` parts."""
    found = []
    for number, path in enumerate(paths, 1):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise Malformed(f"{path} is no ordinary file; attach a copy of what it gives")
        with reading(path) as file:
            size = os.fstat(file.fileno()).st_size
        if not path.name.isprintable() or len(path.name) > MAX_TITLE:
            raise Malformed(
                "the name of an attached file goes into the record and must be readable; rename it"
            )
        found.append(File(path, size, f"a{number}"))
    count = others + sum(len(file.labels) for file in found)
    if count > MAX_PARTS:
        raise Malformed(
            f"the record would have {count:,} parts, more than {MAX_PARTS:,}: attached files have one for each {CHUNK >> 20} MiB, so "
            f"attach at most {max(0, MAX_PARTS - others - len(found)) * CHUNK >> 20:,} MiB to a record, and more to another one"
        )
    return found


# --- and back -----------------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """An attached file in what is at hand of a record: the label of its group, what the doctor says that it is called and is, its size, the
    labels of its bytes. `is_whole`: all of them are there."""

    label: str
    title: str
    content_type: str
    size: int
    chunks: tuple[str, ...]
    is_whole: bool

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "part": self.label,
            "title": self.title,
            "type": self.content_type,
            "bytes": self.size,
            "whole": self.is_whole,
        }

    def write(self, parts: Mapping[str, bytes], path: Path) -> None:
        """Write the file's bytes, whole or not at all, reading one part at a time. `Malformed` if they are not as many as it says."""
        with writing(path, replace=True) as file:
            size = 0
            for label in self.chunks:
                size += file.write(parts[label])
            if size != self.size:
                raise Malformed(
                    f"the attached file {self.label} has {size:,} bytes, and the record says {self.size:,}: "
                    "ask the doctor to sign it again"
                )


def attached(parts: Mapping[str, bytes]) -> list[Found]:
    """The attached files whose `an` is among these parts of a record. `Malformed` if one says nothing sensible."""
    found = []
    for label in parts:
        if is_attached(label) and not is_chunk(label):
            try:
                said = msgspec.json.decode(parts[label], type=_Attachment)
            except (msgspec.DecodeError, RecursionError):
                said = _Attachment()
            if not 0 <= said.size <= MAX_PARTS * CHUNK:
                raise Malformed(
                    f"the part {label} does not say what file is attached: ask the doctor to sign the record again"
                )
            chunks = tuple(_chunk_labels(label, said.size))
            is_whole = all(chunk in parts for chunk in chunks)
            found.append(Found(label, said.title, said.contentType, said.size, chunks, is_whole))
    return found


def write_attached(parts: Mapping[str, bytes], folder: Path, prefix: str = "") -> list[Found]:
    """Write the attached files among these parts as `an.bin`, under no name of their own, and what is there of one that is not whole as
    `an-1.bin` and so on; returns those files."""
    found = attached(parts)
    for each in found:
        if each.is_whole:
            each.write(parts, folder / f"{prefix}{each.label}.bin")
    written = {label for each in found if each.is_whole for label in each.chunks}
    for label in parts:
        if is_chunk(label) and label not in written:
            write(folder / f"{prefix}{label}.bin", parts[label], replace=True)
    return found


def of_bundle(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """The parts that a bundle was cut into, without attached files."""
    return {label: parts[label] for label in parts if not is_attached(label)}
