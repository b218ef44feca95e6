"""One chain as a client uses it: sends transactions to its nodes, waits for receipts, collects releases.

Several nodes are asked in turn, so that one that is down or behind costs time only. Receipts and state are proved (`client.light`); a ticket
and the index key are believed from a quorum, a credential from the authority's signature.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2

from client.events import Place, stream
from client.listings import Listings
from client.web import Busy, checked, now_ms
from crypto import tdh2
from crypto.codec import encode
from crypto.errors import Conflict, Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable
from crypto.seal import SealKey
from crypto.sign import Ed25519Signer
from protocol.contract import (
    Receipt,
    decode_receipt,
)
from protocol.genesis import Genesis
from protocol.identity import Release, SignedTicket, decode_release
from protocol.index_key import IndexKey, decode_signed_index_key, index_label
from protocol.network import ChainAddresses
from protocol.record import Index, decode_index
from protocol.tx import Action, Tx

T = TypeVar("T")
TX_LIFETIME_MS = 120_000
PAUSE, MAX_PAUSE = 0.2, 2.0
_OTHER_FORM = "a node's answer is not in the agreed form; it may run another version"


class ChainClient(Listings):
    """`warn` is called with a sentence when a node is caught at something that did not keep the work from being done."""

    def __init__(
        self, genesis: Genesis, addresses: ChainAddresses, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        super().__init__(genesis, addresses, warn)
        self._index_key: IndexKey | None = None
        self._not_before: dict[str, float] = {}
        """When a node that was busy may be asked again, on the monotonic clock."""

    # --- transactions -----------------------------------------------------------------------------------------------------

    def execute(self, sender: Ed25519Signer, action: Action, seconds: float = 60) -> Receipt:
        """Send an action and wait for its receipt. `Denied` when the contract refuses it, `Unavailable` when no node could
        make it final in time (it may still become final until it expires)."""
        receipt = self.send(sender, action, seconds)
        if not receipt.ok:
            raise Denied(f"the {self.genesis.kind} chain refused: {receipt.reason} ({receipt.code})")
        return receipt

    def send(self, sender: Ed25519Signer, action: Action, seconds: float = 60) -> Receipt:
        """As `execute`, but a refusal by the contract is an ordinary receipt. One transaction, sent again as needed: it can
        become final only once."""
        tx = Tx.make(self.genesis.chain_id, sender, os.urandom(16), now_ms() + TX_LIFETIME_MS, action)
        raw, deadline = encode(tx), time.monotonic() + seconds
        trouble: DiptychError | None = None
        while time.monotonic() < deadline:
            refusals: list[Denied] = []
            for url in self._willing():
                try:
                    told = self._post_tx(url, tx.id, raw, min(5.0, max(0.5, deadline - time.monotonic())))
                    return self._checked_receipt(url, told, max(0.0, deadline - time.monotonic()))
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
            receipt = decode_receipt(_encoded(response.json()))
        except (Malformed, ValueError, RecursionError):
            raise Unavailable(_OTHER_FORM) from None  # another node may do better
        if receipt.tx != tx_id:
            raise Unavailable("a node answered with the receipt of another transaction")
        return receipt

    def _checked_receipt(self, url: str, told: Receipt, seconds: float) -> Receipt:
        """The proved receipt of the transaction that a node told one of."""
        try:
            receipt = self.verified_receipt(told.tx, seconds, url).proof.receipt
        except NotFound:
            self._catch(url, "answered a transaction with an invented receipt, which nobody proves")
            raise
        if told != receipt:
            self._catch(url, "answered a transaction with an invented receipt")
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

    # --- queries ----------------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: Any) -> Any:
        """The JSON answer of the first node that gives one; `NotFound` once a node that is up does not know."""
        missing: NotFound | None = None
        for url in list(self._urls):
            try:
                return checked(self._http.get(url + path, params=params)).json()
            except NotFound as error:
                missing = error
            except (httpx2.HTTPError, Unavailable, ValueError, RecursionError):
                self._demote(url)
        raise missing or Unavailable(
            f"no node of the {self.genesis.kind} chain answers; check that they are running"
        )

    def status(self) -> list[dict[str, Any]]:
        """The status of each node, in the order of the members; `{"error": …}` for one that does not answer."""

        def ask(url: str) -> dict[str, Any]:
            try:
                found = checked(self._http.get(f"{url}/v1/status", timeout=3)).json()
            except (httpx2.HTTPError, DiptychError, ValueError, RecursionError):
                found = None
            return found if isinstance(found, dict) else {"error": "does not answer", "url": url}

        with ThreadPoolExecutor(len(self._urls)) as pool:
            return sorted(pool.map(ask, self._urls), key=lambda s: str(s.get("node", "~")))

    # --- what happens -----------------------------------------------------------------------------------------------------

    def events(
        self,
        *,
        record: bytes | None = None,
        patient: bytes | None = None,
        reader: bytes | None = None,
        kind: str | None = None,
        after: Place | None = None,
    ) -> Iterator[Receipt]:
        """The receipts that concern this record, this patient, this reader, and are of this kind (None: any), in chain order, each once:
        those after a place, or from now on, and then as they come, without end.

        A node that fails, stops or answers nonsense is left for the next one, which goes on after what came last.
        """
        ids = {"record": record, "patient": patient, "reader": reader}
        wanted = {name: value.hex() for name, value in ids.items() if value} | (
            {"kind": kind} if kind else {}
        )
        pause, is_silent = PAUSE, False
        while True:
            url = self._urls[0]
            try:
                with stream(self._http, f"{url}/v1/events", wanted, after) as told:
                    for place, receipt in told:
                        pause, is_silent, after = PAUSE, False, place
                        if receipt is not None:
                            yield receipt
            except (httpx2.HTTPError, Unavailable) as error:
                if pause > MAX_PAUSE and not is_silent:
                    is_silent = True
                    self._warn(
                        f"no node of the {self.genesis.kind} chain tells what happens ({error}); trying on"
                    )
            self._demote(url)
            time.sleep(pause)
            pause = min(2 * pause, 2 * MAX_PAUSE)

    # --- the index key and releases -----------------------------------------------------------------------------------------

    def index_key(self, seconds: float = 30) -> IndexKey:
        """The key that index entries of this chain are encrypted to, believed because a quorum of members signed it. `Unavailable`
        if they do not within `seconds`: a new chain takes a moment to make it."""
        deadline = time.monotonic() + seconds
        while self._index_key is None:
            signers: dict[IndexKey, set[int]] = {}
            for answer in self._ask_all("/v1/index-key", self._signed_index_key):
                if isinstance(answer, tuple):
                    key, signer = answer
                    signers.setdefault(key, set()).add(signer)
                    if len(signers[key]) >= self.committee.quorum:
                        self._index_key = key
                        break
            else:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"no quorum of the {self.genesis.kind} chain's nodes names one index key; they may still be making it, "
                        "check with: diptych chain status --verbose"
                    )
                time.sleep(PAUSE)
        return self._index_key

    def _signed_index_key(self, content: bytes) -> tuple[IndexKey, int]:
        signed = decode_signed_index_key(content)
        if not signed.is_signed(self.genesis, self.committee.keys):
            raise Unauthentic("a node's word on the index key does not hold")
        return signed.key, signed.signer

    def release(self, request: bytes, reader: SealKey, seconds: float = 15) -> tuple[Index, SignedTicket]:
        """Exchange an allowed request for the index entry, opened with the decryption shares of enough nodes, and a ticket that a
        quorum of nodes has signed.

        Raises `Denied` when so many nodes refuse that no quorum is left, or the entry is none of this record version;
        `Unauthentic` when nodes gave wrong shares, naming them, and too few right ones are left; `Unavailable` when too few answer.
        """
        deadline = time.monotonic() + seconds
        found: dict[tuple[int, int], Release] = {}
        suspects: set[str] = set()
        while True:
            refusals: list[Denied] = []
            for answer in self._ask_all(f"/v1/release/{request.hex()}", lambda c: self._release(c, request)):
                if isinstance(answer, Release):
                    found[answer.epoch, answer.signature.signer] = answer
                    opened = self._open_release(list(found.values()), reader, suspects, deadline)
                    if opened:
                        return opened
                elif isinstance(answer, Denied):
                    refusals.append(answer)
            quorum = self.committee.quorum
            if len(refusals) > len(self._urls) - quorum:
                raise refusals[0]
            if time.monotonic() > deadline:
                if suspects:
                    raise Unauthentic(
                        f"wrong decryption shares came from {', '.join(sorted(suspects))}, and too few right ones from others; "
                        "tell the chain's operators"
                    )
                raise Unavailable(
                    f"only {len(found)} nodes released the index, or too few of them alike, where {quorum} are needed"
                    "; try again later"
                )
            time.sleep(0.1)

    def _release(self, content: bytes, request: bytes) -> Release:
        release = decode_release(content)
        ticket, committee = release.ticket, self.members.now(release.epoch)
        if (
            ticket.request != request
            or ticket.chain_id != self.genesis.chain_id
            or release.epoch != committee.epoch
            or not release.is_signed(committee.keys)
        ):
            raise Unauthentic("a node's release does not hold")
        return release

    def _open_release(
        self, releases: Sequence[Release], reader: SealKey, suspects: set[str], deadline: float
    ) -> tuple[Index, SignedTicket] | None:
        """What the releases that agree with the last one give together; None if that is not enough. Adds to `suspects` the names of
        nodes whose shares are wrong."""
        last = releases[-1]
        alike = sorted(
            (
                r
                for r in releases
                if (r.epoch, r.ticket, r.entry, r.rule, r.round)
                == (last.epoch, last.ticket, last.entry, last.rule, last.round)
            ),
            key=lambda r: r.signature.signer,
        )
        committee = self.committee
        if last.epoch != committee.epoch or len(alike) < committee.quorum:
            return None
        if self._index_key is not None and self._index_key.round < last.round:
            self._index_key = None  # it has been shared anew
        key, ticket = self.index_key(max(0.0, deadline - time.monotonic())), last.ticket
        if key.round != last.round:
            return None
        shares: dict[int, bytes] = {}
        for release in alike:
            holder = key.place(committee.keys[release.signature.signer])
            if holder is not None and release.sealed_share is not None:
                try:
                    shares[holder] = reader.open(release.sealed_share, "a decryption share")
                except Unauthentic:
                    shares[holder] = b""
        label = index_label(ticket.chain_id, ticket.record, ticket.version, last.rule)
        try:
            content, wrong = tdh2.combine(key.shared, label, last.entry, shares)
        except tdh2.WrongShares as error:
            content, wrong = None, error.holders
        names = {key.holders[holder].name for holder in wrong}
        for name in sorted(names - suspects):
            self._warn(f"{name} gave a wrong decryption share; tell its operator")
        suspects |= names
        if content is None:
            return None
        index = decode_index(content)
        if (index.chain_id, index.record, index.version) != (ticket.chain_id, ticket.record, ticket.version):
            raise Denied(
                "the index entry on chain is for another record or version; its patient must publish it anew"
            )
        signatures = tuple(r.signature for r in alike[: committee.quorum])
        return index, SignedTicket(ticket, committee.epoch, signatures)


def _encoded(answer: Any) -> bytes:
    try:
        return bytes.fromhex(answer["encoded"])
    except (KeyError, TypeError, ValueError):
        raise Malformed(_OTHER_FORM) from None
