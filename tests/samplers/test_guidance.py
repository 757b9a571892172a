"""Guidance left out: what is evaluated, and what stands in for it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from accel import Plan, calibrate
from accel.caching import FasterCache, TaylorSeer
from accel.noise import is_flow, noise_levels
from accel.registry import find_method, methods
from accel.samplers import (
    AdaptiveGuidance,
    GuidedSteps,
    HeldGuidance,
    IntervalGuidance,
    RegionUpsampling,
    ResolutionStages,
)
from accel.samplers.guidance_adaptive import cosines
from accel.samplers.guidance_steps import step_lengths
from tests.contract.runs import clean, plain
from tests.samplers.guidance_runs import branches, evaluated, predictions, stepped
from tests.tiny_pipelines import SCHEDULERS, TINY, call, make

PAIR = ("a red circle moving left on a dark background", "a blue square on a light background")
ALL = IntervalGuidance(0, math.inf)
NONE = GuidedSteps((), 5)


def run(name, *methods, **options):
    """Latents, and the rows of every evaluation."""
    pipe = make(name)
    pipe.enable_acceleration(*methods)
    with evaluated(pipe) as rows:
        latents = call(pipe, name, **options)
    return latents, rows, pipe.acceleration.report()


@pytest.mark.parametrize(
    "name", ["sdxl", "sd_controlnet", "svd", "wan", "cogvideox", "flux", "lumina2", "pixart"]
)
def test_without_any_guided_step_the_run_is_the_conditional_one(name):
    """U-Nets and transformers, fused and apart, with micro-conditions, frames and a ControlNet."""
    latents, rows, report = run(name, NONE)
    alone = plain(name, guidance=1.0)
    hidden = name == "pixart"  # says nowhere that it guides, so that the first step is looked at
    if not hidden:
        torch.testing.assert_close(latents, alone.latents, rtol=1e-4, atol=1e-5)
    each = rows[-1]
    assert rows == [2 * each] * hidden + [each] * (5 - hidden)
    if name != "lumina2":  # whose branches differ in length
        assert report.computed_fraction == pytest.approx(0.6 if hidden else 0.5)


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_the_interval_is_one_of_noise_over_signal(name):
    pipe = make(name)
    pipe.scheduler.set_timesteps(8)
    levels = noise_levels(None, pipe.scheduler)[1]
    if is_flow(pipe.scheduler):
        levels = [s / (1 - s) if s < 1 else math.inf for s in levels]
    guided = [i for i, level in enumerate(levels) if 0.28 < level <= 5.42]
    assert 0 < len(guided) < 8
    rows = run(name, IntervalGuidance(), steps=8)[2].rows
    computed = {i: sum(r.work for r in rows if r.index == i) for i in range(8)}
    whole = max(computed.values())
    assert [i for i in range(8) if computed[i] == whole] == guided
    edges = IntervalGuidance(levels[guided[-1]], levels[guided[0]])
    assert edges.guides(levels[guided[0]]) and not edges.guides(levels[guided[-1]])


def test_a_run_through_the_edge_leaves_the_plain_path_there():
    """Equal to the plain run while guided, then a conditional step from where that one was."""
    states = {}

    def note(kind):
        def keep(pipe, i, t, kwargs):
            states.setdefault(kind, []).append(kwargs["latents"].clone())
            return kwargs

        return keep

    call(make("wan", "flow_euler"), "wan", callback=note("plain"))
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(GuidedSteps((0, 1), 5))
    call(pipe, "wan", callback=note("ours"))
    pairs = list(zip(states["ours"], states["plain"], strict=True))
    assert all(torch.equal(*pair) for pair in pairs[:2])
    assert not torch.allclose(*pairs[2])


def test_samples_end_apart_and_batches_shrink():
    """By a threshold between the cosines of two samples, one of them goes on alone."""
    for name in ("cogvideox", "wan"):
        pipe = make(name)
        pipe.enable_acceleration(AdaptiveGuidance(1))
        found = []
        with branches(pipe) as calls:
            call(pipe, name, steps=2, prompt=PAIR, seed=(0, 1))
        cond, uncond = calls[0]
        found = cosines(cond, uncond, 2).tolist()
        assert found[0] != found[1]
        threshold, ended = sum(found) / 2, found.index(max(found))
        _, rows, report = run(name, AdaptiveGuidance(threshold), steps=2, prompt=PAIR, seed=(0, 1))
        assert rows == ([4, 2, 1] if name == "cogvideox" else [2, 2, 2, 1])
        assert report.computed_fraction == pytest.approx(7 / 8)
        latents = clean(AdaptiveGuidance(threshold), name, steps=2, prompt=PAIR, seed=(0, 1))
        for i in range(2):
            method = NONE if i == ended else ALL
            own = GuidedSteps((0,), 2) if method is NONE else ALL
            alone = run(name, own, steps=2, prompt=PAIR[i], seed=i)[0]
            part = latents.latents.chunk(2)[i]
            torch.testing.assert_close(part, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_guidance_ends_after_the_first_agreement_but_not_before_start(name):
    for start, guided in ((0.0, 1), (0.5, 4), (1.0, 5)):
        rows = run(name, AdaptiveGuidance(-0.999, start))[1]
        assert sum(rows) == 5 + guided


def test_cosines_are_per_sample_over_all_entries():
    torch.manual_seed(0)
    a, b = torch.randn(6, 3, 4), torch.randn(6, 3, 4)
    for i, found in enumerate(cosines((a,), (b,), 3).tolist()):
        x, y = a[2 * i : 2 * i + 2].flatten(), b[2 * i : 2 * i + 2].flatten()
        assert found == pytest.approx(float(x @ y / (x.norm() * y.norm())), rel=1e-5)


@pytest.mark.parametrize("hold", ["difference", "output", "nothing"])
def test_what_is_held_is_what_a_plain_loop_holds(hold):
    """What the scheduler gets, against predictions as the denoiser makes them."""
    pipe = make("wan", "flow_euler")
    guided = stepped(pipe)
    pipe.enable_acceleration(HeldGuidance(start=0, hold=hold))
    with predictions(pipe) as made:
        call(pipe, "wan", steps=4)
    c0, u0, c1, c2, u2, c3 = made
    for i, (c, u) in {0: (c0, u0), 2: (c2, u2)}.items():
        assert torch.equal(guided[i], u + 4 * (c - u))
    for i, c, old_c, old_u in ((1, c1, c0, u0), (3, c3, c2, u2)):
        u = {"difference": c - (old_c - old_u), "output": old_u, "nothing": c}[hold]
        assert torch.equal(guided[i], u + 4 * (c - u))


@pytest.mark.parametrize("hold", ["difference", "output", "nothing"])
@pytest.mark.parametrize(
    ("name", "stages", "first"),
    [
        ("wan", ResolutionStages(scales=(0.5, 1.0)), [4]),
        ("flux", ResolutionStages(scales=(0.5, 1.0)), [4]),
        ("sd3", ResolutionStages(scales=(0.5, 1.0)), [4]),
        ("flux", RegionUpsampling(), [2, 5]),
    ],
)
def test_what_was_held_ends_where_the_resolution_changes(name, stages, first, hold):
    method = HeldGuidance(3, start=0, hold=hold)
    latents, _, report = run(f"{name}:flow_euler", method, stages, steps=8)
    left_out = {r.index for r in report.rows if r.action != "computed"}
    due = {0, 3, 6} | (set() if hold == "nothing" else set(first))
    assert set(range(8)) - left_out == due
    assert latents.isfinite().all()


def test_chosen_steps_map_onto_other_numbers_of_steps():
    method = GuidedSteps((0, 1, 3), 5)
    assert [method.guides(i, 5) for i in range(5)] == [True, True, False, True, False]
    assert [i for i in range(10) if method.guides(i, 10)] == [0, 1, 2, 3, 6, 7]
    assert [i for i in range(3) if method.guides(i, 3)] == [0]


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_calibration_keeps_the_steps_where_guidance_moves_most(name):
    pipe = make(name)
    options = {"progress": False, **TINY[name].call}
    plan = calibrate(pipe, PAIR, GuidedSteps(share=0.4), steps=5, guidance_scale=4.0, **options)
    (fitted,) = plan.methods
    assert len(fitted.steps) == 2 and fitted.total == 5
    norms = torch.zeros(5)
    for i, prompt in enumerate(PAIR):
        other = make(name)
        with branches(other) as calls:
            call(other, name, prompt=prompt, seed=i, negative_prompt=None)
        norms += torch.stack([(c - u).square().mean().sqrt() for c, u in calls])
    pipe.scheduler.set_timesteps(5)
    lengths = step_lengths(noise_levels(None, pipe.scheduler)[1], pipe.scheduler)
    best = (norms * torch.tensor(lengths)).topk(2).indices.tolist()
    assert fitted.steps == tuple(sorted(best))
    assert Plan.from_json(plan.to_json()).methods == plan.methods


def test_lengths_of_steps():
    flow, noise = SCHEDULERS["flow_euler"](), SCHEDULERS["pndm"]()
    velocity = DDIMScheduler(prediction_type="v_prediction")
    assert step_lengths([1.0, 0.6, 0.1], flow) == pytest.approx([0.4 / 0.4, 0.5 / 0.9, 0.1])
    assert step_lengths([3.0, 1.0], noise) == pytest.approx([2.0, 1.0])
    assert step_lengths([3.0, 1.0], velocity) == pytest.approx([2 / 10**0.5, 1 / 2**0.5])
    assert all(map(math.isfinite, step_lengths([math.inf, 1.0], velocity)))


@pytest.mark.parametrize(
    ("name", "method"),
    [("wan", HeldGuidance(3, start=0)), ("cogvideox", IntervalGuidance(0.5, 1.0))],
)
def test_beside_a_cache_the_order_does_not_matter(name, method):
    cache = TaylorSeer(interval=2, warmup=1)
    there, rows, report = run(name, cache, method)
    assert torch.equal(there, run(name, method, cache)[0])
    alone = [run(name, one)[2].computed_fraction for one in (cache, method)]
    assert report.computed_fraction < min(alone)
    each = max(rows) if name == "wan" else 1
    assert report.computed_fraction == pytest.approx(sum(rows) / each / 10, abs=1e-3)


def test_a_cache_starts_anew_where_the_branch_was_left_out():
    report = run("wan", TaylorSeer(interval=3, warmup=1), GuidedSteps((0, 1, 4), 5))[2]
    work = {r.index: r.work for r in report.rows if r.branch == "uncond"}
    assert work == {0: 1, 1: 0, 2: 0, 3: 0, 4: 1}


def test_two_that_decide_about_the_branch_are_refused():
    for other in (HeldGuidance(), FasterCache()):
        with pytest.raises(ValueError, match="both are guidance methods"):
            Plan((IntervalGuidance(), other))
    Plan((IntervalGuidance(), FasterCache(guidance_interval=1)))


def test_uncalibrated_and_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="no steps yet: fill them with"):
        make("wan").enable_acceleration(GuidedSteps())
    for wrong, words in (
        (lambda: IntervalGuidance(2, 1), "high must be at least low"),
        (lambda: AdaptiveGuidance(1.5), "threshold must be a cosine"),
        (lambda: HeldGuidance(0), "interval must be at least 1"),
        (lambda: GuidedSteps((5,), 5), "steps must be indices below total"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
    with pytest.raises(ValueError, match="were not guided; set guidance_scale"):
        options = {"guidance_scale": 1.0, "progress": False, **TINY["wan"].call}
        calibrate(make("wan"), PAIR[:1], GuidedSteps(), steps=2, **options)


def test_the_table_of_conflicts_says_what_is_refused():
    """docs/guidance.md against what every method claims."""
    text = (Path(__file__).parents[2] / "docs" / "guidance.md").read_text()
    written = {}
    for line in text.split("| decides alone about | methods |")[1].split("\n\n")[0].splitlines():
        if "`" in line:
            about, listed = line.strip("| ").split(" | ")
            written[about] = sorted(name.strip("`") for name in listed.split(", "))
    claimed = {}
    for name, kind in methods().items():
        for about in kind().claimed() or ("nothing",):
            claimed.setdefault(about, []).append(name)
    assert written == {about: sorted(names) for about, names in claimed.items()}
    for about, names in written.items():
        for first, second in itertools.combinations(names, 2):
            if about != "nothing":
                with pytest.raises(ValueError, match="cannot be combined"):
                    Plan((find_method(first)(), find_method(second)()))
