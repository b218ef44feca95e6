"""How several authorities make the CP-ABE master key that none of them ever holds: four rounds in which everybody hears everybody.

    1 hello     a fresh key that pieces are sealed to, and a nonce; all hellos together name the run
    2 dealing   of a random secret among all (`crypto.dkg`)
    3 verdict   complaints about wrong pieces
    4 result    the public key [y_i]_2 of the own share

A round ends when every member has spoken in it. There is no bulletin board that would show everybody the same words, as `crypto.dkg` asks: so
from round 2 on each word says, as a hash a member, what its author heard in the round before, and nobody keeps a share before all have
signed the same. Who tells different members different things, deals what does not hold, or gives a false public key, ends the ceremony;
the sentence names them, and operators run it again without them. A dealer of wrong pieces is left out. Unlike issuing keys, making them takes all members.

Pure: messages in, messages out. A member must repeat its own words after a restart and never say others in their place: its caller writes
them down first.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated

import msgspec

from crypto import dkg, fabeo
from crypto.codec import Bytes32, Bytes48, Bytes64, Decoder, Short, Wire, encode
from crypto.dkg import Complaint, Dealing, HolderKey, Round
from crypto.errors import Conflict, Malformed, Unauthentic
from crypto.group import G1, G1_GENERATOR, G2, G2_BYTES, G2_GENERATOR, pairing_product
from crypto.sign import Ed25519Signer, verify
from crypto.split import MAX_ISSUERS, IssuerKey, JointKey, Number
from protocol.record import digest

SUITE = "ceremony-fabeo-dkg"
ROUNDS = 4
MAX_MESSAGE = 32 << 10


class _Said(Wire, frozen=True):
    """One member's word in one round of the ceremony that `context` names."""

    suite: Short
    context: Bytes32
    author: Number
    round: Annotated[int, msgspec.Meta(ge=1, le=ROUNDS)]
    content: bytes
    signature: Bytes64

    @property
    def payload(self) -> bytes:
        return encode((self.suite, self.context, self.author, self.round, self.content))


class _Hello(Wire, frozen=True):
    seal_key: Bytes48
    nonce: Bytes32


_Heard = Annotated[tuple[Bytes32, ...], msgspec.Meta(max_length=MAX_ISSUERS)]
"""For each member, a hash of its word in the round before."""


class _Dealt(Wire, frozen=True):
    heard: _Heard
    dealing: Dealing


class _Verdict(Wire, frozen=True):
    heard: _Heard
    complaints: Annotated[tuple[Complaint, ...], msgspec.Meta(max_length=MAX_ISSUERS)]


class _Result(Wire, frozen=True):
    heard: _Heard
    public: Annotated[bytes, msgspec.Meta(min_length=G2_BYTES, max_length=G2_BYTES)]


_decode_said = Decoder(_Said, "a message of the ceremony", MAX_MESSAGE, SUITE)
_decode_hello = Decoder(_Hello, "a hello", 256)
_decode_dealt = Decoder(_Dealt, "a dealing", MAX_MESSAGE)
_decode_verdict = Decoder(_Verdict, "a verdict", MAX_MESSAGE)
_decode_result = Decoder(_Result, "a result", MAX_MESSAGE)


class Ceremony:
    """One member's side. `members` are the authorities' names and Ed25519 keys, in the order that their shares follow; `key` signs for one
    of them; `purpose` is unlike that of every other network.

    Turn by turn: `say` while oneself is `missing`, `take` what is said, until `round` is beyond `ROUNDS`; then `outcome`.
    """

    def __init__(
        self,
        purpose: bytes,
        members: Sequence[tuple[str, bytes]],
        threshold: int,
        key: Ed25519Signer,
        holder: HolderKey,
        random: Callable[[int], bytes],
    ) -> None:
        keys = [member for _, member in members]
        if key.public not in keys or len(set(keys)) != len(keys) or not 2 <= len(keys) <= MAX_ISSUERS:
            raise Malformed(f"a ceremony has 2 to {MAX_ISSUERS} different members, and oneself among them")
        if not 2 <= threshold <= len(keys):
            raise Malformed(f"2 to {len(keys)} of the authorities issue keys together, not {threshold}")
        self.names, self._keys = [name for name, _ in members], keys
        self.threshold, self.me = threshold, keys.index(key.public)
        self._key, self._holder, self._random = key, holder, random
        self._context = digest("ceremony", encode((SUITE, purpose, threshold, keys)))
        self._heard: list[dict[int, _Said]] = [{} for _ in range(ROUNDS)]

    @property
    def round(self) -> int:
        """The first round, from 1, in which not all have spoken; `ROUNDS` + 1 at the end."""
        return next((r for r, heard in enumerate(self._heard, 1) if len(heard) < len(self._keys)), ROUNDS + 1)

    @property
    def missing(self) -> list[int]:
        """Who has not spoken in this round; nobody at the end."""
        heard = self._heard[min(self.round, ROUNDS) - 1]
        return [m for m in range(len(self._keys)) if m not in heard]

    def say(self) -> bytes:
        """The own word in this round, to be written down, taken by oneself, and told. Raises as `take`."""
        content = (self._hello, self._dealing, self._verdict, self._result)[self.round - 1]()
        said = _Said(SUITE, self._context, self.me, self.round, encode(content), bytes(64))
        return encode(msgspec.structs.replace(said, signature=self._key.sign("ceremony", said.payload)))

    def take(self, author: int, data: bytes) -> None:
        """Hear a member's word in this round; the same word again changes nothing.

        `Malformed` or `Unauthentic` if it is no word of this member for this round, whoever sent it. `Conflict` if it is, and wrong: then the
        ceremony is over, and the sentence says who is at fault as far as one can know.
        """
        said = _decode_said(data)
        if (said.context, said.author) != (self._context, author):
            raise Unauthentic(
                f"{self.names[author]} speaks in another ceremony: its network file names other authorities or another threshold"
            )
        verify(
            self._keys[author], "ceremony", said.payload, said.signature, f"the word of {self.names[author]}"
        )
        earlier = self._heard[said.round - 1].get(author)
        if earlier is not None:
            if earlier.content != said.content:
                raise Conflict(f"{self.names[author]} has said two different things in round {said.round}")
            return
        if said.round != self.round:
            raise Malformed(
                f"{self.names[author]} speaks in round {said.round}, which is not the present one"
            )
        check = (self._check_hello, self._check_dealing, self._check_verdict, self._check_result)[
            said.round - 1
        ]
        try:
            check(author, said.content)
        except (Malformed, Unauthentic) as error:
            raise Conflict(f"{self.names[author]} spoils round {said.round}: {error}") from None
        self._heard[said.round - 1][author] = said

    def outcome(self) -> IssuerKey:
        """The own share, once everybody has signed the same end."""
        if self.round <= ROUNDS:
            raise Conflict("the ceremony is not over")
        publics = [
            fabeo.PublicKey(G2.from_bytes(_decode_result(self._word(4, m)).public))
            for m in range(len(self._keys))
        ]
        return IssuerKey(self.me, JointKey(self.threshold, publics), fabeo.MasterKey(self._share))

    @property
    def excluded(self) -> list[int]:
        """The members whose dealings do not count, because a complaint about them holds. From round 4 on."""
        return [m for m in range(len(self._keys)) if m not in self._weights]

    # --- round 1 ------------------------------------------------------------------------------------------------------

    def _hello(self) -> _Hello:
        return _Hello(self._holder.public.to_bytes(), self._random(32))

    def _check_hello(self, author: int, content: bytes) -> None:
        G1.from_bytes(_decode_hello(content).seal_key)

    # --- round 2 ------------------------------------------------------------------------------------------------------

    @cached_property
    def _run(self) -> Round:
        hellos = [self._word(1, m) for m in range(len(self._keys))]
        keys = tuple(G1.from_bytes(_decode_hello(hello).seal_key) for hello in hellos)
        return Round(digest("ceremony-run", encode((self._context, hellos))), keys, self.threshold)

    def _dealing(self) -> _Dealt:
        return _Dealt(self._told(1), self._run.deal(self.me, random=self._random))

    def _check_dealing(self, author: int, content: bytes) -> None:
        dealt = _decode_dealt(content)
        self._check_heard(author, dealt.heard, 1)
        self._run.check(author, dealt.dealing)

    @cached_property
    def _dealings(self) -> dict[int, Dealing]:
        return {m: _decode_dealt(self._word(2, m)).dealing for m in range(len(self._keys))}

    # --- round 3 ------------------------------------------------------------------------------------------------------

    @cached_property
    def _pieces(self) -> dict[int, int]:
        """The right pieces that others have dealt here, by dealer."""
        found = {}
        for dealer, dealing in self._dealings.items():
            try:
                found[dealer] = self._run.piece(dealer, dealing, self.me, self._holder)
            except Unauthentic:
                continue
        return found

    def _verdict(self) -> _Verdict:
        wrong = [dealer for dealer in self._dealings if dealer not in self._pieces]
        complaints = [
            self._run.complain(dealer, self._dealings[dealer], self.me, self._holder, self._random)
            for dealer in wrong
        ]
        return _Verdict(self._told(2), tuple(complaints))

    def _check_verdict(self, author: int, content: bytes) -> None:
        verdict = _decode_verdict(content)
        self._check_heard(author, verdict.heard, 2)
        if any(complaint.dealer >= len(self._keys) for complaint in verdict.complaints):
            raise Malformed("it complains of a member that there is not")

    # --- round 4 ------------------------------------------------------------------------------------------------------

    @cached_property
    def _weights(self) -> dict[int, int]:
        """1 for each dealer against whom no complaint holds."""
        guilty = {
            complaint.dealer
            for holder in range(len(self._keys))
            for complaint in _decode_verdict(self._word(3, holder)).complaints
            if self._run.is_justified(complaint, self._dealings[complaint.dealer], holder)
        }
        weights = {dealer: 1 for dealer in self._dealings if dealer not in guilty}
        if len(weights) < self.threshold:
            named = ", ".join(self.names[m] for m in sorted(guilty))
            raise Conflict(
                f"{named} dealt wrong pieces, and too few dealt right ones; start again without them"
            )
        return weights

    @cached_property
    def _share(self) -> int:
        return dkg.combined_share(self._pieces, self._weights)

    def _result(self) -> _Result:
        return _Result(self._told(3), (G2_GENERATOR * self._share).to_bytes())

    def _check_result(self, author: int, content: bytes) -> None:
        result = _decode_result(content)
        self._check_heard(author, result.heard, 3)
        shown = pairing_product([(G1_GENERATOR, G2.from_bytes(result.public))])
        expected = dkg.combined_key(self._dealings, self._weights).verification_key(author)
        if shown != pairing_product([(expected, G2_GENERATOR)]):
            raise Unauthentic("its public key is not that of its share")

    # --- what was heard -----------------------------------------------------------------------------------------------

    def _word(self, round_: int, member: int) -> bytes:
        return self._heard[round_ - 1][member].content

    def _told(self, round_: int) -> tuple[bytes, ...]:
        return tuple(digest("ceremony-told", self._word(round_, m)) for m in range(len(self._keys)))

    def _check_heard(self, author: int, theirs: Sequence[bytes], round_: int) -> None:
        ours = self._told(round_)
        if len(theirs) != len(ours):
            raise Malformed("it heard another number of members than there are")
        if differing := [name for name, a, b in zip(self.names, theirs, ours, strict=True) if a != b]:
            raise Conflict(
                f"{self.names[author]} heard another word of {differing[0]} in round {round_} than was said here: one of these "
                "two lies; compare what they say, then start again"
            )
