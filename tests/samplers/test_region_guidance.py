"""Regions beside guidance that leaves out branches, of all samples or of some."""

import pytest
import torch
from diffusers.callbacks import SD3CFGCutoffCallback

from accel.samplers import (
    AdaptiveGuidance,
    GuidedSteps,
    HeldGuidance,
    IntervalGuidance,
    RegionAdaptive,
)
from accel.samplers.guidance_adaptive import Adaptive
from accel.samplers.regions import hold as hold_of
from accel.samplers.regions.rows import across
from tests.samplers.region_runs import HALF, PROMPTS, Indices, run
from tests.tiny_pipelines import call, make

THREE = (*PROMPTS, "a green triangle moving up on a light background")
GUIDED = [
    IntervalGuidance(0.5, 2.0),
    HeldGuidance(interval=2, start=0.2),
    HeldGuidance(interval=3, hold="output"),
    GuidedSteps((0, 2, 4), 7),
    AdaptiveGuidance(),
]
LAST = (5, 2, 3)
"""The steps after which `ending` lets samples go unguided."""

families = pytest.mark.parametrize(
    ("name", "scheduler"), [("sd3", None), ("wan", "flow_euler"), ("lumina2", None)]
)


def ending(monkeypatch, last):
    """Make adaptive guidance end for sample i after step `last[i]`, whatever its predictions."""

    def seen(self, step, samples, cond, uncond):
        assert all(len(part) == len(samples) for part in (cond[0], uncond[0]))
        self.left = [sample for sample in samples if step.index < last[sample]]

    monkeypatch.setattr(Adaptive, "seen", seen)


@pytest.mark.parametrize(
    ("name", "scheduler", "guided"),
    [
        *(("sd3", None, guided) for guided in GUIDED),
        *(("wan", "flow_euler", guided) for guided in GUIDED[1::3]),
        *(("lumina2", None, guided) for guided in GUIDED[::4]),
    ],
    ids=str,
)
def test_steps_that_choose_every_token_are_dense_ones_of_each_branch(
    name, scheduler, guided, monkeypatch
):
    ending(monkeypatch, LAST)
    how = {"prompt": THREE, "steps": 7}
    plain, _ = run(name, scheduler, guided, **how)
    monkeypatch.setattr(hold_of, "Selection", Indices)
    latents, pipe = run(name, scheduler, HALF, guided, **how)
    torch.testing.assert_close(latents, plain, rtol=1e-4, atol=1e-4 * plain.std().item())
    assert pipe.acceleration.report().regions.active


@families
def test_samples_that_end_apart_are_each_as_they_are_alone(name, scheduler, monkeypatch):
    methods = AdaptiveGuidance(), HALF
    ending(monkeypatch, LAST)
    batch, pipe = run(name, scheduler, *methods, prompt=THREE, seed=(0, 1, 2), steps=7)
    work = [row.work for row in pipe.acceleration.report().rows]
    assert min(work) < 0.5 and pipe.acceleration.report().computed_fraction < 0.8
    for i, latents in enumerate(batch.split(len(batch) // 3)):
        ending(monkeypatch, LAST[i : i + 1])
        alone, _ = run(name, scheduler, *methods, prompt=THREE[i], seed=i, steps=7)
        torch.testing.assert_close(latents, alone, rtol=1e-3, atol=1e-3 * alone.std().item())


def test_a_branch_that_missed_a_dense_step_runs_in_full():
    _, pipe = run("wan", "flow_euler", HALF, GuidedSteps((0, 1, 2, 5, 6), 7), steps=7)
    rows = [r for r in pipe.acceleration.report().rows if r.branch == "uncond"]
    assert [r.work == 1 for r in rows] == [True, *[False] * 4, True, False]  # 0 and 4 are dense
    assert [r.work == 0 for r in rows] == [*[False] * 3, True, True, False, False]


def test_a_batch_that_loses_a_branch_does_not_take_that_branch_for_the_other():
    cutoff = SD3CFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=3)
    method = RegionAdaptive(ratio=0.5, start=0.2, dense=(0.7,))
    latents, pipe = run(
        "sd3",
        "flow_euler",
        method,
        prompt=PROMPTS,
        steps=8,
        callback=cutoff,
        callback_on_step_end_tensor_inputs=cutoff.tensor_inputs,
    )
    whole = [row.work == 1 for row in pipe.acceleration.report().rows]
    assert whole == [True, True, False, False, True, False, True, False]  # 0, 1 and 6 are dense
    assert latents.isfinite().all()


def test_a_batch_of_some_samples_is_refused_where_nothing_tells_which():
    index = torch.arange(6).view(3, 2)
    assert across(index, 2, (0, 2)).tolist() == [[0, 1], [4, 5]]
    assert across(index, 6).tolist() == [*index.tolist(), *index.tolist()]
    assert across(index[:1], 2).tolist() == [[0, 1]]
    for rows in (2, 4):
        with pytest.raises(RuntimeError, match=f"a batch of {rows} is not one of the 3 samples"):
            across(index, rows)
    pipe = make("sd3")
    pipe.enable_acceleration(HALF)
    assert call(pipe, "sd3", prompt=THREE, guidance=1.0).isfinite().all()
