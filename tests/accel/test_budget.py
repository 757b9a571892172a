"""max_bytes: what methods will keep is known before a run, and refused if it is too much."""

import dataclasses

import pytest
import torch

import accel
from accel.caching import (
    PAB,
    DBCache,
    DeepCache,
    FasterCache,
    FasterDiffusion,
    FirstBlockCache,
    Planned,
    TaylorSeer,
)
from accel.memory import Kept, parse_size, sized
from accel.plan import Plan
from tests.probes import computed
from tests.tiny_pipelines import call, make

EVERYWHERE = (0.0, 1.0)
WEIGHTS = (0.1, 0.0, 0.0, 0.0, 0.1)
PLAN = Planned(nodes=(0, 1, 3, 6, 9), steps=13, weights=((),) * 4 + (WEIGHTS,))


def expected(pipe):
    return pipe.acceleration._site.report.expected()


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *((TaylorSeer(2, order, carrier=c), n) for c in ("output", "hidden", "module")
          for order, n in ((1, "wan"), (2, "flux"), (0, "cogvideox"))),
        (FirstBlockCache(0.4), "wan"),
        (FirstBlockCache(0.4), "flux"),
        (DBCache(0.4, front=1, back=1), "flux"),
        (DeepCache(branch=2), "sd"),
        (FasterDiffusion(), "sd"),
        (PAB(feed_forward=2, window=EVERYWHERE), "ltx"),
        (PAB(feed_forward=2, window=EVERYWHERE), "flux_distilled"),
        (FasterCache(guidance_interval=1), "wan"),
        (FasterCache(guidance_interval=1), "cogvideox"),
        (PLAN, "sd"),
        (dataclasses.replace(PLAN, guidance=(0, 1, 9)), "cogvideox"),
        (dataclasses.replace(PLAN, carrier="module", weights=()), "wan"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_expected_is_what_is_kept(method, name):
    pipe = make(name)
    pipe.enable_acceleration(method)
    assert expected(pipe) is None and "keeps: " not in pipe.acceleration.explain()
    call(pipe, name, steps=13)
    held = pipe.acceleration.report().bytes_held
    assert expected(pipe) == held > 0
    assert (
        f"keeps: at most {sized(held)} at the size of the last run" in pipe.acceleration.explain()
    )


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_the_guessed_branch_is_expected_within_its_bound(name):
    pipe = make(name)
    pipe.enable_acceleration(FasterCache())
    call(pipe, name, steps=13)
    held = pipe.acceleration.report().bytes_held
    assert held <= expected(pipe) <= 1.2 * held


@pytest.mark.parametrize("name", ["wan", "flux_distilled", "cogvideox"])
def test_a_run_that_needs_more_is_refused_before_the_denoiser_runs(name):
    pipe = make(name)
    method = TaylorSeer(interval=2, carrier="module")
    pipe.enable_acceleration(method)
    call(pipe, name)
    needed = expected(pipe)
    pipe.enable_acceleration(method, max_bytes=needed)
    latents = call(pipe, name)
    pipe.enable_acceleration(method, max_bytes=needed - 1)
    with computed(pipe.transformer) as ran, pytest.raises(ValueError) as error:
        call(pipe, name)
    assert ran == []
    message = str(error.value)
    assert f"would keep {needed} bytes ({sized(needed)})" in message
    assert f"max_bytes is {needed - 1}" in message
    for carrier in ("output", "hidden"):
        pipe.enable_acceleration(dataclasses.replace(method, carrier=carrier))
        call(pipe, name)
        assert f"carrier={carrier!r} keeps {sized(expected(pipe))}" in message
    pipe.enable_acceleration(method)
    assert torch.equal(call(pipe, name), latents)


@pytest.mark.parametrize(("name", "guidance"), [("wan", (0, 1, 9)), ("wan_i2v", ()), ("sd", ())])
def test_latents_of_a_plan_are_counted_before_the_denoiser_runs(name, guidance):
    """Five of a sample in float32, whatever the branches are, and their differences."""
    pipe, plan = make(name), dataclasses.replace(PLAN, guidance=guidance)
    pipe.enable_acceleration(plan)
    latents = call(pipe, name, steps=13)
    needed = expected(pipe)
    held = 2 * latents.nbytes  # what the pipeline is given while a step is skipped
    assert needed == 5 * 4 * latents.numel() + held * (2 if guidance else 1)
    pipe.enable_acceleration(plan, max_bytes=needed)
    assert torch.equal(call(pipe, name, steps=13), latents)
    pipe.enable_acceleration(plan, max_bytes=needed - 1)
    denoiser = next(iter(pipe.acceleration._site.denoisers.values()))
    with computed(denoiser) as ran, pytest.raises(ValueError, match=f"keep {needed} bytes"):
        call(pipe, name, steps=13)
    assert ran == []


def test_a_plan_of_outputs_keeps_nothing_in_host_memory():
    pipe = make("wan")
    with pytest.raises(ValueError, match="on the device, not on 'cpu'; set keep_on='device'"):
        pipe.enable_acceleration(PLAN, keep_on="cpu")
    assert not pipe.acceleration


def test_a_second_branch_that_the_pipeline_does_not_announce_is_refused_in_its_turn():
    pipe = make("flux")  # true guidance, known by nothing but the second call
    pipe.enable_acceleration(TaylorSeer(interval=2))
    call(pipe, "flux")
    needed = expected(pipe)
    pipe.enable_acceleration(TaylorSeer(interval=2), max_bytes=needed * 3 // 4)
    least = pytest.raises(ValueError, match="the least there is to keep, or raise max_bytes")
    with computed(pipe.transformer) as ran, least:
        call(pipe, "flux")
    assert len(ran) == 1


def test_both_experts_are_counted_before_the_first_runs():
    pipe = make("wan22")
    pipe.enable_acceleration(TaylorSeer(interval=2))
    call(pipe, "wan22", steps=20)
    needed = expected(pipe)
    pipe.enable_acceleration(TaylorSeer(interval=2), max_bytes=needed - 1)
    with computed(pipe.transformer) as ran, pytest.raises(ValueError, match="max_bytes"):
        call(pipe, "wan22", steps=20)
    assert ran == []


def test_what_a_method_does_not_say_is_measured_after_one_evaluation():
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(2, warmup=1, carrier="module"), max_bytes=10**4)
    pipe.acceleration._site.report.kept.clear()
    with computed(pipe.transformer) as ran, pytest.raises(ValueError, match="keeps least"):
        call(pipe, "wan")
    assert len(ran) == 1


def test_the_limit_is_part_of_the_plan():
    plan = Plan((TaylorSeer(),), max_bytes=10, keep_on="cpu")
    assert Plan.from_json(plan.to_json()) == plan
    assert "max_bytes" not in Plan((TaylorSeer(),)).to_json()
    assert Plan.from_json(Plan((), max_bytes=0).to_json()).max_bytes == 0
    pipe = make("wan")
    pipe.enable_acceleration(plan)
    assert "keeps: in host memory, max_bytes 10 bytes" in pipe.acceleration.explain()
    with pytest.raises(ValueError, match="max_bytes is 10"):
        call(pipe, "wan")
    with accel.accelerated(pipe, plan, max_bytes=10**9) as acceleration:
        call(pipe, "wan")
        assert acceleration.plan.max_bytes == 10**9
    assert pipe.acceleration.plan.max_bytes == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_bytes": -1}, "max_bytes must be bytes, 0 or more"),
        ({"max_bytes": "10 GB"}, "max_bytes must be bytes, 0 or more"),
        ({"keep_on": "disk"}, "keep_on must be device or cpu"),
    ],
)
def test_bad_limits_are_named(fields, message):
    with pytest.raises(ValueError, match=rf"Plan\.{message}"):
        Plan((), **fields)
    pipe = make("wan")
    with pytest.raises(ValueError, match=message):
        pipe.enable_acceleration(TaylorSeer(), **fields)
    assert not pipe.acceleration


def test_bytes_by_hand():
    outputs = {"": (100,), "blocks.1": (30, 50)}
    assert Kept("").bytes(outputs) == 100 and Kept("blocks.1").bytes(outputs) == 80
    assert Kept("blocks.1", leaf=1, copies=3).bytes(outputs) == 150
    assert Kept("elsewhere").bytes(outputs) == 0
    assert [sized(n) for n in (12, 1200, 58 * 10**9)] == ["12 bytes", "1.2 kB", "58.0 GB"]


@pytest.mark.parametrize(
    "text, count", [("4096", 4096), ("800 MB", 800_000_000), ("1.5gb", 1_500_000_000), ("0", 0)]
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1 TB", "much", "1e9"])
def test_sizes_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="write for example 800MB"):
        parse_size(text)
