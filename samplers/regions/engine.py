"""Region-adaptive sampling at work: at the denoiser, at its blocks, in its attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from accel.attention_seam import Plain, attach
from accel.family import arguments_of
from accel.memory import Kept
from accel.method import Site
from accel.self_attention import Layer
from accel.step import Run

from .hold import Hold
from .layouts import LAYOUTS, call_grid
from .partial import Branch, Partial
from .positions import argument_names, read, replaced
from .rows import across
from .shares import Shares


class Engine:
    """The handlers of one installed method.

    A full call that a partial one follows keeps keys and values of every self-attention and the
    denoiser's output; a partial call takes the chosen tokens before the first block, has them
    attend to all keys and values, and puts them back after the last. A branch that kept nothing
    from the full step before (it was not called there, or another model takes over) runs in full.
    """

    def __init__(self, site: Site, hold: Hold, label: str) -> None:
        self.site, self.hold, self.label = site, hold, label
        self.layout = LAYOUTS[site.family.name]
        self.shares = Shares(site, self.layout, label)
        self._kept: dict[Any, Branch] = {}
        self._now: Branch | None = None
        self._part: Partial | None = None
        site.clock.on_begin.append(self._clear)
        site.clock.on_end.append(self._clear)
        site.report.holders.append(self._bytes)

    def _clear(self, run: Run) -> None:
        self._kept, self._now, self._part = {}, None, None

    def _bytes(self) -> int:
        return sum(kept.bytes() for kept in self._kept.values()) + self.hold.bytes()

    def install(self) -> None:
        for name, denoiser in self.site.denoisers.items():
            self.site.patches.call(
                denoiser,
                functools.partial(self._denoise, name, denoiser),
                f"{self.label} on {name}",
            )
            blocks = self.site.family.flat_blocks(denoiser)
            for i, (path, block, _) in enumerate(blocks):
                handler = functools.partial(self._block, argument_names(block), i == 0)
                self.site.patches.call(block, handler, f"{self.label} on {name}.{path}")
            root = getattr(denoiser, "_orig_mod", denoiser)
            self.site.patches.call(
                root.get_submodule(self.layout.after), self._after, f"{self.label} on {name}"
            )
            layers = attach(
                self.site.patches, self.site.family, denoiser, self._attention, self.label
            )
            self.site.report.kept.setdefault(name, []).extend(
                will_keep(layers, self.hold.settings.order)
            )

    def _denoise(
        self,
        name: str,
        denoiser: torch.nn.Module,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        clock, schedule = self.site.clock, self.hold.schedule
        if clock.run is None or schedule is None:
            return call(*args, **kwargs)
        called = arguments_of(denoiser, args, kwargs)
        first = next(iter(called))
        latents = called[first]
        if self.hold.grid is None:
            self.hold.begin(denoiser, call_grid(denoiser, called, self.site.family.channels))
        step = clock.step
        tensors = [v for v in called.values() if isinstance(v, Tensor)]
        key = (name, step.branch, *((t.shape[1:], t.dtype, t.device) for t in tensors))
        samples, active = clock.call.samples if clock.call else None, self.hold.active
        kept = self._kept_of(key, samples, len(latents))
        keeping = schedule.keeps(step.index, self.hold.settings.order)
        missed = kept is None or kept.since < schedule.full_before(step.index)
        if active is None or kept is None or missed:
            if kept is None and keeping:
                every, order = tuple(range(len(latents))), self.hold.settings.order
                kept = self._kept[key] = Branch(rows=samples or every, order=order)
            self._now = kept if keeping else None
            if self.layout.merged and kept is not None:
                kept.lengths = called["encoder_attention_mask"].sum(dim=1)
            value = self._run(call, args, kwargs)
            if keeping and kept is not None:
                kept.output, kept.since = _output(value).detach().clone(), step.index
                kept.computed(step.index)
            return value
        rows = across(active, len(latents), samples)
        part = Partial(self.layout, rows, self.hold.tokens, kept.tokens, kept.lengths, step.index)
        for control in self.layout.controls:
            if called.get(control) is not None:
                given = [part.rows(each) for each in called[control]]
                kwargs = {**kwargs, control: type(called[control])(given)}
        self._now, self._part = kept, part
        value = self._run(call, args, kwargs)
        kept.computed(step.index, part.keys)
        self.hold.partial = True
        return self._filled(value, kept, samples)

    def _kept_of(self, key: Any, samples: tuple[int, ...] | None, count: int) -> Branch | None:
        """What the branch of `key` kept of the batch's rows, and from now on of no others.

        None where `count`, the rows of the batch, is another than before and `samples` does not
        tell which they are: a batch of both branches that becomes one of the conditional branch
        has lost its first rows, not its last.
        """
        kept, rows = self._kept.get(key), samples or tuple(range(count))
        if kept is not None and kept.rows != rows:
            del self._kept[key]
            kept = None if samples is None else kept.of(rows)
            if kept is not None:
                self._kept[key] = kept
        return kept

    def _run(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        finally:
            self._now = self._part = None

    def _filled(self, value: Any, kept: Branch, samples: tuple[int, ...] | None) -> Any:
        """The denoiser's output with what it last was for tokens left out.

        The step seam holds the guided prediction; this is for guidance that looks at the whole
        picture, as rescaling does.
        """
        output = _output(value)
        assert kept.output is not None
        mask = self.hold.mask_over(output, samples)
        whole = torch.where(mask, output, kept.output)
        kept.output = whole.detach().clone()
        if isinstance(value, tuple):
            return (whole, *value[1:])
        value.sample = whole
        return value

    def _block(
        self,
        names: list[str],
        first: bool,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        stream, part, kept = self.site.family.stream, self._part, self._now
        if kept is None:
            return call(*args, **kwargs)
        if part is None:
            if first:
                self._measure(kept, names, args, kwargs)
            return call(*args, **kwargs)
        new: dict[str, Any] = {}
        hidden = read(names, args, kwargs, stream)
        words = read(names, args, kwargs, "encoder_hidden_states")
        text = 0 if words is None or not self.layout.text else words.shape[1]
        if first:
            new[stream] = part.rows(hidden)
            self.shares.tell(part, part.tokens - self.hold.tokens if self.layout.merged else text)
        if self.layout.rotary is not None:
            for name in self.layout.rotary[0].split():
                if name in names:
                    new[name] = part.rotary(read(names, args, kwargs, name), text)
        embedding = read(names, args, kwargs, "temb")
        apart = self.layout.modulated and embedding.ndim == self.layout.modulated
        if apart and embedding.shape[1] == part.tokens:
            new["temb"] = part.rows(embedding)
        mask = read(names, args, kwargs, "encoder_hidden_states_mask")
        if mask is not None:  # the model adds True for every token it sees of the picture
            seen = mask.new_ones(len(mask), part.tokens - part.computed)
            new["encoder_hidden_states_mask"] = torch.cat([mask, seen], dim=1)
        args, kwargs = replaced(names, args, kwargs, new)
        return call(*args, **kwargs)

    def _after(self, call: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Handle the layer after the last block: the stream has its full length again."""
        if self._part is not None:
            hidden = self._part.whole(hidden)
        return call(hidden, *args, **kwargs)

    def _measure(self, kept: Branch, names: list[str], args: Any, kwargs: Any) -> None:
        """Note, before the first block of a full call, how long its stream is."""
        hidden = read(names, args, kwargs, self.site.family.stream)
        kept.tokens = hidden.shape[1]
        if kept.tokens < self.hold.tokens:
            raise RuntimeError(
                f"{self.label} found {kept.tokens} tokens in the blocks where the latents have "
                f"{self.hold.tokens}; disable what merges tokens"
            )

    def _attention(self, layer: Layer) -> Callable[[Tensor, Tensor, Tensor, Plain], Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, plain: Plain) -> Tensor:
            kept, part = self._now, self._part
            if kept is None:
                return plain(q, k, v)
            if part is None:
                kept.keep(layer.path, k, v, self.site.clock.step.index)
                return plain(q, k, v)
            return plain(*part.attend(kept, layer.path, q, k, v))

        return attend


def will_keep(layers: list[Layer], order: int) -> Iterator[Kept]:
    """What is kept per branch: the denoiser's output, keys and values as attention sees them.

    And, of order 1, how keys and values change.
    """
    yield Kept("")
    for layer in layers:
        width = getattr(layer.module.get_submodule("to_q"), "out_features", 0)
        for part in ("to_k", "to_v", "add_k_proj", "add_v_proj"):
            linear = getattr(layer.module, part, None)
            if isinstance(linear, torch.nn.Linear):
                copies = max(width // linear.out_features, 1)  # shared heads are repeated
                yield Kept(f"{layer.path}.{part}", copies=copies * (1 + order))


def _output(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value.sample
