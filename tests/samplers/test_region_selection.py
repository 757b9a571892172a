"""Schedules, scores and choices of region-adaptive sampling against lists made by hand."""

import math

import pytest
import torch

from accel.samplers import RegionAdaptive
from accel.samplers.regions.layouts import to_mask, to_patches
from accel.samplers.regions.partial import Branch
from accel.samplers.regions.rows import take
from accel.samplers.regions.selection import Misses, Selection, over_time, scores


def test_dense_steps_by_fraction_are_those_of_both_released_scripts():
    for total, dense in ((28, {12, 20}), (30, {12, 22})):
        schedule = RegionAdaptive().schedule(total)
        partial = {i for i in range(total) if schedule.partial(i)}
        assert partial == set(range(4, total)) - dense
        assert [i for i in range(total) if schedule.keeps(i) and not schedule.partial(i)] == [
            3,
            *sorted(dense),
        ]


def test_the_growing_number_is_that_of_the_released_script_for_lumina():
    schedule = RegionAdaptive(growth=1 / 16, multiple=64).schedule(30)
    counts = [schedule.left_out(i, 4096) for i in range(30)]
    assert counts == [
        *[0] * 4,
        *[1280] * 4,
        *[1536] * 4,
        0,
        *[1792] * 3,
        *[2048] * 4,
        *[2304] * 2,
        0,
        2304,
        *[2560] * 4,
        *[2816] * 2,
    ]


def test_scores_are_the_spread_or_norm_over_channels_of_a_tokens_pixels():
    latents = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    patches = to_patches(latents, 1, (1, 2, 2), 1)
    std, norm = scores(patches, "std"), scores(patches, "l2")
    assert std.shape == (2, 6)
    for n in range(2):
        for token in range(6):
            row, column = token // 3 * 2, token % 3 * 2
            pixels = [latents[n, :, row + y, column + x] for y in (0, 1) for x in (0, 1)]
            assert std[n, token] == pytest.approx(sum(p.std() for p in pixels).item() / 4)
            assert norm[n, token] == pytest.approx(sum(p.norm() for p in pixels).item() / 4)


@pytest.mark.parametrize(("rows", "columns"), [(4, 10), (10, 4), (6, 6)])
def test_tokens_of_any_aspect_ratio_find_their_pixels(rows, columns):
    """Top left pixel of token i: (i // (W / p)) p W + (i % (W / p)) p, and its neighbours."""
    latents = torch.zeros(1, 3, rows, columns)
    count = rows // 2 * (columns // 2)
    for token in range(count):
        active = torch.zeros(1, count, dtype=torch.bool)
        active[0, token] = True
        mask = to_mask(active, latents, 1, (1, 2, 2))
        first = token // (columns // 2) * 2 * columns + token % (columns // 2) * 2
        pixels = {first, first + 1, first + columns, first + columns + 1}
        assert set(mask[0, 0].flatten().nonzero().flatten().tolist()) == pixels
        painted = torch.where(mask, 1.0, latents)
        assert to_patches(painted, 1, (1, 2, 2), 1)[0].sum((1, 2)).nonzero().item() == token


@pytest.mark.parametrize("axis", [1, 2])
def test_video_tokens_find_their_latents_with_channels_at_either_axis(axis):
    shape = [1, 4, 6, 4]
    shape.insert(axis, 3)
    active = torch.zeros(1, 12, dtype=torch.bool)
    active[0, 8] = True  # frames 2 and 3, row 0, column 2 of a 2 by 3 by 2 grid: 6 a frame
    mask = to_mask(active, torch.zeros(shape), axis, (2, 2, 2))
    painted = torch.zeros(shape).where(~mask, 1.0).movedim(axis, 1)
    assert painted[0, 0].nonzero().tolist() == [
        [f, y, x] for f in (2, 3) for y in (2, 3) for x in (0, 1)
    ]
    patches = to_patches(torch.zeros(shape).where(~mask, 1.0), axis, (2, 2, 2), 1)
    assert patches[0].sum((1, 2)).nonzero().item() == 8


def test_the_lowest_scores_are_computed_at_high_1_the_highest_at_0():
    score = torch.tensor([[3.0, 1.0, 5.0, 2.0, 4.0]])
    assert Selection(1.0, 0.1, "fair").choose(score, 3).tolist() == [[1, 3]]
    assert Selection(0.0, 0.1, "fair").choose(score, 3).tolist() == [[2, 4]]
    assert Selection(0.5, 0.1, "fair").choose(score, 2).tolist() == [[0, 3, 4]]
    assert Selection(0.3, 1.0, "fair").choose(score, 0).tolist() == [[0, 1, 2, 3, 4]]


def starved(starvation, high):
    """How many of 64 tokens of fixed scores are never computed in 20 steps of a half each."""
    score = torch.rand(1, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    selection = Selection(high, 0.1, starvation)
    seen = torch.zeros(64, dtype=torch.bool)
    for _ in range(20):
        seen[selection.choose(score, 32)[0]] = True
    return int((~seen).sum())


def test_the_released_sign_starves_half_of_the_tokens_and_ours_none():
    assert starved("released", 1.0) == 32
    assert starved("none", 1.0) == 32
    assert [starved("fair", high) for high in (1.0, 0.0)] == [0, 0]


@pytest.mark.parametrize("ratio", [0.5, 0.35, 0.25, 0.125])
@pytest.mark.parametrize("high", [1.0, 0.0])
def test_with_equal_scores_all_tokens_take_turns(ratio, high):
    score, selection = torch.ones(2, 48), Selection(high, 0.1, "fair")
    left_out = int((1 - ratio) * 48)
    seen = torch.zeros(2, 48, dtype=torch.bool)
    for _ in range(math.ceil(1 / ratio) + 1):
        seen.scatter_(1, selection.choose(score, left_out), True)
    assert seen.all()
    assert selection.drops.max() - selection.drops.min() <= 2


def test_what_moves_is_chosen_in_the_frames_beside_too():
    score = torch.zeros(1, 3 * 2 * 2)
    score[0, 4] = 3.0  # frame 1, first token
    near = over_time(score, (3, 2, 2), 1.0)
    assert near[0].view(3, 4)[:, 0].tolist() == [1.5, 1.0, 1.5]
    assert near[0].view(3, 4)[:, 1:].abs().max() == 0
    assert torch.equal(over_time(score, (3, 2, 2), 0.0), score)
    assert torch.equal(over_time(score[:, :4], (1, 2, 2), 1.0), score[:, :4])


@pytest.mark.parametrize("order", [0, 1])
def test_expected_errors_grow_with_a_power_of_the_steps_since_a_token_was_computed(order):
    power, misses = order + 1, Misses(order)
    assert misses.expected() is None
    misses.note(torch.tensor([[4.0, 1.0, 2.0]]), None)
    assert misses.expected().tolist() == [[4.0, 1.0, 2.0]]
    misses.note(torch.tensor([[7.0, 7.0, 6.0]]), torch.tensor([[2]]))
    assert misses.expected().tolist() == [[4.0 * 2**power, 2**power, 6.0]]
    misses.note(torch.tensor([[7.0, 2**power * 5.0, 7.0]]), torch.tensor([[1]]))
    expected = [[4.0 * 3**power, 5.0, 6.0 * 2**power]]
    assert misses.expected().tolist() == expected
    misses.note(torch.tensor([[3.0**power, 1.0, 2.0**power]]), None)
    assert misses.expected().tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("rows", [1, 2])
def test_keys_and_values_that_move_along_a_line_are_exact_however_long_tokens_were_left_out(rows):
    draw = torch.Generator().manual_seed(0)
    start, change = torch.randn(2, 2, 2, 6, 3, 4, generator=draw)  # of keys and of values

    def at(step):
        return tuple(start + step * change)

    branch = Branch(order=1)
    for step in (0, 1):
        branch.keep("attn", *at(step), step)
        branch.computed(step)
    for step, index in ((2, [0, 3]), (3, [0, 1]), (6, [2, 3]), (7, [5, 4])):
        active = torch.tensor([index, index[::-1]][:rows])
        fresh = torch.cat([take(each, active) for each in at(step)])
        found = branch.renew("attn", fresh, branch.rows_at(active, 6, step))
        torch.testing.assert_close(found, torch.cat(at(step)), rtol=1e-4, atol=1e-5)
        branch.computed(step, {6: active})
    branch.keep("attn", *at(9), 9)
    branch.computed(9)
    found = branch.renew(
        "attn", torch.cat(at(12))[:, :1], branch.rows_at(active[:1, :1] * 0, 6, 12)
    )
    torch.testing.assert_close(found, torch.cat(at(12)), rtol=1e-4, atol=1e-5)
    assert branch.bytes() >= 2 * sum(each.nbytes for each in at(0))
    still = Branch()
    for step in (0, 1):
        still.keep("attn", *at(step), step)
    rows = still.rows_at(torch.tensor([[0]]), 6, 5)
    found = still.renew("attn", torch.cat(at(5))[:, :1], rows)
    assert torch.equal(found[:, 1:], torch.cat(at(1))[:, 1:])
    assert torch.equal(found[:, :1], torch.cat(at(5))[:, :1])


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"ratio": 0.0}, "ratio must be above 0"),
        ({"dense": (12,)}, "dense must be fractions"),
        ({"metric": "max"}, "metric must be 'std', 'l2' or 'error'"),
        ({"tile": (2, 2)}, "tile must be three numbers"),
        ({"starvation": "off"}, "starvation must be 'fair'"),
        ({"metric": "error"}, "high must be from 0 to 1, and 0 with metric='error'"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, wanted):
    with pytest.raises(ValueError, match=f"RegionAdaptive.{wanted}"):
        RegionAdaptive(**settings)
