"""What can be listed of the contract's state, a page at a time: ids in ascending order, each with the object that it names.

Every listing is a range of state keys, so that a node finds a page without looking at anything else, and every object stands under a
state key of its own, so that it can be proved.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from protocol import contract
from protocol.state import StateReader

MAX_PAGE = 500
"""Items of one page."""
MAX_PAGE_BYTES = 1 << 20
"""Bytes of the objects of one page, unless its first is larger."""


class Query(NamedTuple):
    """A listing for one owner, whose key has `owner_size` bytes (0: for everyone). The keys under `prefix(owner)` end with ids of `id_size`
    bytes; the object of an id stands under the first key of `objects(owner, id)` that is there."""

    path: str
    owner_size: int
    id_size: int
    prefix: Callable[[bytes], bytes]
    objects: Callable[[bytes, bytes], tuple[bytes, ...]]


RECORDS = Query(
    "/v1/patient/{key}/records", 32, 16, contract.patient_list, lambda _, id_: (contract.record_key(id_),)
)
GRANTS = Query(
    "/v1/reader/{key}/grants", 32, 32, contract.grant_list, lambda _, id_: (contract.grant_key(id_),)
)
INBOX = Query(
    "/v1/patient/{key}/inbox",
    32,
    32,
    contract.inbox_list,
    lambda _, id_: (contract.pending_key(id_), contract.review_key(id_)),
)
WARDS = Query(
    "/v1/proxy/{key}/wards", 32, 32, contract.ward_list, lambda proxy, id_: (contract.proxy_key(id_, proxy),)
)
WAITING = Query("/v1/pending", 0, 32, contract.pending_key, lambda _, id_: (contract.pending_key(id_),))
TAGGED = Query("/v1/tag/{key}", 32, 16, contract.tag_list, lambda _, id_: (contract.record_key(id_),))
PEOPLE = Query("/v1/people", 0, 32, contract.person_key, lambda _, id_: (contract.person_key(id_),))
QUERIES = (RECORDS, GRANTS, INBOX, WARDS, WAITING, TAGGED, PEOPLE)


class Item(NamedTuple):
    """An `id` of a listing; its object, `encoded`, is the value of the state key `key`."""

    id: bytes
    key: bytes
    encoded: bytes


class Listable(StateReader, Protocol):
    """A state whose keys can be listed."""

    def listing(self, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
        """What follows `prefix` in the keys that begin with it, ascending: at most `limit`, those greater than `after`."""
        ...


def page(
    state: Listable, query: Query, owner: bytes, after: bytes, limit: int
) -> tuple[list[Item], bytes | None]:
    """At most `limit` items whose ids are greater than `after`, and the last of these ids if there are more."""
    ids = state.listing(query.prefix(owner), after, limit + 1)
    items: list[Item] = []
    size = 0
    for id_ in ids[:limit]:
        found = ((key, state.get(key)) for key in query.objects(owner, id_))
        key, encoded = next((key, value) for key, value in found if value is not None)
        size += len(encoded)
        if items and size > MAX_PAGE_BYTES:
            break
        items.append(Item(id_, key, encoded))
    return items, items[-1].id if len(items) < len(ids) else None
