"""A trusted dealer of the index key, for tests in which no members make it: it knows the key, as nobody does on a real chain. And a
dishonest one.

What the first leaves in a state is one dealing that counts alone, from which nodes open their shares as they always do.
"""

from functools import cache

from crypto import tdh2
from crypto.codec import encode
from crypto.dkg import SUITE, Dealing, HolderKey, Round, combined_key
from crypto.group import G1_GENERATOR, random_scalar, scalar_to_bytes
from crypto.proof import prove
from crypto.sharing import share_of
from protocol.genesis import Genesis
from protocol.index_key import IndexKey, _dealing_key, index_label, run_of
from protocol.quorum import quorum
from protocol.state import State
from protocol.tx import Rule


@cache
def share_key(number: int) -> HolderKey:
    """The key of member `number` (from 0) of a test chain that its pieces are sealed to."""
    return HolderKey(1000 + number)


@cache
def share_point(number: int) -> bytes:
    """Its public half, as it stands in a genesis."""
    return share_key(number).public.to_bytes()


@cache
def _dealt(genesis: Genesis) -> tuple[IndexKey, Dealing]:
    threshold = quorum(len(genesis.members), genesis.mode)
    dealing = run_of(genesis.hash, 0, genesis.members, threshold).deal(0)
    return IndexKey(0, genesis.members, combined_key({0: dealing}, {0: 1}).encoded, (0,), False), dealing


def index_key(genesis: Genesis) -> IndexKey:
    """The key that `deal` leaves."""
    return _dealt(genesis)[0]


def deal(genesis: Genesis, state: State) -> None:
    """Leave the index key in `state`, unless there is one."""
    key, dealing = _dealt(genesis)
    if state.get(b"index-key") is None:
        state.put(_dealing_key(0, 0), encode(dealing))
        state.put(b"index-key", encode(key))


@cache
def sealed(genesis: Genesis, record: bytes, version: int, rule: Rule, content: bytes = b"entry") -> bytes:
    """An index entry with this content, encrypted for its place; the same for the same arguments."""
    label = index_label(genesis.chain_id, record, version, rule.digest)
    return tdh2.encrypt(index_key(genesis).public, label, content)


def dishonest(run: Round, dealer: int, coefficients: list[int], pieces: dict[int, int]) -> Dealing:
    """A dealing with sound proofs whose pieces are those of `coefficients`, except where `pieces` says otherwise, and whose
    commitments are to the first t of them."""
    r = random_scalar()
    seed, commitments = (
        (G1_GENERATOR * r).to_bytes(),
        [G1_GENERATOR * c for c in coefficients[: run.threshold]],
    )
    encoded = tuple(c.to_bytes() for c in commitments)
    sealed = tuple(
        scalar_to_bytes(pieces.get(j, share_of(coefficients, j)) + run._pad(dealer, j, seed, public * r))
        for j, public in enumerate(run.holders)
    )
    context = run._context(dealer, encoded, seed, sealed)
    return Dealing(
        SUITE,
        encoded,
        seed,
        sealed,
        prove("dkg-constant", context, coefficients[0], [(G1_GENERATOR, commitments[0])]),
        prove("dkg-seed", context, r, [(G1_GENERATOR, G1_GENERATOR * r)]),
    )
