"""Research tags: by which those who know a registry's name find records with a coded condition (docs/queries.md).

A tag is a digest over the registry's name, the code system and the code. It keeps the code from whoever does not know the registry's name,
and from nobody else: codes are few, so who knows the name can try them all. A patient publishes tags on purpose, or not at all.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from crypto.codec import encode
from crypto.errors import Malformed
from protocol.record import digest

MAX_TEXT = 512
MAX_CODINGS = 10_000


class Coding(NamedTuple):
    """A code of a code system, as FHIR's Coding."""

    system: str
    code: str

    @classmethod
    def parse(cls, text: str) -> "Coding":
        """SYSTEM|CODE, FHIR's form of a token; `Malformed` otherwise."""
        system, bar, code = (part.strip() for part in text.rpartition("|"))
        if not (system and bar and code) or len(text) > MAX_TEXT:
            raise Malformed(
                "write a coding as SYSTEM|CODE, such as 'http://snomed.info/sct|44054006', in quotes"
            )
        return cls(system, code)

    def __str__(self) -> str:
        return f"{self.system}|{self.code}"


def tag_of(registry: str, coding: Coding) -> bytes:
    """32 bytes, the same for all who name the registry alike; the case and the spaces around its name do not matter."""
    name = " ".join(registry.split()).casefold()
    if not name or len(name) > MAX_TEXT:
        raise Malformed(f"the registry needs a name of 1 to {MAX_TEXT} characters")
    return digest("research-tag", encode((name, coding.system, coding.code)))


def codings_of(contents: Iterable[bytes]) -> dict[Coding, str]:
    """The codings in FHIR JSON, in order of appearance, with what the first of each says for people ("" if nothing)."""
    found: dict[Coding, str] = {}
    for content in contents:
        _find_codings(json.loads(content), found)
    return found


def _find_codings(document: Any, found: dict[Coding, str]) -> None:
    rest = [document]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += reversed(value)
        elif isinstance(value, dict):
            system, code, shown = value.get("system"), value.get("code"), value.get("display")
            if isinstance(system, str) and isinstance(code, str) and 0 < len(system) + len(code) < MAX_TEXT:
                known = found.get(Coding(system, code))
                found[Coding(system, code)] = known or (shown if isinstance(shown, str) else "")
            rest += reversed(value.values())
        if len(found) > MAX_CODINGS:
            raise Malformed(f"the record has more than {MAX_CODINGS} codings; choose tags by yourself")
