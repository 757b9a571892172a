"""What tests of stages of resolution share."""

import torch


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(pipe):
    """What the scheduler knew before each step: (level, level after, history kept, shape)."""
    seen, kind = [], type(pipe.scheduler)

    class Seen(kind):
        def step(self, model_output, timestep, sample, *args, **kwargs):
            index = 0 if self.step_index is None else self.step_index
            kept = [m for m in getattr(self, "model_outputs", []) if m is not None]
            levels = [float(s) for s in self.sigmas[index : index + 2]]
            last = getattr(self, "last_sample", None) is not None
            seen.append((*levels, len(kept), last, tuple(sample.shape)))
            return super().step(model_output, timestep, sample, *args, **kwargs)

    pipe.scheduler = Seen.from_config(pipe.scheduler.config)
    return seen
