"""How much of a model's work a partial call leaves out, for the report."""

from __future__ import annotations

import torch

from accel.family import Blocks
from accel.method import Site

from .layouts import Layout
from .partial import Partial

OF_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TEXT_PARTS = ("ff_context", "txt_mlp")
LINEAR = (torch.nn.Linear, torch.nn.Conv1d)


class Shares:
    """Skip sets by the share of their work a partial call leaves out.

    With S image tokens of which k are computed, and T text tokens, layers that see the image leave
    out (S - k) / S of their work, layers that see both (S - k) / (S + T), and so do queries of an
    attention over both. Layers inside such an attention that leave out another share are in a set
    of their own, which corrects it.
    """

    def __init__(self, site: Site, layout: Layout, method: str) -> None:
        self.site, self.layout, self.method = site, layout, method
        sets: dict[str, dict[str, list[str]]] = {}
        for name, denoiser in site.denoisers.items():
            for path, block, spec in site.family.flat_blocks(denoiser):
                for kind, found in self._parts(path, block, spec):
                    sets.setdefault(kind, {}).setdefault(name, []).append(found)
        self.sets = tuple(sets)
        for kind, modules in sets.items():
            everywhere = {name: modules.get(name, []) for name in site.denoisers}
            site.report.skip_set(method, self._named(kind), everywhere)

    def _named(self, kind: str) -> str:
        return f"{self.method}:{kind}"

    def _parts(self, path: str, block: torch.nn.Module, spec: Blocks) -> list[tuple[str, str]]:
        """Modules of a block, with the set each belongs to."""
        sees = self.layout.linears[spec.path]
        found: list[tuple[str, str]] = []
        for part in (*spec.modules, *spec.idle):
            if part in TEXT_PARTS:
                continue
            module, kind = block.get_submodule(part), spec.attention.get(part)
            full = f"{path}.{part}"
            if kind is None:
                found.append((sees, full))
                continue
            over_text = kind == "self" and self.layout.text != "" and part != "attn2"
            found.append(("joint" if over_text else "image", full))
            for inner, leaf in module.named_modules():
                if not isinstance(leaf, LINEAR):
                    continue
                first = inner.split(".")[0]
                text = first in OF_TEXT or (kind == "cross" and first in ("to_k", "to_v"))
                if text:
                    found.append(("words" if over_text else "cross", f"{full}.{inner}"))
                elif over_text and sees == "image":
                    found.append(("more", f"{full}.{inner}"))
        return found

    def tell(self, part: Partial, text: int) -> None:
        """Write what the call going on leaves out, whose attention has `text` text tokens."""
        call = self.site.clock.call
        assert call is not None
        gone = part.tokens - part.computed
        length = part.tokens if self.layout.merged else part.tokens + text
        image = gone / (part.tokens - text if self.layout.merged else part.tokens)
        joint = gone / length
        worth = {
            "image": image,
            "joint": joint,
            "more": image - joint,
            "words": -joint,
            "cross": -image,
        }
        for kind in self.sets:
            call.leave_out(self._named(kind), "reused", worth[kind])
