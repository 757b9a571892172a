"""Models known in closed form, sampled by real schedulers, where a recorded pipeline would be."""

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from accel.caching.planning.gram import Gram
from accel.caching.planning.response import Response, response

STEPS = 12
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "flow euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "flow dpm++": lambda: DPMSolverMultistepScheduler(**FLOW),
    "noise ddim": lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
    "noise dpm++": DPMSolverMultistepScheduler,
    "noise unipc": UniPCMultistepScheduler,
}


class Gaussian:
    """Data N(0, variances): the exact velocity, or noise, is linear in every direction.

    For x = a y + s e with data y and noise e, E[y | x] = a V x / (a^2 V + s^2) and
    E[e | x] = s x / (a^2 V + s^2); the velocity is E[e - y | x].

    `even` samples begin at entries of one size, so that a fit is the same whichever it leaves out.
    """

    def __init__(self, name, variances, samples=6, entries=16, even=False):
        self.kind, self.scheduler = name.split()[0], SCHEDULERS[name]()
        self.scheduler.set_timesteps(STEPS)
        self.response, self.chunks, self.evaluations = response(self.scheduler, STEPS), 1, 0
        self.variances = torch.tensor(variances).double().repeat(entries)
        generator = torch.Generator().manual_seed(1)
        state = torch.randn(samples, len(self.variances), generator=generator).double()
        state = state.sign() if even else state
        self.levels = [self._level(i) for i in range(STEPS)]
        self.sigmas = [s / a if self.kind == "noise" else s for a, s in self.levels]
        self.states, self.outputs = [state], []
        for i, t in enumerate(self.scheduler.timesteps):
            self.outputs.append(self.evaluate(i, state))
            state = self.scheduler.step(self.outputs[i], t, state, return_dict=False)[0].double()
            self.states.append(state)
        self.first, self.gram = self.outputs[0], Gram(STEPS)
        for sample in range(samples):
            self.gram.add(torch.stack([output[sample] for output in self.outputs]))

    def _level(self, i):
        if self.kind == "flow":
            sigma = float(self.scheduler.sigmas[i])
            return 1 - sigma, sigma
        kept = float(self.scheduler.alphas_cumprod[int(self.scheduler.timesteps[i])])
        return kept**0.5, (1 - kept) ** 0.5

    def rows(self, chunks=None):
        return list(range(len(self.first)))

    def state(self, index, chunks=None):
        return self.states[index]

    def output(self, index, chunks=None):
        return self.outputs[index]

    def evaluate(self, index, states, chunks=None):
        a, s = self.levels[index]
        spread = a * a * self.variances + s * s
        noise = s * states / spread
        return noise if self.kind == "noise" else noise - a * self.variances * states / spread


class Exact(Gaussian):
    """Even samples by flow Euler, all in float64: diffusers' schedulers round to float32."""

    def __init__(self, variances, samples=6, entries=16):
        levels = np.linspace(1, 0, STEPS + 1)
        changes = np.tril(np.tile(np.diff(levels), (STEPS + 1, 1)), -1)
        self.kind, self.response = "flow", Response(np.ones(STEPS + 1), changes)
        self.chunks, self.evaluations, self.sigmas = 1, 0, levels[:-1].tolist()
        self.levels = [(1 - sigma, sigma) for sigma in self.sigmas]
        self.variances = torch.tensor(variances).double().repeat(entries)
        generator = torch.Generator().manual_seed(1)
        shape = samples, len(self.variances)
        self.states = [torch.randn(shape, generator=generator, dtype=torch.float64).sign()]
        self.outputs = []
        for i in range(STEPS):
            self.outputs.append(self.evaluate(i, self.states[i]))
            self.states.append(self.states[i] + (levels[i + 1] - levels[i]) * self.outputs[i])
        self.first = self.outputs[0]


def walked(response, nodes, weights, rule, walker, rows):
    """The last state by the segments' weights, in a plain loop: prior weights plus the change."""
    state, outputs = walker.state(0)[rows], []
    for j, node in enumerate(nodes):
        outputs.append(walker.evaluate(node, state))
        kept, prior = rule.segment(j)
        total = np.array(prior)
        for m, change in enumerate(weights[j] if weights else ()):
            total[j - m] += change
        state = kept * state + sum(w * o for w, o in zip(total, outputs, strict=False))
    return state
