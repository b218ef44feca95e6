"""Distributed key generation and re-sharing: every way of dealing wrongly excludes its dealer and nobody else; the key needs t holders."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import dkg, tdh2
from crypto.codec import encode
from crypto.dkg import Complaint, Dealing, HolderKey, Round, combined_key, combined_share
from crypto.errors import DiptychError, Malformed, Unauthentic
from crypto.group import G1, G1_GENERATOR, ORDER, random_scalar, scalar_from_bytes, scalar_to_bytes
from crypto.proof import hash_to_scalar, holds, prove
from crypto.sharing import SharedKey, lagrange, share_of
from tests.dealer import dishonest

VECTORS = Path(__file__).parents[1] / "vectors" / "dkg.json"
KEYS = [HolderKey.generate() for _ in range(12)]
replace = msgspec.structs.replace


def round_of(size: int, threshold: int, session: bytes = b"session", first: int = 0) -> Round:
    return Round(session, tuple(key.public for key in KEYS[first : first + size]), threshold)


class Board:
    """A bulletin board with its judge, and honest holders who complain where they should."""

    def __init__(self, run: Round, keys: list[HolderKey], old: SharedKey | None = None) -> None:
        self.run, self.keys, self.old = run, keys, old
        self.dealings: dict[int, Dealing] = {}
        self.guilty: set[int] = set()

    def post(self, dealer: int, dealing: Dealing) -> None:
        constant = self.old.verification_key(dealer) if self.old else None
        self.run.check(dealer, dealing, constant)
        self.dealings[dealer] = dealing

    def complaints(self, holder: int) -> list[Complaint]:
        found = []
        for dealer, dealing in self.dealings.items():
            try:
                self.run.piece(dealer, dealing, holder, self.keys[holder])
            except Unauthentic:
                found.append(self.run.complain(dealer, dealing, holder, self.keys[holder]))
        return found

    def judge(self) -> None:
        for holder in range(len(self.keys)):
            for complaint in self.complaints(holder):
                assert self.run.is_justified(complaint, self.dealings[complaint.dealer], holder)
                self.guilty.add(complaint.dealer)

    @property
    def weights(self) -> dict[int, int]:
        counted = [d for d in self.dealings if d not in self.guilty]
        return lagrange(counted) if self.old else dict.fromkeys(counted, 1)

    def key(self) -> SharedKey:
        return combined_key(self.dealings, self.weights)

    def shares(self) -> list[int]:
        return [
            combined_share(
                {d: self.run.piece(d, self.dealings[d], holder, key) for d in self.weights}, self.weights
            )
            for holder, key in enumerate(self.keys)
        ]


def generated(size: int, threshold: int, dealers: int | None = None) -> Board:
    board = Board(round_of(size, threshold), KEYS[:size])
    for dealer in range(size if dealers is None else dealers):
        board.post(dealer, board.run.deal(dealer))
    return board


def secret_of(shares: dict[int, int]) -> int:
    return sum(weight * shares[i] for i, weight in lagrange(shares).items()) % ORDER


def is_a_sharing(key: SharedKey, shares: list[int]) -> bool:
    """Every set of t shares makes the secret of the key, and each is what its verification key says."""
    t = key.threshold
    sets = itertools.islice(itertools.combinations(range(len(shares)), t), 12)
    return all(
        G1_GENERATOR * secret_of({i: shares[i] for i in chosen}) == key.public for chosen in sets
    ) and all(key.verification_key(i) == G1_GENERATOR * share for i, share in enumerate(shares))


# --- the ordinary way --------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_t_of_n_dealers_make_a_key_that_any_t_of_n_holders_open(data):
    size = data.draw(st.integers(1, 7))
    threshold = data.draw(st.integers(1, size))
    board = generated(size, threshold, data.draw(st.integers(threshold, size)))
    board.judge()
    assert not board.guilty
    key, shares = board.key(), board.shares()
    assert is_a_sharing(key, shares)
    ciphertext = tdh2.encrypt(key.public, b"label", b"message")
    chosen = data.draw(st.permutations(range(size)))[:threshold]
    parts = {i: tdh2.decryption_share(key.public, b"label", ciphertext, shares[i]) for i in chosen}
    assert tdh2.combine(key, b"label", ciphertext, parts) == (b"message", frozenset())


def test_the_secret_is_the_sum_of_what_the_dealers_dealt_and_no_dealer_knows_it():
    secrets = [random_scalar() for _ in range(4)]
    board = Board(round_of(4, 3), KEYS[:4])
    for dealer, secret in enumerate(secrets):
        board.post(dealer, board.run.deal(dealer, secret))
    assert board.key().public == G1_GENERATOR * sum(secrets)
    assert secret_of(dict(enumerate(board.shares()[:3]))) == sum(secrets) % ORDER
    without_one = {d: 1 for d in range(3)}
    assert combined_key(board.dealings, without_one).public == G1_GENERATOR * sum(secrets[:3])


def test_a_holder_reads_its_own_piece_alone():
    board = generated(3, 2)
    for dealer, dealing in board.dealings.items():
        for holder, other in itertools.permutations(range(3), 2):
            with pytest.raises(Unauthentic):
                board.run.piece(dealer, dealing, holder, KEYS[other])
    pieces = [piece for dealing in board.dealings.values() for piece in dealing.pieces]
    assert len(set(pieces)) == len(pieces)


def test_a_lost_share_is_made_again_from_the_board_and_the_holders_key_file():
    board = generated(4, 3)
    restored = HolderKey.from_bytes(KEYS[2].to_bytes())
    pieces = {d: board.run.piece(d, dealing, 2, restored) for d, dealing in board.dealings.items()}
    assert combined_share(pieces, board.weights) == board.shares()[2]
    for junk in (b"", bytes(32), b"\xff" * 32, KEYS[2].to_bytes() + b"\0"):
        with pytest.raises(Malformed):
            HolderKey.from_bytes(junk)
    assert KEYS[2].to_bytes().hex()[:16] not in repr(KEYS[2])


@pytest.mark.parametrize(("size", "threshold"), [(0, 0), (3, 0), (3, 4), (3, -1), (256, 3)])
def test_a_run_of_senseless_shape_is_refused(size, threshold):
    with pytest.raises(Malformed, match="threshold"):
        Round(b"", (KEYS[0].public,) * size, threshold)


# --- malicious dealers -------------------------------------------------------------------------------------------------


def polynomial(degree: int) -> list[int]:
    return [random_scalar() for _ in range(degree + 1)]


@pytest.mark.parametrize(
    ("what", "coefficients", "pieces"),
    [
        ("one bad piece", polynomial(2), {1: 5}),
        ("a piece of zero", polynomial(2), {3: 0}),
        ("another holder's piece", (own := polynomial(2)), {0: share_of(own, 1)}),
        ("all pieces of another polynomial", polynomial(2), {j: 7 + j for j in range(4)}),
        ("a polynomial of too high a degree behind t commitments", polynomial(3), {}),
    ],
)
def test_a_dealer_of_a_wrong_piece_is_shown_guilty_and_the_others_go_on(what, coefficients, pieces):
    board = generated(4, 3, 3)
    honest = board.key().public
    board.post(3, dishonest(board.run, 3, coefficients, pieces))
    board.judge()
    assert board.guilty == {3}, what
    assert board.key().public == honest
    assert is_a_sharing(board.key(), board.shares())


def test_a_silent_dealer_is_left_out_and_still_gets_its_share():
    board = generated(4, 3, 3)
    assert is_a_sharing(board.key(), board.shares())
    assert len(board.shares()) == 4


@pytest.mark.parametrize(("size", "threshold"), [(4, 1), (4, 2), (4, 4), (3, 3), (5, 3), (8, 8)])
def test_a_dealing_of_another_degree_or_size_is_refused_before_anybody_opens_it(size, threshold):
    run, other = round_of(4, 3), round_of(size, threshold)
    other.check(0, other.deal(0))
    with pytest.raises(Malformed, match="3 commitments and a piece for each of 4"):
        run.check(0, other.deal(0))


def changed(dealing: Dealing) -> dict[str, Dealing]:
    junk, other = bytes(48), G1_GENERATOR.to_bytes()
    return {
        "suite": replace(dealing, suite="dkg9"),
        "no commitment": replace(dealing, commitments=()),
        "commitment swapped": replace(dealing, commitments=dealing.commitments[::-1]),
        "commitment changed": replace(dealing, commitments=(*dealing.commitments[:2], other)),
        "constant changed": replace(dealing, commitments=(other, *dealing.commitments[1:])),
        "commitment junk": replace(dealing, commitments=(*dealing.commitments[:2], junk)),
        "commitment identity": replace(
            dealing, commitments=(*dealing.commitments[:2], bytes([0xC0]) + bytes(47))
        ),
        "seed changed": replace(dealing, seed=other),
        "seed junk": replace(dealing, seed=junk),
        "a piece more": replace(dealing, pieces=(*dealing.pieces, bytes(32))),
        "a piece less": replace(dealing, pieces=dealing.pieces[:3]),
        "pieces swapped": replace(dealing, pieces=dealing.pieces[::-1]),
        "piece changed": replace(dealing, pieces=(bytes(32), *dealing.pieces[1:])),
        "piece too large": replace(dealing, pieces=(ORDER.to_bytes(32, "big"), *dealing.pieces[1:])),
        "constant proof": replace(dealing, constant_proof=bytes(64)),
        "seed proof": replace(dealing, seed_proof=bytes(64)),
        "proofs swapped": replace(
            dealing, constant_proof=dealing.seed_proof, seed_proof=dealing.constant_proof
        ),
    }


@pytest.mark.parametrize("what", changed(round_of(4, 3).deal(0)))
def test_whoever_changes_a_dealing_on_its_way_makes_it_void_and_not_its_dealer_guilty(what):
    run = round_of(4, 3)
    bad = changed(run.deal(0))[what]
    with pytest.raises(DiptychError):
        run.check(0, bad)


def test_a_dealing_counts_for_its_dealer_in_its_run_alone():
    run = round_of(4, 3)
    dealing = run.deal(0)
    run.check(0, dealing)
    others = [
        (1, run),
        (0, round_of(4, 3, b"another session")),
        (0, round_of(4, 3, first=1)),
        (0, Round(b"session", run.holders[::-1], 3)),
    ]
    for dealer, other in others:
        with pytest.raises(Unauthentic, match="knows what it deals"):
            other.check(dealer, dealing)


def test_the_seed_of_another_dealing_cannot_be_used_to_have_its_pieces_opened():
    """With R copied, a justified complaint would publish the very point under which the honest dealer's piece lies."""
    run = round_of(4, 3)
    honest, coefficients = run.deal(0), polynomial(2)
    pieces = tuple(bytes([j]) * 32 for j in range(1, 5))
    copied = replace(run.deal(3), seed=honest.seed, pieces=pieces)
    complaint = run.complain(3, copied, 1, KEYS[1])
    opened = G1.from_bytes(complaint.opened)
    assert run._unsealed(0, honest, 1, opened) == run.piece(0, honest, 1, KEYS[1]), "what must not come about"
    for proof in (honest.seed_proof, copied.seed_proof):
        context = run._context(3, copied.commitments, honest.seed, pieces)
        own = prove(
            "dkg-constant", context, coefficients[0], [(G1_GENERATOR, G1_GENERATOR * coefficients[0])]
        )
        commitments = tuple((G1_GENERATOR * c).to_bytes() for c in coefficients)
        bad = replace(copied, commitments=commitments, constant_proof=own, seed_proof=proof)
        with pytest.raises(Unauthentic, match="knows what it deals"):
            run.check(3, bad)


def test_a_dealer_cannot_cancel_the_others_with_a_constant_made_from_theirs():
    board = generated(4, 3, 3)
    mine = random_scalar()
    rogue = G1_GENERATOR * mine - board.key().public
    dealing = board.run.deal(3, mine)
    dealing = replace(dealing, commitments=(rogue.to_bytes(), *dealing.commitments[1:]))
    context = board.run._context(3, dealing.commitments, dealing.seed, dealing.pieces)
    proof = prove("dkg-constant", context, mine, [(G1_GENERATOR, rogue)])
    with pytest.raises(Unauthentic, match="knows what it deals"):
        board.post(3, replace(dealing, constant_proof=proof))


def test_parts_that_cancel_out_make_no_key():
    run = round_of(2, 2)
    coefficients = polynomial(1)
    dealings = {
        0: dishonest(run, 0, coefficients, {}),
        1: dishonest(run, 1, [coefficients[0], ORDER - coefficients[1]], {}),
    }
    for dealer, dealing in dealings.items():
        run.check(dealer, dealing)
    with pytest.raises(Malformed, match="identity"):
        combined_key(dealings, {0: 1, 1: 1})


# --- complaints --------------------------------------------------------------------------------------------------------


def test_a_complaint_about_a_right_piece_does_not_hold_however_it_is_made():
    run = round_of(4, 3)
    dealing, me = run.deal(0), KEYS[1]
    seed = G1.from_bytes(dealing.seed)
    true = run.complain(0, dealing, 1, me)
    opened = G1.from_bytes(true.opened) + G1_GENERATOR
    context = encode((run._bound, 0, 1))
    pairs = [(G1_GENERATOR, me.public), (seed, opened)]
    lies = [
        true,
        replace(true, opened=opened.to_bytes()),
        Complaint(0, opened.to_bytes(), prove("dkg-complaint", context, me.secret, pairs)),
        Complaint(0, opened.to_bytes(), prove("dkg-complaint", context, me.secret + 1, pairs)),
        run.complain(0, dealing, 1, HolderKey(me.secret + 1)),
        replace(true, opened=bytes([0xC0]) + bytes(47)),
        replace(true, opened=bytes(48)),
        replace(true, proof=bytes(64)),
    ]
    assert not any(run.is_justified(lie, dealing, 1) for lie in lies)


def test_a_complaint_holds_for_its_holder_dealer_and_run_alone():
    run = round_of(4, 3)
    bad = dishonest(run, 0, polynomial(2), {j: 9 for j in range(4)})
    complaint = run.complain(0, bad, 1, KEYS[1])
    assert run.is_justified(complaint, bad, 1)
    assert not run.is_justified(complaint, bad, 2)
    assert not run.is_justified(replace(complaint, dealer=2), bad, 1)
    assert not round_of(4, 3, b"another session").is_justified(complaint, bad, 1)
    assert not run.is_justified(complaint, run.deal(0), 1)


def test_a_complaint_opens_the_guilty_piece_and_no_other():
    """What a complaint publishes is one Diffie-Hellman point of the guilty dealing; pieces of honest dealers stay sealed under others."""
    board = generated(4, 3, 3)
    board.post(3, dishonest(board.run, 3, polynomial(2), {1: 9}))
    (complaint,) = board.complaints(1)
    opened = G1.from_bytes(complaint.opened)
    for dealer, dealing in board.dealings.items():
        for holder in range(4):
            piece = board.run._unsealed(dealer, dealing, holder, opened)
            key = SharedKey.decode(dealing.commitments).verification_key(holder)
            assert piece == 9 if (dealer, holder) == (3, 1) else G1_GENERATOR * piece != key


# --- re-sharing --------------------------------------------------------------------------------------------------------


def reshared(board: Board, dealers: list[int], size: int, threshold: int, first: int) -> Board:
    """The key of `board` dealt again by these of its holders among `size` others, from key `first` on."""
    shares = board.shares()
    session = board.run.session + b"+"
    new = Board(round_of(size, threshold, session, first), KEYS[first : first + size], board.key())
    for dealer in dealers:
        new.post(dealer, new.run.deal(dealer, shares[dealer]))
    return new


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_resharing_keeps_the_key_whoever_deals_it_to_whatever_set(data):
    size = data.draw(st.integers(1, 6))
    board = generated(size, data.draw(st.integers(1, size)))
    public = board.key().public
    ciphertext = tdh2.encrypt(public, b"label", b"message")
    for _ in range(data.draw(st.integers(1, 3))):
        old = board.key()
        count = data.draw(st.integers(old.threshold, len(board.keys)))
        dealers = data.draw(st.permutations(range(len(board.keys))))[:count]
        size = data.draw(st.integers(1, 6))
        board = reshared(board, dealers, size, data.draw(st.integers(1, size)), data.draw(st.integers(0, 6)))
        board.judge()
        assert not board.guilty
        assert board.key().public == public
        assert is_a_sharing(board.key(), board.shares())
    key, shares = board.key(), board.shares()
    parts = {
        i: tdh2.decryption_share(public, b"label", ciphertext, s)
        for i, s in enumerate(shares[: key.threshold])
    }
    assert tdh2.combine(key, b"label", ciphertext, parts)[0] == b"message"


def test_old_and_new_shares_below_their_thresholds_make_nothing_together():
    old = generated(4, 3)
    new = reshared(old, [0, 1, 2], 5, 3, first=2)
    olds, news = list(enumerate(old.shares())), list(enumerate(new.shares()))
    secret = secret_of(dict(olds[:3]))
    assert secret == secret_of(dict(news[:3]))
    for a, b in itertools.combinations(olds, 2):
        for c, d in itertools.combinations(news, 2):
            mine = [a, b, c, d]
            for chosen in [*itertools.combinations(mine, 3), tuple(mine)]:
                if len({i for i, _ in chosen}) == len(chosen):
                    assert secret_of(dict(chosen)) != secret


def test_old_and_new_shares_below_their_thresholds_fit_every_secret():
    """The two polynomials have nothing in common but the secret, so for each candidate both still exist."""
    old = generated(4, 3)
    new = reshared(old, [1, 2, 3], 4, 3, first=4)
    for candidate in (0, 1, random_scalar()):
        for board in (old, new):
            known = {1: board.shares()[0], 2: board.shares()[1]}
            fitted = fit({0: candidate, **known})
            assert len(fitted) == 3
            assert [share_of(fitted, i) for i in (0, 1)] == [known[1], known[2]]
    assert fit(dict(enumerate(old.shares(), 1)))[1:] != fit(dict(enumerate(new.shares(), 1)))[1:]


def fit(points: dict[int, int]) -> list[int]:
    """Coefficients of the polynomial through (x, y) pairs, by solving the Vandermonde equations; high zeros dropped."""
    rows = [[pow(x, k, ORDER) for k in range(len(points))] + [y] for x, y in points.items()]
    for i in range(len(rows)):
        pivot = next(r for r in range(i, len(rows)) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        inverse = pow(rows[i][i], -1, ORDER)
        rows[i] = [value * inverse % ORDER for value in rows[i]]
        for r in range(len(rows)):
            if r != i:
                factor = rows[r][i]
                rows[r] = [(a - factor * b) % ORDER for a, b in zip(rows[r], rows[i], strict=True)]
    found = [row[-1] for row in rows]
    while len(found) > 1 and not found[-1]:
        found.pop()
    return found


def test_the_polynomial_behind_a_generated_key_has_degree_t_minus_one_exactly():
    for threshold in (1, 2, 3, 5):
        board = generated(6, threshold)
        assert len(fit(dict(enumerate(board.shares(), 1)))) == threshold


def test_who_reshares_must_deal_its_own_share():
    old = generated(4, 3)
    new = reshared(old, [0, 1], 4, 2, first=4)
    for secret in (random_scalar(), old.shares()[3], None):
        with pytest.raises(Unauthentic, match="its share of the key"):
            new.post(2, new.run.deal(2, secret))
    new.post(2, new.run.deal(2, old.shares()[2]))
    assert new.key().public == old.key().public


def test_a_wrong_piece_at_resharing_excludes_its_dealer_and_keeps_the_key():
    old = generated(5, 3)
    new = reshared(old, [0, 1, 2], 4, 3, first=5)
    new.post(4, dishonest(new.run, 4, [old.shares()[4], *polynomial(1)], {2: 77}))
    new.judge()
    assert new.guilty == {4}
    assert new.key().public == old.key().public
    assert is_a_sharing(new.key(), new.shares())


def test_fewer_dealers_than_the_old_threshold_reshare_another_key():
    old = generated(4, 3)
    assert reshared(old, [0, 1], 4, 3, first=4).key().public != old.key().public


# --- bytes and blinding ------------------------------------------------------------------------------------------------


def test_dealings_and_complaints_have_one_length_and_survive_their_bytes():
    run = round_of(4, 3)
    sizes = set()
    for _ in range(3):
        dealing = run.deal(0)
        complaint = run.complain(0, dealing, 1, KEYS[1])
        assert msgspec.msgpack.decode(encode(dealing), type=Dealing) == dealing
        assert msgspec.msgpack.decode(encode(complaint), type=Complaint) == complaint
        sizes.add((len(encode(dealing)), len(encode(complaint))))
    assert len(sizes) == 1


def test_secrets_meet_points_only_in_fresh_random_pieces(monkeypatch):
    old = generated(4, 3)
    run, share = round_of(4, 3, b"new"), old.shares()[0]
    bad = dishonest(run, 1, polynomial(2), {0: 5})
    seen: list[int] = []
    multiply = G1.__mul__

    def watched(point: G1, scalar: int) -> G1:
        seen.append(scalar % ORDER)
        return multiply(point, scalar)

    monkeypatch.setattr(G1, "__mul__", watched)
    dealing = run.deal(0, share)
    piece = run.piece(0, dealing, 2, KEYS[2])
    run.complain(1, bad, 0, KEYS[0])
    monkeypatch.undo()
    large = [scalar for scalar in seen if scalar > 1000]
    assert not {share, piece, KEYS[2].secret, KEYS[0].secret} & set(seen)
    assert len(set(large)) == len(large) > 20


# --- known answers -----------------------------------------------------------------------------------------------------


def stream(seed: str) -> Callable[[int], bytes]:
    """Random bytes that are the same everywhere: SHAKE256 of the seed and a counter."""
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{seed} {next(counter)}".encode()).digest(size)


def vector(size: int, threshold: int) -> dict:
    seed = f"dkg {threshold} of {size}"
    random = stream(seed)
    keys = [HolderKey.generate(random) for _ in range(size)]
    run = Round(b"session of " + seed.encode(), tuple(key.public for key in keys), threshold)
    dealings = {dealer: run.deal(dealer, random=random) for dealer in range(size)}
    weights = dict.fromkeys(dealings, 1)
    shares = [
        combined_share({d: run.piece(d, dealing, j, key) for d, dealing in dealings.items()}, weights)
        for j, key in enumerate(keys)
    ]
    return {
        "seed": seed,
        "session": run.session.hex(),
        "threshold": threshold,
        "holder_secrets": [key.to_bytes().hex() for key in keys],
        "dealings": [encode(dealing).hex() for dealing in dealings.values()],
        "key": [point.hex() for point in combined_key(dealings, weights).encoded],
        "shares": [scalar_to_bytes(share).hex() for share in shares],
        "opened_by_last": encode(run.complain(0, dealings[0], size - 1, keys[-1], random)).hex(),
    }


def vectors() -> list[dict]:
    return [vector(1, 1), vector(4, 3), vector(5, 2)]


def test_the_known_answers_are_ours_byte_for_byte():
    assert json.loads(VECTORS.read_text()) == vectors()


@pytest.mark.parametrize("known", json.loads(VECTORS.read_text()) if VECTORS.exists() else [])
def test_the_known_answers_hold_by_the_equations_of_the_module(known):
    """Pads, pieces, key and shares by hand, without the scheme's own code for opening."""
    secrets = [int(secret, 16) for secret in known["holder_secrets"]]
    points = [(G1_GENERATOR * secret).to_bytes() for secret in secrets]
    session, t = bytes.fromhex(known["session"]), known["threshold"]
    bound = hashlib.shake_256(b"diptych/1/dkg-round\x00" + encode((dkg.SUITE, session, t, points))).digest(32)
    dealings = [msgspec.msgpack.decode(bytes.fromhex(data)) for data in known["dealings"]]
    totals = [0] * len(secrets)
    for dealer, (_, commitments, seed, sealed, constant_proof, seed_proof) in enumerate(dealings):
        context = encode((bound, dealer, commitments, seed, sealed))
        a0, r = G1.from_bytes(commitments[0]), G1.from_bytes(seed)
        assert holds("dkg-constant", context, [(G1_GENERATOR, a0)], constant_proof)
        assert holds("dkg-seed", context, [(G1_GENERATOR, r)], seed_proof)
        for j, secret in enumerate(secrets):
            pad = hash_to_scalar("dkg-pad", bound, dealer, j, seed, (r * secret).to_bytes())
            piece = (int.from_bytes(sealed[j], "big") - pad) % ORDER
            powers = [G1.from_bytes(c) * pow(j + 1, k, ORDER) for k, c in enumerate(commitments)]
            assert G1_GENERATOR * piece == sum(powers[1:], start=powers[0])
            totals[j] = (totals[j] + piece) % ORDER
    assert [scalar_to_bytes(total).hex() for total in totals] == known["shares"]
    constants = [G1.from_bytes(d[1][0]) for d in dealings]
    assert sum(constants[1:], start=constants[0]).to_bytes().hex() == known["key"][0]
    _, opened, proof = msgspec.msgpack.decode(bytes.fromhex(known["opened_by_last"]))
    assert G1.from_bytes(opened) == G1.from_bytes(dealings[0][2]) * secrets[-1]
    assert scalar_from_bytes(proof[:32])
