import re
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto import epoch
from crypto.errors import Malformed
from crypto.policy import check_attribute, parse

WEEK_MS = 7 * 86_400_000
first, last = date(2019, 12, 30), date(2097, 12, 29)
days = st.dates(first, last)


def iso(day: date) -> str:
    year, week, _ = day.isocalendar()
    return f"{year}w{week:02}"


def ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def test_the_week_of_a_time_is_the_iso_week_in_utc_from_its_first_to_its_last_millisecond():
    for offset in range(0, (last - first).days, 7):
        monday, sunday = first + timedelta(offset), first + timedelta(offset + 6)
        assert (
            epoch.week_at(ms(monday)) == epoch.week_at(ms(sunday) + 86_399_999) == iso(monday) == iso(sunday)
        )


@pytest.mark.parametrize("time_ms", [0, -1, ms(first) - 1, ms(date(2098, 1, 6))])
def test_a_clock_far_off_is_refused(time_ms):
    with pytest.raises(Malformed, match="clock"):
        epoch.week_at(time_ms)


@settings(max_examples=300, deadline=None)
@given(asked=days, held=days)
def test_a_week_is_met_by_that_week_and_later_ones_through_exactly_one_part(asked, held):
    policy, certified = f"status:active@{iso(asked)}", f"status:active@{iso(held)}"
    common = set(epoch.asked(policy)) & set(epoch.held(certified))
    assert len(common) == (iso(held) >= iso(asked))
    assert parse(policy).satisfied([certified]) == (iso(held) >= iso(asked))
    assert len(epoch.asked(policy)) == epoch.DIGITS
    assert len(epoch.held(certified)) <= epoch.MAX_PARTS


def test_every_week_that_there_is_can_be_named_and_no_other():
    good = {iso(first + timedelta(offset)) for offset in range(0, (last - first).days, 7)}
    for year in (*range(2018, 2031), 2096, 2097, 2098):
        for week in range(56):
            text = f"{year}w{week:02}"
            if text in good:
                assert check_attribute(f"a:b@{text}")
            else:
                with pytest.raises(Malformed, match=re.escape(text)):
                    check_attribute(f"a:b@{text}")


def test_parts_are_no_attributes_and_differ_between_attributes():
    parts = [*epoch.held("a:b@2026w47"), *epoch.asked("a:b@2026w47")]
    for part in parts:
        with pytest.raises(Malformed):
            check_attribute(part)
    assert not set(parts) & {*epoch.held("a:c@2026w47"), *epoch.asked("a:b-@2026w47")}
    assert not parse("a:b@2026w47").satisfied(["a:c@2027w47", "a:b", "a:b@2026w46", "a:b@week"])


def test_an_attribute_without_a_week_is_its_own_part_even_when_it_has_an_at_sign():
    for name in ("role:doctor", "user:ann@st-mary.org", "a:b@week", "a:b@2026w99"):
        assert epoch.held(name) == epoch.asked(name) == (name,)


def test_every_week_is_replaced_in_policies_and_attributes_and_nothing_else_is():
    assert (
        epoch.in_week("role:doctor and status:active@week or (a:week@week)", "2026w47")
        == "role:doctor and status:active@2026w47 or (a:week@2026w47)"
    )
    kept = "a:b@weekly and a:b@week.x or a:b@week@week-end and a:b@2026w01"
    assert epoch.in_week(kept, "2026w47") == kept
    assert epoch.renewed("status:active@2026w47", "2026w48") == "status:active@2026w48"
    assert epoch.renewed("user:ann@st-mary.org", "2026w48") == "user:ann@st-mary.org"
    assert [epoch.is_bound(name) for name in ("a:b@2026w47", "a:b", "a:b@x")] == [True, False, False]


def test_policies_that_name_other_weeks_are_other_policies():
    assert parse("a:b@2026w47") != parse("a:b@2026w48")
    assert str(parse("a:b@2026w48 and a:b@2026w47")) == "a:b@2026w47 and a:b@2026w48"
