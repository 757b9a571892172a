"""EasyCache: its rule on scripted latents, the published loop, branches, and extra channels."""

import pytest
import torch

from accel.caching import EasyCache
from accel.caching.latents import shared
from tests.caching.stack import SEPARATE, agrees
from tests.caching.transcribed import Counted
from tests.tiny_pipelines import call, make


def published(name, threshold, warmup, steps, channels=None, rows=slice(None)):
    """The released loop as hooks on a plain pipeline: (counted, latents, what is computed).

    The last branch of a step follows the first. `channels` are those of the latents proper.
    """
    pipe = make(name)
    counted = Counted(pipe, branches=2 if name in SEPARATE or name == "wan_i2v" else 1)
    counted.name, computed, told = name, [], {}
    last, full = {}, {}

    def mean(value):
        return value[rows].abs().mean()

    def hook(module, args, kwargs, output):
        step, branch = counted.step, counted.branch
        now, (out,) = kwargs["hidden_states"][:, :channels].clone(), output
        skip = told.get("skip", False)
        if branch == 0:
            skip = False
            if "k" in told and warmup <= step < steps - 1:
                told["sum"] += told["k"] * mean(now - last[0]) / mean(full[0][1])
                skip = bool(told["sum"] < threshold)
            last[0], told["skip"] = now, skip
        computed.append(not skip)
        if skip:
            return (now + (full[branch][1] - full[branch][0]),)
        if branch == 0:
            told["sum"] = 0.0
            if 0 in full:
                told["k"] = mean(out - full[0][1]) / mean(now - full[0][0])
        full[branch] = now, out
        return None

    counted.hooks.append(pipe.transformer.register_forward_hook(hook, with_kwargs=True))
    return counted, counted.run(pipe, name, steps=steps), computed


@pytest.mark.parametrize(
    ("name", "threshold", "how"),
    [
        ("wan", 0.5, {}),
        ("flux", 0.4, {}),
        ("ltx", 0.5, {"rows": slice(1, 2)}),
        ("wan_i2v", 0.5, {"channels": 4}),
    ],
)
def test_latents_and_skips_are_those_of_the_published_loop(name, threshold, how):
    counted, expected, computed = published(name, threshold, 3, 10, **how)
    agrees(EasyCache(threshold, warmup=3), counted, computed, expected, steps=10)


def scripted(pipe, slopes):
    """Make the output of branch b at step i of a Wan pipeline 10 + slopes[b] * i."""
    calls = []

    def output(module, args, value):
        calls.append(None)
        step, branch = divmod(len(calls) - 1, 2)
        return torch.full_like(value, 10 + slopes[branch] * step)

    pipe.transformer.proj_out.register_forward_hook(output)


@pytest.mark.parametrize(("follow", "others"), [(True, [0, 1, 5]), (False, list(range(6)))])
def test_the_other_branch_follows_or_decides_for_itself(follow, others):
    pipe = make("wan", scheduler="flow_euler")
    scripted(pipe, slopes=(0.0, 1e6))
    pipe.enable_acceleration(EasyCache(0.05, warmup=1, follow=follow))
    call(pipe, "wan", steps=6)
    rows = pipe.acceleration.report().rows
    found = {b: [r.index for r in rows if r.branch == b and r.work] for b in ("cond", "uncond")}
    assert found == {"cond": [0, 1, 5], "uncond": others}


@pytest.mark.parametrize(("warmup", "tail", "expected"), [(1, 0, [0, 1]), (3, 2, [0, 1, 2, 4, 5])])
def test_without_a_limit_two_steps_and_the_ends_are_computed(warmup, tail, expected):
    pipe = make("flux")
    pipe.enable_acceleration(EasyCache(float("inf"), warmup, tail))
    call(pipe, "flux", steps=6)
    rows = pipe.acceleration.report().rows
    assert [r.index for r in rows if r.branch == "cond" and r.work] == expected


def test_shared_channels_come_first():
    latents, output = torch.zeros(2, 9, 4, 4), torch.zeros(2, 4, 4, 4)
    assert [t.shape[1] for t in shared(latents, output, 1)[:2]] == [4, 4]
    assert [t.shape[1] for t in shared(output, latents, 1)[:2]] == [4, 4]
    assert [t.shape[2] for t in shared(torch.zeros(2, 6, 9), torch.zeros(2, 6, 4), 1)[:2]] == [4, 4]
    with pytest.raises(ValueError, match="alike but for their channels"):
        shared(latents, torch.zeros(2, 4, 8, 8), 1)


def test_a_denoiser_of_several_outputs_is_refused():
    pipe = make("ltx2")
    pipe.enable_acceleration(EasyCache(0.5))
    with pytest.raises(ValueError, match="transformer returns 2 values"):
        call(pipe, "ltx2")
