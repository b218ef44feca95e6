"""What can be listed of a chain's state (`protocol.queries`), asked of all its nodes, so that one that leaves things out is caught.

What a quorum of nodes lists alike stands. Where they differ, the state itself decides, by proof: an item that is there is taken though only one
node shows it, one that is not is left out though all but one do. A node is named when it still says otherwise at a height that it
calls its own and the proof covers; one that is behind is not.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import httpx2

from client.light import LightClient
from client.web import checked
from crypto.errors import DiptychError, Malformed, Unavailable
from protocol.contract import (
    Pending,
    Person,
    Proxy,
    RecordEntry,
    decode_pending,
    decode_person,
    decode_proxy,
    decode_record,
    decode_ticket,
    pending_key,
)
from protocol.identity import Ticket
from protocol.queries import GRANTS, INBOX, MAX_PAGE, PEOPLE, RECORDS, TAGGED, WAITING, WARDS, Item, Query

T = TypeVar("T")
MAX_LISTED = 100_000
"""Entries of one listing; without end, they would fill the memory of whoever asks."""
_OTHER_FORM = "its answer is not in the agreed form; it may run another version"


class _Answer(NamedTuple):
    """One node's whole listing, by ids; `height` is that of its first page."""

    url: str
    height: int
    items: dict[bytes, Item]


class Listings(LightClient):
    def records_of(self, patient: bytes) -> dict[bytes, RecordEntry]:
        """A patient's records on this chain by their ids, erased ones aside."""
        found = self._listed(RECORDS, patient, decode_record, lambda _, entry: entry.patient == patient)
        return {item.id: entry for item, entry in found}

    def grants_of(self, reader: bytes) -> list[Ticket]:
        """What a reader's allowed requests have granted, expired or not."""
        found = self._listed(
            GRANTS, reader, decode_ticket, lambda id_, t: (t.request, t.requester) == (id_, reader)
        )
        return [ticket for _, ticket in found]

    def inbox_of(self, patient: bytes) -> tuple[list[Pending], list[Pending]]:
        """The requests for a patient's records that wait for a second person, and the emergency accesses that nobody has reviewed."""
        found = self._listed(
            INBOX, patient, decode_pending, lambda id_, p: (p.request, p.patient) == (id_, patient)
        )
        waiting = [p for item, p in found if item.key == pending_key(item.id)]
        return waiting, [p for item, p in found if item.key != pending_key(item.id)]

    def waiting(self) -> list[Pending]:
        """All requests that wait for a second person."""
        found = self._listed(WAITING, b"", decode_pending, lambda id_, p: p.request == id_)
        return [pending for _, pending in found]

    def wards_of(self, proxy: bytes) -> list[Proxy]:
        """For whom somebody may act, in what and when; the time may not have begun, or may have passed."""
        found = self._listed(WARDS, proxy, decode_proxy, lambda id_, p: (p.patient, p.proxy) == (id_, proxy))
        return [ward for _, ward in found]

    def tagged(self, tag: bytes) -> dict[bytes, RecordEntry]:
        """The records that bear a tag in their current version, by their ids."""
        found = self._listed(TAGGED, tag, decode_record, lambda _, entry: tag in entry.tags)
        return {item.id: entry for item, entry in found}

    def people(self) -> list[Person]:
        """Everyone certified on this chain, revoked ones too; the authority's signatures are checked, the validity in time is not."""
        found = self._listed(PEOPLE, b"", decode_person, lambda id_, person: self._is_person(id_, person))
        return [person for _, person in found]

    def _is_person(self, key: bytes, person: Person) -> bool:
        credential = person.signed.credential
        person.signed.verify(self.genesis.authority, credential.not_before_ms)
        return credential.subject == key

    def _listed(
        self, query: Query, owner: bytes, decode: Callable[[bytes], T], holds: Callable[[bytes, T], bool]
    ) -> list[tuple[Item, T]]:
        """A whole listing in ascending order of ids; each object in its form and belonging where it is listed. `Unavailable` if no node
        answers, or too few to prove what they do not agree on."""

        def check(item: Item) -> None:
            if item.key not in query.objects(owner, item.id) or not holds(item.id, decode(item.encoded)):
                raise Malformed("it lists what does not belong there")

        def ask(url: str) -> _Answer | DiptychError:
            try:
                return self._listing_of(url, query, owner, check)
            except httpx2.HTTPError:
                return Unavailable("a node does not answer")
            except DiptychError as error:
                return error

        urls = list(self._urls)
        with ThreadPoolExecutor(max(1, len(urls))) as pool:
            told = dict(zip(urls, pool.map(ask, urls), strict=True))
        for url, lie in told.items():
            if isinstance(lie, DiptychError) and not isinstance(lie, Unavailable):
                self._catch(url, f"answered with a listing that cannot be true ({lie})")
        answers = [answer for answer in told.values() if isinstance(answer, _Answer)]
        if not answers:
            raise Unavailable(
                f"no node of the {self.genesis.kind} chain answers; check that they are running"
            )
        found: dict[bytes, Item] = {}
        for id_ in sorted({id_ for answer in answers for id_ in answer.items}):
            shown = [answer.items.get(id_) for answer in answers]
            item = shown[0] if len(shown) >= self.committee.quorum and len(set(shown)) == 1 else None
            if item := item or self._settled(query, owner, id_, answers):
                found[id_] = item
        return [(item, decode(item.encoded)) for item in found.values()]

    def _settled(self, query: Query, owner: bytes, id_: bytes, answers: list[_Answer]) -> Item | None:
        """The proved item, None if there is none; names the nodes that still say otherwise though they are not behind."""
        listed = self.verified_state(query.prefix(owner) + id_)
        proved = [(k, self.verified_state(k)) for k in query.objects(owner, id_)] if listed.value else []
        item = next((Item(id_, key, p.value) for key, p in proved if p.value is not None), None)
        height = listed.signed.checkpoint.height
        before = (int.from_bytes(id_, "big") - 1).to_bytes(len(id_), "big") if any(id_) else b""
        for answer in answers:
            if (id_ in answer.items) == (item is not None):
                continue
            with suppress(DiptychError):
                again = self._page_of(answer.url, query, owner, before, 1)
                is_shown = again is not None and any(found.id == id_ for found in again[1])
                if again and again[0] >= height and is_shown != (item is not None):
                    did = (
                        "lists what the chain does not have" if is_shown else "leaves out what the chain has"
                    )
                    self._catch(answer.url, f"{did}, asked for {query.path} at height {again[0]}")
        return item

    def _listing_of(self, url: str, query: Query, owner: bytes, check: Callable[[Item], None]) -> _Answer:
        items: dict[bytes, Item] = {}
        height, after, more = -1, b"", True
        while more:
            page = self._page_of(url, query, owner, after, MAX_PAGE)
            if page is None:
                raise Unavailable("a node does not answer")
            height, (_, found, more) = page[0] if height < 0 else height, page
            for item in found:
                if len(item.id) != query.id_size or item.id <= after:
                    raise Malformed("it is out of order")
                check(item)
                items[item.id], after = item, item.id
            if (more and not found) or len(items) > MAX_LISTED:
                raise Malformed(f"it does not go on, or has more than {MAX_LISTED} entries")
        return _Answer(url, height, items)

    def _page_of(
        self, url: str, query: Query, owner: bytes, after: bytes, limit: int
    ) -> tuple[int, list[Item], bool] | None:
        """The height, the items, and whether there are more; None if the node does not answer."""
        params: dict[str, str | int] = {"after": after.hex(), "limit": limit}
        try:
            response = checked(self._http.get(url + query.path.format(key=owner.hex()), params=params))
            answer: Any = response.json()
            items = [Item(*(bytes.fromhex(item[name]) for name in Item._fields)) for item in answer["items"]]
            return int(answer["height"]), items, answer["next"] is not None
        except (httpx2.HTTPError, Unavailable):
            return None
        except (KeyError, TypeError, ValueError, RecursionError):
            raise Malformed(_OTHER_FORM) from None
