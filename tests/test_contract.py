"""The contract: what every method keeps on every family it claims (table in tests/contract)."""

import warnings

import pytest
import torch

from tests.contract import FULL, PAIRS
from tests.contract.runs import (
    anatomy,
    clean,
    counted,
    denoisers,
    frozen,
    plain,
    reads,
    spoiling,
    weighed,
)
from tests.tiny_pipelines import SCHEDULERS, call, make

pairs = pytest.mark.parametrize(("row", "name"), PAIRS, ids=lambda v: str(v))
full = pytest.mark.parametrize(("row", "name"), FULL, ids=lambda v: str(v))
PROMPTS = ("a red circle moving left on a dark background", "a blue square on a light background")
OTHER_SCHEDULER = {
    "wan": "flow_euler",
    "flux": "flow_euler",
    "ltx": "flow_euler",
    "cogvideox": "cogvideox_dpm",
    "sd": "pndm",
    "sdxl": "heun",
    "svd": "heun",
    "animatediff": "euler",
}
OTHER_RUNS = [{"width": 96}, {"steps": 7}, {"guidance": 1.0}, {"batch": 2}]


def enabled(row, name):
    pipe = make(name)
    pipe.enable_acceleration(row.method)
    return pipe


@pairs
def test_a_setting_that_skips_nothing_changes_no_bit_and_warns(row, name):
    pipe = make(name)
    pipe.enable_acceleration(row.idle)
    with pytest.warns(UserWarning, match=f"{type(row.idle).__name__} skipped nothing"):
        latents = call(pipe, name)
    assert torch.equal(latents, plain(name).latents)
    assert pipe.acceleration.report().computed_fraction == 1


@pairs
def test_work_drops_as_reported(row, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "(?s).*CPU Autocast")  # Mochi's rotary embeddings
        accelerated = clean(row.method, name)
    counted_fraction = accelerated.flops / plain(name).flops
    assert counted_fraction < row.spends
    if accelerated.report.basis == "parameters":
        counted_fraction = weighed(name, row.method) / weighed(name)
    assert accelerated.report.computed_fraction == pytest.approx(counted_fraction, abs=1e-3)


@full
def test_a_fixed_schedule_is_explained_before_the_run(row, name):
    pipe = enabled(row, name)
    branch = [r for r in clean(row.method, name).report.rows if r.branch in ("cond", "both", "0")]
    computed = sum(r.action == "computed" for r in branch)
    said = f"computes {computed} of 5 steps" if row.static else "depends on the sample"
    assert len(branch) == 5 and said in pipe.acceleration.explain(steps=5)


@pairs
def test_output_differs_by_more_than_rounding_and_repeats(row, name):
    reference, pipe = plain(name).latents, enabled(row, name)
    latents = call(pipe, name)
    rounding = torch.finfo(torch.float32).eps * reference.abs().max()
    assert latents.isfinite().all()
    assert (latents - reference).abs().max() > 100 * rounding
    assert torch.equal(latents, clean(row.method, name).latents)
    assert torch.equal(call(pipe, name), latents)


@pairs
def test_disabling_gives_the_original_back(row, name):
    pipe = enabled(row, name)
    call(pipe, name)
    for _ in range(2):
        pipe.disable_acceleration()
        assert anatomy(pipe) == plain(name).shape
    with counted(pipe) as flops:
        assert torch.equal(call(pipe, name), plain(name).latents)
    assert sum(flops) == plain(name).flops
    assert anatomy(pipe) == plain(name).shape


def fixed_output(name, guidance):
    """The guided output of a plain pipeline, on frozen input."""
    pipe = make(name)
    outputs = frozen(pipe)
    call(pipe, name, guidance=guidance)
    return outputs[0]


@full
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_on_frozen_input_a_skipped_step_equals_a_full_one(row, name, guidance):
    """Guidance that is left out on purpose leaves the conditional prediction.

    Sparse attention computes every step, another prediction than the dense first step.
    """
    pipe = make(name)
    outputs = frozen(pipe)
    pipe.enable_acceleration(row.method)
    call(pipe, name, guidance=guidance)
    if row.frozen == "sparse":
        assert torch.equal(outputs[0], fixed_output(name, guidance))
        assert not torch.allclose(outputs[1], outputs[0])
        assert all(torch.equal(output, outputs[1]) for output in outputs[2:])
        return
    nothing_to_skip = row.method.level == "guidance" and guidance == 1.0
    assert any(r.action != "computed" for r in pipe.acceleration.report().rows) != nothing_to_skip
    assert len(outputs) == 5
    if row.frozen == "unguided":
        wanted = [fixed_output(name, guidance), fixed_output(name, 1.0)]
        near = [[torch.allclose(o, w, rtol=1e-4, atol=1e-5) for w in wanted] for o in outputs]
        assert all(map(any, near)) and any(unguided for _, unguided in near)
        return
    for output in outputs[1:]:
        if row.frozen == "exactly":
            assert torch.equal(output, outputs[0])
        else:
            torch.testing.assert_close(output, outputs[0])


@full
def test_a_batch_decides_as_its_samples_alone(row, name):
    if row.shared:
        assert "samples share their decisions" in " ".join(type(row.method).__doc__.split())
        return
    pair = clean(row.method, name, prompt=PROMPTS, seed=(0, 1))
    scale = pair.latents.std()
    alones = [clean(row.method, name, prompt=PROMPTS[i], seed=i) for i in range(2)]
    for alone, latents in zip(alones, pair.latents.split(len(pair.latents) // 2), strict=True):
        torch.testing.assert_close(latents / scale, alone.latents / scale, rtol=1e-4, atol=1e-4)
        if row.static:
            assert [r.action for r in alone.report.rows] == [r.action for r in pair.report.rows]
    if not row.static:
        fractions = [r.report.computed_fraction for r in (pair, *alones)]
        assert fractions[0] == pytest.approx(sum(fractions[1:]) / 2, abs=1e-3)


@full
def test_at_most_one_value_is_read_per_evaluation(row, name):
    """None where the schedule is fixed; what the pipeline itself reads is taken off.

    Counted from the second run of a kind on: the first may look at the scheduler.
    """
    own = reads(make(name), name, 9) - reads(make(name), name, 6)
    pipe = enabled(row, name)
    for steps in (9, 6):
        call(pipe, name, steps=steps)
    more = -reads(pipe, name, 6) + reads(pipe, name, 9)
    evaluations = len(pipe.acceleration.report().rows) / 9
    assert more <= own + (0 if row.static else 3 * evaluations)


@full
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["callback", "denoiser"])
def test_after_an_abort_the_next_run_is_as_ever(row, name, error, place):
    pipe, stop = enabled(row, name), {}

    def fail(*_):
        raise error("stop")

    def after_two_steps(pipe, i, t, kwargs):
        if i == 2 and place == "callback":
            fail()
        if i == 2:
            leaf = next(m for m in denoisers(pipe)[0].modules() if isinstance(m, torch.nn.Linear))
            stop["hook"] = leaf.register_forward_hook(fail)
        return kwargs

    with pytest.raises(error, match="stop"):
        call(pipe, name, callback=after_two_steps)
    if place == "denoiser":
        stop["hook"].remove()
    assert torch.equal(call(pipe, name), clean(row.method, name).latents)


@full
@pytest.mark.parametrize("other", OTHER_RUNS, ids=lambda v: next(iter(v)))
def test_after_another_kind_of_run_the_next_is_as_ever(row, name, other):
    pipe = enabled(row, name)
    call(pipe, name)
    assert torch.equal(call(pipe, name, **other), clean(row.method, name, **other).latents)
    assert torch.equal(call(pipe, name), clean(row.method, name).latents)


@full
def test_after_a_run_with_another_scheduler_the_next_is_as_ever(row, name):
    pipe = enabled(row, name)
    own = pipe.scheduler
    call(pipe, name)
    pipe.scheduler = SCHEDULERS[OTHER_SCHEDULER[name]]()
    fresh = make(name, scheduler=OTHER_SCHEDULER[name])
    fresh.enable_acceleration(row.method)
    assert torch.equal(call(pipe, name), call(fresh, name))
    pipe.scheduler = own
    assert torch.equal(call(pipe, name), clean(row.method, name).latents)
    pipe.disable_acceleration()
    assert anatomy(pipe) == plain(name).shape


@full
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_what_is_kept_is_nobody_elses(row, name, guidance):
    """Overwriting the model's output, and the latents in place, does not change a later step."""

    def in_place(pipe, i, t, kwargs):
        kwargs["latents"].mul_(1.01)
        return kwargs

    def apart(pipe, i, t, kwargs):
        return kwargs | {"latents": kwargs["latents"] * 1.01}

    scheduler = {"wan": "flow_euler"}.get(name)
    pipe, careful = make(name, scheduler=scheduler), make(name, scheduler=scheduler)
    spoiling(pipe)
    same = {"guidance": guidance, "steps": 6}
    expected = call(careful, name, callback=apart, **same)
    assert torch.equal(call(pipe, name, callback=in_place, **same), expected)
    pipe.enable_acceleration(row.method)
    careful.enable_acceleration(row.method)
    expected = call(careful, name, callback=apart, **same)
    assert torch.equal(call(pipe, name, callback=in_place, **same), expected)
