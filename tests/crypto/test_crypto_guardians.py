"""Recovery shares, seen by the person who comes back, by guardians with a pen, and by one who cheats."""

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import guardians, shamir
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.guardians import MARK, MAX_LABEL, Share, recover, set_name, split_secret

SECRET = bytes(range(100, 132))
LABELS = ["Bob", "Carol", "Dave", "Eve", "Frank"]
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@pytest.fixture(scope="module")
def shares() -> list[Share]:
    return split_secret(SECRET, LABELS, 3)


# --- recovery -----------------------------------------------------------------------------------------------------


def test_any_needed_shares_recover_the_secret_in_any_order(shares):
    for some in itertools.permutations(shares, 3):
        assert recover(some).secret == SECRET
    assert recover(shares) == guardians.Recovered(SECRET, ())


@given(
    secret=st.binary(min_size=32, max_size=32),
    labels=st.lists(st.just(""), min_size=2, max_size=16),
    data=st.data(),
)
@settings(max_examples=40)
def test_every_scheme_recovers_over_its_printed_form(secret, labels, data):
    needed = data.draw(st.integers(2, len(labels)))
    made = split_secret(secret, labels, needed)
    printed = [share.to_text() for share in data.draw(st.permutations(made))[:needed]]
    assert recover([Share.from_text(text) for text in printed]).secret == secret


def test_too_few_shares_are_refused_with_how_many_are_missing(shares):
    with pytest.raises(Denied, match=r"3 shares are needed and 1 is here; ask 2 more of the 5"):
        recover(shares[:1])
    with pytest.raises(Denied, match=r"2 are here; ask 1 more"):
        recover(shares[3:])
    with pytest.raises(Malformed, match="no share"):
        recover([])


def test_shares_of_two_splits_of_one_secret_do_not_mix_and_the_odd_one_is_named(shares):
    other = split_secret(SECRET, LABELS, 3)
    with pytest.raises(Malformed, match=r"different splits: share 4 \(Eve\) and share 1 \(Bob\)"):
        recover([shares[0], shares[1], other[3]])


def test_the_same_share_twice_counts_once(shares):
    with pytest.raises(Malformed, match=r"share 2 \(Carol\) was given twice"):
        recover([shares[1], shares[0], shares[1]])
    with pytest.raises(Malformed, match="call themselves number 2"):
        recover([shares[1], shares[0], replace(shares[1], value=bytes(40))])


def flipped(share: Share) -> Share:
    return replace(share, value=bytes([share.value[0] ^ 1]) + share.value[1:])


def test_an_altered_share_never_gives_a_wrong_secret(shares):
    with pytest.raises(Unauthentic, match="at least one was altered"):
        recover([shares[0], flipped(shares[2]), shares[4]])


def test_with_a_share_to_spare_the_altered_one_is_named_and_recovery_succeeds(shares):
    found = recover([flipped(shares[0]), shares[1], shares[3], shares[4]])
    assert found == guardians.Recovered(SECRET, (flipped(shares[0]),))
    two = recover([flipped(shares[0]), shares[1], flipped(shares[2]), shares[3], shares[4]])
    assert [share.number for share in two.altered] == [1, 3]


def test_a_share_that_claims_another_threshold_or_number_is_caught(shares):
    with pytest.raises(Unauthentic, match="disagree about how many"):
        recover([shares[0], shares[1], replace(shares[2], needed=2)])
    with pytest.raises(Unauthentic, match="altered"):
        recover([replace(share, needed=2) for share in shares[:2]])
    with pytest.raises(Unauthentic, match="altered"):
        recover([shares[0], shares[1], replace(shares[2], number=4)])


def test_guardians_cannot_alter_shares_so_that_honest_ones_look_altered(shares):
    """Over this field the shares 1 and 3 may change alike and still give the secret with 2, by another polynomial."""
    assert shamir.combine({1: b"\1", 2: b"\0", 3: b"\1"}) == b"\0"
    given_in = [flipped(shares[0]), shares[1], flipped(shares[2]), shares[3], shares[4]]
    assert recover(given_in).altered == (flipped(shares[0]), flipped(shares[2]))
    with pytest.raises(Unauthentic, match="altered"):
        recover(given_in[:3])


def value_at(known: dict[int, bytes], zero: bytes, at: int) -> bytes:
    """f(at) for the polynomial through `known` and f(0) = `zero`: by g(x) = (f(x) - zero) / x, of one degree less."""
    quotients = {x: shamir._add(v, zero).translate(shamir._row(shamir._inverse(x))) for x, v in known.items()}
    return shamir._add(shamir.combine(quotients, at=at).translate(shamir._row(at)), zero)


def test_too_few_shares_fit_every_secret_alike(shares):
    """By algebra: whatever the secret, there is a third share that completes two stolen ones to it, digest and all."""
    heads = {share.number: share.value[:32] for share in shares[:2]}
    tails = {share.number: share.value[32:] for share in shares[:2]}
    for secret in (bytes(32), bytes([255]) * 32, SECRET):
        digest = guardians._digest(shares[0].set_id, 3, 5, [secret, heads[1], heads[2]])
        third = replace(shares[2], value=value_at(heads, secret, 3) + value_at(tails, digest, 3))
        assert recover([*shares[:2], third]).secret == secret
        assert secret != SECRET or third == shares[2]


def test_every_part_of_a_share_is_fresh_in_every_split():
    sets = [split_secret(SECRET, LABELS, 3) for _ in range(3)]
    assert len({made[0].set_id for made in sets}) == 3
    assert len({share.value for made in sets for share in made}) == 15


@pytest.mark.parametrize(
    ("labels", "needed"), [(LABELS, 1), (LABELS, 6), (["one"], 1), (["x"] * 17, 3), ([], 0), (["a", "b"], 1)]
)
def test_schemes_that_protect_nothing_are_refused(labels, needed):
    with pytest.raises(Malformed, match="guardian"):
        split_secret(SECRET, labels, needed)


@pytest.mark.parametrize("label", ["x" * (MAX_LABEL + 1), "é" * 13, "a\nb", "a\x1b[31m", "\ud800"])
def test_labels_are_short_and_printable(label):
    with pytest.raises(Malformed, match="label"):
        split_secret(SECRET, ["Bob", label], 2)
    split_secret(SECRET, ["Bob", "é" * 12], 2)
    split_secret(SECRET, ["", ""], 2)
    with pytest.raises(Malformed, match="same label"):
        split_secret(SECRET, ["Bob", "Bob"], 2)


def test_a_share_does_not_show_its_value(shares):
    shown = repr(shares[0]) + repr(recover(shares))
    assert "value" not in shown
    assert "secret" not in shown
    assert repr(shares[0].value)[2:10] not in shown


# --- the printed form ---------------------------------------------------------------------------------------------


KNOWN = "DIPTYCH-SHARE-1 00000 00001 0810F 20007 00004 00005 00006 00007 00008 00009 0000A 0000B 0000C 0000D 0000E 0000F GZNN8 3FQB6 VND18 WGEQ9 BV0WJ 85"


def test_the_printed_form_is_pinned():
    """Known answer, with every random byte zero, so that other software can be built against it."""
    first, second = split_secret(bytes(32), ["A", "B"], 2, bytes)
    assert first.to_text() == KNOWN
    assert Share.from_text(KNOWN) == first
    assert set_name(first.set_id) == "0000-0000"
    assert second.value == first.value, "with zero coefficients all shares are the payload"


def test_a_share_is_read_however_it_was_written_down(shares):
    share = shares[1]
    groups = share.groups()
    lines = "\n".join("  " + " ".join(groups[i : i + 5]) for i in range(0, len(groups), 5))
    paper = f"Recovery share 2 for Carol.\nKeep it.\n\n{MARK}\n{lines}\n"
    for text in (
        share.to_text(),
        paper,
        lines,
        "-".join(groups),
        "".join(groups),
        share.to_text().lower(),
        " ".join(groups).replace("0", "o").replace("1", "l"),
        paper.replace("\n", "\r\n"),
    ):
        assert Share.from_text(text) == share
    assert re.fullmatch(rf"{MARK}( [{ALPHABET}]{{5}})+( [{ALPHABET}]{{2,5}})?", share.to_text())


@given(data=st.data())
@settings(max_examples=300)
def test_one_wrong_character_is_found_in_its_group(shares, data):
    groups = data.draw(st.sampled_from(shares)).groups()
    place = data.draw(st.integers(0, len(groups) - 1))
    at = data.draw(st.integers(0, len(groups[place]) - 1))
    wrong = data.draw(st.sampled_from(ALPHABET.replace(groups[place][at], "")))
    groups[place] = groups[place][:at] + wrong + groups[place][at + 1 :]
    with pytest.raises(Malformed, match=f"^group {place + 1} of the share is mistyped"):
        Share.from_text(" ".join(groups))


@given(data=st.data())
def test_two_exchanged_characters_are_found_in_their_group(shares, data):
    groups = data.draw(st.sampled_from(shares)).groups()
    place = data.draw(st.integers(0, len(groups) - 1))
    i, j = data.draw(
        st.permutations(range(len(groups[place])))
        .map(lambda p: sorted(p[:2]))
        .filter(lambda p: groups[place][p[0]] != groups[place][p[1]])
    )
    group = list(groups[place])
    group[i], group[j] = group[j], group[i]
    groups[place] = "".join(group)
    with pytest.raises(Malformed, match=f"^group {place + 1} of the share is mistyped"):
        Share.from_text(" ".join(groups))


def test_several_wrong_groups_are_all_named(shares):
    groups = shares[0].groups()
    for place in (2, 8):
        groups[place] = ("1" if groups[place][0] == "0" else "0") + groups[place][1:]
    with pytest.raises(Malformed, match="group 3, 9 of the share is mistyped"):
        Share.from_text(" ".join(groups))


@pytest.mark.parametrize("place", [0, 4, 15])
def test_a_missing_doubled_or_moved_group_is_named_by_its_place(shares, place):
    groups = shares[0].groups()
    missing = groups[:place] + groups[place + 1 :]
    doubled = groups[: place + 1] + groups[place:]
    for text, first in ((missing, place + 1), (doubled, place + 2)):
        with pytest.raises(Malformed, match=f"from group {first} of the share on"):
            Share.from_text(" ".join(text))
    moved = groups.copy()
    moved[place], moved[place + 1] = moved[place + 1], moved[place]
    with pytest.raises(Malformed, match=f"group {place + 1}, {place + 2} of the share"):
        Share.from_text(" ".join(moved))


def test_a_missing_character_or_one_that_no_share_uses_is_named(shares):
    groups = shares[0].groups()
    with pytest.raises(Malformed, match="group 5 of the share has 4 characters"):
        Share.from_text(" ".join([*groups[:4], groups[4][:4], *groups[5:]]))
    with pytest.raises(Malformed, match=r"group 7 of the share has the character 'U'"):
        Share.from_text(" ".join([*groups[:6], "U" + groups[6][1:], *groups[7:]]))


def test_a_share_without_its_end_is_refused(shares):
    groups = shares[0].groups()
    for kept in range(1, len(groups)):
        with pytest.raises(Malformed, match=r"the end may be missing|mistyped"):
            Share.from_text(" ".join(groups[:kept]))


def test_many_mistakes_in_one_group_that_fool_its_check_are_caught_by_the_whole(shares):
    groups = shares[0].groups()
    rivals = [
        group
        for symbols in itertools.product(ALPHABET, repeat=2)
        for check in ALPHABET
        if (group := "".join(symbols) + groups[3][2:4] + check) != groups[3]
        and guardians._check(3, [ALPHABET.index(c) for c in group[:4]]) == ALPHABET.index(check)
    ]
    assert len(rivals) == 1023
    for rival in rivals[::50]:
        with pytest.raises(Malformed, match="not the whole"):
            Share.from_text(" ".join([*groups[:3], rival, *groups[4:]]))


def test_a_share_of_another_kind_is_refused_by_name(shares):
    with pytest.raises(Malformed, match="kind DIPTYCH-SHARE-2, this software knows DIPTYCH-SHARE-1"):
        Share.from_text(shares[0].to_text().replace(MARK, "DIPTYCH-SHARE-2"))


def made_by_hand(numbers: bytes, label: bytes = b"") -> str:
    body = bytes(5) + numbers + bytes(40) + label
    data = body + guardians._checksum(body)
    symbols = guardians._to_symbols(data)
    pieces = [symbols[i : i + 4] for i in range(0, len(symbols), 4)]
    return " ".join(
        "".join(ALPHABET[s] for s in (*piece, guardians._check(place, piece)))
        for place, piece in enumerate(pieces)
    )


@pytest.mark.parametrize(
    ("numbers", "label"),
    [
        ((1, 3, 1), b""),
        ((4, 3, 1), b""),
        ((2, 17, 1), b""),
        ((2, 3, 0), b""),
        ((2, 3, 4), b""),
        ((2, 3, 1), b"\xff"),
        ((2, 3, 1), b"a\nb"),
        ((2, 3, 1), b"\x1b[2J"),
    ],
)
def test_a_hostile_share_with_sound_checksums_is_refused(numbers, label):
    with pytest.raises(Malformed, match="cannot be"):
        Share.from_text(made_by_hand(bytes(numbers), label))
    Share.from_text(made_by_hand(bytes((2, 3, 1)), b"ok"))


@given(text=st.one_of(st.text(max_size=200), st.text(ALPHABET + " -\n", max_size=300)))
def test_no_text_ends_in_anything_but_a_refusal(text):
    with pytest.raises(Malformed):
        Share.from_text(text)
