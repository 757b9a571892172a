"""Pipelines that show no progress bar: a run begins at the scheduler's `set_timesteps`."""

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from accel.bar import shows_bar
from accel.patch import active_key
from tests.probes import HALF, Watch, computed
from tests.tiny_pipelines import SCHEDULERS, make


class Barless(DiffusionPipeline):
    """A denoising loop over the tiny U-Net, with no bar and no `num_timesteps`."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def check_inputs(self, steps):
        assert steps > 0

    @torch.no_grad()
    def __call__(self, steps=5, stop=None):
        self.check_inputs(steps)
        self.scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, 4, 8, 8, generator=generator) * self.scheduler.init_noise_sigma
        text = torch.randn(1, 7, self.unet.config.cross_attention_dim, generator=generator)
        for i, t in enumerate(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(latents, t)
            noise = self.unet(scaled, t, encoder_hidden_states=text, return_dict=False)[0]
            latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
            if i == stop:
                raise KeyboardInterrupt
        self.maybe_free_model_hooks()
        return latents


def barless(scheduler="ddim"):
    return Barless(make("sd").unet, SCHEDULERS[scheduler]())


@pytest.fixture(scope="module")
def plain():
    return barless()()


@pytest.fixture(scope="module")
def skipped():
    pipe = barless()
    pipe.enable_acceleration(HALF)
    return pipe()


def test_who_shows_a_bar():
    assert shows_bar(StableDiffusionPipeline) and not shows_bar(Barless)


def test_runs_are_counted_and_end(plain, skipped):
    pipe, watch = barless(), Watch()
    pipe.enable_acceleration(watch, HALF)
    for _ in range(2):
        del watch.seen[:]
        assert torch.equal(pipe(), skipped) and not torch.equal(skipped, plain)
        assert watch.indices == [0, 1, 2, 3, 4] and watch.totals == {5}
        assert watch.branches == ["0"] and None not in watch.sigmas
        assert active_key() is None and pipe.acceleration.report().complete
    pipe.disable_acceleration()
    assert torch.equal(pipe(), plain)
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))


def test_an_aborted_run_does_not_poison_the_next(skipped):
    pipe = barless()
    pipe.enable_acceleration(HALF)
    with pytest.raises(KeyboardInterrupt):
        pipe(stop=2)
    assert torch.equal(pipe(), skipped)
    assert torch.equal(pipe(), skipped)


def test_a_swapped_scheduler_is_adopted():
    pipe, watch = barless(), Watch()
    pipe.enable_acceleration(watch, HALF)
    pipe()
    del watch.seen[:]
    first, pipe.scheduler = pipe.scheduler, SCHEDULERS["heun"]()
    with computed(pipe.unet) as seen:
        pipe()
    assert watch.indices == list(range(9)) and len(seen) < 9
    assert not {"step", "set_timesteps"} & set(vars(first))


def test_sharing_the_scheduler_with_a_plain_pipeline(plain, skipped):
    pipe = barless()
    other = Barless(pipe.unet, pipe.scheduler)
    pipe.enable_acceleration(HALF)
    assert torch.equal(other(), plain)
    assert torch.equal(pipe(), skipped)
    assert torch.equal(other(), plain)
    other.enable_acceleration(HALF)
    assert torch.equal(other(), skipped) and torch.equal(pipe(), skipped)
    assert other.acceleration.report().complete
    pipe.disable_acceleration()
    assert torch.equal(pipe(), plain) and torch.equal(other(), skipped)
