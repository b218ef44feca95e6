"""Which CP-ABE schemes there are, and keys whose scheme is named by their bytes.

The authority chooses when it makes its master key; whatever comes from that key names the scheme. A process uses few
keys again and again, so the last ones stay decoded, with the tables that they have earned.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

from crypto import fabeo, fame
from crypto.abe import AttributeKey, MasterKey, PublicKey, suite_of
from crypto.errors import Malformed

Name = Literal["fabeo", "fame"]


class Scheme(NamedTuple):
    master: type[MasterKey]
    public: type[PublicKey]
    attributes: type[AttributeKey]


SCHEMES: dict[Name, Scheme] = {
    "fabeo": Scheme(fabeo.MasterKey, fabeo.PublicKey, fabeo.AttributeKey),
    "fame": Scheme(fame.MasterKey, fame.PublicKey, fame.AttributeKey),
}


def read_master(data: bytes) -> MasterKey:
    """The master key of any scheme, or `Malformed`."""
    return _of(data).master.from_bytes(data)


@lru_cache(maxsize=4)
def read_public(data: bytes) -> PublicKey:
    """The public key of any scheme, or `Malformed`. It is not authenticated."""
    return _of(data).public.from_bytes(data)


@lru_cache(maxsize=4)
def read_attributes(data: bytes) -> AttributeKey:
    """The attribute key of any scheme, or `Malformed`."""
    return _of(data).attributes.from_bytes(data)


def _of(data: bytes) -> Scheme:
    suite = suite_of(data)
    for scheme in SCHEMES.values():
        if scheme.master.suite == suite:
            return scheme
    known = ", ".join(repr(scheme.master.suite) for scheme in SCHEMES.values())
    raise Malformed(
        f"the CP-ABE suite {suite!r} is unknown here, only {known} are; update this software"
        if suite is not None
        else "these bytes are no key of CP-ABE"
    )
