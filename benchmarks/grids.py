"""Settings tried for methods beside TaylorSeer and DeepCache, the same for every ratio.

What most of them skip depends on the sample, so the sweep measures the work of each and takes the
best that is within the limit of a ratio.
"""

from __future__ import annotations

from itertools import product

from accel.caching import (
    PAB,
    ClusCa,
    DBCache,
    DiCache,
    DuCa,
    EasyCache,
    FasterCache,
    FasterDiffusion,
    FeatureInheritance,
    FreqCa,
    HiCache,
    SeaCache,
    SpeCa,
    Spectrum,
    StepRehash,
    ToCa,
)
from accel.method import Method

INTERVALS = (2, 3, 4, 5, 7)

GRIDS: dict[str, list[Method]] = {
    "HiCache": [
        HiCache(n, order, warmup=w, sigma=s, last=True, settle=True)
        for n, w in zip(INTERVALS, (2, 2, 3, 3, 3), strict=True)
        for order, s in ((2, 0.5), (1, 0.7071), (2, 0.7071))
    ],
    "Spectrum": [
        Spectrum(n, growth=g, mix=m, relative=r, last=True)
        for n, g, m, r in product((2, 3, 5), (0.0, 0.75), (0.5, 1.0), (True, False))
    ],
    "FreqCa": [FreqCa(n, warmup=3, last=True, settle=True) for n in INTERVALS],
    "DBCache": [
        DBCache(t, front=1, warmup=w, order=1)
        for t, w in product((0.04, 0.08, 0.16, 0.3, 0.6), (3, 5))
    ],
    "DiCache": [
        DiCache(t, retention=r) for t, r in product((0.05, 0.1, 0.2, 0.4, 0.8), (0.1, 0.2))
    ],
    "SpeCa": [
        SpeCa(t, longest=longest) for t, longest in product((0.02, 0.1, 0.5, 2.0), (3, 5, 8))
    ],
    "EasyCache": [EasyCache(t, warmup=w) for t, w in product((0.025, 0.05, 0.1, 0.2, 0.4), (4, 8))],
    "SeaCache": [
        SeaCache(t, order=o, longest=longest)
        for t, (o, longest) in product((0.1, 0.25, 0.5, 1.0), ((1, 2), (1, 4), (0, 4)))
    ],
    "PAB": [PAB(full=f, cross=c) for f, c in ((2, 4), (2, 6), (3, 6), (4, 8), (6, 12))]
    + [PAB(full=f, cross=2 * f, feed_forward=f, window=(0.0, 0.9)) for f in INTERVALS],
    "FasterCache": [
        FasterCache(attention_interval=a, guidance_interval=g)
        for a, g in product((2, 3), (3, 5, 8))
    ],
    "ToCa": [ToCa(n, ratio=r, last=True) for n, r in product((3, 4, 6), (0.07, 0.2))],
    "DuCa": [DuCa(n, ratio=r, last=True) for n, r in product((3, 4, 6), (0.07, 0.2))],
    "ClusCa": [ClusCa(n, clusters=c, last=True) for n, c in product((3, 4, 6), (8, 16))],
    "FasterDiffusion": [FasterDiffusion(noise=noise) for noise in (0.0, 0.003)]
    + [FasterDiffusion(interval=n, noise=0.0) for n in INTERVALS],
    "FeatureInheritance": [
        FeatureInheritance(granularity, interval=n)
        for granularity in ("block", "layer", "unit")
        for n in INTERVALS[:4]
    ],
    "StepRehash": [StepRehash(n - 1) for n in INTERVALS],
}
"""Row of the table -> what is tried."""
OF_UNETS = ("FasterDiffusion", "FeatureInheritance", "StepRehash")
GRIDS_OF_VIDEO = tuple(row for row in GRIDS if row not in OF_UNETS)
GRIDS_OF_PICTURES = ("HiCache", "Spectrum", "FasterCache", *OF_UNETS)
MAGNITUDES = (
    (0.06, 2, 0.2),
    (0.12, 4, 0.2),
    (0.12, 4, 0.1),
    (0.24, 6, 0.1),
    (0.5, 8, 0.1),
    (1.0, 12, 0.1),
)
"""MagCache's thresholds, longest skips and shares of first steps that are kept."""
ESTIMATES = (0.03, 0.06, 0.1, 0.17, 0.3, 0.5)
"""TeaCache's thresholds."""
