"""Work: FLOPs of a denoiser and of every module in it, counted without computing anything."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

OFFLOADING = ("_hf_hook", "_diffusers_hook")
ATTENTION = ("bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class Work:
    """What a full evaluation costs.

    Attributes:
        total: floating-point operations (basis "flops") or parameters (basis "parameters").
        modules: the same for every module, by its path in the denoiser; that of the attention in it
            alone, without projections, under `path:attention`.
        basis: what was counted. Parameters stand in where the model cannot be traced.
        outputs: bytes of the tensors that every module returns, by its path; empty where the model
            cannot be traced.
    """

    total: int
    modules: Mapping[str, int]
    basis: str
    outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def share(self, modules: Iterable[str]) -> float:
        """Fraction of a full evaluation that is spent in `modules`.

        Args:
            modules: module paths, none inside another; "" is the whole denoiser.
        """
        names = list(modules)
        if "" in names or not self.total:
            return 1.0
        return sum(self.modules.get(n, 0) for n in names) / self.total


def shapes_of(values: Any) -> Any:
    """`values` with every tensor replaced by a storage-free one of the same shape and dtype.

    Masks, integers of two and more dimensions, are copied, since models read lengths from them.
    """

    def shape(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        mask = value.ndim > 1 and not (value.is_floating_point() or value.is_complex())
        return value.detach().clone() if mask else value.to("meta")

    return tree_map(shape, values)


class Joining(TorchFunctionMode):
    """Takes a mask that meets storage-free tensors to the meta device; alone it keeps values."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (args, dict(kwargs or {}))
        devices = {v.device.type for v in tree_leaves(given) if isinstance(v, torch.Tensor)}
        if len(devices) > 1:
            given = tree_map(lambda v: v.to("meta") if isinstance(v, torch.Tensor) else v, given)
        return func(*given[0], **given[1])


def count_flops(denoiser: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Work:
    """Count a full evaluation of `denoiser` on arguments from `shapes_of`.

    A storage-free copy is run on the meta device, so this needs neither memory nor the GPU; the
    copy carries neither our patches nor the hooks of offloading or compilation.
    """
    module = getattr(denoiser, "_orig_mod", denoiser)
    try:
        clone = copy.deepcopy(module, _emptied(module))
        for part in clone.modules():
            for name in (*OFFLOADING, "forward", "cache_context"):
                vars(part).pop(name, None)
        outputs: dict[str, tuple[int, ...]] = {}
        for path, part in clone.named_modules():
            part.register_forward_hook(functools.partial(_measure, outputs, path))
        counter = FlopCounterMode(display=False)
        args, kwargs = tree_map(lambda v: v.cpu() if _has_values(v) else v, (args, dict(kwargs)))
        with torch.no_grad(), torch.device("meta"), counter, Joining():
            clone(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
        return count_parameters(module)  # data-dependent code; the report names this basis
    prefix = type(clone).__name__
    counts = {
        name.removeprefix(prefix).removeprefix("."): sum(ops.values())
        for name, ops in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }
    counts |= {
        f"{n}:attention": spent for n, spent in _attention(counter, clone, prefix).items() if spent
    }
    total = counts.get("", 0)
    return Work(total, counts, "flops", outputs) if total else count_parameters(module)


def _attention(counter: FlopCounterMode, clone: torch.nn.Module, prefix: str) -> dict[str, int]:
    """FLOPs of attention in every module: without storage it runs as batched products.

    So does a linear layer whose input is not contiguous, which is taken off again.
    """
    spent = {
        name.removeprefix(prefix).removeprefix("."): sum(
            count for op, count in ops.items() if str(op).split(".")[-1] in ATTENTION
        )
        for name, ops in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }
    for path, part in clone.named_modules():
        if isinstance(part, torch.nn.Linear) and (linear := spent.get(path, 0)):
            for name in [n for n in spent if not n or f"{path}.".startswith(f"{n}.")]:
                spent[name] -= linear
    return spent


def _has_values(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_meta


def _measure(
    outputs: dict[str, tuple[int, ...]], path: str, module: torch.nn.Module, args: Any, value: Any
) -> None:
    """Note the bytes of the distinct tensors that a module returned."""
    distinct = {id(v): v.nbytes for v in tree_leaves(value) if isinstance(v, torch.Tensor)}
    outputs[path] = tuple(distinct.values())


def _emptied(module: torch.nn.Module) -> dict[int, Any]:
    """What a copy of `module` holds instead: tensors without storage, and no hooks.

    The hooks of offloading are left out because they refer to other models, the user's because
    they must not see the count.
    """
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        keep = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if keep else empty
    for part in module.modules():
        memo |= {id(vars(part)[name]): () for name in OFFLOADING if name in vars(part)}
        memo |= {id(vars(part)[name]): OrderedDict() for name in HOOKS}
    return memo


def count_parameters(denoiser: torch.nn.Module) -> Work:
    """Parameters of every module, as a stand-in for work that could not be counted."""
    module = getattr(denoiser, "_orig_mod", denoiser)
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in module.named_modules()}
    return Work(counts.get("", 0), counts, "parameters")
