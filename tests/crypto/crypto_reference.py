"""FABEO and FAME a second time: slow, straight from the papers, over arkworks and the standard library alone.

Nothing here comes from `crypto`. A policy is a tree: an attribute, or (k, children) in the order of the canonical text.
Secret sharing is an explicit matrix, its inversion Gaussian elimination, time-bound attributes count weeks with
`datetime`. Objects are written by the `msgpack` package as docs/cp-abe.md says.
"""

import datetime
import hashlib
from collections import Counter
from functools import cache
from itertools import count
from math import comb

import msgpack
import py_arkworks_bls12381 as ark

R = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
DST = b"DIPTYCH-V01-with-BLS12381G1_XMD:SHA-256_SSWU_RO_"
G, H = ark.G1Point(), ark.G2Point()


# --- groups and bytes ---


def times(point, scalar):
    return point * ark.Scalar.from_be_bytes((scalar % R).to_bytes(32, "big"))


def total(points):
    first, *rest = points
    for point in rest:
        first = first + point
    return first


def gt(pairs):
    """The product of the pairings, as bytes."""
    return bytes.fromhex(str(ark.GT.multi_pairing(*map(list, zip(*pairs, strict=True)))))


@cache
def hashed(domain, name):
    parts = [part.encode() for part in (domain, name)]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return ark.G1Point.hash_to_curve(message, DST)


def joined(points):
    return b"".join(point.to_compressed_bytes() for point in points)


def points(kind, data):
    size = {ark.G1Point: 48, ark.G2Point: 96}[kind]
    return [kind.from_compressed_bytes(data[at : at + size]) for at in range(0, len(data), size)]


def shake(domain, size, *parts):
    return hashlib.shake_256(f"diptych/1/{domain}\0".encode() + msgpack.packb(parts)).digest(size)


def scalars(data):
    """Scalars from 1 to R - 1, of 48 bytes each."""
    return (int.from_bytes(data[at : at + 48], "big") % (R - 1) + 1 for at in range(0, len(data), 48))


# --- policies ---


def week_number(week):
    year, number = map(int, week.split("w"))
    return (datetime.date.fromisocalendar(year, number, 1) - datetime.date(2019, 12, 30)).days // 7


def asked(name):
    base, bound, week = name.partition("@")
    if not bound:
        return [name]
    digits = f"{week_number(week):04o}"
    return [f"{base}@>{digits[: i + 1]}" for i in range(4)]


def held(name):
    base, bound, week = name.partition("@")
    if not bound:
        return [name]
    last = week_number(week)

    def cover(prefix):
        weeks = (
            range(int(prefix.ljust(4, "0"), 8), int(prefix.ljust(4, "7"), 8) + 1) if prefix else range(8**4)
        )
        if weeks[-1] <= last:
            return [prefix]
        if weeks[0] > last:
            return []
        return [part for digit in "01234567" for part in cover(prefix + digit)]

    return [f"{base}@>{prefix}" for prefix in cover("")]


def rows_of(tree):
    """The span program: for each leaf its part of an attribute, and its row by column; column 1 is the secret."""
    fresh = count(2)
    rows = []

    def walk(node, row):
        if isinstance(node, str):
            rows.extend((part, row) for part in asked(node))
            return
        k, children = node
        columns = [next(fresh) for _ in range(k - 1)]
        for x, child in enumerate(children, 1):
            if k == 1:
                walk(child, row)
            elif k == len(children):
                last = {**row, **dict.fromkeys(columns, -1)}
                walk(child, {columns[x - 1]: 1} if x < k else last)
            else:
                walk(child, {**row, **{column: comb(x, j) for j, column in enumerate(columns, 1)}})

    walk(tree, {1: 1})
    return rows


def numbered(rows):
    """For each row, which occurrence of its part it is."""
    seen = Counter()
    for part, _ in rows:
        seen[part] += 1
        yield seen[part]


def weights_of(rows, parts):
    """Weights by row number under which the rows of `parts` add up to column 1 alone, or None."""
    mine = [i for i, (part, _) in enumerate(rows) if part in parts]
    width = max((column for _, row in rows for column in row), default=1)
    system = [
        [rows[i][1].get(column, 0) % R for i in mine] + [int(column == 1)] for column in range(1, width + 1)
    ]
    pivots = []
    for unknown in range(len(mine)):
        found = next((line for line in system[len(pivots) :] if line[unknown]), None)
        if found is None:
            continue
        system.remove(found)
        inverse = pow(found[unknown], -1, R)
        found = [value * inverse % R for value in found]
        system = [[(a - line[unknown] * b) % R for a, b in zip(line, found, strict=True)] for line in system]
        system.insert(len(pivots), found)
        pivots.append(unknown)
    if any(line[-1] for line in system[len(pivots) :]):
        return None
    return {mine[unknown]: line[-1] for unknown, line in zip(pivots, system, strict=False) if line[-1]}


# --- the plain schemes: parts of keys and headers are bytes of points ---


def shares(rows, secret, draws):
    """The inner product of each row with (secret, draws...)."""
    width = max(column for _, row in rows for column in row)
    vector = [secret, *(next(draws) for _ in range(width - 1))]
    return [sum(m * vector[column - 1] for column, m in row.items()) for _, row in rows]


class Fabeo:
    """eprint 2022/1415, the CP-ABE scheme, with e(g1, g2)^alpha = e(A, [y]_2)."""

    suite = "fabeo-bls12381-fo"
    each = 1

    def __init__(self, draws):
        [self.y] = self.secrets = [next(draws)]
        self.a, self.b = hashed("fabeo-secret", ""), hashed("fabeo-base", "")
        self.public = joined([times(H, self.y)])

    def key(self, parts, draws):
        r = next(draws)
        base = times(self.a, self.y) + times(self.b, r)
        own = [times(hashed("fabeo-attribute", part), r) for part in parts]
        return joined([base]), joined(own), joined([times(H, r)])

    def hide(self, rows, draws):
        s = next(draws)
        t = [next(draws) for _ in range(max(numbered(rows)))]
        body = [
            times(self.b, share) + times(hashed("fabeo-attribute", part), t[k - 1])
            for (part, _), k, share in zip(rows, numbered(rows), shares(rows, s, draws), strict=True)
        ]
        hidden = gt([(times(self.a, s), times(H, self.y))])
        return joined(times(H, each) for each in [s, *t]), joined(body), hidden

    def reveal(self, key, parts, rows, weights, seeds, body):
        [base], own, [r] = (
            points(ark.G1Point, key[0]),
            points(ark.G1Point, key[1]),
            points(ark.G2Point, key[2]),
        )
        seeds, body, occurrences = points(ark.G2Point, seeds), points(ark.G1Point, body), list(numbered(rows))
        pairs = [(base, seeds[0])]
        for i, weight in weights.items():
            pairs.append((times(own[parts.index(rows[i][0])], weight), seeds[occurrences[i]]))
            pairs.append((times(body[i], -weight), r))
        return gt(pairs)


class Fame:
    """eprint 2017/807, section 3, with a use of an attribute for each of its occurrences."""

    suite = "fame-bls12381-fo"
    uses = 4
    each = 3 * uses

    def __init__(self, draws):
        self.secrets = [next(draws) for _ in range(7)]
        self.a, self.b, self.d = self.secrets[:2], self.secrets[2:4], self.secrets[4:]
        self.t = [d * a + self.d[2] for d, a in zip(self.d, self.a, strict=False)]
        self.public = joined(times(H, each) for each in (*self.a, *self.t))

    @staticmethod
    def attribute(part, use, row, t):
        return hashed(f"fame-attribute/{use}/{row}/{t}", part)

    @staticmethod
    def column(j, row, t):
        return hashed(f"fame-column/{row}/{t}", str(j))

    def key(self, parts, draws):
        r1, r2 = next(draws), next(draws)
        r = [self.b[0] * r1, self.b[1] * r2, r1 + r2]

        def three(at):
            x = next(draws)
            masked = [
                times(
                    total([*(times(at(row, t), e) for row, e in enumerate(r, 1)), times(G, x)]), pow(a, -1, R)
                )
                for t, a in enumerate(self.a, 1)
            ]
            return [*masked, times(G, -x)]

        base = three(lambda row, t: self.column(1, row, t))
        own = [
            point
            for part in parts
            for use in range(1, self.uses + 1)
            for point in three(lambda row, t, part=part, use=use: self.attribute(part, use, row, t))
        ]
        base = [point + times(G, d) for point, d in zip(base, self.d, strict=True)]
        return joined(base), joined(own), joined(times(H, e) for e in r)

    def hide(self, rows, draws):
        s = [next(draws), next(draws)]
        body = []
        for (part, entries), use in zip(rows, numbered(rows), strict=True):
            for row in (1, 2, 3):
                terms = [times(self.attribute(part, use, row, t), e) for t, e in enumerate(s, 1)]
                terms += [
                    times(self.column(j, row, t), m * e)
                    for j, m in entries.items()
                    for t, e in enumerate(s, 1)
                ]
                body.append(total(terms))
        seeds = [times(H, self.a[0] * s[0]), times(H, self.a[1] * s[1]), times(H, s[0] + s[1])]
        exponent = sum(t * e for t, e in zip(self.t, s, strict=True))
        return joined(seeds), joined(body), gt([(times(G, exponent), H)])

    def reveal(self, key, parts, rows, weights, seeds, body):
        base, own, r = points(ark.G1Point, key[0]), points(ark.G1Point, key[1]), points(ark.G2Point, key[2])
        seeds, body, uses = points(ark.G2Point, seeds), points(ark.G1Point, body), list(numbered(rows))
        pairs = []
        for i in range(3):
            pairs.append((base[i], seeds[i]))
            for leaf, weight in weights.items():
                at = self.each * parts.index(rows[leaf][0]) + 3 * (uses[leaf] - 1) + i
                pairs.append((times(own[at], weight), seeds[i]))
                pairs.append((times(body[3 * leaf + i], -weight), r[i]))
        return gt(pairs)


SCHEMES = {"fabeo": Fabeo, "fame": Fame}


# --- wire objects and the Fujisaki-Okamoto transform ---


def parts_of(names):
    return [part for name in names for part in held(name)]


def master_key(scheme):
    return msgpack.packb((scheme.suite, b"".join(each.to_bytes(32, "big") for each in scheme.secrets)))


def public_key(scheme):
    return msgpack.packb((scheme.suite, scheme.public))


def attribute_key(scheme, names, draws):
    names = sorted(set(names))
    return msgpack.packb((scheme.suite, names, *scheme.key(parts_of(names), draws)))


def seal(scheme, text, tree, context, m):
    """The header and its key; `text` is the canonical policy and `tree` the same as a tree."""
    fingerprint = hashlib.sha256(public_key(scheme)).digest()
    coins = shake("abe-coins", 48 * 1024, scheme.suite, text, context, m, fingerprint)
    seeds, body, hidden = scheme.hide(rows_of(tree), scalars(coins))
    header = msgpack.packb((scheme.suite, seeds, body, masked(scheme, hidden, m)))
    return header, shake("abe-key", 32, scheme.suite, m, header, context)


def masked(scheme, hidden, m):
    pad = shake("abe-mask", 32, scheme.suite, hidden)
    return bytes(a ^ b for a, b in zip(m, pad, strict=True))


def unseal(scheme, key, text, tree, header, context):
    """The key of a header, or None if the attributes do not satisfy the policy; a changed header is an error."""
    _, names, *own = msgpack.unpackb(key)
    _, seeds, body, hiding = msgpack.unpackb(header)
    rows, parts = rows_of(tree), parts_of(names)
    weights = weights_of(rows, parts)
    if weights is None:
        return None
    m = masked(scheme, scheme.reveal(own, parts, rows, weights, seeds, body), hiding)
    again, opened = seal(scheme, text, tree, context, m)
    assert again == header
    return opened
