"""Valid objects of any wire type, made up from the type itself: bounds, lengths, literals and patterns are in it."""

import random
import re
from typing import Any

from msgspec import inspect

WORDS = ("role:doctor", "storage", "n1", "m0", "00" * 32, "http://h", "h:1", "2026-11-22", "a", "")


def example(kind: Any, rng: random.Random) -> Any:
    """A value of a type as msgspec knows it; the same for the same state of `rng`."""
    return _value(inspect.type_info(kind), rng, 8)


def _value(t: Any, rng: random.Random, depth: int) -> Any:
    """At most `depth` levels of what may nest without end."""
    match t:
        case inspect.StructType():
            return t.cls(**{f.name: _value(f.type, rng, depth - 1) for f in t.fields})
        case inspect.UnionType():
            plain = [u for u in t.types if not isinstance(u, inspect.StructType | inspect.VarTupleType)]
            return _value(rng.choice(t.types if depth > 0 else plain or t.types), rng, depth)
        case inspect.LiteralType():
            return rng.choice(t.values)
        case inspect.IntType():
            low = max(t.ge if t.ge is not None else 0, t.gt + 1 if t.gt is not None else 0)
            most = min(t.le if t.le is not None else 1 << 40, t.lt - 1 if t.lt is not None else 1 << 40)
            return min(most, low + rng.choice((0, 1, 2, 7, 1000)))
        case inspect.BytesType():
            return rng.randbytes(_length(t, rng, 40))
        case inspect.StrType():
            words = [w for w in WORDS if len(w) >= (t.min_length or 0) and re.search(t.pattern or "", w)]
            return rng.choice(words)[: t.max_length]
        case inspect.VarTupleType():
            count = _length(t, rng, 2) if depth > 0 else t.min_length or 0
            return tuple(_value(t.item_type, rng, depth - 1) for _ in range(count))
        case inspect.TupleType():
            return tuple(_value(item, rng, depth - 1) for item in t.item_types)
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.NoneType():
            return None
    raise NotImplementedError(f"no example of {t}")


def _length(t: Any, rng: random.Random, usual: int) -> int:
    least = t.min_length or 0
    return min(t.max_length if t.max_length is not None else usual, max(least, rng.randrange(usual + 1)))
