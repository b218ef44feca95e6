"""Access policies: monotone formulas over attributes, their canonical text, and secret sharing over them.

    policy    = group *( "or" group )
    group     = operand *( "and" operand )
    operand   = attribute | "(" policy ")" | number "of" "(" policy *( "," policy ) ")"
    attribute = such as role:doctor, org:st-mary, patient:3f2a, or time-bound: status:active@2026w47

There is no negation: a key that lacks an attribute proves nothing about its holder. A time-bound attribute asks
for its week or a later one (`crypto.epoch`).

A parsed policy is normal: `and` is a gate n of n, `or` a gate 1 of n, gates of the same of these two kinds
are merged, their repeated children dropped, gates of one child dropped, and children sorted by their text. So
policies that differ in order, spacing, parentheses and such repetitions alone are equal and have one text, their
identifier. Elsewhere repeated children stay: `2 of (a:x, a:x, b:y)` counts them.

Everything is bounded (the `MAX_` constants), hence so is the recursion over the tree. Secret sharing: Shamir
(CACM 1979) at each gate, as in Benaloh and Leichter (CRYPTO '88).
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from typing import NoReturn, Protocol, Self, TypeVar

from crypto import epoch
from crypto.errors import Malformed, PolicyError

MAX_TEXT = 16 << 10
"""Characters of a policy, as written and in canonical form."""
MAX_LEAVES = 256
"""Leaves of a policy; a time-bound attribute makes `epoch.DIGITS` of them."""
MAX_NESTING = 32
"""Parentheses open at once."""
MAX_ATTRIBUTE = 128
"""Characters of an attribute."""

_ATTRIBUTE = re.compile(r"[a-z][a-z0-9-]*:[A-Za-z0-9._@-]+")
_ATTRIBUTE_HELP = (
    "write kind:value such as role:doctor, the kind in lower case, "
    f"at most {MAX_ATTRIBUTE} letters, digits and . _ @ -"
)
_TOKEN = re.compile(r"[A-Za-z0-9._@:-]+|[ \t\r\n]+|.", re.DOTALL)
_WORD = re.compile(r"[A-Za-z0-9._@:-]+")
_NUMBER = re.compile(r"[0-9]+")
_WORDS = ("and", "or", "of", "(", ")", ",")
_END = "the end"


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute that is held or not; its leaves are the `epoch.asked` parts, of which one must be held."""

    name: str

    @property
    def leaves(self) -> tuple[str, ...]:
        return epoch.asked(self.name)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A gate that opens when at least `k` of its children do."""

    k: int
    children: "tuple[Node, ...]"

    @property
    def is_or(self) -> bool:
        return self.k == 1

    @property
    def is_and(self) -> bool:
        return self.k == len(self.children)


Node = Attribute | Threshold


class Additive(Protocol):
    """An element of an abelian group, written with a plus."""

    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...


V = TypeVar("V", bound=Additive)


@dataclass(frozen=True, slots=True)
class Policy:
    """A normal policy, made by `parse`; `str()` gives its canonical text.

    `leaves` are what CP-ABE shares a secret among, in the order of that text: its attributes, or their parts.
    """

    root: Node
    leaves: tuple[str, ...] = field(compare=False)
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text

    def satisfied(self, attributes: Collection[str]) -> bool:
        """Whether a holder of exactly `attributes` meets the policy."""
        return _is_satisfied(self.root, _parts(attributes))


def parse(text: str) -> Policy:
    """The policy, or `PolicyError` with the column (from 1) of the first mistake."""
    return _policy(_Parser(text).parse())


def either(*policies: str) -> str:
    """The canonical text of "one of these policies is met".

    Raises `PolicyError` if there is none, one does not parse, or together they are too large.
    """
    if not policies:
        raise PolicyError("there is no policy to choose from; give at least one", 1)
    return str(_policy(_gate(1, [parse(text).root for text in policies])))


def check_attribute(name: str) -> str:
    """`name`, or `Malformed` if it is no attribute."""
    if len(name) > MAX_ATTRIBUTE or not _ATTRIBUTE.fullmatch(name):
        raise Malformed(f"{name[:MAX_ATTRIBUTE]!r} is no attribute; {_ATTRIBUTE_HELP}")
    epoch.check_week(name)
    return name


def share(policy: Policy, secret: int, random: Callable[[], int], modulus: int) -> list[int]:
    """One share of `secret` for each leaf: those of a satisfying set determine it, others tell nothing of it.

    `random` draws uniform numbers below the prime `modulus`, at most len(policy.leaves) - 1 of them.
    """
    return [part % modulus for part in spread(policy, secret, random)]


def spread(policy: Policy, secret: V, random: Callable[[], V]) -> list[V]:
    """As `share`, for a secret and draws of any abelian group whose elements have at least a prime order > `MAX_LEAVES`."""
    shares: list[V] = []

    def walk(node: Node, value: V) -> None:
        if isinstance(node, Attribute):
            shares.extend([value] * len(node.leaves))
            return
        for child, part in zip(node.children, _split(node, value, random), strict=True):
            walk(child, part)

    walk(policy.root, secret)
    return shares


def coefficients(policy: Policy, attributes: Collection[str], modulus: int) -> dict[int, int] | None:
    """Weights by leaf position (from 0) under which shares of a smallest satisfying set give the secret.

    None if `attributes` do not satisfy the policy. Only gates other than `and` and `or` make a weight
    other than 1.
    """
    held = _parts(attributes)
    positions = count()

    def walk(node: Node) -> dict[int, int] | None:
        if isinstance(node, Attribute):
            found = [position for part, position in zip(node.leaves, positions, strict=False) if part in held]
            return {found[0]: 1} if found else None
        walked = [(index, walk(child)) for index, child in enumerate(node.children, 1)]
        open_children = [(index, weights) for index, weights in walked if weights is not None]
        if len(open_children) < node.k:
            return None
        chosen = dict(sorted(open_children, key=lambda child: len(child[1]))[: node.k])
        return {
            position: weight * factor % modulus
            for index, factor in _factors(node, list(chosen), modulus).items()
            for position, weight in chosen[index].items()
        }

    return walk(policy.root)


def _split(gate: Threshold, value: V, random: Callable[[], V]) -> list[V]:
    """The parts of `value` for the children: copies, summands, or values of a polynomial at 1, 2, ...

    The polynomial is the one whose value and forward differences at 0 are `value` and the draws, so that it takes
    additions alone.
    """
    if gate.is_or:
        return [value] * len(gate.children)
    draws = [random() for _ in range(gate.k - 1)]
    if gate.is_and:
        for draw in draws:
            value = value - draw
        return [*draws, value]
    differences, parts = [value, *draws], []
    for _ in gate.children:
        for order in range(gate.k - 1):
            differences[order] = differences[order] + differences[order + 1]
        parts.append(differences[0])
    return parts


def _factors(gate: Threshold, indices: list[int], modulus: int) -> dict[int, int]:
    """By child index (from 1), the weights under which parts of `_split` add up: one, or Lagrange's."""
    if gate.is_or or gate.is_and:
        return dict.fromkeys(indices, 1)
    factors = {}
    for i in indices:
        numerator = denominator = 1
        for j in indices:
            if j != i:
                numerator = numerator * j % modulus
                denominator = denominator * (j - i) % modulus
        factors[i] = numerator * pow(denominator, -1, modulus) % modulus
    return factors


def _parts(attributes: Collection[str]) -> frozenset[str]:
    """What a holder of `attributes` holds of the leaves of policies."""
    return frozenset(part for name in attributes for part in epoch.held(name))


def _is_satisfied(node: Node, held: frozenset[str]) -> bool:
    if isinstance(node, Attribute):
        return not held.isdisjoint(node.leaves)
    return sum(_is_satisfied(child, held) for child in node.children) >= node.k


def _gate(k: int, children: list[Node]) -> Node:
    """The normal gate k of `children`, which are normal."""
    if 1 < k < len(children):
        return Threshold(k, tuple(sorted(children, key=_text)))
    distinct: set[Node] = set()
    for child in children:
        is_same_kind = isinstance(child, Threshold) and (child.is_or if k == 1 else child.is_and)
        distinct.update(child.children if isinstance(child, Threshold) and is_same_kind else [child])
    if len(distinct) == 1:
        return distinct.pop()
    return Threshold(1 if k == 1 else len(distinct), tuple(sorted(distinct, key=_text)))


def _text(node: Node) -> str:
    if isinstance(node, Attribute):
        return node.name
    if node.is_or:
        return " or ".join(map(_text, node.children))
    if node.is_and:
        return " and ".join(
            f"({_text(child)})" if isinstance(child, Threshold) and child.is_or else _text(child)
            for child in node.children
        )
    return f"{node.k} of ({', '.join(map(_text, node.children))})"


def _leaves(node: Node) -> tuple[str, ...]:
    if isinstance(node, Attribute):
        return node.leaves
    return tuple(name for child in node.children for name in _leaves(child))


def _policy(root: Node) -> Policy:
    policy = Policy(root, _leaves(root), _text(root))
    if len(policy.leaves) > MAX_LEAVES:
        raise PolicyError(f"the policy has more than {MAX_LEAVES} attributes; make it simpler", 1)
    if len(policy.text) > MAX_TEXT:
        raise PolicyError(f"the policy is longer than {MAX_TEXT} characters; make it simpler", 1)
    return policy


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    column: int

    @property
    def shown(self) -> str:
        return self.text if self.text == _END else f"`{self.text[:40]}`"


class _Parser:
    """Recursive descent over the grammar above, at most `MAX_NESTING` levels of it."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise PolicyError(
                f"the policy is longer than {MAX_TEXT} characters; make it simpler", MAX_TEXT + 1
            )
        self._tokens = _tokens(text)
        self._next = 0
        self._nesting = 0

    def parse(self) -> Node:
        root = self._alternatives()
        if self._token.text != _END:
            self._fail("expected `and`, `or` or the end")
        return root

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _fail(self, sentence: str) -> NoReturn:
        raise PolicyError(f"{sentence}, but found {self._token.shown}", self._token.column)

    def _accepts(self, text: str) -> bool:
        if self._token.text != text:
            return False
        self._next += 1
        return True

    def _alternatives(self) -> Node:
        groups = [self._group()]
        while self._accepts("or"):
            groups.append(self._group())
        return _gate(1, groups)

    def _group(self) -> Node:
        operands = [self._operand()]
        while self._accepts("and"):
            operands.append(self._operand())
        return _gate(len(operands), operands)

    def _operand(self) -> Node:
        token = self._token
        if token.text == "(":
            [inside] = self._enclosed(is_list=False)
            return inside
        if _NUMBER.fullmatch(token.text):
            self._next += 1
            return self._threshold(token)
        if ":" not in token.text:
            self._fail("expected an attribute, `(` or a threshold such as 2 of (a:x, b:y, c:z)")
        self._next += 1
        return Attribute(token.text)

    def _threshold(self, number: _Token) -> Node:
        if not self._accepts("of"):
            self._fail(f"expected `of` after the threshold {number.shown}")
        if self._token.text != "(":
            self._fail("expected `(` after `of`")
        children = self._enclosed(is_list=True)
        if len(number.text) > 3 or not 1 <= int(number.text) <= len(children):
            most = f"{len(children)}, the number of entries in its list"
            raise PolicyError(f"the threshold must be from 1 to {most}, not {number.shown}", number.column)
        return _gate(int(number.text), children)

    def _enclosed(self, is_list: bool) -> list[Node]:
        opening = self._token
        self._next += 1
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise PolicyError(f"parentheses are nested more than {MAX_NESTING} deep", opening.column)
        inside = [self._alternatives()]
        while is_list and self._accepts(","):
            inside.append(self._alternatives())
        if not self._accepts(")"):
            wanted = "`and`, `or`, `,` or `)`" if is_list else "`and`, `or` or `)`"
            self._fail(f"expected {wanted} for the `(` in column {opening.column}")
        self._nesting -= 1
        return inside


def _tokens(text: str) -> list[_Token]:
    """Words and marks with their columns, closed by `_END`; a word with a colon is an attribute."""
    tokens = []
    leaves = 0
    for match in _TOKEN.finditer(text):
        word, column = match.group(), match.start() + 1
        if word[0] in " \t\r\n":
            continue
        leaves += ":" in word
        if leaves > MAX_LEAVES:
            raise PolicyError(f"the policy has more than {MAX_LEAVES} attributes; make it simpler", column)
        _check_word(word, column)
        tokens.append(_Token(word, column))
    return [*tokens, _Token(_END, len(text) + 1)]


def _check_word(word: str, column: int) -> None:
    if word in _WORDS or _NUMBER.fullmatch(word):
        return
    if word.lower() in _WORDS:
        raise PolicyError(f"write `{word.lower()}` in lower case", column)
    if not _WORD.fullmatch(word):
        raise PolicyError(f"the character {word!a} has no place in a policy", column)
    try:
        check_attribute(word)
    except Malformed as error:
        raise PolicyError(str(error), column) from None
