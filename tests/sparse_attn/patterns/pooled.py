"""Plain loops that the tests of pooled patterns share."""

import math


def spans(grid, sizes):
    """[(kind, positions)] of leading text, video blocks of `sizes`, trailing text, of 64 tokens."""
    found, at = [], 0

    def add(kind, sizes):
        nonlocal at
        for size in sizes:
            found.append((kind, range(at, at + size)))
            at += size

    add("text", ragged(grid.text_first, sizes[0]))
    add("video", sizes[1])
    add("text", ragged(grid.text_last, sizes[0]))
    return found


def ragged(n, size):
    return [min(size, n - at) for at in range(0, n, size)]


def mean(x, tokens):
    return [sum(x[t][d] for t in tokens) / len(tokens) for d in range(len(x[0]))]


def softmax(row):
    top = max(row)
    if top == -math.inf:
        return [0.0] * len(row)
    e = [math.exp(s - top) for s in row]
    return [x / sum(e) for x in e]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cover(share, mass, least, crossing=True):
    """The best entries up to `mass`, and at least `least` of them."""
    kept, total = set(), 0.0
    for j in sorted(range(len(share)), key=lambda j: (-share[j], j)):
        inside = total < mass if crossing else total + share[j] <= mass
        if len(kept) < least or inside:
            kept.add(j)
        total += share[j]
    return kept
