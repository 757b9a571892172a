"""DBCache: skip lists by hand, masks, the transcribed loop, blocks before and after."""

import pytest
import torch

from accel.caching import DBCache, FirstBlockCache
from accel.caching.dbcache import MASKS
from accel.caching.policies import Bins, schedule
from tests.caching.stack import Stack, agrees, change, line
from tests.tiny_pipelines import call, make


def computed_steps(method, steps, residuals=None, name="wan"):
    pipe = make(name, scheduler="flow_euler")
    if residuals is not None:
        calls = []

        def residual(block, args, output):
            calls.append(None)
            return args[0] + residuals[(len(calls) - 1) // 2]

        pipe.transformer.blocks[0].register_forward_hook(residual)
    pipe.enable_acceleration(method)
    call(pipe, name, steps=steps)
    rows = pipe.acceleration.report().rows
    return [r.index for r in rows if r.branch == "cond" and r.action == "computed"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0, 1]),
        ({"warmup": 4}, [0, 1, 2, 3]),
        ({"longest": 2}, [0, 1, 4, 7]),
        ({"most": 5}, [0, 1, 7, 8, 9]),
        ({"longest": 2, "most": 3}, [0, 1, 4, 6, 7, 8, 9]),
        ({"longest": 0}, list(range(10))),
    ],
    ids=str,
)
def test_without_a_limit_on_the_change_the_counts_decide(fields, expected):
    method = DBCache(**({"threshold": float("inf"), "front": 1, "warmup": 2} | fields))
    assert computed_steps(method, 10) == expected


def test_skip_list_by_hand():
    """As FirstBlockCache, after two steps: the change is against the last computed step."""
    #            full  full  8 %   11 %  4 %   9 %   13 %  0
    residuals = [1.00, 1.00, 1.08, 1.11, 1.16, 1.21, 1.26, 1.26]
    method = DBCache(threshold=0.1, front=1, warmup=2)
    assert computed_steps(method, 8, residuals) == [0, 1, 3, 6]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        # bins in turn: 8 1 3 2 3 2 2 2 1 3 1; of 28 steps the last is computed anyway
        ("slow", [*range(8), 9, 10, 11, 14, 15, 16, 19, 20, 23, 27]),
        ("medium", [*range(6), 7, 8, 12, 13, 17, 18, 22, 23, 27]),
        ("fast", [*range(6), 7, 11, 16, 22, 27]),
        ("ultra", [*range(4), 6, 12, 19, 27]),
    ],
)
def test_masks_of_28_steps_by_hand(mask, expected):
    assert schedule(Bins(*MASKS[mask]), 28) == expected


def test_masks_stretch_and_steps_are_as_listed():
    assert computed_steps(DBCache(front=1, mask="ultra"), 14) == [0, 1, 3, 6, 13]
    assert computed_steps(DBCache(front=1, steps=(0, 2, 5)), 7) == [0, 2, 5]


@pytest.mark.parametrize(
    ("name", "front", "back"),
    [("wan", 1, 1), ("ltx", 2, 0), ("ltx", 1, 1)],
)
@pytest.mark.parametrize("order", [0, 1])
def test_latents_and_skips_are_those_of_a_plain_loop(name, front, back, order):
    """Blocks before and after the middle run; the middle adds the line of what it added."""
    steps, threshold, warmup = 9, 0.4, 2
    stack = Stack(name)
    probe, middle = stack.blocks[front - 1], stack.blocks[-1 - back]
    reference, added, computed = {}, {}, []

    def first(module, args, output):
        stack.seen["middle"] = output
        residual, branch = output - stack.seen["entry"], stack.branch
        old = reference.get(branch)
        full = stack.step < warmup or change(residual, old) >= threshold
        computed.append(full)
        if full:
            reference[branch] = residual

    def replace(module, args, output):
        history = added.setdefault(stack.branch, [])
        if computed[-1]:
            history.insert(0, (stack.step, output - stack.seen["middle"]))
            return None
        return stack.seen["middle"] + line(history[: order + 1], stack.step)

    stack.hooks.append(probe.register_forward_hook(first))
    stack.hooks.append(middle.register_forward_hook(replace))
    expected = stack.go(steps=steps)
    method = DBCache(threshold, front, back, order, warmup)
    agrees(method, stack, computed, expected, steps=steps)


def test_text_streams_enter_the_last_blocks_forecast_too():
    """On Flux the text runs through the blocks beside the picture, and the last block reads it."""
    steps = (0, 1, 3)
    stack = Stack("flux")
    final, entered, added, computed = stack.blocks[-1], {}, {}, []
    names = ("hidden_states", "encoder_hidden_states")

    def enter(module, args, kwargs):
        entered.update({n: kwargs[n].clone() for n in names})

    def replace(module, args, kwargs):
        computed.append(stack.step in steps)
        history = added.setdefault(stack.branch, {n: [] for n in names})
        drafted = {}
        for n in names:
            if computed[-1]:
                history[n].insert(0, (stack.step, kwargs[n] - entered[n]))
            else:
                drafted[n] = entered[n] + line(history[n], stack.step)
        return args, {**kwargs, **drafted}

    stack.hooks.append(stack.blocks[1].register_forward_pre_hook(enter, with_kwargs=True))
    stack.hooks.append(final.register_forward_pre_hook(replace, with_kwargs=True))
    expected = stack.go(steps=5)
    method = DBCache(steps=steps, front=1, back=1, order=1)
    agrees(method, stack, computed, expected, steps=5)


def test_one_block_and_no_warm_up_is_first_block_cache():
    latents = []
    for method in (FirstBlockCache(threshold=0.4), DBCache(0.4, front=1, warmup=1)):
        pipe = make("cogvideox")
        pipe.enable_acceleration(method)
        latents.append(call(pipe, "cogvideox", steps=6))
    assert torch.equal(*latents)


def test_more_blocks_than_there_are_is_named():
    pipe = make("wan")
    count = len(pipe.transformer.blocks)
    with pytest.raises(ValueError, match=f"DBCache needs at least {count + 1} blocks, .* {count}"):
        pipe.enable_acceleration(DBCache(front=count - 1, back=1))
    pipe.enable_acceleration(DBCache(front=count - 1, back=0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"front": 0}, r"front must be at least 1"),
        ({"steps": (1, 2)}, r"steps must be rising step numbers that begin with 0"),
        ({"steps": (0, 2), "mask": "fast"}, r"steps must be .* without mask"),
        ({"mask": "faster"}, r"mask must be one of slow, medium, fast, ultra"),
    ],
    ids=str,
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=rf"DBCache\.{message}"):
        DBCache(**fields)
