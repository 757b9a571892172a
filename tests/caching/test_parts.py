"""Samples of a batch that decide apart: gathered, computed, and put back where they were."""

import dataclasses

import pytest
import torch

from accel.caching import DBCache, EasyCache, FirstBlockCache, SeaCache, SpeCa, TeaCache
from accel.caching.adaptive import halves
from accel.registry import families
from tests.caching.stack import Stack, agrees, change
from tests.contract.runs import Reads
from tests.tiny_pipelines import call, make

PROMPTS = ("a red circle moving left on a dark background", "a blue square on a light background")
pytestmark = pytest.mark.filterwarnings("ignore:.*skipped nothing")
METHODS = [
    ("wan", EasyCache(0.25, warmup=2)),
    ("wan", SpeCa(0.04, decay=0.5, floor=0.0, shortest=0, longest=4, warmup=2)),
    ("flux", DBCache(0.3, front=1, back=1, order=1, warmup=2)),
    ("cogvideox", FirstBlockCache(0.2)),
    ("cogvideox", SeaCache(0.3)),
    ("ltx", TeaCache(0.2, (1.0, 0.0))),
    ("ltx", EasyCache(0.35, warmup=2)),
]
"""At these thresholds the two samples do not always decide alike."""


def run(name, method, prompts=PROMPTS, seeds=(0, 1)):
    pipe = make(name)
    pipe.enable_acceleration(method)
    latents = call(pipe, name, steps=8, prompt=prompts, seed=seeds)
    return latents, pipe.acceleration.report().rows


@pytest.mark.parametrize(("name", "method"), METHODS, ids=lambda v: str(v).partition("(")[0])
def test_samples_decide_as_alone_also_where_one_computes_and_the_other_skips(name, method):
    together, rows = run(name, method)
    alone = [run(name, method, PROMPTS[i : i + 1], (i,)) for i in range(2)]
    apart = [[r.action == "computed" for r in own] for _, own in alone]
    assert apart[0] != apart[1]
    scale = together.std()
    for i, (latents, _) in enumerate(alone):
        own = together.split(len(together) // 2)[i]
        torch.testing.assert_close(own / scale, latents / scale, rtol=1e-4, atol=1e-4)
    for found, *each in zip(rows, *(own for _, own in alone), strict=True):
        assert found.work == pytest.approx(sum(r.work for r in each) / 2, abs=1e-3)


@pytest.mark.parametrize(("name", "threshold"), [("wan", 0.2), ("cogvideox", 0.25)])
def test_the_published_mean_over_the_batch_is_had_by_a_flag(name, threshold):
    stack, reference = Stack(name), {}

    def keep(module, args, output):
        stack.seen["probe"] = stack.pick(output) - stack.seen["entry"]

    def computes():
        now, old = stack.seen["probe"], reference.get(stack.branch)
        if old is not None and change(now, old) < threshold:
            return False
        reference[stack.branch] = now
        return True

    how = {"steps": 8, "prompt": PROMPTS, "seed": (0, 1)}
    stack.hooks.append(stack.blocks[0].register_forward_hook(keep))
    stack.overwrite(computes, hold_after_first(stack))
    expected = stack.go(**how)
    method = FirstBlockCache(threshold, per_sample=False)
    agrees(method, stack, stack.computed, expected, **how)


def hold_after_first(stack):
    """Reuse what the other blocks added, on top of what the first adds now."""
    first = {}

    def forecast(added, step):
        key = stack.branch, added[0][0]
        return stack.seen["probe"] + added[0][1] - first[key]

    def remember(module, args, output):
        first[stack.branch, stack.step] = stack.pick(output) - stack.seen["entry"]

    stack.hooks.append(stack.blocks[0].register_forward_hook(remember))
    return forecast


def test_blocks_of_unknown_arguments_cannot_be_cut():
    method = FirstBlockCache(0.2)
    pipe = make("cogvideox")
    family = families()["cogvideox"]
    unknown = tuple(dataclasses.replace(b, batched=None) for b in family.blocks)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(families(), "cogvideox", dataclasses.replace(family, blocks=unknown))
        pipe.enable_acceleration(method)
        call(pipe, "cogvideox")  # a single sample needs no cutting
        with pytest.raises(ValueError, match="cannot decide apart; set per_sample=False"):
            call(pipe, "cogvideox", prompt=PROMPTS)
        pipe.enable_acceleration(dataclasses.replace(method, per_sample=False))
        assert torch.isfinite(call(pipe, "cogvideox", prompt=PROMPTS)).all()


@pytest.mark.parametrize(("name", "method"), METHODS[::2], ids=lambda v: str(v).partition("(")[0])
def test_one_value_is_read_per_evaluation_of_a_single_sample(name, method):
    pipe, counts = make(name), {}
    for steps in (6, 9):
        with Reads() as plain:
            call(pipe, name, steps=steps)
        counts[steps] = plain.count
    pipe.enable_acceleration(dataclasses.replace(method, threshold=1e-6))
    for steps in (6, 9):
        with Reads() as found:
            call(pipe, name, steps=steps)
        counts[steps] = found.count - counts[steps]
    leads = len(pipe.acceleration.report().rows) / 9
    if isinstance(method, EasyCache):  # the other branch follows
        leads = 1
    assert counts[9] - counts[6] == 3 * leads


@pytest.mark.parametrize(("guidance", "expected"), [(4.0, 2), (1.0, 1)])
def test_rows_of_both_halves_belong_to_one_sample(guidance, expected):
    pipe, seen = make("cogvideox"), []
    state = pipe.enable_acceleration(FirstBlockCache(0.2))
    state._site.clock.on_call.append(lambda call: seen.append(halves(state._site)))
    latents = call(pipe, "cogvideox", prompt=PROMPTS, guidance=guidance)
    assert set(seen) == {expected} and len(latents) == 2
