"""The quorum table of the protocol, and the two facts that its safety and liveness rest on."""

import pytest

from protocol.quorum import MAX_MEMBERS, quorum


@pytest.mark.parametrize(
    ("n", "mode", "votes", "liars", "down"),
    [
        (3, "majority", 2, 0, 1),
        (3, "bft", 3, 2, 0),
        (4, "majority", 3, 1, 1),
        (4, "bft", 3, 1, 1),
        (5, "majority", 3, 0, 2),
        (5, "bft", 4, 2, 1),
        (7, "majority", 4, 0, 3),
        (7, "bft", 5, 2, 2),
        (10, "majority", 6, 1, 4),
        (10, "bft", 7, 3, 3),
    ],
)
def test_quorums_and_what_they_bear_are_those_of_the_table(n, mode, votes, liars, down):
    q = quorum(n, mode)
    assert (q, 2 * q - n - 1, n - q) == (votes, liars, down)


@pytest.mark.parametrize("mode", ["bft", "majority"])
@pytest.mark.parametrize("n", range(1, MAX_MEMBERS + 1))
def test_any_two_quorums_share_a_member_and_all_members_together_are_one(n, mode):
    q = quorum(n, mode)
    assert n < 2 * q
    assert q <= n


@pytest.mark.parametrize("n", range(1, MAX_MEMBERS + 1))
def test_a_bft_quorum_bears_a_third_of_liars_and_still_forms_without_them(n):
    q, liars = quorum(n, "bft"), (n - 1) // 3
    assert 2 * q - n > liars
    assert n - q >= liars
