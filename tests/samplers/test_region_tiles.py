"""Tiles are computed whole or not at all, at sizes that they divide and at others; and video."""

import itertools
import math

import pytest
import torch

from accel.samplers import RegionAdaptive
from accel.samplers.regions import hold as hold_of
from accel.samplers.regions.tiles import Tiles
from tests.samplers.region_runs import PROMPTS, Indices, run, stepped
from tests.tiny_pipelines import call, make

VIDEO = {"height": 80, "width": 112, "num_frames": 9}
SIZES = [
    ("sd3", None, (1, 2, 2), {"height": 24, "width": 40}),
    ("sd3", None, (1, 2, 2), {"height": 20, "width": 28}),
    ("lumina2", None, (1, 2, 3), {"height": 48, "width": 80}),
    ("wan", "flow_euler", (2, 2, 3), VIDEO),
]
sizes = pytest.mark.parametrize(("name", "scheduler", "tile", "size"), SIZES)


def cut(grid, tile):
    """Tokens of every tile, by hand."""
    found = {}
    for i, place in enumerate(itertools.product(*map(range, grid))):
        found.setdefault(tuple(p // t for p, t in zip(place, tile, strict=True)), []).append(i)
    return list(found.values())


def test_scores_of_tiles_and_their_tokens():
    tiles = Tiles((1, 3, 5), (1, 2, 2))
    assert tiles.means(torch.arange(15.0)[None]).tolist() == [[3.0, 5.0, 6.5, 10.5, 12.5, 14.0]]
    chosen = tiles.tokens(torch.tensor([[0, 4], [2, 5]]))
    assert chosen.tolist() == [[0, 1, 5, 6, 12, 13, 13, 13], [4, 9, *[14] * 6]]
    assert [tiles.left_out(n) for n in (0, 2, 6, 14, 15)] == [0, 1, 2, 5, 5]
    single = Tiles((2, 3, 5), (1, 1, 1))
    assert single.count == 30 and torch.equal(single.tokens(chosen), chosen)
    assert Tiles((2, 3, 5), (4, 9, 1)).sizes == [6] * 5


@sizes
def test_no_tile_is_computed_in_part(name, scheduler, tile, size):
    method = RegionAdaptive(ratio=0.5, start=0.2, dense=(0.6,), tile=tile)
    pair, pipe = run(name, scheduler, method, prompt=PROMPTS, seed=(0, 1), **size)
    regions = pipe.acceleration.report().regions
    tiles = cut(regions.grid, tile)
    wanted = len(tiles) - round(len(tiles) * (regions.tokens // 2) / regions.tokens)
    for step, sample in itertools.product(regions.active, range(2)):
        mask = regions.mask(step, sample).flatten()
        seen = [mask[members].sum().item() for members in tiles]
        assert all(count in (0, len(members)) for count, members in zip(seen, tiles, strict=True))
        assert sum(map(bool, seen)) == wanted
    assert len(regions.active) == 3
    for i, latents in enumerate(pair.split(len(pair) // 2)):
        alone, _ = run(name, scheduler, method, prompt=PROMPTS[i], seed=i, **size)
        torch.testing.assert_close(latents, alone, rtol=1e-3, atol=1e-3 * alone.std().item())


@pytest.mark.parametrize(("name", "scheduler", "tile", "size"), SIZES[2:])
def test_steps_that_choose_every_tile_are_dense_ones(name, scheduler, tile, size, monkeypatch):
    monkeypatch.setattr(hold_of, "Selection", Indices)
    method = RegionAdaptive(ratio=0.5, start=0.2, dense=(0.6,), tile=tile)
    latents, _ = run(name, scheduler, method, **size)
    plain = call(make(name, scheduler), name, **size)
    torch.testing.assert_close(latents, plain, rtol=1e-4, atol=1e-4 * plain.std().item())


def norms(latents, grid):
    """Scores of the tokens of a video (C, F, H, W) in patches of 1 by 2 by 2."""
    found = []
    for frame, row, column in itertools.product(*map(range, grid)):
        pixels = [
            latents[:, frame, 2 * row + y, 2 * column + x]
            for y, x in itertools.product((0, 1), (0, 1))
        ]
        found.append(sum(float(p.square().sum()) ** 0.5 for p in pixels) / 4)
    return found


def test_regions_of_a_video_over_space_and_time_are_those_of_a_plain_loop():
    pipe = make("wan", "flow_euler")
    with stepped(pipe) as seen:
        method = RegionAdaptive(
            ratio=0.4,
            start=0.2,
            end=0.8,
            dense=(0.5,),
            metric="l2",
            high=0.25,
            strength=0.3,
            growth=0.1,
            every=2,
            multiple=5,
            continuity=0.5,
            tile=(2, 2, 3),
        )
        pipe.enable_acceleration(method)
        call(pipe, "wan", steps=10, guidance=1.0, **VIDEO)
        regions = pipe.acceleration.report().regions
    grid, sigmas = (3, 5, 7), pipe.scheduler.sigmas
    assert regions.grid == grid
    tokens, frame = math.prod(grid), grid[1] * grid[2]
    tiles = cut(grid, (2, 2, 3))
    pull, active, counts = [0] * len(tiles), None, set()
    partial = (2, 3, 4, 6, 7)  # 10 steps: from 2 to before 8, dense at 5
    for step, (_, output, sample, result) in enumerate(seen):
        expected = sample + (sigmas[step + 1] - sigmas[step]) * output
        torch.testing.assert_close(result, expected)
        assert (step in regions.active) == (step in partial)
        if step in partial:
            assert set(regions.active[step][0].tolist()) == active
            for i in set(range(tokens)) - active:
                f, rest = divmod(i, frame)
                row, column = divmod(rest, grid[2])
                now, before = (
                    v[0, :, f, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    for v in (output, seen[step - 1][1])
                )
                assert torch.equal(now, before)
        if step + 1 not in partial:
            continue
        single = norms(output[0], grid)
        score = []
        for i in range(tokens):
            near = [single[j] for j in (i - frame, i, i + frame) if 0 <= j < tokens]
            score.append(0.5 * single[i] + 0.5 * sum(near) / len(near))
        own = [
            sum(score[i] for i in members) / len(members) * math.exp(0.3 * pull[t])
            for t, members in enumerate(tiles)
        ]
        shift = 0.1 * tokens * ((step + 1) // 2 - (10 + 2) // 2 // 2)
        left = math.floor((int(0.6 * tokens) + shift) / 5) * 5
        left = round(left * len(tiles) / tokens)
        counts.add(left)
        order = sorted(range(len(tiles)), key=lambda t: own[t])
        top = round(0.25 * left)
        low, high = order[: left - top], order[len(tiles) - top :]
        for t in low:
            pull[t] += 1
        for t in high:
            pull[t] -= 1
        active = {i for t in order[left - top : len(tiles) - top] for i in tiles[t]}
    assert len(counts) == 3 and min(counts) > 3
