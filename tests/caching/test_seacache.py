"""SeaCache: the filter, the noise levels it is told, token grids, and the published loop."""

import numpy as np
import pytest
import torch

from accel.caching import SeaCache
from accel.caching.latents import grid_of
from accel.caching.seacache import filtered
from tests.caching.stack import Stack, agrees, change, line
from tests.probes import watched
from tests.tiny_pipelines import call, make


def reference(latents, signal, noise, power=3.0):
    """Latents (B, C, *grid), filtered in double precision with a gain per frequency."""
    values = latents.double().numpy()
    gain = np.ones(values.shape[2:])
    for place in np.ndindex(*gain.shape):
        for i, size in zip(place, gain.shape, strict=True):
            expected = 1 / (abs(np.fft.fftfreq(size)[i]) ** power + 1e-16)
            gain[place] *= signal * expected / (signal**2 * expected + noise**2)
    axes = tuple(range(2, values.ndim))
    spectrum = np.fft.fftn(values, axes=axes) * gain / gain.mean()
    return torch.from_numpy(np.fft.ifftn(spectrum, axes=axes).real)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6, 5), (1, 2, 8, 8), (1, 2, 1, 4, 4)])
@pytest.mark.parametrize("signal", [0.1, 0.5, 0.9])
def test_the_filter(shape, signal):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = reference(latents, signal, 1 - signal)
    torch.testing.assert_close(
        filtered(latents, signal, 1 - signal, 3.0), expected.float(), rtol=1e-4, atol=1e-4
    )


def test_little_noise_passes_all_and_much_noise_only_what_is_slow():
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(1, 1, 8, 8, generator=generator)
    torch.testing.assert_close(filtered(rough, 1.0, 0.0, 3.0), rough, rtol=1e-3, atol=1e-3)
    passed = torch.fft.fft2(filtered(rough, 0.02, 0.98, 3.0)) / torch.fft.fft2(rough)
    assert passed[0, 0, 4, 4].abs() < 1e-3 * passed[0, 0, 0, 0].abs()


def levels(name, steps):
    """Signal and noise of every step, from the scheduler."""
    sigmas = watched(name, steps=steps).sigmas
    if name == "cogvideox":
        signals = [(1 / (1 + s**2)) ** 0.5 for s in sigmas]
        return [(a, (1 - a**2) ** 0.5) for a in signals]
    return [(1 - s, s) for s in sigmas]


def in_space(name, stack):
    latents = stack.seen["latents"]
    if name == "cogvideox":
        return latents.transpose(1, 2)
    return latents if name == "wan" else latents.transpose(1, 2).unflatten(2, GRIDS[name])


GRIDS = {"flux": (8, 8), "ltx": (3, 8, 8)}


@pytest.mark.parametrize(
    ("name", "threshold"), [("wan", 0.6), ("flux", 0.6), ("ltx", 0.5), ("cogvideox", 0.5)]
)
def test_latents_and_skips_are_those_of_the_published_loop(name, threshold):
    steps = 10
    told, stack, total, before, streak = levels(name, steps), Stack(name), {}, {}, {}

    def computes():
        branch = stack.branch
        signal, noise = (min(max(v, 1e-6), 1 - 1e-6) for v in told[stack.step])
        now = reference(in_space(name, stack), signal, noise)
        old, before[branch] = before.get(branch), now
        if 0 < stack.step < steps - 1:
            total[branch] += change(now, old)
            if total[branch] < threshold and streak[branch] < 2:
                streak[branch] += 1
                return False
        total[branch] = streak[branch] = 0
        return True

    stack.overwrite(computes, line)
    expected = stack.go(steps=steps)
    agrees(SeaCache(threshold), stack, stack.computed, expected, steps=steps)


def test_grids_are_read_from_what_the_denoiser_is_told():
    tokens = torch.zeros(2, 24, 4)
    assert grid_of({"x": tokens, "num_frames": 2, "height": 3, "width": 4}) == (2, 3, 4)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(6.0))
    assert grid_of({"x": tokens, "img_ids": ids}) == (4, 6)
    assert grid_of({"x": tokens, "img_shapes": [[(1, 4, 6)]]}) == (1, 4, 6)
    with pytest.raises(ValueError, match=r"the 24 tokens .* not tell \(no sizes\)"):
        grid_of({"x": tokens})
    with pytest.raises(ValueError, match=r"the 24 tokens .* not tell \(\(2, 2, 2\)\)"):
        grid_of({"x": tokens, "num_frames": 2, "height": 2, "width": 2})


def test_a_scheduler_without_noise_levels_is_named():
    pipe = make("cogvideox")
    pipe.enable_acceleration(SeaCache())
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod.clone()
    state = pipe.acceleration
    state._site.clock.on_begin.append(lambda run: run.sigmas.clear())
    with pytest.raises(ValueError, match="CogVideoXDDIMScheduler does not tell"):
        call(pipe, "cogvideox")


@pytest.mark.parametrize(("longest", "expected"), [(2, [0, 3, 6, 7]), (None, [0, 7])])
def test_without_a_limit_the_ends_and_every_third_step_are_computed(longest, expected):
    pipe = make("wan", scheduler="flow_euler")
    pipe.enable_acceleration(SeaCache(float("inf"), longest=longest))
    call(pipe, "wan", steps=8)
    rows = pipe.acceleration.report().rows
    assert [r.index for r in rows if r.branch == "cond" and r.action == "computed"] == expected
