"""A key that is born shared: distributed key generation and re-sharing, with complaints that prove themselves.

Every dealer shares a secret of its own among all holders (Pedersen, EUROCRYPT '91, over Feldman's commitments, `crypto.sharing`):

    dealing     a_0 G .. a_{t-1} G,  R = r G,  for each holder j its piece f(j) + pad,  proofs that the dealer knows a_0 and r
    pad         a hash of r P_j = p_j R, with P_j the holder's public key and p_j its secret: fresh for each dealing and holder
    complaint   of a holder whose piece is not what the commitments say: p_j R with a proof that it is that, so that everybody takes
                the pad off and sees (as in Ethdkg, eprint 2019/985). It needs no answer, and cannot be made up
    outcome     over the dealers against whom no complaint holds: commitments and pieces added up, each with its dealer's weight

To generate a key each weight is 1 and the key is the sum of the a_0. To re-share one (Desmedt and Jajodia 1997), holders of the old shares deal
these, shown by a_0 G being their verification key, and the weights are `lagrange` of any t old holders: the same key, shared by an
independent polynomial among other holders, with another threshold. Shares of the old and the new polynomial do not add up to anything,
but t old ones still make the secret: who leaves must be trusted to delete, or be fewer than t.

What the caller provides is a bulletin board: everybody sees the same dealings and complaints and takes them in the same order. Then

- all compute the same outcome, and a dealer is excluded only by its own fault: by silence, a dealing that `Round.check` refuses, or a
  complaint that holds;
- every holder that complains of each wrong piece it gets has a right share of the outcome;
- whoever controls fewer than t holders learns nothing of the secret but the key, if at least t dealers count (one of them is then
  honest), against computational Diffie-Hellman in G1 with random oracles. R and a_0 G come with proofs of knowledge bound to the whole
  dealing, so neither can be copied from another dealer: a copied R would make complaints open the other's pieces, a copied a_0 G
  would cancel the other's part.

The key is not uniform, and no part of what uses it may need that. Who deals last may add a number a of its choice to the secret, or let its
dealers be excluded (Gennaro, Jarecki, Krawczyk, Rabin, J. Cryptology 20, 2007). But it knows this a, by its proof. In schemes where who
breaks the key Y + a G for a known a also breaks Y (Gurkan et al., EUROCRYPT 2021, call them rekeyable), that gains nothing. TDH2 is one: its
hidden point is r (Y + a G) = r Y + a u with u in the ciphertext; a change of at most 2^k by the choice of k excluded dealers is
negligible against the group's order. FABEO with its master key shared is another: shift keys by [a]_1, hidden elements by e(g1, [s]_2)^a.

Whoever later steals p_j and sees the board opens the pieces of j: a lost share can be made anew from the board, and cannot be made to expire.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Self

import msgspec

from crypto.codec import Bytes32, Bytes48, Bytes64, Short, Wire, check_suite, encode
from crypto.errors import Malformed, Unauthentic
from crypto.group import G1, G1_GENERATOR, ORDER, random_scalar, scalar_from_bytes, scalar_to_bytes
from crypto.proof import Random, blinded, hash_to_scalar, holds, prove
from crypto.sharing import MAX_HOLDERS, SharedKey, share_of
from crypto.sign import domain_tag

SUITE = "dkg-bls12381-feldman"

Number = Annotated[int, msgspec.Meta(ge=0, lt=MAX_HOLDERS)]
"""The place of a dealer among dealers, or of a holder among holders, from 0."""


class Dealing(Wire, frozen=True):
    """One dealer's part: `commitments` to its polynomial, the constant first, `seed` R, a sealed piece for each holder, and the proofs
    of knowledge of the constant and of r."""

    suite: Short
    commitments: Annotated[tuple[Bytes48, ...], msgspec.Meta(min_length=1, max_length=MAX_HOLDERS)]
    seed: Bytes48
    pieces: Annotated[tuple[Bytes32, ...], msgspec.Meta(min_length=1, max_length=MAX_HOLDERS)]
    constant_proof: Bytes64
    seed_proof: Bytes64


class Complaint(Wire, frozen=True):
    """A holder's proof that `dealer` sealed a wrong piece to it: `opened` is p_j R."""

    dealer: Number
    opened: Bytes48
    proof: Bytes64


class HolderKey:
    """The key pair that pieces are sealed to."""

    def __init__(self, secret: int) -> None:
        self.secret = secret
        self.public = G1_GENERATOR * secret

    @classmethod
    def generate(cls, random: Random = os.urandom) -> Self:
        return cls(random_scalar(random))

    def to_bytes(self) -> bytes:
        """The secret itself, 32 bytes, unencrypted."""
        return scalar_to_bytes(self.secret)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The key, or `Malformed`."""
        return cls(scalar_from_bytes(data))

    def __repr__(self) -> str:
        return f"HolderKey({self.public.to_bytes().hex()[:16]}…)"


@dataclass(frozen=True)
class Round:
    """One run among `holders`, given by their public keys, of whom `threshold` are to make the secret. `session` must be unlike that of
    every other run. Raises `Malformed` if there are more holders than `MAX_HOLDERS` or fewer than the threshold."""

    session: bytes
    holders: tuple[G1, ...]
    threshold: int

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len(self.holders) <= MAX_HOLDERS:
            raise Malformed(
                f"a secret is shared among 1 to {MAX_HOLDERS} holders with a threshold of at most their number"
            )

    @cached_property
    def _bound(self) -> bytes:
        """32 bytes that stand for the run in everything hashed."""
        points = [point.to_bytes() for point in self.holders]
        run = domain_tag("dkg-round") + encode((SUITE, self.session, self.threshold, points))
        return hashlib.shake_256(run).digest(32)

    def deal(self, dealer: int, secret: int | None = None, random: Random = os.urandom) -> Dealing:
        """The dealing of `dealer`, of a fresh random secret or, to re-share, of its share."""
        coefficients = [random_scalar(random) for _ in range(self.threshold)]
        if secret is not None:
            coefficients[0] = secret
        r = random_scalar(random)
        points = [blinded(G1_GENERATOR, coefficient, random) for coefficient in coefficients]
        commitments, seed = tuple(p.to_bytes() for p in points), blinded(G1_GENERATOR, r, random)
        pieces = tuple(
            scalar_to_bytes(
                share_of(coefficients, holder)
                + self._pad(dealer, holder, seed.to_bytes(), blinded(point, r, random))
            )
            for holder, point in enumerate(self.holders)
        )
        context = self._context(dealer, commitments, seed.to_bytes(), pieces)
        return Dealing(
            SUITE,
            commitments,
            seed.to_bytes(),
            pieces,
            prove("dkg-constant", context, coefficients[0], [(G1_GENERATOR, points[0])], random),
            prove("dkg-seed", context, r, [(G1_GENERATOR, seed)], random),
        )

    def check(self, dealer: int, dealing: Dealing, constant: G1 | None = None) -> None:
        """Raise `Malformed` or `Unauthentic` unless `dealing` is the sound word of `dealer` in this run; with `constant`, only if it
        deals the secret behind that point. Whether its pieces are right, their holders alone can tell."""
        check_suite(dealing.suite, SUITE)
        if len(dealing.commitments) != self.threshold or len(dealing.pieces) != len(self.holders):
            raise Malformed(
                f"a dealing has {self.threshold} commitments and a piece for each of {len(self.holders)} holders, "
                f"not {len(dealing.commitments)} and {len(dealing.pieces)}"
            )
        if any(int.from_bytes(piece, "big") >= ORDER for piece in dealing.pieces):
            raise Malformed("a sealed piece is not below the group order")
        key, seed = SharedKey.decode(dealing.commitments), G1.from_bytes(dealing.seed)
        if constant is not None and key.public != constant:
            raise Unauthentic("the dealer does not deal its share of the key")
        context = self._context(dealer, dealing.commitments, dealing.seed, dealing.pieces)
        knows_both = holds(
            "dkg-constant", context, [(G1_GENERATOR, key.public)], dealing.constant_proof
        ) and holds("dkg-seed", context, [(G1_GENERATOR, seed)], dealing.seed_proof)
        if not knows_both:
            raise Unauthentic("the dealer does not show that it knows what it deals")

    def piece(self, dealer: int, dealing: Dealing, holder: int, key: HolderKey) -> int:
        """The piece that a checked dealing has for the holder of `key`; `Unauthentic` if it is wrong, which `complain` can show."""
        opened = blinded(G1.from_bytes(dealing.seed), key.secret)
        piece = self._unsealed(dealer, dealing, holder, opened)
        if blinded(G1_GENERATOR, piece) != SharedKey.decode(dealing.commitments).verification_key(holder):
            raise Unauthentic(f"the piece from dealer {dealer} is not what its commitments say")
        return piece

    def complain(
        self, dealer: int, dealing: Dealing, holder: int, key: HolderKey, random: Random = os.urandom
    ) -> Complaint:
        """The proof that `piece` is wrong. It makes that piece public; of a right piece it makes no complaint that holds."""
        seed = G1.from_bytes(dealing.seed)
        opened = blinded(seed, key.secret, random)
        pairs = [(G1_GENERATOR, key.public), (seed, opened)]
        context = encode((self._bound, dealer, holder))
        return Complaint(
            dealer, opened.to_bytes(), prove("dkg-complaint", context, key.secret, pairs, random)
        )

    def is_justified(self, complaint: Complaint, dealing: Dealing, holder: int) -> bool:
        """Whether `complaint` of `holder` shows that the checked `dealing` of the dealer it names has a wrong piece for it."""
        seed, public = G1.from_bytes(dealing.seed), self.holders[holder]
        try:
            opened = G1.from_bytes(complaint.opened)
        except Malformed:
            return False
        context = encode((self._bound, complaint.dealer, holder))
        pairs = [(G1_GENERATOR, public), (seed, opened)]
        if not holds("dkg-complaint", context, pairs, complaint.proof):
            return False
        piece = self._unsealed(complaint.dealer, dealing, holder, opened)
        return G1_GENERATOR * piece != SharedKey.decode(dealing.commitments).verification_key(holder)

    def _context(
        self, dealer: int, commitments: tuple[bytes, ...], seed: bytes, pieces: tuple[bytes, ...]
    ) -> bytes:
        return encode((self._bound, dealer, commitments, seed, pieces))

    def _pad(self, dealer: int, holder: int, seed: bytes, shared: G1) -> int:
        return hash_to_scalar("dkg-pad", self._bound, dealer, holder, seed, shared.to_bytes())

    def _unsealed(self, dealer: int, dealing: Dealing, holder: int, opened: G1) -> int:
        pad = self._pad(dealer, holder, dealing.seed, opened)
        return (int.from_bytes(dealing.pieces[holder], "big") - pad) % ORDER


def combined_key(dealings: Mapping[int, Dealing], weights: Mapping[int, int]) -> SharedKey:
    """The public side of what the dealers in `weights` have dealt together. `Malformed` if parts cancel each
    other out, which honest ones do not."""
    return SharedKey.weighted_sum(
        [(SharedKey.decode(dealings[dealer].commitments), weight) for dealer, weight in weights.items()]
    )


def combined_share(pieces: Mapping[int, int], weights: Mapping[int, int]) -> int:
    """One holder's share of the same, from its pieces by dealer."""
    return sum(pieces[dealer] * weight for dealer, weight in weights.items()) % ORDER
