"""Parallel sampling: exact where it says so, fewer evaluations in a row, in real pipelines too."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, LTXImageToVideoPipeline

from accel import Plan
from accel.caching import FasterCache, TaylorSeer
from accel.samplers import (
    SRDS,
    AdaptiveGuidance,
    GuidedSteps,
    HeldGuidance,
    IntervalGuidance,
    ParaDiGMS,
    Sampler,
)
from accel.samplers.levels import Level
from accel.samplers.parallel_input import axis_beside, put_in
from accel.sparse_attn import SparseAttention
from tests.probes import footprint
from tests.samplers.gaussian import SCALES, predict, start
from tests.tiny_pipelines import SCHEDULERS, call, make


def levels(steps):
    return [Level(1 - g, g) for g in torch.linspace(1, 0, steps + 1).double().tolist()]


def euler(x, a, b):
    return x + (b.g - a.g) * predict("flow_prediction", x, a.signal, a.noise)


def driven(algorithm, grid):
    """The end, whether it is near, the requests in order and the sizes of their batches."""
    asks, sizes = next(algorithm), []
    while True:
        sizes.append(len(asks))
        moved = [euler(ask.state, grid[ask.start], grid[ask.end]) for ask in asks]
        try:
            asks = algorithm.send(moved)
        except StopIteration as stop:
            return *stop.value, sizes


def sequential(steps):
    grid, x = levels(steps), start()
    for a, b in itertools.pairwise(grid):
        x = euler(x, a, b)
    return x


@pytest.mark.parametrize("window", [2, 5, 50])
def test_picard_without_tolerance_is_the_sampler_step_by_step(window):
    grid = levels(24)
    end, _, sizes = driven(ParaDiGMS(window, 0.0).algorithm(grid, start()), grid)
    torch.testing.assert_close(end, sequential(24))
    assert len(sizes) <= 24


def test_picard_with_a_tolerance_takes_fewer_rounds_and_stays_near():
    grid, exact = levels(100), sequential(100)
    found = []
    for tolerance in (1e-3, 1e-2, 1e-1):
        end, _, sizes = driven(ParaDiGMS(32, tolerance).algorithm(grid, start()), grid)
        found.append((float((end - exact).square().mean().sqrt()), len(sizes)))
    errors, rounds = zip(*found, strict=True)
    assert rounds[0] > rounds[1] > rounds[2] and rounds[2] < 25
    assert errors[0] < errors[1] < errors[2] < 0.1


def test_parareal_is_exact_after_as_many_rounds_as_blocks():
    grid, budget = levels(16), 1000
    end, near, sizes = driven(SRDS(0.0).algorithm(grid, start(), budget), grid)
    torch.testing.assert_close(end, sequential(16))
    assert near and sizes[:4] == [1, 1, 1, 1] and max(sizes) == 4


def test_block_k_is_exact_after_k_rounds():
    """One round leaves the first block's end as the plain sampler has it, to the bit."""
    grid, seen = levels(16), {}
    algorithm = SRDS(0.0).algorithm(grid, start(), 1000)
    asks, rounds = next(algorithm), 0
    while True:
        moved = [euler(ask.state, grid[ask.start], grid[ask.end]) for ask in asks]
        for ask in asks:
            seen[ask.start, ask.end] = ask.state
        try:
            asks = algorithm.send(moved)
        except StopIteration:
            break
        rounds += 1
    plain, x = [], start()
    for a, b in itertools.pairwise(grid):
        plain.append(x)
        x = euler(x, a, b)
    for k in (4, 8, 12):
        torch.testing.assert_close(seen[k, k + 1], plain[k])


def test_parareal_within_a_tolerance_and_a_budget():
    grid, exact = levels(64), sequential(64)
    end, near, sizes = driven(SRDS(0.05).algorithm(grid, start()), grid)
    assert near and len(sizes) <= 62
    assert float((end - exact).square().mean().sqrt()) < 0.1
    end, near, sizes = driven(SRDS(0.0).algorithm(levels(16), start()), levels(16))
    assert not near and len(sizes) == 4 + 7


PIPELINES = [("wan", "flow_euler"), ("sd", "ddim"), ("flux", None), ("mochi", None)]


@pytest.mark.parametrize(("name", "scheduler"), PIPELINES)
def test_in_a_pipeline(name, scheduler):
    """Tolerance 0 makes what the plain pipeline makes, in rounds that the report counts."""
    pipe = make(name, scheduler)
    plain = call(pipe, name, steps=6)
    before = footprint(pipe)
    pipe.enable_acceleration(ParaDiGMS(window=4, tolerance=0.0))
    torch.testing.assert_close(call(pipe, name, steps=6), plain, rtol=2e-3, atol=2e-3)
    report = pipe.acceleration.report()
    assert len({r.index for r in report.rows}) == 6 and report.computed_fraction > 1
    pipe.enable_acceleration(ParaDiGMS(window=4, tolerance=50.0))
    found = call(pipe, name, steps=6)
    rows = pipe.acceleration.report().rows
    actions = [r.action for r in rows if r.branch == rows[0].branch]
    assert actions == ["computed"] * 3 + ["reused"] * 3  # 1 step, then 4, then the last
    assert found.isfinite().all() and torch.equal(call(pipe, name, steps=6), found)
    pipe.disable_acceleration()
    assert footprint(pipe) == before and torch.equal(call(pipe, name, steps=6), plain)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("end", [None, 0.6])
def test_steps_of_ddim_end_where_ddim_ends_them(spacing, end):
    """Be it short of the next timestep or beyond it, and at a part of the run."""
    pipe = make("sdxl", "ddim")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    settings = {"steps": 7, "denoising_end": end}
    plain = call(pipe, "sdxl", **settings)
    pipe.enable_acceleration(ParaDiGMS(window=3, tolerance=0.0))
    torch.testing.assert_close(call(pipe, "sdxl", **settings), plain, rtol=2e-3, atol=2e-3)
    pipe.enable_acceleration(SRDS(0.0, blocks=7))  # a step each
    with pytest.warns(UserWarning, match="did not come as near as its tolerance"):
        found = call(pipe, "sdxl", **settings)
    torch.testing.assert_close(found, plain, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["wan_i2v:flow_euler", "hunyuan_video15", "svd"])
def test_a_condition_beside_the_latents_stays(name):
    """A first frame, a mask, a picture: in channels behind those that are stepped."""
    pipe = make(name)
    before = (Sampler("AdamsBashforth", {"order": 1}),) if name == "svd" else ()
    if before:
        pipe.enable_acceleration(*before)
    plain = call(pipe, name, steps=4)
    pipe.enable_acceleration(*before, ParaDiGMS(window=3, tolerance=0.0))
    torch.testing.assert_close(call(pipe, name, steps=4), plain, rtol=2e-3, atol=2e-3)


def test_the_place_of_the_state_in_the_input():
    site = SimpleNamespace(pipe=SimpleNamespace(), family=SimpleNamespace(fused=()))
    state, beside = torch.randn(2, 6, 3), torch.randn(4, 5, 3)
    given = torch.cat([state.repeat(2, 1, 1), beside], dim=1)
    assert axis_beside("it", site, given, state) == 1
    assert axis_beside("it", site, state.repeat(2, 1, 1), state) is None
    put = put_in(state.repeat(2, 1, 1) + 1, given, 1)
    assert torch.equal(put[:, 6:], beside) and torch.equal(put[:2, :6], state + 1)
    for wrong in (given.flip(1), given[:3], given[:, :5], given[..., None], 2 * given):
        with pytest.raises(ValueError, match="does not begin with the state"):
            axis_beside("it", site, wrong, state)


def test_pipelines_whose_states_are_not_the_input_are_refused():
    pipe = LTXImageToVideoPipeline(**make("ltx").components)
    pipe.enable_acceleration(ParaDiGMS())
    size = {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 16}
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"LTXImageToVideoPipeline, .* does not begin with"):
        pipe(prompt="a", image=image, num_inference_steps=2, output_type="latent", **size)
    pipe = make("dit", "ddim")
    pipe.enable_acceleration(ParaDiGMS())
    with pytest.raises(ValueError, match="holds both branches of guidance"):
        call(pipe, "dit", steps=2)
    with pytest.raises(ValueError, match=r"the ControlNet of .* sees only one of them"):
        make("sd_controlnet", "ddim").enable_acceleration(SRDS())


@pytest.mark.parametrize("at", [0, 3])
def test_latents_that_are_changed_between_steps_are_refused(at):
    """By a mask that keeps a picture, by a callback: what is stepped would not know of it."""
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(ParaDiGMS(window=4, tolerance=50.0))

    def change(pipe, i, t, kwargs):
        return {"latents": kwargs["latents"] * (1.1 if i == at else 1.0)}

    with pytest.raises(ValueError, match="changes its latents between steps"):
        call(pipe, "wan", steps=6, callback=change)
    call(pipe, "wan", steps=6, callback=lambda *given: {"latents": given[3]["latents"].bfloat16()})


def test_parareal_in_a_pipeline():
    pipe = make("wan", "flow_euler")
    plain = call(pipe, "wan", steps=16)
    pipe.enable_acceleration(SRDS(0.0))
    with pytest.warns(UserWarning, match="did not come as near as its tolerance"):
        near = call(pipe, "wan", steps=16)
    pipe.enable_acceleration(SRDS(1e3))
    found = call(pipe, "wan", steps=16)
    rows = [r for r in pipe.acceleration.report().rows if r.branch == "cond"]
    assert sum(r.action == "computed" for r in rows) == 4 + 7
    coarse = call(make("wan", "flow_euler"), "wan", steps=4)
    assert torch.equal(found, near)
    assert (found - plain).norm() < (coarse - plain).norm()


def test_a_window_of_one_changes_no_bit_and_a_batch_goes_together():
    pipe = make("wan", "flow_euler")
    plain = call(pipe, "wan", batch=2)
    pipe.enable_acceleration(ParaDiGMS(window=1))
    assert torch.equal(call(pipe, "wan", batch=2), plain)
    pipe.enable_acceleration(ParaDiGMS(window=3, tolerance=0.0))
    torch.testing.assert_close(call(pipe, "wan", batch=2), plain, rtol=2e-3, atol=2e-3)
    assert "samples share their decisions" in " ".join(ParaDiGMS.__doc__.split())


def test_after_an_abort_the_next_run_is_as_ever():
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(ParaDiGMS(window=3))
    expected = call(pipe, "wan")

    def fail(pipe, i, t, kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(pipe, "wan", callback=fail)
    assert torch.equal(call(pipe, "wan"), expected)


def test_solvers_with_a_history_are_refused():
    for scheduler in ("flow_unipc", "flow_heun"):
        with pytest.raises(ValueError, match="needs steps without a history"):
            make("wan", scheduler).enable_acceleration(ParaDiGMS())
    with pytest.raises(ValueError, match="denoiser of its own for high and for low"):
        make("wan22", "flow_euler").enable_acceleration(SRDS())
    pipe = make("wan")
    pipe.enable_acceleration(Sampler("AdamsBashforth", {"order": 1}), ParaDiGMS(3, 0.0))
    torch.testing.assert_close(
        call(pipe, "wan"), call(make("wan", "flow_euler"), "wan"), rtol=2e-3, atol=2e-3
    )
    assert "flow_unipc" in SCHEDULERS and len(SCALES) == 32
    pipe = make("wan")
    with pytest.raises(ValueError, match="Restart has one, or clips, or goes back"):
        pipe.enable_acceleration(Sampler("Restart", {"order": 1}), ParaDiGMS(3, 0.0))
    for wrong in (lambda: ParaDiGMS(0), lambda: ParaDiGMS(tolerance=-1.0), lambda: SRDS(blocks=1)):
        with pytest.raises(ValueError, match="must be"):
            wrong()


@pytest.mark.parametrize("method", [ParaDiGMS(window=4), SRDS(1e3)])
def test_steps_that_draw_noise_are_refused(method):
    """Left alone, eta and stochastic_sampling would change nothing, and nobody would be told."""
    pipe = make("sd", "ddim")
    random = call(pipe, "sd", steps=4, eta=1.0)
    assert not torch.allclose(random, call(pipe, "sd", steps=4), atol=1e-2)
    pipe.enable_acceleration(method)
    with pytest.raises(ValueError, match=r"eta=1.0 draws new noise at each; call the pipeline"):
        call(pipe, "sd", steps=4, eta=1.0)
    assert call(pipe, "sd", steps=4, eta=0.0).isfinite().all()
    pipe = make("wan", "flow_euler")
    pipe.scheduler.register_to_config(stochastic_sampling=True)
    with pytest.raises(ValueError, match="set stochastic_sampling=False"):
        pipe.enable_acceleration(method)


@pytest.mark.parametrize(
    "other",
    [
        HeldGuidance(),
        IntervalGuidance(),
        AdaptiveGuidance(),
        GuidedSteps((0,), 5),
        FasterCache(),
        TaylorSeer(),
        SparseAttention(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_methods_that_go_by_the_pipelines_step_are_refused(other):
    """Several levels lie in one step of the pipeline, so that what is decided for it fits none."""
    for method in (ParaDiGMS(), SRDS()):
        for pair in ((method, other), (other, method)):
            with pytest.raises(ValueError, match="cannot be combined: both are"):
                Plan(pair)
