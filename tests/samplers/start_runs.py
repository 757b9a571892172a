"""What the tests of starts share: latents of a pipeline, states of a run, frames of a video."""

import torch

from tests.tiny_pipelines import call, make


def latents_of(name, seed=0):
    """Latents of the shape that the pipeline makes."""
    made = call(make(name), name, steps=2)
    return torch.randn(made.shape, generator=torch.Generator().manual_seed(seed))


def samples_of(pipe):
    """A list that grows by the state before every step."""
    seen = []

    def note(go, output, t, sample, **rest):
        seen.append(sample)
        return go(output, t, sample, **rest)

    pipe.acceleration._site.clock.step_handlers.append(note)
    return seen


def frame(latents, number):
    """One latent frame of (B, C, F, H, W), or of tokens (B, F S, C) of three frames."""
    if latents.ndim == 5:
        return latents[:, :, number]
    return latents.unflatten(1, (3, -1))[:, number]
