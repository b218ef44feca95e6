"""Recovery shares: a person's root secret split among guardians, in a form that people print, keep and type in again.

Any `needed` of `total` shares give the secret (`crypto.shamir`). Beside it a digest is split, of the set, its numbers
and the whole sharing polynomial: a recovered secret proves itself, and where more shares than needed are at hand,
altered ones are found. (A digest of the secret alone would not do: two guardians can alter their shares so that the
secret still comes out, and honest ones look altered.) A share says which set it belongs to, how many are needed, its
own number and a label; of the secret it says nothing. Whoever gathers `needed` of them holds the secret.

In bytes a share is the set id (5), how many are needed, how many there are, its number (1 each), the share of the
secret (32) and of the digest (8), the label (UTF-8), and a checksum: the first 4 bytes of SHA-256 over
`diptych/1/guardian-share` 00 and all before. Printed, it is the mark `DIPTYCH-SHARE-1`, which names this format, and
these bytes, filled up with zero bits, in groups of five characters of Crockford's base32 (no I, L, O, U; case and those
look-alikes do not matter). Four characters of a group carry 20 bits, fewer in the last one. The fifth is a check over
GF(32), of x^5 + x^2 + 1: the group's place from 0, plus x times the first character, x^2 times the second, and so on.
So one wrong character or two exchanged ones are always found in their own group; a group that is missing, doubled or
moved, from its place on. All that guards against mistakes; against malice there is the digest.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import ceil

from crypto import shamir
from crypto.errors import Denied, Malformed, Unauthentic
from crypto.sign import domain_tag

MARK = "DIPTYCH-SHARE-1"
SECRET_BYTES = 32
MAX_GUARDIANS = 16
MAX_LABEL = 24
"""Bytes of a label in UTF-8."""

_SET_BYTES, _DIGEST_BYTES, _CHECKSUM_BYTES = 5, 8, 4
_VALUE_BYTES = SECRET_BYTES + _DIGEST_BYTES
_FIXED_BYTES = _SET_BYTES + 3 + _VALUE_BYTES + _CHECKSUM_BYTES
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOKALIKES = str.maketrans("OIL", "011")
_GROUP = 4
"""Characters of a group before its check character. The longest share has 31 groups, so a place fits in GF(32)."""


@dataclass(frozen=True)
class Share:
    """Share `number` of `total`, of which `needed` recover the secret; `set_id` (5 random bytes) names the split."""

    set_id: bytes
    needed: int
    total: int
    number: int
    label: str
    value: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """How error messages call it."""
        return f"share {self.number}" + (f" ({self.label})" if self.label else "")

    def groups(self) -> list[str]:
        """The printed form after the mark: 21 to 31 groups of 5 characters, the last perhaps shorter."""
        body = self.set_id + bytes([self.needed, self.total, self.number]) + self.value + self.label.encode()
        symbols = _to_symbols(body + _checksum(body))
        pieces = [symbols[start : start + _GROUP] for start in range(0, len(symbols), _GROUP)]
        return [
            "".join(_ALPHABET[s] for s in (*piece, _check(place, piece)))
            for place, piece in enumerate(pieces)
        ]

    def to_text(self) -> str:
        """Mark and groups in one line, of characters that a QR code holds densely (its alphanumeric mode)."""
        return " ".join([MARK, *self.groups()])

    @classmethod
    def from_text(cls, text: str) -> "Share":
        """The share in `text`: everything behind the mark, or all of it if there is no mark.

        Spaces, line ends and hyphens between groups do not matter. `Malformed` names the groups that were mistyped.
        """
        groups = _groups_in(text)
        symbols: list[int] = []
        wrong = []
        for place, group in enumerate(groups):
            *piece, check = [_ALPHABET.index(character) for character in group]
            symbols += piece
            if check != _check(place, piece):
                wrong.append(place + 1)
        if wrong:
            raise Malformed(_typo(wrong, len(groups)))
        data = _from_symbols(symbols)
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if (
            not _FIXED_BYTES <= len(data) <= _FIXED_BYTES + MAX_LABEL
            or _to_symbols(data) != symbols
            or checksum != _checksum(body)
        ):
            raise Malformed(
                "each group of the share is sound, but not the whole: the end may be missing, or a group has several "
                "mistakes; compare all of it with the paper"
            )
        return cls._checked(body)

    @classmethod
    def _checked(cls, body: bytes) -> "Share":
        set_id, numbers, rest = body[:_SET_BYTES], body[_SET_BYTES : _SET_BYTES + 3], body[_SET_BYTES + 3 :]
        needed, total, number = numbers
        try:
            label = rest[_VALUE_BYTES:].decode()
        except UnicodeDecodeError:
            label = "\0"
        if not 2 <= needed <= total <= MAX_GUARDIANS or not 1 <= number <= total or not _is_label(label):
            raise Malformed("the share was not made by this software: its numbers or its label cannot be")
        return cls(set_id, needed, total, number, label, rest[:_VALUE_BYTES])


@dataclass(frozen=True)
class Recovered:
    """The secret, and the shares among those given that were altered since the split."""

    secret: bytes = field(repr=False)
    altered: tuple[Share, ...]


def split_secret(
    secret: bytes, labels: Sequence[str], needed: int, random: Callable[[int], bytes] = os.urandom
) -> list[Share]:
    """One share of `secret` (32 bytes) for each guardian in `labels`, any `needed` of which recover it.

    `Malformed` unless there are 2 to `MAX_GUARDIANS` guardians, 2 to all of them are needed, and the labels are
    printable, distinct unless empty, and at most `MAX_LABEL` bytes long.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"the secret to split has {SECRET_BYTES} bytes")
    total = len(labels)
    if not 2 <= needed <= total <= MAX_GUARDIANS:
        raise Malformed(
            f"choose 2 to {MAX_GUARDIANS} guardians and need 2 to all of them, not {needed} of {total}: "
            "with 1 needed, each guardian alone would hold the keys"
        )
    if bad := next((label for label in labels if not _is_label(label)), None):
        raise Malformed(f"the label {bad[:40]!r} must be printable and at most {MAX_LABEL} bytes long")
    if len(set(filter(None, labels))) != len(list(filter(None, labels))):
        raise Malformed("two guardians have the same label; tell them apart")
    set_id = random(_SET_BYTES)
    heads = shamir.split(secret, needed, total, random)
    digest = _digest(set_id, needed, total, [secret, *list(heads.values())[: needed - 1]])
    tails = shamir.split(digest, needed, total, random)
    return [Share(set_id, needed, total, x, label, heads[x] + tails[x]) for x, label in enumerate(labels, 1)]


def recover(shares: Sequence[Share]) -> Recovered:
    """The secret that `shares` were made from, proved by the digest inside it.

    With more shares than needed, altered ones are found and named. Raises `Malformed` for shares of different sets or
    one given twice, `Denied` for too few, `Unauthentic` if no `needed` of them belong together unaltered.
    """
    if not shares:
        raise Malformed("no share was given")
    first = shares[0]
    strangers = [share.name for share in shares if share.set_id != first.set_id]
    if strangers:
        raise Malformed(
            f"these shares come from different splits: {', '.join(strangers)} and {first.name} do not belong together; "
            "use shares of one set"
        )
    if len({(share.needed, share.total) for share in shares}) > 1:
        raise Unauthentic(
            "the shares disagree about how many are needed: at least one was altered; leave it out"
        )
    by_number: dict[int, Share] = {}
    for share in shares:
        if share.number in by_number:
            same = by_number[share.number].value == share.value
            raise Malformed(
                f"{share.name} was given twice; each counts once, so ask another guardian"
                if same
                else f"two different shares call themselves number {share.number}; one was altered: leave it out"
            )
        by_number[share.number] = share
    if len(shares) < first.needed:
        raise Denied(
            f"{first.needed} shares are needed and {len(shares)} {'is' if len(shares) == 1 else 'are'} here; "
            f"ask {first.needed - len(shares)} more of the {first.total} guardians"
        )
    for numbers in combinations(sorted(by_number), first.needed):
        some = {number: by_number[number].value for number in numbers}
        polynomial = [shamir.combine(some, at=x)[:SECRET_BYTES] for x in range(first.needed)]
        digest = shamir.combine(some)[SECRET_BYTES:]
        if hmac.compare_digest(digest, _digest(first.set_id, first.needed, first.total, polynomial)):
            altered = tuple(s for s in shares if s.value != shamir.combine(some, at=s.number))
            return Recovered(polynomial[0], altered)
    raise Unauthentic(
        "these shares do not give back what was split: at least one was altered; "
        "with one more guardian's share it can be found out which"
    )


def set_name(set_id: bytes) -> str:
    """A set id as people read it: two groups of four characters."""
    text = "".join(_ALPHABET[s] for s in _to_symbols(set_id))
    return f"{text[:4]}-{text[4:]}"


def _is_label(label: str) -> bool:
    return label.isprintable() and len(label.encode()) <= MAX_LABEL


def _digest(set_id: bytes, needed: int, total: int, polynomial: Sequence[bytes]) -> bytes:
    """Of the values at 0 (the secret) to `needed` - 1, which determine all others."""
    data = domain_tag("guardian-secret") + set_id + bytes([needed, total]) + b"".join(polynomial)
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES]


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(domain_tag("guardian-share") + body).digest()[:_CHECKSUM_BYTES]


# --- the printed form ---------------------------------------------------------------------------------------------


def _check(place: int, piece: Sequence[int]) -> int:
    """The check character of a group: its place plus a different power of x times each character, over GF(32)."""
    check = 0
    for symbol in reversed(piece):
        check ^= symbol
        check = check << 1 ^ (0x25 if check & 0x10 else 0)
    return check ^ place


def _groups_in(text: str) -> list[str]:
    """The groups of a printed share, normalised; `Malformed` says which of them cannot be one."""
    marked = re.findall(r"DIPTYCH-SHARE-\w+", text.upper())
    if marked and marked[-1] != MARK:
        raise Malformed(
            f"the share is of the kind {marked[-1][:40]}, this software knows {MARK} only; update it"
        )
    body = text.upper().rpartition(MARK)[2].translate(_LOOKALIKES)
    groups = re.split(r"[\s-]+", body.strip(" \t\r\n-"))
    if len(groups) == 1:
        groups = re.findall(f".{{1,{_GROUP + 1}}}", groups[0])
    longest = ceil(ceil((_FIXED_BYTES + MAX_LABEL) * 8 / 5) / _GROUP)
    if not groups or len(groups) > longest:
        raise Malformed(f"a share has at most {longest} groups behind the mark {MARK}; give one share alone")
    for place, group in enumerate(groups, 1):
        if unknown := next((c for c in group if c not in _ALPHABET), None):
            raise Malformed(
                f"group {place} of the share has the character {unknown!r}, which no share uses; compare it with the paper"
            )
        is_last = place == len(groups)
        if not (2 if is_last else _GROUP + 1) <= len(group) <= _GROUP + 1:
            raise Malformed(
                f"group {place} of the share has {len(group)} characters instead of {_GROUP + 1}; "
                "compare it with the paper"
            )
    return groups


def _typo(wrong: list[int], count: int) -> str:
    if len(wrong) > 2 and wrong == list(range(wrong[0], count + 1)):
        return (
            f"from group {wrong[0]} of the share on nothing fits its place: a group is missing, doubled or out of order "
            "there; compare it with the paper"
        )
    named = ", ".join(map(str, wrong))
    return f"group {named} of the share is mistyped" + (
        "; compare it with the paper" if len(wrong) == 1 else " (each of them); compare them with the paper"
    )


def _to_symbols(data: bytes) -> list[int]:
    """`data` in pieces of 5 bits, the last filled up with zeros."""
    count = ceil(len(data) * 8 / 5)
    number = int.from_bytes(data, "big") << (5 * count - 8 * len(data))
    return [number >> 5 * place & 31 for place in reversed(range(count))]


def _from_symbols(symbols: Sequence[int]) -> bytes:
    number = 0
    for symbol in symbols:
        number = number << 5 | symbol
    size = len(symbols) * 5 // 8
    return (number >> (5 * len(symbols) - 8 * size)).to_bytes(size, "big")
