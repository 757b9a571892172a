"""Settings switch a pipeline to what they say and back, and the work they save is counted."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from benchmarks import peers, settings
from benchmarks.settings import Setting, plain, ready, solver
from benchmarks.work import WorkCounter
from tests.tiny_pipelines import call, make

TAYLORSEER = TaylorSeer(interval=3, warmup=1)


def test_says_whose_it_is_and_whether_it_runs_alone():
    assert Setting("x", TAYLORSEER).by == "ours" and not Setting("x", TAYLORSEER).alone
    assert plain().by == "plain" and str(plain(steps=7)) == "7 steps"
    assert Setting("x", FirstBlockCache(per_sample=False)).alone
    assert not Setting("x", FirstBlockCache()).alone
    mask = peers.mask([0, 3], 5)
    masked = Setting("x", peers.CacheDiT(mask=mask, order=1))
    assert masked.by == "cache-dit" and not masked.alone
    assert str(masked) == "CacheDiT(order=1, mask=10010)"
    assert Setting("x", peers.CacheDiT()).alone
    assert str(Setting("x", peers.MagCache((1.0, 0.5)))) == "MagCache(ratios=<2 values>)"


def test_diffusers_taylorseer_can_compute_the_final_step():
    assert settings.TaylorSeer(interval=4, warmup=3).computed(10) == [0, 1, 2, 4, 8]
    assert settings.TaylorSeer(interval=4, warmup=3, last=True).computed(10)[-1] == 9
    pipe = make("wan")
    whole = _work(pipe, plain(steps=6))
    for last, computed in ((False, 4), (True, 5)):
        setting = Setting("x", settings.TaylorSeer(interval=9, warmup=3, last=last), steps=6)
        share = _work(pipe, setting) / whole
        assert len(setting.method.computed(6)) == computed
        assert computed / 6 <= share < (computed + 0.5) / 6


def test_pipeline_is_as_before_afterwards():
    pipe = make("wan")
    before = call(pipe, "wan", steps=4)
    for setting in (
        Setting("x", TAYLORSEER, sampler="euler", steps=4),
        Setting("x", peers.CacheDiT(threshold=0.5, warmup=1), steps=4),
        plain("dpm++", 4),
    ):
        own = pipe.scheduler
        with ready(pipe, setting) as other:
            changed = call(other, "wan", steps=4)
        assert pipe.scheduler is own
        assert not torch.equal(changed, before)
        assert torch.equal(call(pipe, "wan", steps=4), before)


def test_solvers_keep_what_the_model_predicts():
    flow, sd = make("wan").scheduler, make("sd").scheduler
    assert isinstance(solver(flow, "euler"), FlowMatchEulerDiscreteScheduler)
    assert solver(flow, "euler").config.shift == flow.config.flow_shift
    ready_made = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for name in ("unipc", "dpm++"):
        other = solver(ready_made, name)
        assert (other.config.prediction_type, other.config.flow_shift) == ("flow_prediction", 3.0)
        other.set_timesteps(12)
        sigmas = other.sigmas.tolist()
        assert 0.99 < sigmas[0] <= 1 and sigmas == sorted(sigmas, reverse=True)
    found = solver(sd, "dpm++:trailing")
    assert isinstance(found, DPMSolverMultistepScheduler)
    assert found.config.timestep_spacing == "trailing"
    assert found.config.prediction_type == sd.config.prediction_type
    assert type(solver(sd, "own")) is type(sd)
    with pytest.raises(ValueError, match="unknown solver 'heun'"):
        solver(flow, "heun")
    with pytest.raises(ValueError, match="unknown solver 'euler'"):
        solver(sd, "euler")


@pytest.mark.parametrize(
    ("name", "method"),
    [("wan", TAYLORSEER), ("wan", FirstBlockCache(threshold=10.0)), ("sd", DeepCache(branch=1))],
)
def test_work_agrees_with_the_report(name, method):
    pipe = make(name)
    whole = _work(pipe, plain(steps=5), name)
    with ready(pipe, Setting("x", method, steps=5)) as other:
        with WorkCounter(_denoiser(other)) as work:
            call(other, name, steps=5)
        fraction = other.acceleration.report().computed_fraction
    assert work.flops / whole == pytest.approx(fraction, abs=0.01)
    assert not any(m._forward_hooks for m in _denoiser(pipe).modules())


def test_work_counts_attention_as_torch_does():
    from torch.utils.flop_counter import FlopCounterMode

    pipe = make("wan")
    counter = FlopCounterMode(display=False)
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with WorkCounter(pipe.transformer) as work, counter, math:
        call(pipe, "wan", steps=1)
    counted = counter.get_flop_counts()[type(pipe.transformer).__name__]
    assert work.flops == pytest.approx(sum(counted.values()), rel=0.01)


def _denoiser(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def _work(pipe, setting, name="wan"):
    with ready(pipe, setting) as other, WorkCounter(_denoiser(other)) as work:
        call(other, name, steps=setting.steps)
    return work.flops
