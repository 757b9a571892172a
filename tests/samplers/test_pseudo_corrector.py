"""FlowTurbo's pseudo-corrector: its evaluations, its published loop, its slot for a refiner."""

import itertools

import pytest
import torch

from accel.samplers import PseudoCorrector, Sampler
from accel.samplers.refiner import refined
from tests.probes import footprint
from tests.samplers.gaussian import UNEVEN, predict, run, start
from tests.tiny_pipelines import call, make


def test_pseudo_corrector_evaluations():
    def count(**settings):
        scheduler = PseudoCorrector(**settings)
        scheduler.refiner = lambda sample, velocity, t, told: torch.zeros_like(velocity)
        scheduler.set_timesteps(10)
        run(scheduler, start())
        return len(scheduler.timesteps)

    assert count(evaluate_last=True) == 2 + 9  # 2 N_H + N_P
    assert count(heun_steps=4, evaluate_last=True) == 2 * 4 + 6
    assert count() == 10
    assert count(heun_steps=2) == 11
    assert count(heun_steps=2, refiner_steps=3) == 9


def test_pseudo_corrector_transcribed():
    """Against the published loop: Heun once, then slopes handed on."""
    grid, x = [*UNEVEN, 0.0], start()

    def velocity(state, g):
        return predict("flow_prediction", state, 1 - g, g)

    expected, slope = x, None
    for now, after in itertools.pairwise(grid):
        first = velocity(expected, now) if slope is None else slope
        slope = velocity(expected + (after - now) * first, after)
        expected = expected + (after - now) / 2 * (first + slope)
    scheduler = PseudoCorrector(evaluate_last=True)
    scheduler.set_timesteps(sigmas=UNEVEN)
    torch.testing.assert_close(run(scheduler, x), expected, rtol=1e-5, atol=1e-5)


def test_a_refiner_of_nothing_keeps_the_velocity():
    scheduler = PseudoCorrector(refiner_steps=3)
    with pytest.raises(ValueError, match="need a refiner"):
        scheduler.set_timesteps(8)
    seen = []

    def refiner(sample, velocity, t, conditions):
        assert conditions == {}  # nobody runs it but this loop
        seen.append(t)
        return torch.zeros_like(velocity)

    scheduler.refiner = refiner
    scheduler.set_timesteps(8)
    assert len(scheduler.timesteps) == 6
    x = torch.randn(2, 3)
    for t in scheduler.timesteps:
        before, x = x, scheduler.step(torch.full_like(x, 0.5), t, x, return_dict=False)[0]
    torch.testing.assert_close(x - before, torch.full_like(x, -0.5 * float(scheduler.sigmas[-2])))
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("name", "text"), [("wan", "encoder_hidden_states"), ("sd", "encoder_hidden_states")]
)
def test_a_refiner_is_told_what_the_denoiser_was_told(name, text):
    """Once a branch, fused or apart, and guidance weighs what it says."""
    pipe, seen, told = make(name), [], []
    call(pipe, name)
    before = footprint(pipe)
    denoiser = pipe.transformer if name == "wan" else pipe.unet

    def note(module, args, kwargs):
        told.append(kwargs[text].clone())

    def refiner(sample, velocity, t, conditions):
        assert "timestep" not in conditions and sample.shape == velocity.shape
        seen.append((t, conditions[text]))
        return torch.full_like(velocity, float(conditions[text].std()))

    pipe.enable_acceleration(Sampler("PseudoCorrector", {"refiner_steps": 1}))
    pipe.scheduler.refiner = refiner
    hook = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    first = call(pipe, name)
    hook.remove()
    assert first.isfinite().all() and len(seen) == 4  # two slopes, of two branches each
    fused = told[-1].chunk(2) if name == "sd" else (told[-1], told[-2])
    uncond, cond = fused
    for i, expected in enumerate((cond, uncond, cond, uncond)):
        assert torch.equal(seen[i][1], expected)
    assert seen[0][0] >= seen[2][0]  # of a model that preserves variance the last one counts twice
    pipe.scheduler.refiner = lambda sample, velocity, t, conditions: torch.zeros_like(velocity)
    assert not torch.allclose(call(pipe, name), first)
    pipe.disable_acceleration()
    assert footprint(pipe) == before


def test_deltas_are_guided_as_predictions_are():
    deltas = {"c": 3.0, "u": 1.0}

    def refiner(sample, velocity, t, conditions):
        assert float(velocity.sum()) == 4.0  # the same for both
        return torch.full_like(velocity, deltas[conditions["branch"]])

    told = [(2.5, {"branch": "c"}), (-1.5, {"branch": "u"})]
    found = refined(refiner, torch.zeros(4), torch.ones(4), 100.0, told)
    torch.testing.assert_close(found, torch.full((4,), 1 + 1.0 + 2.5 * (3.0 - 1.0)))


def test_without_guidance_the_refiner_speaks_once_and_unknown_scales_are_refused():
    seen = []

    def refiner(sample, velocity, t, conditions):
        seen.append(conditions)
        return torch.zeros_like(velocity)

    for name in ("wan", "flux"):
        pipe = make(name)
        pipe.enable_acceleration(Sampler("PseudoCorrector", {"refiner_steps": 1}))
        pipe.scheduler.refiner = refiner
        seen.clear()
        call(pipe, name, guidance=1.0)
        assert len(seen) == 2
    with pytest.raises(ValueError, match="FluxPipeline does not tell the scale"):
        call(pipe, "flux")
    with pytest.raises(ValueError, match="a refiner goes with one denoiser"):
        make("wan22").enable_acceleration(Sampler("PseudoCorrector", {"refiner_steps": 1}))


def test_a_saved_scheduler_says_where_its_refiner_lies(tmp_path):
    scheduler = PseudoCorrector(refiner_steps=2, refiner_path="refiners/shapes")
    scheduler.save_pretrained(tmp_path)
    loaded = PseudoCorrector.from_pretrained(tmp_path)
    assert loaded.config.refiner_path == "refiners/shapes"
    with pytest.raises(ValueError, match="one that is kept at refiners/shapes"):
        loaded.set_timesteps(8)
    loaded.refiner = lambda sample, velocity, t, conditions: torch.zeros_like(velocity)
    loaded.set_timesteps(8)
    assert run(loaded, start()).isfinite().all()
