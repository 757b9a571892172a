"""SparseAttention at work on one pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from accel.attention_seam import Handler, Plain, attach, missing
from accel.family import arguments_of
from accel.method import Site
from accel.self_attention import Layer
from accel.step import Run
from accel.token_grid import TokenGrid, call_grid

from .kernels import KERNELS, TOOLS
from .kernels.choice import choose
from .layout import BlockLayout
from .log import Log, cells, held_bytes, recall
from .pattern import Place, Routing
from .reorder import inverse

if TYPE_CHECKING:
    from .method import SparseAttention


class Attending:
    """Patterns, kernels and what they leave in the report, for the layers of one pipeline."""

    def __init__(self, site: Site, settings: SparseAttention) -> None:
        self.site, self.settings = site, settings
        self.log = Log()
        self.layers: dict[str, list[Layer]] = {}
        self.states: dict[Any, dict[Any, Any]] = {}
        self.grids: dict[Any, TokenGrid | None] = {}
        self.densities: WeakKeyDictionary[BlockLayout, Tensor] = WeakKeyDictionary()
        self.now: tuple[str, TokenGrid | None, int] = ("", None, 1)

    def install(self) -> None:
        """Attach to the denoisers.

        Raises:
            ValueError: a dense layer that there is not.
        """
        site = self.site
        for name, denoiser in site.denoisers.items():
            enter = functools.partial(self._denoise, name)
            site.patches.call(denoiser, enter, f"SparseAttention on {name}")
            make = functools.partial(self._handler, name)
            layers = attach(site.patches, site.family, denoiser, make, "SparseAttention")
            self.layers[name] = layers
            wrong = [n for n in self.settings.dense_layers if not -len(layers) <= n < len(layers)]
            if wrong:
                raise ValueError(
                    f"SparseAttention.dense_layers has {wrong}, and {name} has {len(layers)} "
                    f"self-attention modules: 0 to {len(layers) - 1}"
                )
            for layer in layers:
                label = _label(name, layer)
                site.report.skip_set("SparseAttention", label, {name: [f"{layer.path}:attention"]})
        site.clock.on_begin.append(self._begin)
        site.report.holders.append(lambda: held_bytes(self.states))
        site.clock.on_end.append(lambda run: self.states.clear())
        site.report.attention = lambda: self.log.record()

    def _begin(self, run: Run) -> None:
        self.log, self.states, self.grids = Log(), {}, {}
        for name, layers in self.layers.items():
            if lost := missing(layers):
                raise RuntimeError(
                    f"the attention processor or backend of {lost[0]} in {name} was replaced after "
                    f"acceleration was enabled; call enable_acceleration(...) again"
                )

    def _denoise(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        denoiser = self.site.denoisers[name]
        latents = next(iter(arguments_of(denoiser, args, kwargs).values()))
        key = (name, latents.shape)
        if key not in self.grids:
            self.grids[key] = call_grid(denoiser, args, kwargs)
        self.now = (name, self.grids[key], latents.shape[0])
        return call(*args, **kwargs)

    def _handler(self, name: str, layer: Layer) -> Handler:
        return functools.partial(self._attend, name, layer)

    def _attend(
        self, name: str, layer: Layer, q: Tensor, k: Tensor, v: Tensor, plain: Plain
    ) -> Tensor:
        place = self._place(name, layer, q, plain)
        if place is None:
            self._note(name, layer, "dense", _ones(q), None, q)
            return plain(q, k, v)
        if plain.shards == 1 or place.grid.tokens == place.grid.video:
            return self._sparse(name, layer, q, k, v, plain, place)
        together = unsharded(place.grid, plain.shards, q.device)[None, None]
        q, k, v = (arranged(t, together) for t in (q, k, v))
        out = self._sparse(name, layer, q, k, v, plain, place)
        return arranged(out, inverse(together))

    def _sparse(
        self,
        name: str,
        layer: Layer,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plain: Plain,
        place: Place,
    ) -> Tensor:
        """Attention to what the pattern chooses, where tokens lie as `place.grid` says."""
        with self.log.timed("map", q.device):
            routing = self.settings.pattern.route(q, k, v, place)
            if routing is not None and plain.mask is not None:
                routing = _without(routing, self._padding(plain.mask), q, k)
        if routing is None:
            self._note(name, layer, "dense", _ones(q), None, q)
            return plain(q, k, v)
        layout = routing.layout
        exact = routing.compensate is None  # else it wants what a kernel tells
        chosen, kernel, why = choose(self.settings.kernel, KERNELS, q, layout, dense=exact)
        self.log.kernels[chosen] = why
        if kernel is None:
            self._note(name, layer, "dense", _ones(q), None, q)
            return plain(q, k, v)
        scale = place.scale_of(q)
        with self.log.timed("kernel", q.device):
            query = arranged(q, routing.order_q)
            key, value = (arranged(t, routing.order_k) for t in (k, v))
            out, lse = kernel.attend(query, key, value, layout, scale)
            if routing.compensate is not None:
                out = routing.compensate(query, key, value, out, lse)
            if routing.order_q is not None:
                out = arranged(out, inverse(routing.order_q))
        mass = None
        with self.log.timed("report", q.device):
            if self.settings.recall_rows and self._turn(layer, place):
                mass = recall(query, key, layout, scale, self.settings.recall_rows)
                self.log.maps[name, layer.number] = cells(layout)
            if layout not in self.densities:
                self.densities[layout] = layout.head_density().mean(0)
        self._note(name, layer, chosen, self.densities[layout], mass, q)
        return out

    def _padding(self, mask: Tensor) -> Tensor:
        """The mask of keys; padded queries of a square one attend like others, unread.

        A token that is not padding attends to itself, so that the diagonal tells.
        """
        square = mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2] == mask.shape[3]
        return mask.diagonal(0, 2, 3) if square and self.site.family.padding == "square" else mask

    def _turn(self, layer: Layer, place: Place) -> bool:
        """Layers take turns to be looked at; all are in the last step."""
        step = self.site.clock.step
        return step.index % place.layers == layer.number or step.index == step.total - 1

    def _place(self, name: str, layer: Layer, q: Tensor, plain: Plain) -> Place | None:
        """Where this attention is; None where it stays dense.

        Raises:
            ValueError: tokens that the family does not place.
        """
        step, settings = self.site.clock.step, self.settings
        count = len(self.layers[name])
        fraction = step.index / max(step.total, 1)
        dense = {n % count for n in settings.dense_layers}
        if fraction < settings.dense_until or layer.number in dense:
            return None
        if q.shape[1] < settings.shortest:
            return None
        grid = self.now[1]
        placed = None if grid is None else _placed(grid, layer, q.shape[1], self.site.family)
        if placed is None:
            raise ValueError(
                f"{layer.path} attends over {q.shape[1]} tokens, which family "
                f"{self.site.family.name} does not place (the call says {grid}); leave it dense "
                f"with dense_layers=({layer.number},) or a larger shortest"
            )
        key = (name, layer.number, step.branch, plain.part, q.shape, q.dtype, q.device)
        state = self.states.setdefault(key, {})
        tools = TOOLS.get(settings.kernel, {})
        return Place(
            layer.number,
            count,
            fraction,
            step,
            step.branch,
            placed,
            state,
            plain.scale,
            plain.group,
            **tools,
        )

    def _note(
        self, name: str, layer: Layer, kernel: str, density: Tensor, mass: Tensor | None, q: Tensor
    ) -> None:
        """Keep a row, and tell the clock what share of this attention was left out."""
        call = self.site.clock.call
        assert call is not None
        self.log.rows.append((call.step, name, layer.number, kernel, density, mass))
        if kernel != "dense":
            label, part = _label(name, layer), q.shape[0] / max(q.shape[0], self.now[2])
            left: Any = (1 - density.mean()) * part  # read when the report is made
            call.leave_out(label, call.action, call.skipped.get(label, 0.0) + left)


def _label(name: str, layer: Layer) -> str:
    return f"SparseAttention:{name}.{layer.path}"


def _ones(q: Tensor) -> Tensor:
    return torch.ones(q.shape[2])


def _placed(grid: TokenGrid, layer: Layer, tokens: int, family: Any) -> TokenGrid | None:
    if layer.kind == "temporal":
        return TokenGrid(tokens, 1, 1)
    if family.kind == "unet" or layer.kind == "spatial":
        return grid.within_frame(tokens)
    return grid.with_text(tokens, family.text)


def _without(routing: Routing, mask: Tensor, q: Tensor, k: Tensor) -> Routing:
    """`routing` over the keys that a padding mask leaves.

    Raises:
        ValueError: a mask that is not the same for all queries and heads, or not boolean.
    """
    if mask.dtype != torch.bool or mask.numel() != mask.shape[0] * k.shape[1]:
        raise ValueError(
            f"the attention mask, {tuple(mask.shape)} {mask.dtype}, is no boolean mask of keys "
            f"alone, (B, 1, 1, {k.shape[1]}), which sparse attention could follow"
        )
    valid = mask.reshape(mask.shape[0], 1, k.shape[1]).expand(q.shape[0], -1, -1)
    if routing.order_k is None:
        layout, order = routing.layout.masked(valid)
        return Routing(layout, routing.order_q, order, routing.compensate)
    own = routing.order_k.expand(q.shape[0], -1, -1)
    layout, order = routing.layout.masked(valid.expand_as(own).gather(2, own))
    return Routing(layout, routing.order_q, own.gather(2, order), routing.compensate)


def unsharded(grid: TokenGrid, shards: int, device: torch.device) -> Tensor:
    """(S,) long: where `grid` has its tokens in a sequence of shards, each with part of every part.

    Raises:
        ValueError: tokens that the shards cannot share evenly.
    """
    sizes = [size for size in (grid.text_first, grid.video, grid.text_last) if size]
    if any(size % shards for size in sizes):
        raise ValueError(f"{shards} processes cannot share {sizes} tokens of text and video evenly")
    parts = torch.arange(grid.tokens, device=device).view(shards, -1)
    return torch.cat([p.flatten() for p in parts.split([n // shards for n in sizes], 1)])


def arranged(x: Tensor, order: Tensor | None) -> Tensor:
    """x (B, S, H, D) with its tokens in `order` (B or 1, H or 1, S)."""
    if order is None:
        return x
    if order.shape[:2] == (1, 1):
        return x.index_select(1, order[0, 0])
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
    head = torch.arange(x.shape[2], device=x.device)[None, :, None]
    return x[batch, order.expand(x.shape[0], x.shape[2], -1), head].transpose(1, 2)
