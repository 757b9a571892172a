"""SLA2 (2602.12675): a learned router, sparse attention, and linear attention for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accel.method import check_fields

from ..blocks import Blocks, in_order, routing
from ..kernels import KERNELS
from ..kernels.choice import check_name, choose
from ..layout import BLOCKS
from ..ordered import attend_routed
from ..pattern import Place
from ..selection import force, select

BISECTIONS = 40


@dataclass(frozen=True)
class SLA2Settings:
    """How much SLA2 computes.

    Attributes:
        density: share of the video's key blocks a query block attends to (0.03 to 0.05).
        temperature: of the soft choice in the first stage of training.
        block_q, block_k: tokens of a block, 64 or 128.
    """

    density: float = 0.05
    temperature: float = 0.1
    block_q: int = 128
    block_k: int = 64

    def __post_init__(self) -> None:
        check_fields(
            self,
            density=(0 < self.density <= 1, "above 0, at most 1"),
            temperature=(self.temperature > 0, "above 0"),
            block_q=(self.block_q in BLOCKS, "64 or 128"),
            block_k=(self.block_k in BLOCKS, "64 or 128"),
        )


class SLA2Attention(nn.Module):
    """O = alpha * O_sparse + (1 - alpha) * O_linear, the linear part over unselected blocks only.

    The router scores blocks by projections of their means and keeps the top of each row. With
    `soft` the choice is sigma(score / temperature + shift), the shifts such that rows sum to the
    number kept, and gradients reach the router: the first stage of training, quadratic in memory.
    Later stages train through the hard choice, which gives the router none.

    The paper learns one alpha per query block, which ties the model to a length; here alpha is a
    linear function of the block's mean query, starting at `sigmoid(start)` everywhere. Where
    nothing is left out (text, or density 1) alpha is 1.

    Args:
        heads: H.
        head_dim: D.
        start: logit of alpha before training; with a large one SLA2 is sparse attention.
        kernel: what computes the sparse part, by name; "gather", "triton" and "reference" have
            gradients.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        settings: SLA2Settings | None = None,
        *,
        start: float = 4.0,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_name(kernel, KERNELS)
        self.settings, self.kernel = settings or SLA2Settings(), kernel
        self.route_q = nn.Linear(head_dim, head_dim, bias=False)
        self.route_k = nn.Linear(head_dim, head_dim, bias=False)
        nn.init.eye_(self.route_q.weight)
        nn.init.eye_(self.route_k.weight)
        self.mix = nn.Parameter(torch.zeros(heads, head_dim))
        self.bias = nn.Parameter(torch.full((heads,), start))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, place: Place, *, soft: bool = False
    ) -> Tensor:
        """Attention of q, k, v (B, S, H, D); of `place` the grid and the scale are used."""
        rows = in_order(place.grid, self.settings.block_q, q.device)
        columns = in_order(place.grid, self.settings.block_k, q.device)
        pooled, scale = rows.means(q), place.scale_of(q)
        scores = self.scores(pooled, k, rows, columns)
        number = self.settings.density * scores.shape[-1]
        if soft:
            share = soft_top_k(scores, max(1.0, number), self.settings.temperature)
        else:
            share = select(scores.detach(), keep=self.settings.density).to(scores.dtype)
        chosen = torch.ones(*scores.shape[:2], rows.count, columns.count, device=q.device)
        chosen[..., rows.video, columns.video] = share
        if soft:
            sparse, linear = _softly(q, k, v, chosen, rows, columns, scale)
        else:
            map = force(chosen > 0, rows.text, columns.text)
            routed = routing(map, rows, columns, *scores.shape[:2])
            _, kernel, _ = choose(self.kernel, KERNELS, q, routed.layout)
            sparse = attend_routed(kernel, routed, q, k, v, scale)
            linear = linear_rest(q, k, v, chosen, rows, columns)
        alpha = ((pooled * self.mix[:, None]).sum(-1) + self.bias[:, None]).sigmoid()
        alpha = torch.where((1 - chosen).sum(-1) > 0, alpha, 1.0)  # (B, H, nQ)
        weight = _to_tokens(alpha[..., None], rows).to(q.dtype)  # (B, S, H, 1)
        return weight * sparse + (1 - weight) * linear

    def scores(self, pooled: Tensor, k: Tensor, rows: Blocks, columns: Blocks) -> Tensor:
        """(B, H, n, m) scores of the video's blocks from means of queries (B, H, nQ, D)."""
        smooth = k - k.mean(1, keepdim=True)
        query = self.route_q(pooled[:, :, rows.video])
        key = self.route_k(columns.means(smooth)[:, :, columns.video])
        return query @ key.mT * k.shape[-1] ** -0.5


def soft_top_k(scores: Tensor, number: float, temperature: float) -> Tensor:
    """sigma(scores / temperature + shift), each row's shift such that it sums to `number`.

    The shift is found by bisection; a Newton step from there, which does not move it, gives it its
    gradient by the implicit function theorem.
    """
    scaled = scores / temperature
    number = min(number, scores.shape[-1])
    with torch.no_grad():
        low, high = (-side - 40.0 for side in (scaled.amax(-1, True), scaled.amin(-1, True) - 80.0))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            over = (scaled + middle).sigmoid().sum(-1, keepdim=True) > number
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        shift = (low + high) / 2
    share = (scaled + shift).sigmoid()
    slope = (share * (1 - share)).sum(-1, keepdim=True).detach().clamp(min=1e-12)
    drift = share.sum(-1, keepdim=True)
    return (scaled + shift - (drift - drift.detach()) / slope).sigmoid()


def linear_rest(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, rows: Blocks, columns: Blocks
) -> Tensor:
    """(B, S, H, D) linear attention with softmax features over the key blocks not chosen.

    Args:
        chosen: (B, H, nQ, nK) share of each block that sparse attention takes.
    """
    features, _ = columns.split(k.float().softmax(-1))
    values, _ = columns.split(v.float())
    states = features.mT @ values  # (B, H, nK, D, D)
    sums = features.sum(-2)
    rest = 1 - chosen
    state = torch.einsum("bhqk,bhkde->bhqde", rest, states)
    total = torch.einsum("bhqk,bhkd->bhqd", rest, sums)
    query, _ = rows.split(q.float().softmax(-1))  # (B, H, nQ, block, D)
    top, bottom = query @ state, query @ total[..., None]
    out = top / bottom.masked_fill(bottom == 0, 1.0)
    return _from_blocks(out, rows).to(q.dtype)


def _softly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    rows: Blocks,
    columns: Blocks,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Sparse attention with each block weighed by its share, and the linear rest."""
    weight = chosen[:, :, rows.owner()][..., columns.owner()]  # (B, H, S, S)
    query, key, value = (x.transpose(1, 2).float() for x in (q, k, v))
    scores = (query @ key.mT * scale).softmax(-1) * weight
    sparse = scores @ value / scores.sum(-1, keepdim=True)
    linear = linear_rest(q, k, v, chosen, rows, columns)
    return sparse.transpose(1, 2).to(q.dtype), linear


def _to_tokens(x: Tensor, blocks: Blocks) -> Tensor:
    """(B, S, H, C) of one value per block, x (B, H, n, C)."""
    return x[:, :, blocks.owner()].transpose(1, 2)


def _from_blocks(x: Tensor, blocks: Blocks) -> Tensor:
    """(B, S, H, D) of x (B, H, n, size, D) in the blocks of an unordered sequence."""
    owner = blocks.owner()
    within = torch.arange(blocks.tokens, device=x.device) - blocks.start[owner]
    return x[:, :, owner, within].transpose(1, 2)
