"""The light client of one chain: sends transactions to its nodes, waits for receipts, collects releases.

Several nodes are asked in turn, so that one that is down or behind costs time only. What a node says about state and receipts is
believed from that node; a ticket is believed from a quorum, a credential from the authority's signature.
"""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import httpx2

from configs.http import Client
from configs.members import Members
from crypto.codec import encode
from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable
from crypto.seal import SealKey
from crypto.sign import SigningKey, is_valid
from protocol.block import Committee
from protocol.contract import Person, Receipt, RecordEntry, decode_person, decode_receipt, decode_record
from protocol.genesis import Genesis
from protocol.identity import Credential, Release, SignedTicket, decode_release
from protocol.network import ChainAddresses
from protocol.record import Index, decode_index
from protocol.tx import Action, Tx

TX_LIFETIME_MS = 120_000
MAX_LOG = 100_000
"""Receipts of one access log; a node that has more to say makes them up."""
MAX_RETRY_AFTER = 30.0
PAUSE = 0.2
_NOT_AGREED = "not in the agreed form; it may run another version"
_ERRORS: dict[int, type[DiptychError]] = {
    400: Malformed,
    401: Unauthentic,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: Malformed,
}


class Busy(Unavailable):
    """A server that has too much to do or cannot work now; `seconds`: not to ask it again before."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def checked(response: httpx2.Response) -> httpx2.Response:
    """The response if it is a success, otherwise its problem as the `DiptychError` it stands for."""
    if response.is_success:
        return response
    try:
        detail = str(json_of(response)["detail"])[:1000]
    except (ValueError, KeyError, TypeError):
        detail = f"the server answered with HTTP status {response.status_code}"
    if response.status_code == 503:
        raise Busy(detail, _retry_after(response.headers.get("retry-after", "")))
    raise _ERRORS.get(response.status_code, Unavailable)(detail)


def json_of(response: httpx2.Response) -> Any:
    """The answer as JSON, or `ValueError`."""
    try:
        return response.json()
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _retry_after(text: str) -> float:
    """Seconds that a server asks for, within reason; 1 if it says nothing usable."""
    return (
        min(float(text), MAX_RETRY_AFTER) if text.isascii() and text.isdecimal() and len(text) < 10 else 1.0
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class ChainClient:
    def __init__(self, genesis: Genesis, addresses: ChainAddresses) -> None:
        self.genesis = genesis
        self._nodes = addresses.nodes
        self._members = Members(Committee(genesis), addresses.nodes)
        self._not_before: dict[str, float] = {}
        """When a node that was busy may be asked again, on the monotonic clock."""
        self._http = Client(40)

    @property
    def committee(self) -> Committee:
        """The present members, followed from genesis; asks the nodes now and then."""
        return self._members.now()

    @cached_property
    def _urls(self) -> list[str]:
        urls = [self._nodes[m.name].http for m in self.committee.members if m.name in self._nodes]
        random.shuffle(urls)
        return urls

    def close(self) -> None:
        self._http.close()

    # --- transactions -----------------------------------------------------------------------------------------------------

    def execute(self, sender: SigningKey, action: Action, seconds: float = 60) -> Receipt:
        """Send an action and wait for its receipt. `Denied` when the contract refuses it, `Unavailable` when no node could
        make it final in time (it may still become final until it expires)."""
        receipt = self.send(sender, action, seconds)
        if not receipt.ok:
            raise Denied(f"the {self.genesis.kind} chain refused: {receipt.reason} ({receipt.code})")
        return receipt

    def send(self, sender: SigningKey, action: Action, seconds: float = 60) -> Receipt:
        """As `execute`, but a refusal by the contract is an ordinary receipt. One transaction, sent again as needed: it can
        become final only once."""
        tx = Tx.make(self.genesis.chain_id, sender, os.urandom(16), now_ms() + TX_LIFETIME_MS, action)
        raw, deadline = encode(tx), time.monotonic() + seconds
        trouble: DiptychError | None = None
        while time.monotonic() < deadline:
            refusals: list[Denied] = []
            for url in self._willing():
                try:
                    return self._post_tx(url, tx.id, raw, min(5.0, max(0.5, deadline - time.monotonic())))
                except Denied as error:
                    refusals.append(
                        error
                    )  # perhaps of a node that is behind and does not know the sender yet
                except (httpx2.HTTPError, Unavailable, NotFound) as error:
                    trouble = error if isinstance(error, DiptychError) else trouble
                    self._demote(url)
                    if isinstance(error, Busy):  # the spread keeps clients from coming back all at once
                        self._not_before[url] = time.monotonic() + error.seconds * random.uniform(1, 1.25)  # noqa: S311
            if len(refusals) >= self.committee.quorum:
                raise refusals[0]
            self._pause(deadline)
        raise Unavailable(
            f"no node of the {self.genesis.kind} chain made the transaction final within {seconds:.0f} s"
            + (f" (last answer: {trouble})" if trouble else "; check that a quorum of nodes is running")
        )

    def _post_tx(self, url: str, tx_id: bytes, raw: bytes, seconds: float) -> Receipt:
        """The receipt, if the transaction is final at this node within `seconds`; `NotFound` otherwise."""
        wait = {"wait": f"{seconds:.1f}"}
        try:
            response = checked(self._http.post(f"{url}/v1/tx", content=raw, params=wait))
        except Conflict:  # final already: an earlier attempt went through
            response = checked(self._http.get(f"{url}/v1/tx/{tx_id.hex()}", params=wait))
        if response.status_code == 202:
            raise NotFound("the transaction is not final yet")
        try:
            receipt = decode_receipt(_encoded(json_of(response)))
        except (ValueError, Malformed):
            raise Unavailable("a node's answer is no receipt; it may run another version") from None
        if receipt.tx != tx_id:
            raise Unavailable("a node answered with the receipt of another transaction")
        return receipt

    def _willing(self) -> list[str]:
        """The nodes that have not asked to be left alone for now."""
        now = time.monotonic()
        return [url for url in self._urls if self._not_before.get(url, 0) <= now]

    def _pause(self, deadline: float) -> None:
        """A moment, or until the first node may be asked again."""
        now = time.monotonic()
        first = min(self._not_before.get(url, 0) for url in self._urls)
        time.sleep(max(0.0, min(max(PAUSE, first - now), deadline - now)))

    def _demote(self, url: str) -> None:
        """Ask this node last from now on."""
        self._urls.remove(url)
        self._urls.append(url)

    # --- queries ----------------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer of the first node that gives one; `NotFound` once a node that is up does not know."""
        missing: NotFound | None = None
        for url in list(self._urls):
            try:
                response = checked(self._http.get(url + path, params=params))
                return json_of(response)
            except NotFound as error:
                missing = error
            except (httpx2.HTTPError, Unavailable, ValueError):
                self._demote(url)
        raise missing or Unavailable(
            f"no node of the {self.genesis.kind} chain answers; check that they are running"
        )

    def status(self) -> list[dict[str, Any]]:
        """The status of each node, in the order of the members; `{"error": …}` for one that does not answer."""

        def ask(url: str) -> dict[str, Any]:
            try:
                found = json_of(checked(self._http.get(f"{url}/v1/status", timeout=3)))
                if isinstance(found, dict):
                    return found
            except (httpx2.HTTPError, DiptychError, ValueError):
                pass
            return {"error": "does not answer", "url": url}

        with ThreadPoolExecutor(len(self._urls)) as pool:
            return sorted(pool.map(ask, self._urls), key=lambda s: str(s.get("node", "~")))

    def receipt(self, tx_id: bytes) -> Receipt:
        return decode_receipt(_encoded(self.get(f"/v1/tx/{tx_id.hex()}")))

    def record(self, record: bytes) -> RecordEntry:
        return decode_record(_encoded(self.get(f"/v1/record/{record.hex()}")))

    def person(self, key: bytes) -> Person:
        """A certified person; the authority's signature is checked, the validity in time is not."""
        person = decode_person(_encoded(self.get(f"/v1/identity/{key.hex()}")))
        person.signed.verify(self.genesis.authority, person.signed.credential.not_before_ms)
        if person.signed.credential.subject != key:
            raise Unauthentic("a node answered with the credential of another person")
        return person

    def credential(self, key: bytes) -> Credential:
        """The credential of a person who is certified and not revoked; `Denied` otherwise."""
        person = self.person(key)
        if person.is_revoked:
            raise Denied("the credential of this key was revoked")
        return person.signed.credential

    def access_log(self, record: bytes) -> list[Receipt]:
        receipts: list[Receipt] = []
        place = (0, 0)
        while True:
            answer = self.get(f"/v1/record/{record.hex()}/log", after=f"{place[0]}.{place[1]}")
            try:
                page = [decode_receipt(bytes.fromhex(text)) for text in answer["encoded"]]
                is_last = not answer["next"]
            except (KeyError, TypeError, ValueError):
                raise Malformed(f"a node's access log is {_NOT_AGREED}") from None
            receipts += page
            if is_last:
                return receipts
            before, place = place, (page[-1].height, page[-1].position) if page else place
            if place <= before or len(receipts) > MAX_LOG:
                raise Malformed(
                    "a node's access log does not come to an end; ask again, another node may answer"
                )

    # --- release ------------------------------------------------------------------------------------------------------------

    def release(self, request: bytes, reader: SealKey, seconds: float = 15) -> tuple[Index, SignedTicket]:
        """Exchange an allowed request for the index entry and a ticket that a quorum of nodes has signed."""
        found: dict[tuple[int, int], Release] = {}
        refusals: dict[str, DiptychError] = {}
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(len(self._urls)) as pool:
            while True:
                for url, answer in zip(
                    self._urls, pool.map(lambda u: self._ask_release(u, request), self._urls), strict=True
                ):
                    if isinstance(answer, Release):
                        found.setdefault((answer.epoch, answer.signature.signer), answer)
                    elif isinstance(answer, Denied):
                        refusals[url] = answer
                committee = self.committee
                now = [r for (epoch, _), r in found.items() if epoch == committee.epoch]
                if len(now) >= committee.quorum:
                    return self._open_release(now, committee, reader)
                if len(refusals) > len(self._urls) - committee.quorum:
                    raise next(iter(refusals.values()))
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"only {len(now)} of the {committee.quorum} nodes needed released the index; try again later"
                    )
                time.sleep(0.1)

    def _ask_release(self, url: str, request: bytes) -> Release | DiptychError:
        """One node's release, if its signature on the ticket holds."""
        try:
            release = decode_release(
                checked(self._http.get(f"{url}/v1/release/{request.hex()}", timeout=5)).content
            )
        except DiptychError as error:
            return error
        except httpx2.HTTPError:
            return Unavailable("a node does not answer")
        signer, committee = release.signature.signer, self._members.now(release.epoch)
        if (
            release.ticket.request != request
            or release.ticket.chain_id != self.genesis.chain_id
            or release.epoch != committee.epoch
            or signer >= committee.size
            or not is_valid(
                committee.keys[signer], "ticket", encode(release.ticket), release.signature.signature
            )
        ):
            return Unauthentic("a node's release does not hold")
        return release

    def _open_release(
        self, releases: list[Release], committee: Committee, reader: SealKey
    ) -> tuple[Index, SignedTicket]:
        ticket = releases[0].ticket
        agreeing = sorted((r.signature for r in releases if r.ticket == ticket), key=lambda s: s.signer)
        if len(agreeing) < committee.quorum:
            raise Unauthentic(
                "the nodes released different tickets for one request; tell the chain's operators"
            )
        signed = SignedTicket(ticket, committee.epoch, tuple(agreeing[: committee.quorum]))
        return decode_index(reader.open(releases[0].sealed_index, "the released index")), signed


def _encoded(answer: Any) -> bytes:
    try:
        return bytes.fromhex(answer["encoded"])
    except (KeyError, TypeError, ValueError):
        raise Malformed(f"a node's answer is {_NOT_AGREED}") from None
