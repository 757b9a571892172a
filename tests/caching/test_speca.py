"""SpeCa: drafts by hand, the threshold, and a plain loop of draft and check."""

import pytest
import torch

from accel.caching import SpeCa
from tests.caching.stack import Stack, agrees, given, line
from tests.tiny_pipelines import call, make


def computed_steps(method, steps, name="wan"):
    pipe = make(name, scheduler="flow_euler")
    pipe.enable_acceleration(method)
    call(pipe, name, steps=steps)
    rows = pipe.acceleration.report().rows
    return [r.index for r in rows if r.branch == "cond" and r.action == "computed"]


def test_a_check_that_never_fails_drafts_as_many_as_allowed():
    method = SpeCa(float("inf"), shortest=2, longest=5, warmup=3)
    assert computed_steps(method, 16) == [0, 1, 2, 8, 14]


def test_a_check_that_always_fails_computes_after_the_first_verified_draft():
    method = SpeCa(1e-9, floor=0.0, shortest=2, longest=5, warmup=3)
    # 3 and 4 are not verified, 5 is and fails: 6 is computed
    assert computed_steps(method, 12) == [0, 1, 2, 6, 10]
    method = SpeCa(1e-9, floor=0.0, shortest=0, longest=5, warmup=1)
    assert computed_steps(method, 6) == [0, 2, 4]


def test_the_limit_falls_to_its_floor():
    limits = [SpeCa().limit(i, 50) for i in range(50)]
    assert limits[0] == 0.1 and limits[25] == pytest.approx(0.01)
    assert limits == sorted(limits, reverse=True) and limits[-1] == 0.01


@pytest.mark.parametrize("threshold", [0.02, 0.1])
@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_latents_and_skips_are_those_of_draft_and_check(name, threshold):
    steps, method = 14, SpeCa(threshold, decay=0.5, floor=0.0, shortest=1, longest=4, warmup=2)
    stack = Stack(name)
    final, computed = stack.blocks[-1], []
    added, outputs, streak, error = {}, {}, {}, {}

    def enter(module, args, kwargs):
        branch, step, entry = stack.branch, stack.step, stack.seen["entry"]
        limit = threshold * 0.5 ** (step / steps)
        full = step < 2 or streak[branch] == 4 or error[branch] > limit
        computed.append(full)
        if full:
            streak[branch] = error[branch] = 0
            added.setdefault(branch, []).insert(0, (step, given(args, kwargs) - entry))
            return None
        streak[branch] += 1
        draft = entry + line(added[branch], step)
        return ((draft, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": draft})

    def leave(module, args, output):
        branch, step = stack.branch, stack.step
        if computed[-1]:
            outputs.setdefault(branch, []).insert(0, (step, output))
        elif streak[branch] > 1:
            # relative to the output itself
            off = (output - line(outputs[branch], step)).abs().mean() / output.abs().mean()
            error[branch] = float(off)

    stack.hooks.append(final.register_forward_pre_hook(enter, with_kwargs=True))
    stack.hooks.append(final.register_forward_hook(leave))
    expected = stack.go(steps=steps)
    agrees(method, stack, computed, expected, steps=steps)


def test_nothing_is_read_before_a_draft_is_verified():
    pipe = make("wan")
    pipe.enable_acceleration(SpeCa(1.0, shortest=5, longest=5))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "item", None)
        call(pipe, "wan", steps=8)
    assert pipe.acceleration.report().computed_fraction < 0.8


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match=r"SpeCa\.longest must be at least 1, and at least"):
        SpeCa(shortest=3, longest=2)
    with pytest.raises(ValueError, match=r"SpeCa\.decay must be above 0"):
        SpeCa(decay=0)


def test_what_is_kept_is_known_before():
    pipe = make("flux")
    state = pipe.enable_acceleration(SpeCa())
    call(pipe, "flux", steps=8)
    assert state.report().bytes_held == state._site.report.expected() > 0
