"""FHIR R4 bundles in and out: read and check, split into the parts that are signed, join token for token."""

from client.fhir.bundle import Bundle, Part, join, load_bundle, read_bundle, split
from client.fhir.jsontext import MAX_BUNDLE, MAX_DEPTH, MAX_ENTRIES, minify, tokens_equal
from client.fhir.profile import (
    PRIVATE,
    SENSITIVE,
    Derived,
    Group,
    Label,
    Profile,
    group_of,
    is_attached,
    is_chunk,
    load_profile,
    named,
)

__all__ = [
    "MAX_BUNDLE",
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "PRIVATE",
    "SENSITIVE",
    "Bundle",
    "Derived",
    "Group",
    "Label",
    "Part",
    "Profile",
    "group_of",
    "is_attached",
    "is_chunk",
    "join",
    "load_bundle",
    "load_profile",
    "minify",
    "named",
    "read_bundle",
    "split",
    "tokens_equal",
]
