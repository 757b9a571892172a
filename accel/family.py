"""Family: what a model looks like, as data. No algorithm lives in a family."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Blocks:
    """A list of blocks that a transformer runs in order.

    Attributes:
        path: attribute path of the `ModuleList` in the denoiser.
        streams: hidden-state arguments of a block's `forward`, by name.
        returns: the same streams in the order in which a block returns them.
        modules: submodules whose outputs a `module` carrier forecasts (before the gate).
        idle: submodules whose output feeds nothing but one of `modules`.
        batched: arguments with one entry per sample along their first axis, beside the streams;
            None where that is not known. The others are shared by the batch.
        modulation: (kind, path of the norm, argument that holds the time embedding) of the input
            of the first attention: kind "norm" calls `norm(hidden, emb=...)` and takes the first
            value, "table" adds the block's `scale_shift_table` to the embedding and takes shift and
            scale from the front. None where the model does neither.
        attention: kind of each attention module: "spatial" (within a frame), "temporal" (across
            frames), "self" (both at once, also with the text) or "cross" (to the text alone).
    """

    path: str
    streams: tuple[str, ...]
    returns: tuple[str, ...]
    modules: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    batched: tuple[str, ...] | None = None
    modulation: tuple[Literal["norm", "table"], str, str] | None = None
    attention: Mapping[str, Literal["spatial", "temporal", "self", "cross"]] = field(
        default_factory=dict
    )

    def of(self, block: torch.nn.Module) -> Blocks:
        """This description without the parts that `block` lacks, as last blocks often do."""
        lacking = {
            part
            for part in (*self.modules, *self.idle, *self.attention)
            if not isinstance(operator.attrgetter(part)(block), torch.nn.Module)
        }
        return replace(
            self,
            modules=tuple(m for m in self.modules if m not in lacking),
            idle=tuple(m for m in self.idle if m not in lacking),
            attention={m: kind for m, kind in self.attention.items() if m not in lacking},
        )


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: its name on the command line and in errors.
        classes: class names of its denoisers.
        attributes: pipeline attributes that hold a denoiser.
        kind: "transformer", or "unet" (down, mid and up blocks as in `UNet2DConditionModel`).
        config: entries of the denoiser's config that tell it from others of the same class.
        blocks: block lists in the order they run.
        stream: the hidden states that the output layers read.
        axes: batch axis of every argument of the denoiser; None for one shared by the batch. The
            entries of one sample, where it has several (frames), lie together.
        channels: axis of the channels in the latents the denoiser is given; of latents packed into
            tokens (B, S, C) it is the last one always.
        text: where in a joint sequence the tokens that are not of the video lie.
        padding: what attention masks hide: padded "keys", or, in masks (B, 1, S, S), pairs with a
            padded query or key ("square").
        fused: branches of a batch that carries guidance, in order.
        branches: the pipeline's `cache_context` names, where they differ from cond and uncond,
            or, of a pipeline that gives none, the number of the call within a step.
        recipes: named plans for this family.
    """

    name: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...] = ("transformer",)
    kind: Literal["transformer", "unet"] = "transformer"
    config: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[Blocks, ...] = ()
    stream: str = "hidden_states"
    axes: Mapping[str, int | None] = field(default_factory=dict)
    channels: int = 1
    text: Literal["first", "last"] = "first"
    padding: Literal["keys", "square"] = "keys"
    fused: tuple[str, ...] = ()
    branches: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def matches(self, denoiser: torch.nn.Module) -> bool:
        """Whether `denoiser` (compiled or not) is of this family."""
        module = getattr(denoiser, "_orig_mod", denoiser)
        config = getattr(module, "config", {})
        return type(module).__name__ in self.classes and all(
            config.get(k) == v for k, v in self.config.items()
        )

    def flat_blocks(self, denoiser: torch.nn.Module) -> list[tuple[str, torch.nn.Module, Blocks]]:
        """Every block of `denoiser` in the order it runs: path, module, description."""
        root = getattr(denoiser, "_orig_mod", denoiser)
        return [
            (f"{blocks.path}.{i}", module, blocks.of(module))
            for blocks in self.blocks
            for i, module in enumerate(root.get_submodule(blocks.path).children())
        ]


def arguments_of(
    denoiser: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a denoiser call by name, in the order of its `forward`: latents first."""
    module = getattr(denoiser, "_orig_mod", denoiser)
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    bound.arguments.pop("self")
    return {**bound.arguments, **bound.arguments.pop("kwargs", {})}


def select_rows(
    family: Family,
    denoiser: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rows: torch.Tensor,
) -> dict[str, Any]:
    """Arguments of a denoiser call for some rows of its batch.

    Args:
        rows: (R,) integer indices into the batch.

    Returns:
        Keyword arguments; tensors, also inside dicts and sequences, indexed along the batch axis
        that the family states for them.

    Raises:
        ValueError: an argument whose batch axis the family does not state.
    """
    arguments = arguments_of(denoiser, args, kwargs)
    first = next(iter(arguments))
    count = arguments[first].shape[family.axes.get(first) or 0]
    return {n: _rows_of(family, n, value, rows, count) for n, value in arguments.items()}


def _rows_of(family: Family, name: str, value: Any, rows: torch.Tensor, count: int) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if name not in family.axes:
        raise ValueError(
            f"family {family.name} does not say which axis of the denoiser argument {name!r} is "
            f"the batch; known arguments: {', '.join(sorted(family.axes)) or 'none'}"
        )
    axis = family.axes[name]
    if isinstance(value, torch.Tensor):
        if axis is None or value.ndim <= axis or value.shape[axis] == 1 < count:
            return value
        each, rest = divmod(value.shape[axis], count)
        if rest or not each:
            raise ValueError(
                f"denoiser argument {name!r} has {value.shape[axis]} entries along its batch axis, "
                f"which is no multiple of the {count} samples"
            )
        rows = rows.to(value.device)
        if each > 1:
            rows = (rows[:, None] * each + torch.arange(each, device=rows.device)).flatten()
        return value.index_select(axis, rows)
    if isinstance(value, Mapping):
        return {k: _rows_of(family, name, v, rows, count) for k, v in value.items()}
    if isinstance(value, tuple | list):
        if axis == 0 and len(value) == count and not any(map(_holds_tensors, value)):
            return type(value)(value[i] for i in rows.tolist())
        return type(value)(_rows_of(family, name, v, rows, count) for v in value)
    raise ValueError(f"denoiser argument {name!r} has unsupported type {type(value).__name__}")


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))


def inspected(denoiser: torch.nn.Module, attribute: str) -> Family:
    """Describe a denoiser that no family names, as far as that is safe.

    Blocks are described when there is exactly one `ModuleList` of same-class children whose
    `forward` takes and (by its annotation) returns a single hidden state; otherwise only methods
    at the denoiser itself can be used.
    """
    module = getattr(denoiser, "_orig_mod", denoiser)
    lists = []
    for name, child in module.named_children():
        children = list(child.children()) if isinstance(child, torch.nn.ModuleList) else []
        if children and len({type(c) for c in children}) == 1:
            forward = inspect.signature(type(children[0]).forward)
            streams = [p for p in forward.parameters if p.endswith("hidden_states")]
            streams = [p for p in streams if p != "encoder_hidden_states"]
            if streams == ["hidden_states"]:
                lists.append((name, forward.return_annotation))
    safe = len(lists) == 1 and lists[0][1] in (torch.Tensor, "torch.Tensor")
    stream = ("hidden_states",)
    blocks = (Blocks(lists[0][0], stream, stream),) if safe else ()
    name = type(module).__name__
    return Family(f"inspected:{name}", (name,), attributes=(attribute,), blocks=blocks)
