"""Acceleration of compiled denoisers: what is inside compiled code is refused, never bypassed."""

import pytest
import torch

from accel.caching import FirstBlockCache, TaylorSeer
from accel.patch import CALL
from tests.probes import HALF, Watch, computed, plain, skipped
from tests.tiny_pipelines import call, make

EAGER = {"backend": "eager"}
HIDDEN = TaylorSeer(interval=2, warmup=2, carrier="hidden")
MODULE = TaylorSeer(interval=2, warmup=2, carrier="module")


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


def by_blocks(pipe):
    pipe.transformer.compile_repeated_blocks(**EAGER)


def whole(pipe):
    pipe.transformer.compile(**EAGER)


def wrapped(pipe):
    pipe.transformer = torch.compile(pipe.transformer, **EAGER)


def accelerated(method):
    pipe = make("wan")
    pipe.enable_acceleration(method)
    return call(pipe, "wan")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("method", [HALF, HIDDEN, FirstBlockCache(0.5)], ids=lambda m: str(m)[:40])
def test_regional_compile(method, before):
    pipe = make("wan")
    if before:
        by_blocks(pipe)
        pipe.enable_acceleration(method)
    else:
        pipe.enable_acceleration(method)
        call(pipe, "wan", steps=2)
        by_blocks(pipe)
    compiled = [vars(block)[CALL] for block in pipe.transformer.blocks]
    wanted = accelerated(method)
    assert not torch.equal(wanted, plain("wan"))
    for _ in range(2):
        torch.testing.assert_close(call(pipe, "wan"), wanted, rtol=1e-5, atol=1e-5)
    report = pipe.acceleration.report()
    assert report.basis == "flops" and 0.3 < report.computed_fraction < 1
    pipe.disable_acceleration()
    torch.testing.assert_close(call(pipe, "wan"), plain("wan"), rtol=1e-5, atol=1e-5)
    if not before:
        assert [vars(block)[CALL] for block in pipe.transformer.blocks] == compiled


def test_regional_compile_comes_back_when_disabled():
    pipe = make("wan")
    by_blocks(pipe)
    compiled = [vars(block)[CALL] for block in pipe.transformer.blocks]
    pipe.enable_acceleration(HIDDEN)
    assert [vars(block)[CALL] for block in pipe.transformer.blocks] != compiled
    pipe.disable_acceleration()
    assert [vars(block)[CALL] for block in pipe.transformer.blocks] == compiled


@pytest.mark.parametrize("compiles", [by_blocks, whole, wrapped])
def test_what_lies_inside_compiled_code_is_refused(compiles):
    pipe = make("wan")
    compiles(pipe)
    method = MODULE if compiles is by_blocks else HIDDEN
    with pytest.raises(ValueError, match=r"transformer is compiled, and a method .* must wrap"):
        pipe.enable_acceleration(method)
    assert not pipe.acceleration
    torch.testing.assert_close(call(pipe, "wan"), plain("wan"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiles", [by_blocks, whole])
def test_compiling_around_an_enabled_method_is_refused_at_the_next_run(compiles):
    pipe = make("wan")
    pipe.enable_acceleration(MODULE if compiles is by_blocks else HIDDEN)
    compiles(pipe)
    with pytest.raises(RuntimeError, match="compiled around modules an enabled method wraps"):
        call(pipe, "wan")
    pipe.enable_acceleration(HALF)
    torch.testing.assert_close(call(pipe, "wan"), skipped("wan"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiles", [whole, wrapped])
def test_a_denoiser_compiled_whole_serves_methods_at_the_denoiser(compiles):
    pipe, watch = make("wan"), Watch()
    compiles(pipe)
    call(pipe, "wan")
    inside = vars(pipe.transformer).get(CALL)
    pipe.enable_acceleration(watch, HALF)
    with computed(pipe.transformer) as seen:
        latents = call(pipe, "wan")
    torch.testing.assert_close(latents, skipped("wan"), rtol=1e-5, atol=1e-5)
    assert watch.indices == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert watch.branches == ["cond", "uncond"]
    assert len(seen) in (0, 6), "compiled code may run no hooks"
    report = pipe.acceleration.report()
    assert report.basis == "flops" and report.computed_fraction == pytest.approx(3 / 5)
    pipe.disable_acceleration()
    assert vars(pipe.transformer).get(CALL) is inside
    torch.testing.assert_close(call(pipe, "wan"), plain("wan"), rtol=1e-5, atol=1e-5)


def test_wrapping_the_denoiser_after_enabling_is_named():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    wrapped(pipe)
    with pytest.raises(RuntimeError, match=r"pipe\.transformer was replaced"):
        call(pipe, "wan")
    pipe.enable_acceleration(HALF)
    torch.testing.assert_close(call(pipe, "wan"), skipped("wan"), rtol=1e-5, atol=1e-5)


def test_a_compiled_unet_serves_methods_at_the_denoiser():
    pipe = make("sd")
    pipe.enable_acceleration(HALF)
    pipe.unet.compile_repeated_blocks(**EAGER)
    torch.testing.assert_close(call(pipe, "sd"), skipped("sd"), rtol=1e-4, atol=1e-4)
