"""FirstBlockCache: its skip list by hand, its branches apart, and the published loop."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from tests.caching.transcribed import Counted, first_block_cache
from tests.tiny_pipelines import call, make


def scripted(pipe, cond, uncond):
    """Make the residual of the first block of a Wan pipeline cond[i] and uncond[i] at step i."""
    calls = []

    def residual(block, args, output):
        scale = (cond, uncond)[len(calls) % 2][len(calls) // 2]
        calls.append(scale)
        return args[0] + scale

    pipe.transformer.blocks[0].register_forward_hook(residual)


def computed_steps(pipe, branch):
    rows = pipe.acceleration.report().rows
    return [r.index for r in rows if r.branch == branch and r.action == "computed"]


def test_skip_list_by_hand():
    """Relative change against the last full step at 0.1: neither accumulated nor step by step."""
    #            full  5 %   9 %   12 %  7 %   21 %  26 %  6 %   0 %   6 %
    residuals = [1.00, 1.05, 1.09, 1.12, 1.20, 1.35, 1.00, 1.06, 1.00, 1.06]
    pipe = make("wan", scheduler="flow_euler")
    scripted(pipe, residuals, residuals)
    pipe.enable_acceleration(FirstBlockCache(threshold=0.1))
    call(pipe, "wan", steps=10)
    assert computed_steps(pipe, "cond") == computed_steps(pipe, "uncond") == [0, 3, 5, 6]


def test_branches_decide_apart():
    pipe = make("wan", scheduler="flow_euler")
    scripted(pipe, [1.0] * 6, [2.0**i for i in range(6)])
    pipe.enable_acceleration(FirstBlockCache(threshold=0.1))
    call(pipe, "wan", steps=6)
    assert computed_steps(pipe, "cond") == [0]
    assert computed_steps(pipe, "uncond") == list(range(6))


@pytest.mark.parametrize("threshold", [0.25, 0.4, 0.9, float("inf")])
@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox"])
def test_latents_and_skips_are_those_of_the_published_loop(name, threshold):
    plain = make(name)
    model = plain.transformer
    blocks = list(model.blocks if name == "wan" else model.transformer_blocks)
    blocks += getattr(model, "single_transformer_blocks", [])
    place = {"wan": None, "flux": 1, "cogvideox": 0}[name]

    def put(output, hidden):
        if place is None:
            return hidden
        return tuple(hidden if i == place else value for i, value in enumerate(output))

    counted = Counted(plain, branches=1 if name == "cogvideox" else 2)
    expected_computed = first_block_cache(
        counted,
        blocks[0],
        blocks[-1],
        threshold,
        read=lambda args, kwargs: args[0] if args else kwargs["hidden_states"],
        pick=lambda output: output if place is None else output[place],
        put=put,
    )
    expected = counted.run(plain, name, steps=8)

    pipe = make(name)
    pipe.enable_acceleration(FirstBlockCache(threshold=threshold))
    latents = call(pipe, name, steps=8)
    rows = pipe.acceleration.report().rows
    assert [r.action == "computed" for r in rows] == expected_computed
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)


class Reads(TorchDispatchMode):
    """Counts values read back to the host, each of which waits for an accelerator."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "method", "each"),
    [
        ("wan", FirstBlockCache(threshold=0.4), 1),
        ("flux", FirstBlockCache(threshold=0.4), 1),
        ("wan", TaylorSeer(interval=2, warmup=1), 0),
        ("wan", TaylorSeer(interval=2, warmup=1, carrier="module", order=2), 0),
        ("sd", DeepCache(interval=2), 0),
    ],
)
def test_at_most_one_value_is_read_per_evaluation(name, method, each):
    pipe = make(name)
    counts = []
    for _ in range(2):
        with Reads() as reads:
            call(pipe, name, steps=6)
        counts.append(reads.count)
        pipe.enable_acceleration(method)
    pipe.disable_acceleration()
    with Reads() as longer:
        call(pipe, name, steps=8)
    own = (longer.count - counts[0]) / 2  # of the plain pipeline, per step
    pipe.enable_acceleration(method)
    with Reads() as reads:
        call(pipe, name, steps=8)
    evaluations = len(pipe.acceleration.report().rows) / 8
    assert (reads.count - counts[1]) / 2 == own + each * evaluations


def test_one_block_is_too_few():
    pipe = make("wan")
    pipe.transformer.blocks = pipe.transformer.blocks[:1]
    with pytest.raises(ValueError, match="needs at least 2 blocks, transformer has 1"):
        pipe.enable_acceleration(FirstBlockCache())
    assert not pipe.acceleration


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_bad_threshold_is_named(threshold):
    with pytest.raises(ValueError, match=r"FirstBlockCache\.threshold must be 0 or more"):
        FirstBlockCache(threshold=threshold)


def test_two_hidden_states_a_branch_are_kept():
    pipe = make("wan")
    pipe.enable_acceleration(FirstBlockCache(threshold=0.4))
    call(pipe, "wan")
    assert pipe.acceleration.report().bytes_held == 2 * 2 * 32 * 24 * 4
