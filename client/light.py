"""The light client of one chain: what it returns is proved from genesis, whoever answers.

Nodes are asked for a value with its proof, and for their signatures on a checkpoint of its height; a quorum of those, of members
followed from genesis, makes it true. So no node, and no number of nodes short of a quorum, can make a client believe what the chain has
not executed. A node whose answer cannot be true is named through `warn`, with what it did, and the work goes on with the others.

What is true may still be old. Of all answers the latest that can be proved counts, and once a height was believed nothing before it
is: a node that shows less than it has signed is caught too. Only while all nodes that answer are cut off from the others does a client
see an old state.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import httpx2
import msgspec

from client.web import checked, http_client
from configs.members import Members
from crypto.errors import Denied, DiptychError, Malformed, NotFound, Unauthentic, Unavailable
from protocol.block import Committee
from protocol.checkpoint import (
    ReceiptProof,
    SignedCheckpoint,
    decode_receipt_proof,
    decode_signed_checkpoint,
)
from protocol.contract import (
    LogHead,
    Person,
    Receipt,
    RecordEntry,
    decode_log_head,
    decode_person,
    decode_receipt,
    decode_record,
    log_key,
    next_log_head,
    person_key,
    record_key,
)
from protocol.genesis import Genesis
from protocol.identity import Credential
from protocol.network import ChainAddresses
from protocol.state_tree import ProvedValue, StateProof, decode_proved_value

T = TypeVar("T")
PATIENCE_S = 0.25
"""How long the slower nodes are waited for once enough have answered."""
NODE_WAIT_S = 2.0
"""How long a node may wait for the height that it is asked for."""
PAUSE_S = 0.2
MAX_LOG = 100_000
"""Receipts of one record's log; without end, it would fill the memory of whoever asks."""
MAX_CHECKPOINTS = 64
MAX_ASKING = 256
"""Questions under way at once: the longest committee, several times, as a node that does not answer keeps its own waiting for a while."""
MAX_LAG = 100
"""Blocks that a node may be behind without being named for it."""


class Proved(NamedTuple):
    """What the state holds of `key` after the block of the checkpoint, None for nothing, with everything that proves it."""

    key: bytes
    value: bytes | None
    proof: StateProof
    signed: SignedCheckpoint


class ProvedLog(NamedTuple):
    """All receipts that concern a record up to the checkpoint of `head`, which proves that none is missing."""

    head: Proved
    receipts: tuple[Receipt, ...]


class ProvedReceipt(NamedTuple):
    proof: ReceiptProof
    signed: SignedCheckpoint


def check_log(record: bytes, head: LogHead, receipts: Sequence[Receipt]) -> None:
    """`Unauthentic` unless these are all receipts of the record's log, in their order, and no others."""
    found = LogHead(0, bytes(32))
    for receipt in receipts:
        found = next_log_head(found, receipt)
    if found != head or any(r.record != record for r in receipts):
        raise Unauthentic("the log withholds receipts, holds others than the chain's, or is out of order")


def _cancel(asked: Iterable[Future[Any]]) -> None:
    """Do not begin with the questions that nobody waits for any more."""
    for future in asked:
        future.cancel()


def _root_of(key: bytes, offer: ProvedValue) -> bytes:
    """The root of the state that a node offers a value of; `Unauthentic` if its proof does not hold."""
    try:
        return offer.proof.root(key, offer.value)
    except Unauthentic as error:
        raise Unauthentic(f"sent a value of the state with a proof that does not hold: {error}") from None


def _check_root(offer: ProvedValue, root: bytes, signed: SignedCheckpoint) -> None:
    if signed.checkpoint.state_root != root:
        raise Unauthentic(f"made up a value of the state at height {offer.height}")


class LightClient:
    """`warn` is called with a sentence when a node is caught at something that did not keep the work from being done."""

    def __init__(
        self, genesis: Genesis, addresses: ChainAddresses, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self.genesis, self._warn = genesis, warn
        self._nodes = addresses.nodes
        self.members = Members(Committee(genesis), addresses.nodes)
        self._http = http_client(40)
        # Threads are made as needed and kept: to start one takes as long as to ask a node.
        self._pool = ThreadPoolExecutor(MAX_ASKING)
        self._believed: OrderedDict[int, SignedCheckpoint] = OrderedDict()
        self._seen = 0
        """The highest height believed; nothing before it is taken for the present."""
        self._named: set[str] = set()
        self._boasters: set[str] = set()
        """Nodes that showed heights which no quorum has reached: believed last, as each try costs time."""

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    @property
    def committee(self) -> Committee:
        """The present members, followed from genesis; asks the nodes now and then."""
        return self.members.now()

    @cached_property
    def _urls(self) -> list[str]:
        urls = [self._nodes[m.name].http for m in self.committee.members if m.name in self._nodes]
        random.shuffle(urls)
        return urls

    def _name(self, url: str) -> str:
        return next(name for name, address in self._nodes.items() if address.http == url)

    # --- what is proved -----------------------------------------------------------------------------------------------------

    def verified_state(self, key: bytes, seconds: float = 15) -> Proved:
        """What the state holds of a key, or that it holds nothing, at the latest height that can be proved.

        `Unavailable` if no quorum of nodes signs for any answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            offers = self._offers(key)
            for url, offer in offers:
                try:
                    proved = self._proved(key, offer)
                except Unauthentic as error:
                    self._catch(url, str(error))
                    continue
                except Unavailable:
                    continue
                for other, shown in offers:
                    self._confront(other, shown, proved)
                return proved
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"no quorum of the {self.genesis.kind} chain's nodes signs for one state; check that they are running"
                )
            time.sleep(PAUSE_S)

    def verified_person(self, key: bytes) -> Person:
        """A person as certified on chain, `NotFound` if nobody with this key is; the validity in time is not checked."""
        proved = self.verified_state(person_key(key))
        if proved.value is None:
            raise NotFound(f"the key is not certified on the {self.genesis.kind} chain")
        person = decode_person(proved.value)
        person.signed.verify(self.genesis.authority, person.signed.credential.not_before_ms)
        return person

    def credential(self, key: bytes) -> Credential:
        """The credential of a person who is certified and not revoked; `NotFound` or `Denied` otherwise."""
        person = self.verified_person(key)
        if person.is_revoked:
            raise Denied("the credential of this key was revoked")
        return person.signed.credential

    def verified_record(self, record: bytes) -> RecordEntry:
        """A record as it stands on chain, in its latest version; `NotFound` if there is none with this id."""
        value = self.verified_state(record_key(record)).value
        if value is None:
            raise NotFound("no record with this id is on this chain")
        return decode_record(value)

    def verified_log(self, record: bytes, seconds: float = 15) -> ProvedLog:
        """Every receipt that concerns a record, refusals too, in chain order: proved to be complete up to the checkpoint's height."""
        head = self.verified_state(log_key(record), seconds)
        told = decode_log_head(head.value) if head.value is not None else LogHead(0, bytes(32))
        height, deadline = head.signed.checkpoint.height, time.monotonic() + seconds
        if not told.count:
            return ProvedLog(head, ())
        while True:
            for url in list(self._urls):
                try:
                    if self._signature(url, height) is None:
                        continue
                    receipts = self._log_of(url, record, height, told.count)
                except (httpx2.HTTPError, Unavailable, NotFound):
                    self._demote(url)
                    continue
                except DiptychError as error:
                    self._catch(url, f"answered with a log that cannot be true ({error})")
                    continue
                with suppress(Unauthentic):
                    check_log(record, told, receipts)
                    return ProvedLog(head, tuple(receipts))
                self._catch(
                    url,
                    f"withholds, invents or changes receipts in the log of a record: it showed {len(receipts)} where the chain "
                    f"has {told.count}, although it has signed height {height}",
                )
            if time.monotonic() > deadline:
                raise Unavailable("no node gives the whole log of the record; try again later")
            time.sleep(PAUSE_S)

    def verified_receipt(self, tx: bytes, seconds: float = 15, first: str | None = None) -> ProvedReceipt:
        """The receipt of a transaction. `NotFound` if no node that answers knows it: that a transaction is not final cannot be proved.

        `Unavailable` if no quorum signs for the receipt within `seconds`. The node at the URL `first` is asked before others.
        """
        deadline = time.monotonic() + seconds
        while True:
            ignorant, is_claimed = list[str](), False
            for url in sorted(self._urls, key=lambda u: u != first):
                try:
                    found = self._receipt_from(url, tx)
                except NotFound:
                    ignorant.append(url)
                    continue
                except httpx2.HTTPError:
                    self._demote(url)
                    continue
                except Unavailable:
                    is_claimed = True
                    continue
                except DiptychError as error:
                    self._catch(url, f"showed a receipt that cannot be true ({error})")
                    continue
                for other in ignorant:
                    self._confront_ignorant(other, found)
                return found
            if ignorant and not is_claimed:
                raise NotFound("no final transaction with this id is known yet; ask again later")
            if time.monotonic() > deadline:
                raise Unavailable(f"no quorum of the {self.genesis.kind} chain's nodes signs for the receipt")
            time.sleep(PAUSE_S)

    # --- how it is proved ---------------------------------------------------------------------------------------------------

    def checkpoint(self, height: int) -> SignedCheckpoint:
        """Where the chain stood at a height, with the signatures of a quorum of the present members; `Unavailable` without one."""
        if height in self._believed:
            return self._believed[height]
        groups: dict[object, dict[str, SignedCheckpoint]] = {}
        committee = self.committee
        path = f"/v1/checkpoint/{height}?wait={NODE_WAIT_S}"
        for url, signed in self._answers(
            path, lambda url, content: self._read_signature(url, content, height)
        ):
            committee = self.members.now(signed.checkpoint.epoch)
            groups.setdefault(signed.checkpoint, {})[url] = signed
        for told, by in groups.items():
            if len(by) >= committee.quorum and told.epoch == committee.epoch:  # type: ignore[attr-defined]
                for other, others in groups.items():
                    if other.epoch == committee.epoch and other != told:  # type: ignore[attr-defined]
                        for url in others:
                            self._catch(url, f"signed another history at height {height} than a quorum")
                self._believed[height] = SignedCheckpoint.join(list(by.values())[: committee.quorum])
                if len(self._believed) > MAX_CHECKPOINTS:
                    self._believed.popitem(last=False)
                self._seen = max(self._seen, height)
                return self._believed[height]
        raise Unavailable(f"no quorum of nodes signs for height {height}; try again later")

    def _proved(self, key: bytes, offer: ProvedValue) -> Proved:
        """The offer, believed; `Unauthentic` if it cannot be true, `Unavailable` if no quorum signs for its height."""
        root = _root_of(key, offer)
        signed = self.checkpoint(offer.height)
        _check_root(offer, root, signed)
        return Proved(key, offer.value, offer.proof, signed)

    def _offers(self, key: bytes) -> list[tuple[str, ProvedValue]]:
        """What the nodes show of a key, the latest first."""
        at_least = self._seen
        found = []
        for url, offer in self._answers(
            f"/v1/proof/state/{key.hex()}?from={at_least}&wait={NODE_WAIT_S}",
            lambda _, content: decode_proved_value(content),
        ):
            if offer.height < at_least:
                self._catch(
                    url,
                    f"showed the state of height {offer.height} when asked for that of {at_least} or later: it hides what happened since",
                )
            else:
                found.append((url, offer))
        return sorted(found, key=lambda entry: (entry[0] in self._boasters, -entry[1].height))

    def _confront(self, url: str, shown: ProvedValue, proved: Proved) -> None:
        """Whether a node that showed another value than the proved one is behind, which is no fault, or hides what it has signed."""
        height = proved.signed.checkpoint.height
        if shown.height > height + MAX_LAG and url not in self._boasters:
            self._boasters.add(url)
            self._catch(url, f"showed a state of height {shown.height}, which no quorum has signed")
        if shown.height == height:
            self._check_shown(url, shown, proved)
        if shown.height >= height or shown.value == proved.value:
            return
        try:
            has_signed = self._signature(url, height) is not None
            path = f"/v1/proof/state/{proved.key.hex()}?from={height}&wait={NODE_WAIT_S}"
            again = decode_proved_value(self._get(url, path)) if has_signed else shown
        except (httpx2.HTTPError, DiptychError):
            return
        if has_signed and again.height < height:
            self._catch(
                url,
                f"showed an old value of the state, of height {again.height}, although it has signed height {height}",
            )
        elif not has_signed and height - shown.height > MAX_LAG:
            self._catch(url, f"is {height - shown.height} blocks behind")

    def _check_shown(self, url: str, shown: ProvedValue, proved: Proved) -> None:
        """Whether a node told the truth of the height at which another one has proved it."""
        try:
            _check_root(shown, _root_of(proved.key, shown), proved.signed)
        except Unauthentic as error:
            self._catch(url, str(error))

    def _confront_ignorant(self, url: str, found: ProvedReceipt) -> None:
        """Whether a node that did not know a receipt was behind, or withholds what it has signed."""
        height = found.signed.checkpoint.height
        with suppress(httpx2.HTTPError, DiptychError):
            if self._signature(url, height) is not None:
                try:
                    self._receipt_from(url, found.proof.receipt.tx)
                except NotFound:
                    self._catch(
                        url, f"withholds a receipt of height {height}, although it has signed that height"
                    )

    def _signature(self, url: str, height: int) -> SignedCheckpoint | None:
        """The node's own signature for a height, which it waits for; None if it does not give one."""
        with suppress(DiptychError):
            content = self._get(url, f"/v1/checkpoint/{height}?wait={NODE_WAIT_S}")
            return self._read_signature(url, content, height)
        return None

    def _read_signature(self, url: str, content: bytes, height: int) -> SignedCheckpoint:
        signed = decode_signed_checkpoint(content)
        self.members.now(signed.checkpoint.epoch)
        committee = self.members.at(signed.checkpoint.epoch)
        if committee is None:
            raise Unavailable("the node is of an epoch that nobody proves")
        signers = [committee.members[i].name for i in signed.signers(committee)]
        if signers != [self._name(url)] or signed.checkpoint.height != height:
            raise Unauthentic("it answered with another member's checkpoint, or for another height")
        return signed

    def _receipt_from(self, url: str, tx: bytes) -> ProvedReceipt:
        proof = decode_receipt_proof(self._get(url, f"/v1/proof/tx/{tx.hex()}"))
        if proof.receipt.tx != tx:
            raise Unauthentic("it is of another transaction")
        committee = self.members.at(proof.header.epoch)
        signed = self.checkpoint(proof.receipt.height)
        if committee is None:
            raise Unauthentic("its block is of an epoch that nobody proves")
        proof.verify(signed.checkpoint, committee)
        return ProvedReceipt(proof, signed)

    def _log_of(self, url: str, record: bytes, height: int, count: int) -> list[Receipt]:
        """The receipts up to a height in one node's log of a record; it need not show more than `count` of them."""
        receipts: list[Receipt] = []
        last, more = (0, 0), True
        while more and len(receipts) <= min(count, MAX_LOG):
            page = self._get(url, f"/v1/record/{record.hex()}/log?after={last[0]}.{last[1]}")
            try:
                answer = msgspec.json.decode(page)
                found = [decode_receipt(bytes.fromhex(text)) for text in answer["encoded"]]
                more = answer["next"] is not None
            except (KeyError, TypeError, ValueError, RecursionError):
                raise Malformed("it is not in the agreed form") from None
            places = [last, *((r.height, r.position) for r in found)]
            if places != sorted(set(places)) or (more and not found):
                raise Malformed("it is out of order")
            receipts += [r for r in found if r.height <= height]
            last, more = places[-1], more and places[-1][0] <= height
        return receipts

    # --- asking -------------------------------------------------------------------------------------------------------------

    def _get(self, url: str, path: str) -> bytes:
        return checked(self._http.get(url + path, timeout=NODE_WAIT_S + 3)).content

    def _demote(self, url: str) -> None:
        """Ask this node last from now on."""
        self._urls.remove(url)
        self._urls.append(url)

    def _catch(self, url: str, did: str) -> None:
        """Name a node, once for each thing it did, and ask it last from now on."""
        said = f"{self._name(url)} of the {self.genesis.kind} chain {did}; tell its operator"
        if said not in self._named:
            self._named.add(said)
            self._warn(said)
        self._demote(url)

    def _answers(self, path: str, read: Callable[[str, bytes], T]) -> list[tuple[str, T]]:
        """What `read` makes of the nodes' answers: of all that come until a quorum has answered and a moment has passed. A node whose
        answer `read` refuses is named."""

        def ask(url: str) -> T | DiptychError | None:
            try:
                content = self._get(url, path)
            except (httpx2.HTTPError, DiptychError):
                return None
            try:
                return read(url, content)
            except Unavailable:
                return None
            except DiptychError as lie:
                return lie

        quorum = self.committee.quorum
        waiting = {self._pool.submit(ask, url): url for url in self._urls}
        found: list[tuple[str, T]] = []
        until: float | None = None
        try:
            while waiting:
                patience = None if until is None else until - time.monotonic()
                if patience is not None and patience <= 0:
                    break
                done, _ = wait(waiting, patience, FIRST_COMPLETED)
                for future in done:
                    url, answer = waiting.pop(future), future.result()
                    if isinstance(answer, DiptychError):
                        self._catch(url, f"gave an answer that cannot be true ({answer})")
                    elif answer is not None:
                        found.append((url, answer))
                if until is None and len(found) >= quorum:
                    until = time.monotonic() + PATIENCE_S
        finally:
            _cancel(waiting)
        return found

    def _ask_all(self, path: str, read: Callable[[bytes], T]) -> Iterator[T | DiptychError]:
        """What `read` makes of each node's answer, as they come; errors as values. Whoever has enough need not wait for the rest."""

        def ask(url: str) -> T | DiptychError:
            try:
                return read(checked(self._http.get(url + path, timeout=5)).content)
            except DiptychError as error:
                return error
            except httpx2.HTTPError:
                return Unavailable("a node does not answer")

        asked = [self._pool.submit(ask, url) for url in self._urls]
        try:
            for answer in as_completed(asked):
                yield answer.result()
        finally:
            _cancel(asked)
