"""What a generic attacker on CP-ABE can compute: linear algebra over exponents.

In the generic group model an attacker can pair everything of G1 with everything of G2 that public key, headers, keys
and hashes give, and combine the products linearly. Exponents are polynomials over unknowns: dicts from monomials, which
are sorted tuples of unknowns, to coefficients; `1/a` is the unknown whose product with `a` is 1.
"""

import itertools
from collections import defaultdict

from crypto.group import ORDER
from crypto.policy import share


def subsets(names):
    names = sorted(set(names))
    return [set(s) for size in range(len(names) + 1) for s in itertools.combinations(names, size)]


def times(left, right):
    """The product of two exponents."""
    product = defaultdict(int)
    for (p, a), (q, b) in itertools.product(left.items(), right.items()):
        unknowns = [*p, *q]
        for unknown in p + q:
            if "1/" + unknown in unknowns and unknown in unknowns:
                unknowns.remove("1/" + unknown)
                unknowns.remove(unknown)
        product[tuple(sorted(unknowns))] += a * b
    return dict(product)


def plus(*exponents):
    total = defaultdict(int)
    for exponent in exponents:
        for monomial, value in exponent.items():
            total[monomial] += value
    return dict(total)


def unknown(*names):
    return {tuple(sorted(names)): 1}


def computable(g1, g2, gt, target):
    """Whether `target`, an exponent in GT, follows from exponents in the three groups."""
    products = [times(left, right) for left, right in itertools.product(g1, g2)]
    return combination([*products, *gt], target) is not None


def combination(vectors, target):
    """Weights under which `vectors` add up to `target`, or None."""
    useful = _useful(vectors, target)
    pivots = {}

    def reduce(vector, weights):
        """Without the columns of pivots; what is left, and the weights that made it."""
        vector, weights = dict(vector), dict(weights)
        while column := next((at for at in vector if at in pivots), None):
            factor = vector[column]
            for into, source in zip((vector, weights), pivots[column], strict=True):
                for at, value in source.items():
                    into[at] = (into.get(at, 0) - factor * value) % ORDER
                    if not into[at]:
                        del into[at]
        return vector, weights

    for index in useful:
        rest, weights = reduce(_nonzero(vectors[index]), {index: 1})
        if rest:
            column = next(iter(rest))
            inverse = pow(rest[column], -1, ORDER)
            pivots[column] = [
                {at: value * inverse % ORDER for at, value in each.items()} for each in (rest, weights)
            ]
    rest, weights = reduce(_nonzero(target), {})
    return None if rest else [-weights.get(index, 0) % ORDER for index in range(len(vectors))]


def _nonzero(vector):
    return {at: value % ORDER for at, value in vector.items() if value % ORDER}


def _useful(vectors, target):
    """The numbers of the vectors whose every column is in the target or in another of them: no other can have a weight."""
    holders = defaultdict(set)
    for index, vector in enumerate(vectors):
        for column in _nonzero(vector):
            holders[column].add(index)
    wanted = _nonzero(target)
    lonely = [column for column, holding in holders.items() if len(holding) == 1 and column not in wanted]
    useful = set(range(len(vectors)))
    while lonely:
        for index in holders[lonely.pop()] & useful:
            useful.remove(index)
            for column in _nonzero(vectors[index]):
                holders[column].discard(index)
                if len(holders[column]) == 1 and column not in wanted:
                    lonely.append(column)
    return sorted(useful)


def share_vectors(policy):
    """The share of each leaf as a linear form in the secret `s` and the draws v0, v1, ..."""
    draws = []
    share(policy, 0, lambda: draws.append(0) or 0, ORDER)
    columns = {"s": share(policy, 1, lambda: 0, ORDER)}
    for chosen in range(len(draws)):
        unit = iter([int(i == chosen) for i in range(len(draws))])
        columns[f"v{chosen}"] = share(policy, 0, unit.__next__, ORDER)
    return [{name: column[leaf] for name, column in columns.items()} for leaf in range(len(policy.leaves))]
