"""Authorities make a joint master key: what honest ones get, and what becomes of those who lie, in each round."""

import itertools
import os
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import dkg, fabeo
from crypto.abe import decapsulate, encapsulate
from crypto.codec import encode
from crypto.dkg import HolderKey
from crypto.errors import Conflict, DiptychError, Malformed, Unauthentic
from crypto.group import G1_GENERATOR, G2_GENERATOR, ORDER
from crypto.proof import prove
from crypto.sharing import lagrange
from crypto.sign import SigningKey
from crypto.split import IssuerKey
from protocol import ceremony
from protocol.ceremony import ROUNDS, Ceremony

KEYS = [SigningKey(bytes([i + 1]) * 32) for i in range(6)]
NAMES = ["north", "south", "east", "west", "up", "down"]
replace = msgspec.structs.replace


def members(count: int, threshold: int, purpose: bytes = b"network") -> list[Ceremony]:
    listed = [(name, key.public) for name, key in zip(NAMES, KEYS, strict=True)][:count]
    return [
        Ceremony(purpose, listed, threshold, key, HolderKey.generate(), os.urandom) for key in KEYS[:count]
    ]


def tell(everybody: list[Ceremony], words: list[bytes]) -> None:
    """Everybody hears everybody's word, in an order of their own."""
    for shift, member in enumerate(everybody):
        for author in sorted(range(len(everybody)), key=lambda a: (a + shift) % len(everybody)):
            member.take(author, words[author])


def play(everybody: list[Ceremony], until: int = ROUNDS) -> list[Ceremony]:
    while everybody[0].round <= until:
        tell(everybody, [member.say() for member in everybody])
    return everybody


def forged(author: int, word: bytes, content: object, key: SigningKey | None = None) -> bytes:
    """`word` with another content, signed by its author."""
    said = replace(ceremony._decode_said(word), content=encode(content), signature=bytes(64))
    return encode(replace(said, signature=(key or KEYS[author]).sign("ceremony", said.payload)))


def content_of(word: bytes, decode: Callable[[bytes], object]):
    return decode(ceremony._decode_said(word).content)


def key_from(issuers: list[IssuerKey], numbers: tuple[int, ...], attributes: list[str]) -> fabeo.AttributeKey:
    joint = issuers[0].joint
    parts = {number: issuers[number].issue(attributes) for number in numbers}
    for number, part in parts.items():
        joint.check(number, part, attributes)
    return joint.combine(parts)


# --- honest members ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "threshold"), [(2, 2), (3, 2), (4, 3), (5, 5)])
def test_any_t_members_issue_keys_under_one_joint_key_afterwards(count, threshold):
    issuers = [member.outcome() for member in play(members(count, threshold))]
    assert len({issuer.joint.to_bytes() for issuer in issuers}) == 1
    assert [issuer.number for issuer in issuers] == list(range(count))
    public = issuers[0].joint.public
    header, secret = encapsulate(public, "has:a", b"context")
    for numbers in list(itertools.combinations(range(count), threshold))[:4]:
        key = key_from(issuers, numbers, ["has:a"])
        assert decapsulate(public, key, "has:a", header, b"context") == secret


def test_the_master_key_is_the_sum_of_all_dealings_and_in_nobodys_hands():
    everybody = play(members(3, 2))
    shares = [member.outcome()._master._secret for member in everybody]
    weights = lagrange([0, 2])
    master = (shares[0] * weights[0] + shares[2] * weights[2]) % ORDER
    public = everybody[0].outcome().joint.public
    assert fabeo.MasterKey(master).public.to_bytes() == public.to_bytes()
    assert master not in shares
    assert len(set(shares)) == 3


def test_two_ceremonies_make_two_keys():
    made = {play(members(2, 2))[0].outcome().joint.public.to_bytes() for _ in range(2)}
    assert len(made) == 2


def test_a_member_that_restarts_repeats_its_words_and_goes_on():
    everybody, told = members(3, 2), []
    while everybody[0].round <= ROUNDS:
        words = [member.say() for member in everybody]
        told.append(words)
        tell(everybody, words)
        again = Ceremony(
            b"network",
            [(name, key.public) for name, key in zip(NAMES[:3], KEYS[:3], strict=True)],
            2,
            KEYS[1],
            everybody[1]._holder,
            os.urandom,
        )
        for author, word in ((a, w) for words in told for a, w in enumerate(words)):
            again.take(author, word)
        everybody[1] = again
    assert len({member.outcome().joint.to_bytes() for member in everybody}) == 1
    everybody[0].take(1, told[0][1])


def test_nothing_is_kept_before_everybody_has_signed_the_end():
    everybody = play(members(3, 2), until=3)
    words = [member.say() for member in everybody]
    for author in (0, 1):
        everybody[0].take(author, words[author])
    assert everybody[0].missing == [2]
    with pytest.raises(Conflict, match="not over"):
        everybody[0].outcome()


# --- liars ----------------------------------------------------------------------------------------------------------


def wrong_dealing(member: Ceremony) -> ceremony._Dealt:
    """A dealing of `member` whose proofs hold and whose pieces are not what its commitments say."""
    run, dealer, coefficients = member._run, member.me, range(7, 7 + member.threshold)
    points, seed = [G1_GENERATOR * value for value in coefficients], G1_GENERATOR * 11
    commitments, pieces = tuple(point.to_bytes() for point in points), run.deal(dealer).pieces
    context = run._context(dealer, commitments, seed.to_bytes(), pieces)
    constant = prove("dkg-constant", context, 7, [(G1_GENERATOR, points[0])])
    known = prove("dkg-seed", context, 11, [(G1_GENERATOR, seed)])
    dealing = dkg.Dealing(dkg.SUITE, commitments, seed.to_bytes(), pieces, constant, known)
    return ceremony._Dealt(member._told(1), dealing)


def test_a_dealer_of_wrong_pieces_is_excluded_and_the_others_go_on():
    everybody = play(members(4, 2), until=1)
    words = [member.say() for member in everybody]
    words[2] = forged(2, words[2], wrong_dealing(everybody[2]))
    tell(everybody, words)
    play(everybody)
    assert all(member.excluded == [2] for member in everybody)
    issuers = [member.outcome() for member in everybody]
    assert len({issuer.joint.to_bytes() for issuer in issuers}) == 1
    key_from(issuers, (0, 2), ["has:a"])


def test_when_too_few_deal_rightly_the_ceremony_ends_and_names_the_others():
    everybody = play(members(3, 3), until=1)
    words = [member.say() for member in everybody]
    words[1] = forged(1, words[1], wrong_dealing(everybody[1]))
    tell(everybody, words)
    play(everybody, until=3)
    with pytest.raises(Conflict, match="south dealt wrong pieces"):
        everybody[0].say()


def test_a_false_complaint_harms_nobody():
    everybody = play(members(3, 2), until=2)
    words = [member.say() for member in everybody]
    verdict = content_of(words[0], ceremony._decode_verdict)
    liar = everybody[0]
    complaint = liar._run.complain(1, liar._dealings[1], 0, liar._holder)
    words[0] = forged(0, words[0], replace(verdict, complaints=(complaint,)))
    tell(everybody, words)
    play(everybody)
    assert all(member.excluded == [] for member in everybody)


@pytest.mark.parametrize("round_", [1, 2])
def test_a_member_that_tells_different_things_to_different_members_is_found_and_both_are_named(round_):
    everybody = play(members(3, 2), until=round_ - 1)
    words = [member.say() for member in everybody]
    other = everybody[2].say()
    assert other != words[2]
    for member in everybody:
        for author in range(3):
            member.take(author, other if member is everybody[1] and author == 2 else words[author])
    with pytest.raises(Conflict, match=f"south heard another word of east in round {round_}"):
        play(everybody)
    assert all(member.round == round_ + 1 for member in everybody)


def test_a_member_that_tells_two_verdicts_is_found_before_anybody_keeps_a_share():
    everybody = play(members(3, 2), until=2)
    words = [member.say() for member in everybody]
    verdict = content_of(words[2], ceremony._decode_verdict)
    complaint = everybody[2]._run.complain(0, everybody[2]._dealings[0], 2, everybody[2]._holder)
    other = forged(2, words[2], replace(verdict, complaints=(complaint,)))
    for member in everybody:
        for author in range(3):
            member.take(author, other if member is everybody[1] and author == 2 else words[author])
    with pytest.raises(Conflict, match="south heard another word of east in round 3"):
        play(everybody)
    assert not any(member.round > ROUNDS for member in everybody)


def test_a_false_public_key_is_found():
    everybody = play(members(3, 2), until=3)
    words = [member.say() for member in everybody]
    result = content_of(words[1], ceremony._decode_result)
    words[1] = forged(1, words[1], replace(result, public=(G2_GENERATOR * 5).to_bytes()))
    with pytest.raises(Conflict, match="south spoils round 4: its public key is not that of its share"):
        tell(everybody, words)


def test_a_dealing_that_proves_nothing_ends_the_ceremony_with_its_dealers_name():
    everybody = play(members(3, 2), until=1)
    words = [member.say() for member in everybody]
    copied = content_of(words[0], ceremony._decode_dealt)
    with pytest.raises(Conflict, match="south spoils round 2: the dealer does not show"):
        everybody[0].take(1, forged(1, words[1], copied))
    short = replace(copied.dealing, pieces=copied.dealing.pieces[:2])
    with pytest.raises(Conflict, match="south spoils round 2: a dealing has"):
        everybody[0].take(1, forged(1, words[1], replace(copied, dealing=short)))
    with pytest.raises(Conflict, match="south spoils round 2: it heard another number"):
        everybody[0].take(1, forged(1, words[1], replace(copied, heard=copied.heard[:2])))


def test_a_member_that_contradicts_itself_is_found_at_once():
    everybody = members(2, 2)
    first, second = everybody[1].say(), everybody[1].say()
    everybody[0].take(1, first)
    everybody[0].take(1, first)
    with pytest.raises(Conflict, match="south has said two different things in round 1"):
        everybody[0].take(1, second)


def test_words_of_others_of_other_networks_and_of_other_rounds_are_refused():
    everybody, elsewhere, stricter = members(3, 2), members(3, 2, b"other network"), members(3, 3)
    word = everybody[1].say()
    with pytest.raises(Unauthentic, match="north speaks in another ceremony"):
        everybody[2].take(0, word)
    for foreign in (elsewhere, stricter):
        with pytest.raises(Unauthentic, match="another ceremony"):
            everybody[0].take(1, foreign[1].say())
    with pytest.raises(Unauthentic, match="the word of south"):
        everybody[0].take(1, forged(1, word, content_of(word, ceremony._decode_hello), KEYS[2]))
    play(everybody, until=1)
    later = everybody[1].say()
    fresh = members(3, 2)[0]
    with pytest.raises(Malformed, match="round 2, which is not the present one"):
        fresh.take(1, later)


@pytest.mark.parametrize(("count", "threshold", "key"), [(1, 1, 0), (3, 1, 0), (3, 4, 0), (3, 2, 5)])
def test_impossible_ceremonies_are_refused(count, threshold, key):
    listed = [(NAMES[i], KEYS[i].public) for i in range(count)]
    with pytest.raises(Malformed):
        Ceremony(b"network", listed, threshold, KEYS[key], HolderKey.generate(), os.urandom)


@pytest.fixture(scope="module")
def recorded() -> tuple[HolderKey, list[list[bytes]]]:
    """A whole ceremony of two, word by word, and the first one's key for its pieces."""
    everybody, rounds = members(2, 2), []
    while everybody[0].round <= ROUNDS:
        rounds.append([member.say() for member in everybody])
        tell(everybody, rounds[-1])
    return everybody[0]._holder, rounds


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_words_of_any_round_are_refused(recorded, data):
    holder, rounds = recorded
    round_ = data.draw(st.integers(0, ROUNDS - 1))
    listed = [(NAMES[i], KEYS[i].public) for i in range(2)]
    listener = Ceremony(b"network", listed, 2, KEYS[0], holder, os.urandom)
    for author, word in ((a, w) for words in rounds[:round_] for a, w in enumerate(words)):
        listener.take(author, word)
    wire = bytearray(rounds[round_][1])
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DiptychError):
        listener.take(1, bytes(wire))
