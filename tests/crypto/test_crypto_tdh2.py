"""TDH2: any t of n open, t - 1 learn nothing; wrong shares are named; a ciphertext opens as what and where it was made, or not at all."""

import hashlib
import itertools
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import proof as proof_module
from crypto import tdh2
from crypto.codec import encode
from crypto.errors import DiptychError, Malformed, Unauthentic
from crypto.group import (
    G1,
    G1_GENERATOR,
    ORDER,
    hash_name,
    random_scalar,
    scalar_from_bytes,
    scalar_from_wide,
    scalar_to_bytes,
)
from crypto.proof import PROOF_BYTES, blinded, holds, prove
from crypto.sharing import MAX_HOLDERS, SharedKey, lagrange, share_of
from crypto.tdh2 import check, combine, decryption_share, encrypt

VECTORS = Path(__file__).parents[1] / "vectors" / "tdh2.json"
LABEL, MESSAGE = b"chain, record, rule", b"the address of a record"


class Dealer:
    """Knows everything, as no party of the scheme ever does."""

    def __init__(self, threshold: int, size: int, random=None) -> None:
        self.coefficients = [random_scalar(random) if random else random_scalar() for _ in range(threshold)]
        self.shares = [share_of(self.coefficients, i) for i in range(size)]
        self.key = SharedKey([G1_GENERATOR * c for c in self.coefficients])

    def parts(self, ciphertext: bytes, *holders: int, label: bytes = LABEL) -> dict[int, bytes]:
        return {i: decryption_share(self.key.public, label, ciphertext, self.shares[i]) for i in holders}


DEALER = Dealer(3, 4)
KEY = DEALER.key
CIPHERTEXT = encrypt(KEY.public, LABEL, MESSAGE)
PARTS = DEALER.parts(CIPHERTEXT, 0, 1, 2, 3)


def fields(data: bytes) -> list:
    return msgspec.msgpack.decode(data)


def with_field(data: bytes, index: int, value: object) -> bytes:
    changed = fields(data)
    changed[index] = value
    return encode(tuple(changed))


SUITE, POINT, TWIN, PROOF, BODY = range(5)


# --- opening -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_t_of_n_holders_open_and_fewer_do_not(data):
    size = data.draw(st.integers(1, 9))
    threshold = data.draw(st.integers(1, size))
    message, label = data.draw(st.binary(max_size=300)), data.draw(st.binary(max_size=50))
    dealer = Dealer(threshold, size)
    ciphertext = encrypt(dealer.key.public, label, message)
    assert len(ciphertext) <= len(message) + tdh2.OVERHEAD
    order = data.draw(st.permutations(range(size)))
    parts = dealer.parts(ciphertext, *order[:threshold], label=label)
    assert combine(dealer.key, label, ciphertext, parts) == (message, frozenset())
    parts.popitem()
    with pytest.raises(Unauthentic, match=f"{threshold - 1} right decryption shares where {threshold}"):
        combine(dealer.key, label, ciphertext, parts)


def test_every_set_of_t_holders_gives_the_same_message():
    for holders in itertools.combinations(range(4), 3):
        assert combine(KEY, LABEL, CIPHERTEXT, {i: PARTS[i] for i in holders}) == (MESSAGE, frozenset())
    assert combine(KEY, LABEL, CIPHERTEXT, PARTS) == (MESSAGE, frozenset())


def test_two_ciphertexts_of_one_message_share_nothing():
    one, two = fields(CIPHERTEXT), fields(encrypt(KEY.public, LABEL, MESSAGE))
    assert all(a != b for a, b in list(zip(one, two, strict=True))[1:])


def test_messages_up_to_the_limit_are_taken_and_longer_ones_refused():
    key = Dealer(1, 1)
    longest = encrypt(key.key.public, LABEL, bytes(tdh2.MAX_MESSAGE))
    assert len(longest) == tdh2.MAX_MESSAGE + tdh2.OVERHEAD
    assert combine(key.key, LABEL, longest, key.parts(longest, 0))[0] == bytes(tdh2.MAX_MESSAGE)
    with pytest.raises(Malformed, match="over the limit"):
        encrypt(KEY.public, LABEL, bytes(tdh2.MAX_MESSAGE + 1))


# --- what t - 1 holders know -------------------------------------------------------------------------------------------


def through(points: dict[int, int], x: int) -> int:
    """The value at x of the polynomial of least degree through (x, y) pairs, straight from Lagrange's formula."""
    total = 0
    for i, y in points.items():
        for j in points:
            if j != i:
                y = y * (x - j) * pow(i - j, -1, ORDER) % ORDER
        total += y
    return total % ORDER


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_t_minus_one_shares_fit_every_secret_equally_well(data):
    """For each candidate secret there is one polynomial of the right degree through t - 1 shares: they exclude nothing."""
    threshold = data.draw(st.integers(2, 8))
    dealer = Dealer(threshold, threshold + 2)
    holders = data.draw(st.permutations(range(threshold + 2)))[: threshold - 1]
    known = {i + 1: dealer.shares[i] for i in holders}
    for candidate in (0, 1, data.draw(st.integers(0, ORDER - 1)), dealer.coefficients[0]):
        points = {0: candidate, **known}
        rest = [i for i in range(threshold + 2) if i not in holders]
        predicted = {i: through(points, i + 1) for i in rest}
        assert through({**known, rest[0] + 1: predicted[rest[0]]}, 0) == candidate, "degree t - 1"
        assert (predicted[rest[0]] == dealer.shares[rest[0]]) == (candidate == dealer.coefficients[0])


def test_t_minus_one_parts_do_not_make_the_point_that_the_key_is_hashed_from():
    wire = fields(CIPHERTEXT)
    point = G1.from_bytes(wire[POINT])
    parts = {i: point * DEALER.shares[i] for i in range(3)}
    shared = point * DEALER.coefficients[0]
    weights = lagrange([0, 1, 2])
    assert parts[0] * weights[0] + parts[1] * weights[1] + parts[2] * weights[2] == shared
    for two in itertools.combinations(range(3), 2):
        for weights in (lagrange(two), {i: lagrange([0, 1, 2])[i] for i in two}):
            assert parts[two[0]] * weights[two[0]] + parts[two[1]] * weights[two[1]] != shared


def test_weights_and_shares_are_shamirs_by_an_independent_formula():
    for holders in ([0], [3, 1], [0, 1, 2], [9, 4, 7], list(range(20))):
        coefficients = [random_scalar() for _ in holders]
        shares = {i: share_of(coefficients, i) for i in holders}
        assert through({i + 1: s for i, s in shares.items()}, 0) == coefficients[0]
        assert sum(lagrange(holders)[i] * s for i, s in shares.items()) % ORDER == coefficients[0]
    for number in (-1, MAX_HOLDERS):
        with pytest.raises(Malformed, match="numbered"):
            lagrange([number])
        with pytest.raises(Malformed, match="numbered"):
            share_of([1], number)
        with pytest.raises(Malformed, match="numbered"):
            KEY.verification_key(number)


def test_the_public_side_shows_each_holders_key_and_survives_its_bytes():
    again = SharedKey.decode(KEY.encoded)
    assert (again.public, again.threshold, again.encoded) == (KEY.public, 3, KEY.encoded)
    for i, share in enumerate(DEALER.shares):
        assert again.verification_key(i) == G1_GENERATOR * share
    for wrong in ((), (b"x" * 48,), (bytes([0xC0]) + bytes(47),), (KEY.encoded[0],) * 256):
        with pytest.raises(Malformed):
            SharedKey.decode(wrong)


# --- wrong shares ------------------------------------------------------------------------------------------------------


def lie(point: G1, secret: int, ciphertext: bytes) -> bytes:
    """A share with a sound proof, of a secret that is nobody's."""
    context = tdh2._hash("tdh2-share-of", ciphertext)
    part = point * secret
    proof = prove("tdh2-share", context, secret, ((point, part), (G1_GENERATOR, G1_GENERATOR * secret)))
    return encode((tdh2.SUITE, part.to_bytes(), proof))


def wrong_shares() -> dict[str, bytes]:
    point = G1.from_bytes(fields(CIPHERTEXT)[POINT])
    other = encrypt(KEY.public, LABEL, MESSAGE)
    forged = with_field(PARTS[1], 1, (point * (DEALER.shares[1] + 1)).to_bytes())
    proof = bytearray(fields(PARTS[1])[2])
    proof[40] ^= 1
    return {
        "of another holder": PARTS[2],
        "of another ciphertext": DEALER.parts(other, 1)[1],
        "of a made-up secret": lie(point, 12345, CIPHERTEXT),
        "another point": forged,
        "another proof": with_field(PARTS[1], 2, bytes(proof)),
        "no proof": with_field(PARTS[1], 2, bytes(64)),
        "the identity": with_field(PARTS[1], 1, bytes([0xC0]) + bytes(47)),
        "another suite": with_field(PARTS[1], 0, "tdh3"),
        "one byte more": PARTS[1] + b"\0",
        "one byte less": PARTS[1][:-1],
        "nothing": b"",
    }


@pytest.mark.parametrize("what", wrong_shares())
def test_a_wrong_share_is_named_and_does_not_keep_the_others_from_opening(what):
    bad = wrong_shares()[what]
    shares = {**PARTS, 1: bad}
    assert combine(KEY, LABEL, CIPHERTEXT, shares) == (MESSAGE, frozenset({1}))
    with pytest.raises(Unauthentic, match="2 right decryption shares where 3 are needed; 1 are wrong"):
        combine(KEY, LABEL, CIPHERTEXT, {0: PARTS[0], 1: bad, 2: PARTS[2]})


def test_a_share_under_a_number_that_no_holder_has_is_wrong():
    assert combine(KEY, LABEL, CIPHERTEXT, {**PARTS, 300: PARTS[0]}) == (MESSAGE, frozenset({300}))


def test_a_share_proof_holds_for_no_other_share_point_or_purpose():
    """Straight at the algebra: the verifier's equation, for the true statement and for each neighbour of it."""
    point = G1.from_bytes(fields(CIPHERTEXT)[POINT])
    _, part, proof = fields(PARTS[0])
    part = G1.from_bytes(part)
    context = tdh2._hash("tdh2-share-of", CIPHERTEXT)
    verification_key = KEY.verification_key(0)
    good = ((point, part), (G1_GENERATOR, verification_key))
    assert holds("tdh2-share", context, good, proof)
    assert not holds("tdh2-ciphertext", context, good, proof)
    assert not holds("tdh2-share", context + b"\0", good, proof)
    for pairs in (
        good[::-1],
        good[:1],
        ((point, part + G1_GENERATOR), good[1]),
        ((point + G1_GENERATOR, part), good[1]),
        (good[0], (G1_GENERATOR, verification_key + G1_GENERATOR)),
        (good[0], (part, verification_key)),
    ):
        assert not holds("tdh2-share", context, pairs, proof)


# --- labels and changed ciphertexts ------------------------------------------------------------------------------------


def is_refused(ciphertext: bytes, label: bytes = LABEL, key: SharedKey = KEY) -> bool:
    """By whoever checks, by the holders, and by whoever combines: all or none."""
    answers = []
    for ask in (
        lambda: check(key.public, label, ciphertext),
        lambda: decryption_share(key.public, label, ciphertext, DEALER.shares[0]),
        lambda: combine(key, label, ciphertext, PARTS),
    ):
        try:
            ask()
            answers.append(False)
        except DiptychError:
            answers.append(True)
    assert answers[0] == answers[1] <= answers[2]
    return answers[0]


def test_a_ciphertext_is_refused_under_any_other_label_or_key():
    assert not is_refused(CIPHERTEXT)
    for label in (b"", LABEL + b"\0", LABEL[:-1], b"chain, another record, rule"):
        assert is_refused(CIPHERTEXT, label)
    assert is_refused(CIPHERTEXT, key=Dealer(3, 4).key)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(CIPHERTEXT) * 8 - 1))
def test_no_bit_of_a_ciphertext_can_be_changed(bit):
    changed = bytearray(CIPHERTEXT)
    changed[bit // 8] ^= 1 << bit % 8
    assert is_refused(bytes(changed))


def test_no_field_of_one_ciphertext_fits_another():
    other = fields(encrypt(KEY.public, LABEL, MESSAGE))
    for chosen in itertools.product((False, True), repeat=4):
        if len(set(chosen)) > 1:
            mixed = [tdh2.SUITE] + [
                other[i] if take else fields(CIPHERTEXT)[i] for i, take in enumerate(chosen, 1)
            ]
            assert is_refused(encode(tuple(mixed)))


def test_a_shifted_ciphertext_whose_share_would_open_the_first_one_is_refused():
    """Against plain ElGamal this works: u + d G gets a share of another point, from which that of u follows. Here nobody can prove the
    shifted statement, not by the old proof nor by one that knows only d."""
    wire, shift = fields(CIPHERTEXT), random_scalar()
    point, twin = G1.from_bytes(wire[POINT]), G1.from_bytes(wire[TWIN])
    moved, moved_twin = point + G1_GENERATOR * shift, twin + hash_name("tdh2-generator", "") * shift
    for share in DEALER.shares[:3]:
        verification_key = G1_GENERATOR * share
        assert moved * share - verification_key * shift == point * share, (
            "the attack that must not get its share"
        )
    label = b"the attacker's own record"
    context = tdh2._context(KEY.public, label, wire[BODY])
    pairs = tdh2._pairs(moved, moved_twin)
    for proof in (wire[PROOF], prove("tdh2-ciphertext", context, shift, pairs)):
        assert is_refused(
            encode((tdh2.SUITE, moved.to_bytes(), moved_twin.to_bytes(), proof, wire[BODY])), label
        )


def test_a_ciphertext_whose_two_points_have_different_secrets_cannot_be_proved():
    r = random_scalar()
    point, twin = G1_GENERATOR * r, hash_name("tdh2-generator", "") * (r + 1)
    body = fields(CIPHERTEXT)[BODY]
    for secret in (r, r + 1):
        proof = prove(
            "tdh2-ciphertext", tdh2._context(KEY.public, LABEL, body), secret, tdh2._pairs(point, twin)
        )
        assert is_refused(encode((tdh2.SUITE, point.to_bytes(), twin.to_bytes(), proof, body)))


def test_what_its_maker_sealed_to_something_else_is_sound_but_opens_to_nothing():
    r = random_scalar()
    point, twin = G1_GENERATOR * r, hash_name("tdh2-generator", "") * r
    body = bytes(40)
    proof = prove("tdh2-ciphertext", tdh2._context(KEY.public, LABEL, body), r, tdh2._pairs(point, twin))
    junk = encode((tdh2.SUITE, point.to_bytes(), twin.to_bytes(), proof, body))
    check(KEY.public, LABEL, junk)
    with pytest.raises(Unauthentic, match="make it anew"):
        combine(KEY, LABEL, junk, DEALER.parts(junk, 0, 1, 2))


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (b"", "does not decode"),
        (CIPHERTEXT + b"\0", "does not decode"),
        (CIPHERTEXT[:-1], "does not decode"),
        (bytes(tdh2.MAX_MESSAGE + 300), "over the limit"),
        (with_field(CIPHERTEXT, SUITE, "tdh9"), "'tdh9' is unknown"),
        (encode(("tdh9", 5, "of another form")), "'tdh9' is unknown"),
        (with_field(CIPHERTEXT, POINT, bytes([0xC0]) + bytes(47)), "identity"),
        (with_field(CIPHERTEXT, TWIN, bytes(48)), "compressed"),
        (with_field(CIPHERTEXT, POINT, fields(CIPHERTEXT)[POINT][:-1]), "does not decode"),
        (with_field(CIPHERTEXT, PROOF, bytes(63)), "does not decode"),
        (with_field(CIPHERTEXT, BODY, bytes(15)), "does not decode"),
        (b"\xdc\x00\x05" + CIPHERTEXT[1:], "canonically"),
    ],
)
def test_what_is_no_ciphertext_is_refused_with_a_sentence(wrong, fault):
    with pytest.raises(Malformed, match=fault):
        check(KEY.public, LABEL, wrong)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_no_bytes_at_all_make_anything_but_a_refusal(junk):
    with pytest.raises(Malformed):
        check(KEY.public, LABEL, junk)
    assert combine(KEY, LABEL, CIPHERTEXT, {**PARTS, 3: junk})[1] == {3}


# --- proofs and blinding -----------------------------------------------------------------------------------------------


def test_a_proof_is_scalars_in_canonical_form_and_nothing_else():
    pairs = [(G1_GENERATOR, G1_GENERATOR * 7)]
    proof = prove("test", b"context", 7, pairs)
    assert holds("test", b"context", pairs, proof)
    challenge, response = (scalar_from_bytes(half) for half in (proof[:32], proof[32:]))
    beyond = (response + ORDER).to_bytes(33, "big")[-32:]
    for bad in (
        b"",
        proof[:-1],
        proof + b"\0",
        bytes(PROOF_BYTES),
        proof[32:] + proof[:32],
        proof[:32] + beyond,
        scalar_to_bytes(challenge + 1) + proof[32:],
    ):
        assert not holds("test", b"context", pairs, bad)


def test_a_prover_who_does_not_know_the_secret_convinces_nobody():
    pairs = [(G1_GENERATOR, G1_GENERATOR * 7), (KEY.public, KEY.public * 7)]
    assert holds("test", b"", pairs, prove("test", b"", 7, pairs))
    assert not holds("test", b"", pairs, prove("test", b"", 8, pairs))
    unequal = [(G1_GENERATOR, G1_GENERATOR * 7), (KEY.public, KEY.public * 8)]
    assert not any(holds("test", b"", unequal, prove("test", b"", secret, unequal)) for secret in (7, 8))


def test_a_prover_who_fits_the_images_to_the_challenge_convinces_nobody():
    """Where a challenge leaves the images out, they can be solved for afterwards: two images with different logarithms."""
    bases = [G1_GENERATOR, KEY.public]
    commitments = [G1_GENERATOR * 11, KEY.public * 12]
    guess = [(base, base * 5) for base in bases]
    challenge = proof_module._challenge("test", b"", guess, commitments)
    response, inverse = 99, pow(challenge, -1, ORDER)
    images = [(b * response - w) * inverse for b, w in zip(bases, commitments, strict=True)]
    assert images[0] == G1_GENERATOR * ((response - 11) * inverse % ORDER), "no equal logarithms"
    forged = scalar_to_bytes(challenge) + scalar_to_bytes(response)
    assert not holds("test", b"", list(zip(bases, images, strict=True)), forged)


def test_a_secret_meets_points_only_in_fresh_random_pieces(monkeypatch):
    seen: list[int] = []
    multiply = G1.__mul__

    def watched(point: G1, scalar: int) -> G1:
        seen.append(scalar % ORDER)
        return multiply(point, scalar)

    monkeypatch.setattr(G1, "__mul__", watched)
    share = DEALER.shares[0]
    for _ in range(2):
        assert decryption_share(KEY.public, LABEL, CIPHERTEXT, share)
        encrypt(KEY.public, LABEL, MESSAGE)
    wire = fields(CIPHERTEXT)
    public = {scalar_from_bytes(wire[PROOF][:32]), scalar_from_bytes(wire[PROOF][32:])}
    secret = [scalar for scalar in seen if scalar not in public]
    assert share not in seen
    assert len(secret) > 20
    assert len(set(secret)) == len(secret), "no scalar is used for two points, or in two calls"


def test_blinded_multiplication_is_multiplication():
    for secret in (0, 1, ORDER - 1, DEALER.shares[0]):
        assert blinded(KEY.public, secret) == KEY.public * secret


# --- known answers -----------------------------------------------------------------------------------------------------


def stream(seed: str):
    """Random bytes that are the same everywhere: SHAKE256 of the seed and a counter."""
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(size)


def vector(threshold: int, size: int, label: bytes, message: bytes) -> dict:
    seed = f"tdh2 {threshold} of {size}"
    random = stream(seed)
    dealer = Dealer(threshold, size, random)
    public = dealer.key.public
    ciphertext = encrypt(public, label, message, random)
    return {
        "seed": seed,
        "label": label.hex(),
        "message": message.hex(),
        "secret": scalar_to_bytes(dealer.coefficients[0]).hex(),
        "commitments": [point.hex() for point in dealer.key.encoded],
        "shares": [scalar_to_bytes(share).hex() for share in dealer.shares],
        "ciphertext": ciphertext.hex(),
        "decryption_shares": [
            decryption_share(public, label, ciphertext, share, random).hex() for share in dealer.shares
        ],
    }


def vectors() -> list[dict]:
    return [
        vector(1, 1, b"", b""),
        vector(3, 4, LABEL, MESSAGE),
        vector(5, 7, b"\xff" * 40, bytes(range(256))),
    ]


def test_the_known_answers_are_ours_byte_for_byte():
    assert json.loads(VECTORS.read_text()) == vectors()


@pytest.mark.parametrize("known", json.loads(VECTORS.read_text()) if VECTORS.exists() else [])
def test_the_known_answers_hold_by_the_papers_equations(known):
    """Straight from the definition, without the scheme's own code for opening."""
    unhexed = {k: bytes.fromhex(v) for k, v in known.items() if isinstance(v, str) and k != "seed"}
    suite, point, twin, proof, body = fields(unhexed["ciphertext"])
    secret = scalar_from_bytes(unhexed["secret"])
    u, w, y = G1.from_bytes(point), G1.from_bytes(twin), G1.from_bytes(bytes.fromhex(known["commitments"][0]))
    assert y == G1_GENERATOR * secret
    e, f = (scalar_from_bytes(half) for half in (proof[:32], proof[32:]))
    h = hash_name("tdh2-generator", "")
    points = [G1_GENERATOR, u, h, w, G1_GENERATOR * f - u * e, h * f - w * e]
    context = encode((suite, y.to_bytes(), unhexed["label"], body))
    hashed = b"diptych/1/tdh2-ciphertext\x00" + encode((context, *(p.to_bytes() for p in points)))
    assert scalar_from_wide(hashlib.shake_256(hashed).digest(48)) == e
    key = hashlib.shake_256(
        b"diptych/1/tdh2-key\x00" + encode((suite, point, (u * secret).to_bytes()))
    ).digest(32)
    opened = tdh2.AESGCM(key).decrypt(bytes(12), body, unhexed["label"])
    assert opened == unhexed["message"]
    for share, part in zip(known["shares"], known["decryption_shares"], strict=True):
        assert G1.from_bytes(fields(bytes.fromhex(part))[1]) == u * int(share, 16)
