"""TaylorSeer on whole pipelines: against the released update, memory, precision, two experts."""

import pytest
import torch

from accel.caching import TaylorSeer
from accel.caching.policies import Interval, schedule
from tests.caching.transcribed import Counted, taylorseer
from tests.tiny_pipelines import call, make

PARTS = {
    "wan": ("attn1", "attn2", "ffn"),
    "cogvideox": ("attn1", "ff"),
    "ltx": ("attn1", "attn2", "ff"),
    "flux": ("attn", "ff", "ff_context"),
}
STEPS = 9


def carried(pipe, name, carrier):
    """The modules whose outputs a carrier forecasts, named here once more."""
    model = pipe.transformer
    if carrier == "output":
        return [model]
    single = list(getattr(model, "single_transformer_blocks", []))
    blocks = list(model.blocks if name == "wan" else model.transformer_blocks)
    if carrier == "hidden":
        return [(single or blocks)[-1]]
    modules = [b.get_submodule(part) for b in blocks for part in PARTS[name]]
    return modules + [b.proj_out for b in single]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("carrier", ["output", "hidden", "module"])
@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox"])
def test_latents_are_those_of_the_released_update(name, carrier, order):
    plain = make(name)
    counted = Counted(plain, branches=1 if name == "cogvideox" else 2)
    modules = carried(plain, name, carrier)
    taylorseer(counted, modules, order, interval=3, warmup=2)
    expected = counted.run(plain, name, steps=STEPS)

    pipe = make(name)
    pipe.enable_acceleration(TaylorSeer(interval=3, order=order, warmup=2, carrier=carrier))
    latents = call(pipe, name, steps=STEPS)
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)
    assert (latents - call(make(name), name, steps=STEPS)).abs().max() > 1e-2 * scale


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox", "sd"])
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_computed_steps_are_those_of_the_schedule(name, guidance):
    pipe = make(name)
    pipe.enable_acceleration(TaylorSeer(interval=4, warmup=3, last=True))
    call(pipe, name, steps=12, guidance=guidance)
    rows = pipe.acceleration.report().rows
    expected = schedule(Interval(4, 3, last=True), 12)
    assert expected == [0, 1, 2, 6, 10, 11]
    for branch in {row.branch for row in rows}:
        found = [r.index for r in rows if r.branch == branch and r.action == "computed"]
        assert found == expected


def test_one_kept_output_is_reused_and_two_are_forecast_from():
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=3, warmup=1))
    call(pipe, "wan", steps=7)
    actions = [r.action for r in pipe.acceleration.report().rows if r.branch == "cond"]
    assert actions == ["computed", *["reused"] * 2, "computed", *["forecast"] * 2, "computed"]


def test_newton_uses_every_computed_step():
    """Its order does not wait for the released rule that the warm-up is not differenced."""
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=3, warmup=3, order=2, basis="newton"))
    outputs = []
    pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    seen = []
    step = pipe.scheduler.step

    def watch(model_output, *args, **kwargs):
        seen.append(model_output)
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = watch
    call(pipe, "wan", steps=4, guidance=1.0)
    first, second, third = outputs
    torch.testing.assert_close(seen[3], 3 * third - 3 * second + first)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("carrier", "values"), [("output", 512), ("hidden", 768), ("module", 9216)]
)
def test_bytes_held_are_those_of_the_outputs_kept(carrier, values, order):
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=2, order=order, carrier=carrier))
    held = []
    for steps in (9, 13):
        call(pipe, "wan", steps=steps)
        held.append(pipe.acceleration.report().bytes_held)
    # output (4, 2, 8, 8); 32 tokens of 24; 12 modules of those: float32, two branches
    assert held == [4 * 2 * (order + 1) * values] * 2


@pytest.mark.parametrize("carrier", ["output", "hidden", "module"])
def test_half_precision_stays_half(carrier):
    held = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = make("flux").to(dtype)
        plain = call(pipe, "flux", steps=STEPS)
        pipe.enable_acceleration(TaylorSeer(interval=2, order=2, carrier=carrier))
        latents = call(pipe, "flux", steps=STEPS)
        assert latents.dtype == dtype and latents.isfinite().all()
        assert 0 < (latents - plain).abs().mean() < plain.abs().mean()
        held.append(pipe.acceleration.report().bytes_held)
    assert held[0] == 2 * held[1] > 0


def test_the_second_expert_has_a_warmup_of_its_own():
    pipe = make("wan22")
    pipe.enable_acceleration(TaylorSeer(interval=3, warmup=2))
    call(pipe, "wan22", steps=20)
    rows = [r for r in pipe.acceleration.report().rows if r.branch == "cond"]
    for expert in ("transformer", "transformer_2"):
        indices = [r.index for r in rows if r.denoiser == expert]
        computed = [r.index - indices[0] for r in rows if r.denoiser == expert and r.work == 1]
        assert computed == schedule(Interval(3, 2), len(indices))
        assert len(indices) > 5


@pytest.mark.parametrize("name", ["sd", "ltx2"])
def test_carriers_a_model_does_not_have_are_refused(name):
    pipe = make(name)
    for carrier in ("hidden", "module"):
        with pytest.raises(ValueError, match="TaylorSeer"):
            pipe.enable_acceleration(TaylorSeer(carrier=carrier))
    pipe.enable_acceleration(TaylorSeer(carrier="output"))


def test_settled_differences_span_whole_intervals():
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=3, warmup=3, settle=True))
    call(pipe, "wan", steps=STEPS)
    rows = [r for r in pipe.acceleration.report().rows if r.branch == "cond"]
    expected = ["computed"] * 3 + ["reused"] * 2 + ["computed"] + ["forecast"] * 2 + ["computed"]
    assert [r.action for r in rows] == expected


def test_without_adjacent_warm_up_steps_there_is_nothing_to_settle():
    latents = []
    for settle in (False, True):
        pipe = make("wan")
        pipe.enable_acceleration(TaylorSeer(interval=3, warmup=1, settle=settle))
        latents.append(call(pipe, "wan", steps=STEPS))
    assert torch.equal(*latents)
