"""The stack of blocks of a plain pipeline: all is computed, and overwritten where a rule skips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline

from tests.caching.transcribed import Counted
from tests.tiny_pipelines import call, make

PLACE = {"wan": None, "ltx": None, "flux": 1, "cogvideox": 0}
"""Where among the values a block returns the hidden states are."""
SEPARATE = ("wan", "flux")


def blocks_of(pipe: DiffusionPipeline) -> list[torch.nn.Module]:
    model = pipe.transformer
    blocks = list(model.blocks if hasattr(model, "blocks") else model.transformer_blocks)
    return blocks + list(getattr(model, "single_transformer_blocks", []))


def given(args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def change(new: torch.Tensor, old: torch.Tensor) -> float:
    return float((new - old).abs().mean() / old.abs().mean())


class Stack(Counted):
    """One plain run; `seen` holds what observers saw in the call going on.

    `added` is what the blocks added at computed calls, `(step, value)` per branch, newest first;
    `computed` says call by call whether the rule computed.
    """

    def __init__(self, name: str) -> None:
        self.name, self.pipe = name, make(name)
        super().__init__(self.pipe, branches=2 if name in SEPARATE else 1)
        self.blocks = blocks_of(self.pipe)
        self.seen: dict[str, torch.Tensor] = {}
        self.added: dict[int, list[tuple[int, torch.Tensor]]] = defaultdict(list)
        self.computed: list[bool] = []
        self.watch("entry", self.blocks[0])
        self.watch("latents", self.pipe.transformer)

    def watch(self, key: str, module: torch.nn.Module) -> None:
        """Keep the hidden states that `module` is given."""

        def hook(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.seen[key] = given(args, kwargs).clone()

        self.hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def pick(self, output: Any) -> torch.Tensor:
        place = PLACE[self.name]
        return output if place is None else output[place]

    def put(self, output: Any, hidden: torch.Tensor) -> Any:
        place = PLACE[self.name]
        if place is None:
            return hidden
        return tuple(hidden if i == place else value for i, value in enumerate(output))

    def overwrite(
        self, computes: Callable[[], bool], forecast: Callable[[list, int], torch.Tensor]
    ) -> None:
        """Put `entry + forecast(added, step)` after the last block where `computes` says no."""

        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            self.computed.append(computes())
            added = self.added[self.branch]
            if self.computed[-1]:
                added.insert(0, (self.step, self.pick(output) - self.seen["entry"]))
                return None
            return self.put(output, self.seen["entry"] + forecast(added, self.step))

        self.hooks.append(self.blocks[-1].register_forward_hook(hook))

    def go(self, **how: Any) -> torch.Tensor:
        return self.run(self.pipe, self.name, **how)


def hold(added: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
    return added[0][1]


def line(added: list[tuple[int, torch.Tensor]], step: int) -> torch.Tensor:
    """The line through the last two computed values, as far as there are two."""
    if len(added) == 1:
        return added[0][1]
    (new, value), (old, before) = added[:2]
    return value + (value - before) * (step - new) / (new - old)


def agrees(method: Any, stack: Counted, computed: list[bool], expected: torch.Tensor, **how: Any):
    """`method` makes the same decisions and latents as the transcribed run; some of each kind."""
    pipe = make(stack.name)
    pipe.enable_acceleration(method)
    latents = call(pipe, stack.name, **how)
    rows = pipe.acceleration.report().rows
    assert [r.action == "computed" for r in rows] == computed
    assert len(set(computed)) == 2
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)
