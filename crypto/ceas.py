"""Content extraction access structures: which selections of parts a doctor lets be cut from a record (CEAS of Steinfeld, Bull
and Zheng, "Content Extraction Signatures", ICISC 2001, which the double-blockchain paper leaves out).

A rule says: if `when` holds for the kept parts, then `then` holds too. Both are monotone formulas of threshold gates. A
selection is allowed if all rules of the record allow it. Since neither formula can be broken by keeping more, the complete
record is always allowed; and every set of selections that has the complete record in it can be written in rules (a forbidden
selection S, alone: if all of S, then any of the others).

As text, for people, with names of parts for indices:

    rule    = "together(" list ")" | "never(" list ")" | "if(" formula "," formula ")" | formula
    formula = name | "all(" list ")" | "any(" list ")" | "least(" number "," list ")"
    list    = formula *( "," formula )

`together(m2, m3)`: both or neither. `never(m8)`: only in the complete record. `least(2, m4, m5, m6)`: two or more of the three.
`if(m6, any(m7, all(m8, m9)))`: who sees m6 sees m7, or m8 and m9. A name can stand for several parts, which then all count.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NoReturn

import msgspec

from crypto.codec import Wire
from crypto.errors import Malformed

MAX_PARTS = 4096
MAX_GATES = 256
"""Gates of one rule."""
MAX_NESTING = 8
MAX_TEXT = 64 << 10

PartSet = Annotated[bytes, msgspec.Meta(max_length=MAX_PARTS // 8)]
"""A set of part indices, as short as it can be: i is in it if bit i % 8 of byte i // 8 is set."""


def part_set(indices: Iterable[int]) -> bytes:
    """The `PartSet` of `indices`, each from 0 below `MAX_PARTS`, or `Malformed`."""
    mask = 0
    for i in indices:
        if not 0 <= i < MAX_PARTS:
            raise Malformed(f"there is no part {i}: parts are numbered from 0 and at most {MAX_PARTS}")
        mask |= 1 << i
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def mask_of(parts: bytes) -> int:
    """A `PartSet` as an integer whose bit i says whether i is in it."""
    return int.from_bytes(parts, "little")


def members(parts: bytes) -> tuple[int, ...]:
    """The indices in a `PartSet`, ascending."""
    return tuple(i for i, bit in enumerate(reversed(f"{mask_of(parts):b}")) if bit == "1")


def is_part_set(parts: bytes, count: int) -> bool:
    """Whether `parts` is a `PartSet` in its one form, of parts of a record of `count`."""
    return parts[-1:] != b"\0" and mask_of(parts).bit_length() <= count


class Gate(Wire, frozen=True):
    """Holds if at least `k` of its parts and gates do: a part if it is kept, a gate if it holds itself."""

    k: Annotated[int, msgspec.Meta(ge=0, le=MAX_PARTS + MAX_GATES)]
    parts: PartSet
    gates: Annotated[tuple["Gate", ...], msgspec.Meta(max_length=MAX_GATES)]

    def holds(self, kept: int) -> bool:
        """Whether it holds for the parts whose bits are set in `kept`."""
        hits = (mask_of(self.parts) & kept).bit_count() + sum(gate.holds(kept) for gate in self.gates)
        return hits >= self.k

    @property
    def size(self) -> int:
        return mask_of(self.parts).bit_count() + len(self.gates)


ALWAYS = Gate(0, b"", ())


class Rule(Wire, frozen=True):
    """If `when` holds for the kept parts, `then` must; `ALWAYS` as `when` makes `then` unconditional."""

    when: Gate
    then: Gate

    def allows(self, kept: int) -> bool:
        """Whether the parts whose bits are set in `kept` may stand alone, for a rule that `check` accepts."""
        return not self.when.holds(kept) or self.then.holds(kept)

    def check(self, count: int) -> None:
        """`Malformed` unless the rule makes sense for a record of `count` parts and is within the bounds."""
        pending = [(self.then, 1)] if self.when == ALWAYS else [(self.then, 1), (self.when, 1)]
        seen = 0
        while pending:
            gate, depth = pending.pop()
            seen += 1
            if seen > MAX_GATES or depth > MAX_NESTING:
                raise Malformed(
                    f"an extraction rule has more than {MAX_GATES} gates, or more than {MAX_NESTING} inside one another: "
                    "make several rules of it"
                )
            if not is_part_set(gate.parts, count):
                raise Malformed(
                    "an extraction rule names a part that the record does not have, or in a strange form"
                )
            if not 1 <= gate.k <= gate.size:
                raise Malformed(
                    f"an extraction rule asks for {gate.k} of {gate.size}: ask for 1 up to all of them"
                )
            pending += [(inner, depth + 1) for inner in gate.gates]


def together(parts: bytes) -> Rule:
    """All of `parts` are kept, or none."""
    return Rule(Gate(1, parts, ()), Gate(mask_of(parts).bit_count(), parts, ()))


def never(parts: bytes, count: int) -> Rule:
    """None of `parts` is kept in anything smaller than the complete record of `count` parts."""
    return Rule(Gate(1, parts, ()), Gate(count, part_set(range(count)), ()))


def least(k: int, parts: bytes) -> Rule:
    """At least `k` of `parts` are kept."""
    return Rule(ALWAYS, Gate(k, parts, ()))


def text(rule: Rule, count: int, name: Callable[[int], str]) -> str:
    """The rule for people, with `name` giving the names of parts; `parse` reads it back."""
    when, then = rule.when, rule.then
    subject = ", ".join(map(name, members(when.parts)))
    if rule == never(when.parts, count):
        return f"never({subject})"
    if rule == together(when.parts):
        return f"together({subject})"
    if when == ALWAYS:
        return _formula(then, name)
    return f"if({_formula(when, name)}, {_formula(then, name)})"


def _formula(gate: Gate, name: Callable[[int], str]) -> str:
    return _call(gate, name) if gate.size > 1 or gate.gates else name(members(gate.parts)[0])


def _call(gate: Gate, name: Callable[[int], str]) -> str:
    listed = ", ".join([*map(name, members(gate.parts)), *(_call(inner, name) for inner in gate.gates)])
    if gate.k == gate.size:
        return f"all({listed})"
    return f"any({listed})" if gate.k == 1 else f"least({gate.k}, {listed})"


def parse(text: str, names: Mapping[str, Collection[int]], count: int) -> Rule:
    """The rule that `text` says, for a record of `count` parts whose `names` stand for one index or more each.

    Raises `Malformed` with the column (from 1) of the first mistake, or if what it says makes no sense.
    """
    if len(text) > MAX_TEXT:
        raise Malformed(f"the extraction rule is longer than {MAX_TEXT} characters: make several rules of it")
    tokens = [_Token(m.group(), m.start() + 1) for m in _TOKEN.finditer(text)] + [_Token(_END, len(text) + 1)]
    term, after = _term(tokens, 0, 0)
    if tokens[after].text != _END:
        tokens[after].fail("expected the end")
    rule = _rule(term, names, count)
    rule.check(count)
    return rule


_TOKEN = re.compile(r"[A-Za-z0-9_-]+|[^ \t\r\n]")
_WORD = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER = re.compile(r"[0-9]{1,4}")
_END = "the end"


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    column: int

    def fail(self, sentence: str) -> NoReturn:
        raise Malformed(f"extraction rule: {sentence}, but found {self.text[:40]!r} (column {self.column})")


@dataclass(frozen=True, slots=True)
class _Term:
    """A word, or a function of the terms `inside` its parentheses."""

    word: _Token
    inside: "tuple[_Term, ...]"

    @property
    def function(self) -> str | None:
        return self.word.text if self.inside else None


def _term(tokens: Sequence[_Token], at: int, depth: int) -> tuple[_Term, int]:
    """The term that begins at token `at`, and where it ends."""
    word = tokens[at]
    if not _WORD.fullmatch(word.text):
        word.fail("expected a part or a function such as all(…)")
    at += 1
    inside: list[_Term] = []
    if tokens[at].text == "(":
        if depth > MAX_NESTING:
            tokens[at].fail(f"expected at most {MAX_NESTING} parentheses inside one another")
        while not inside or tokens[at].text == ",":
            term, at = _term(tokens, at + 1, depth + 1)
            inside.append(term)
        if tokens[at].text != ")":
            tokens[at].fail("expected `,` or `)`")
        at += 1
    return _Term(word, tuple(inside)), at


def _rule(term: _Term, names: Mapping[str, Collection[int]], count: int) -> Rule:
    match term.function:
        case "together":
            return together(_parts(term.inside, names))
        case "never":
            return never(_parts(term.inside, names), count)
        case "if":
            if len(term.inside) != 2:
                term.word.fail("expected two formulas, as in if(m6, all(m7, m8))")
            return Rule(_gate(term.inside[0], names), _gate(term.inside[1], names))
        case _:
            return Rule(ALWAYS, _gate(term, names))


def _gate(term: _Term, names: Mapping[str, Collection[int]]) -> Gate:
    entries = term.inside
    if term.function == "least":
        number, *rest = entries
        entries = tuple(rest)
        if not _NUMBER.fullmatch(number.word.text) or number.inside or not entries:
            number.word.fail("expected a number and a list, as in least(2, m4, m5, m6)")
    gates = tuple(_gate(entry, names) for entry in entries if entry.inside)
    gate = Gate(1, _parts([entry for entry in entries or [term] if not entry.inside], names), gates)
    match term.function:
        case "any":
            return gate
        case "all" | None:
            return msgspec.structs.replace(gate, k=gate.size)
        case "least":
            return msgspec.structs.replace(gate, k=int(term.inside[0].word.text))
        case _:
            term.word.fail("expected one of all, any, least (and, outermost alone, if, together, never)")


def _parts(terms: Sequence[_Term], names: Mapping[str, Collection[int]]) -> bytes:
    for term in terms:
        if term.inside or term.word.text not in names:
            term.word.fail("expected the name of a part of the record")
    return part_set(i for term in terms for i in names[term.word.text])
