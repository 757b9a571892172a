"""DiCache: its decisions by hand, gamma and its limits, and the published loop."""

import pytest
import torch

from accel.caching import DiCache
from accel.caching.dicache import GAMMA, PROBE, TrajectoryJudge
from accel.caching.forecasters import hold
from accel.caching.state import State
from tests.caching.stack import Stack, agrees, change
from tests.caching.stack import hold as reuse
from tests.tiny_pipelines import call, make


def published(name, method, steps):
    """The released loop: (stack, latents)."""
    stack = Stack(name)
    probes, total, before, inputs = {}, {}, {}, {}

    def keep(module, args, output):
        stack.seen["probe"] = stack.pick(output).clone()

    stack.hooks.append(stack.blocks[method.front - 1].register_forward_hook(keep))

    def computes():
        branch, now, entry = stack.branch, stack.seen["probe"], stack.seen["entry"]
        old, before[branch] = before.get(branch), now
        old_entry, inputs[branch] = inputs.get(branch), entry
        if int(method.retention * steps) < stack.step < steps - method.tail:
            moved = change(now, old)
            if method.measure == "difference":
                moved = abs(moved - change(entry, old_entry))
            total[branch] += moved
            if total[branch] < method.threshold:
                return False
        total[branch] = 0.0
        probes.setdefault(branch, []).insert(0, now - entry)
        return True

    def trajectory(added, step):
        if len(added) == 1:
            return reuse(added, step)
        newest, older = probes[stack.branch][:2]
        residual = stack.seen["probe"] - stack.seen["entry"]
        gamma = (residual - older).abs().mean() / (newest - older).abs().mean()
        (_, last), (_, first) = added[:2]
        return first + gamma.clip(1, method.reach) * (last - first)

    stack.overwrite(computes, trajectory)
    return stack, stack.go(steps=steps)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("wan", DiCache(0.3)),
        ("wan", DiCache(0.1, measure="difference", reach=2.0, retention=0.0)),
        ("flux", DiCache(0.5, front=2, tail=0)),
        ("ltx", DiCache(0.4)),
    ],
    ids=str,
)
def test_latents_and_skips_are_those_of_the_published_loop(name, method):
    stack, expected = published(name, method, steps=10)
    agrees(method, stack, stack.computed, expected, steps=10)


def judged(reach=1.5):
    pipe = make("wan")
    judge = TrajectoryJudge(pipe.enable_acceleration(DiCache())._site, DiCache(reach=reach))
    return judge, State(0, hold, 2)


@pytest.mark.parametrize(
    ("older", "newest", "now", "expected"),
    [
        (1.0, 2.0, 2.25, 1.25),  # a quarter beyond the newest
        (1.0, 2.0, 1.5, 1.0),  # behind it: at least 1
        (1.0, 2.0, 5.0, 1.5),  # far beyond: at most the reach
        (1.0, 2.0, -0.25, 1.25),  # a magnitude: the direction is not told
        (2.0, 2.0, 3.0, 1.0),  # the denominator is 0
    ],
)
def test_gamma_by_hand(older, newest, now, expected):
    judge, part = judged()
    part.keep(PROBE, 0, torch.full((1, 4), older))
    assert judge._gamma(torch.full((1, 4), now), part) is None
    part.keep(PROBE, 1, torch.full((1, 4), newest))
    assert float(judge._gamma(torch.full((1, 4), now), part)) == expected
    assert GAMMA not in part.extra


@pytest.mark.parametrize(("retention", "tail", "expected"), [(0.0, 0, [0]), (0.4, 1, [0, 1, 2, 5])])
def test_without_a_limit_only_the_ends_are_computed(retention, tail, expected):
    pipe = make("wan", scheduler="flow_euler")
    pipe.enable_acceleration(DiCache(float("inf"), retention=retention, tail=tail))
    call(pipe, "wan", steps=6)
    rows = pipe.acceleration.report().rows
    assert [r.index for r in rows if r.branch == "cond" and r.action == "computed"] == expected


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match=r"DiCache\.reach must be at least 1"):
        DiCache(reach=0.5)
    with pytest.raises(ValueError, match=r"DiCache\.measure must be probe or difference"):
        DiCache(measure="both")


def test_what_is_kept_is_known_before():
    pipe = make("wan")
    state = pipe.enable_acceleration(DiCache(0.3))
    call(pipe, "wan", steps=8)
    assert state.report().bytes_held == state._site.report.expected() > 0
