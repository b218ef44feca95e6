"""Time-bound attributes: `status:active@2026w47` in a policy asks for `status:active` in that ISO week *or later*.

A key for `status:active@2026w48` therefore meets `status:active@2026w47`, and not `status:active@2026w49`. So whoever is
certified from week to week goes on reading what was sealed in the past, and whose certification ended opens nothing
that is sealed afterwards, with whatever help of the cloud.

CP-ABE knows only attributes that are held or not. A week is a number of `DIGITS` octal digits, and its prefixes stand
for spans of weeks: a policy's leaf asks for any one of the prefixes of its week, a key holds the fewest prefixes that
make up all weeks until its own (the cover of a range by subtrees, as in BSW07's numeric attributes and in NNL, CRYPTO
2001). These *parts* contain a character that no attribute has, hence are never certified by themselves.
"""

import re
from functools import lru_cache

from crypto.errors import Malformed

EVERY_WEEK = "@week"
"""Written for the week that it is when an attribute is issued or a record is sealed."""
DIGITS = 4
MAX_PARTS = 7 * DIGITS
"""Parts that a key holds of one time-bound attribute, at most."""

_FIRST_YEAR, _LAST_YEAR = 2020, 2097
_BOUND = re.compile(r"(.+)@([0-9]+[wW][0-9]+)")
_WEEK = re.compile(r"([0-9]{4})w([0-9]{2})")
_EVERY_WEEK = re.compile(EVERY_WEEK + r"(?![A-Za-z0-9._@:-])")
_DAY_MS = 86_400_000
_MONDAY = 4
"""1970-01-05, in days of Unix time."""


def week_at(time_ms: int) -> str:
    """The ISO week (UTC) of a Unix time in milliseconds, such as 2026w47; `Malformed` outside 2020 to 2097."""
    number = (time_ms // _DAY_MS - _MONDAY) // 7 - _weeks_before(_FIRST_YEAR)
    if number >= 0:
        for year in range(_FIRST_YEAR, _LAST_YEAR + 1):
            if number < _weeks_in(year):
                return f"{year}w{number + 1:02}"
            number -= _weeks_in(year)
    raise Malformed(f"the time lies outside the years {_FIRST_YEAR} to {_LAST_YEAR}; set the clock")


def in_week(text: str, week: str) -> str:
    """A policy or an attribute with each `@week` made the given week."""
    return _EVERY_WEEK.sub(f"@{week}", text)


def renewed(name: str, week: str) -> str:
    """A time-bound attribute moved to the given week; any other as it is."""
    bound = _BOUND.fullmatch(name)
    return f"{bound[1]}@{week}" if bound else name


def is_bound(name: str) -> bool:
    """Whether the attribute is time-bound."""
    return _BOUND.fullmatch(name) is not None


def check_week(name: str) -> None:
    """Raise `Malformed` if the attribute is bound to a week that there is not."""
    bound = _BOUND.fullmatch(name)
    if bound and _number(bound[2]) is None:
        raise Malformed(
            f"{bound[2]} is no week; write a year from {_FIRST_YEAR} to {_LAST_YEAR} and one of its ISO weeks, "
            "such as 2026w47"
        )


@lru_cache(maxsize=4096)
def asked(name: str) -> tuple[str, ...]:
    """The parts of which a policy's leaf `name` asks for one."""
    base, number = _split(name)
    if number is None:
        return (name,)
    digits = f"{number:0{DIGITS}o}"
    return tuple(f"{base}@>{digits[:size]}" for size in range(1, DIGITS + 1))


@lru_cache(maxsize=4096)
def held(name: str) -> tuple[str, ...]:
    """The parts that a key for `name` holds."""
    base, number = _split(name)
    if number is None:
        return (name,)
    digits = f"{number + 1:0{DIGITS}o}"
    return tuple(
        f"{base}@>{digits[:place]}{smaller}"
        for place, digit in enumerate(digits)
        for smaller in range(int(digit))
    )


def _split(name: str) -> tuple[str, int | None]:
    """The attribute without its week, and the number of the week, if it is bound to one that there is."""
    bound = _BOUND.fullmatch(name)
    return (bound[1], _number(bound[2])) if bound else (name, None)


def _number(week: str) -> int | None:
    """How many weeks `week` comes after the first one of `_FIRST_YEAR`, if it is a week."""
    found = _WEEK.fullmatch(week)
    if found is None or not _FIRST_YEAR <= (year := int(found[1])) <= _LAST_YEAR:
        return None
    if not 1 <= (number := int(found[2])) <= _weeks_in(year):
        return None
    return _weeks_before(year) - _weeks_before(_FIRST_YEAR) + number - 1


def _weeks_in(year: int) -> int:
    return _weeks_before(year + 1) - _weeks_before(year)


def _weeks_before(year: int) -> int:
    """Weeks from 1970-01-05 to week 1 of `year`, which is the week that contains the 4th of January."""
    before = year - 1
    leap_days = before // 4 - before // 100 + before // 400 - (1969 // 4 - 1969 // 100 + 1969 // 400)
    return ((year - 1970) * 365 + leap_days + 3 - _MONDAY) // 7
