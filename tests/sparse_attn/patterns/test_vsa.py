"""VSA: its choice and its two branches against a loop over tiles; gradients."""

import itertools
import math

import pytest
import torch

from accel.sparse_attn.patterns.vsa import VSA, VSAttention
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, dense, place, random_qkv

GRID = TokenGrid(3, 5, 6, 4, 2)


def tiles(grid, tile):
    parts = []
    for corner in itertools.product(
        *(range(0, n, t) for n, t in zip((grid.frames, grid.height, grid.width), tile, strict=True))
    ):
        ends = [
            min(c + t, n)
            for c, t, n in zip(corner, tile, (grid.frames, grid.height, grid.width), strict=True)
        ]
        places = itertools.product(*(range(c, e) for c, e in zip(corner, ends, strict=True)))
        parts.append(
            [grid.text_first + (f * grid.height + r) * grid.width + c for f, r, c in places]
        )
    return parts


def loop(q, k, v, grid, tile, sparsity, coarse_gate, fine_gate):
    """One head with the gates (S, D) already computed."""
    parts, d = tiles(grid, tile), q.shape[-1]
    owner = {t: n for n, tokens in enumerate(parts) for t in tokens}
    means = [torch.stack([x[tokens].mean(0) for tokens in parts]) for x in (q, k, v)]
    scores = means[0] @ means[1].T / math.sqrt(d)
    coarse = scores.softmax(-1) @ means[2]
    number = max(1, min(math.ceil((1 - sparsity) * len(parts)), len(parts)))
    rows = []
    for t in range(grid.tokens):
        if t in owner:
            best = scores[owner[t]].topk(number).indices.tolist()
            seen = [j for j in range(grid.tokens) if j not in owner or owner[j] in best]
        else:
            seen = list(range(grid.tokens))
        fine = (k[seen] @ q[t] / math.sqrt(d)).softmax(0) @ v[seen]
        rows.append(fine_gate[t] * fine + (coarse_gate[t] * coarse[owner[t]] if t in owner else 0))
    return torch.stack(rows)


@pytest.mark.parametrize("sparsity", [0.8, 0.4])
def test_matches_the_transcription(sparsity):
    q, k, v = random_qkv(GRID, batch=2, heads=2, width=8)
    hidden = torch.randn(2, GRID.tokens, 12, generator=torch.Generator().manual_seed(1))
    module = VSAttention(12, 2, 8, VSA(sparsity, (2, 2, 4)), fine_gate=True)
    for gate in (module.coarse_gate, module.fine_gate):
        torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(2))
    out = module(q, k, v, hidden, place(GRID))
    gates = [g(hidden).view_as(q) for g in (module.coarse_gate, module.fine_gate)]
    for b, h in itertools.product(range(2), repeat=2):
        one = [x[b, :, h] for x in (q, k, v)]
        wanted = loop(*one, GRID, (2, 2, 4), sparsity, *(g[b, :, h] for g in gates))
        assert torch.allclose(out[b, :, h], wanted, atol=1e-5)


def test_a_fresh_module_without_sparsity_is_dense():
    q, k, v = random_qkv(ODD)
    hidden = torch.randn(2, ODD.tokens, 12)
    module = VSAttention(12, 3, 16, VSA(0.0))
    assert torch.allclose(module(q, k, v, hidden, place(ODD)), dense(q, k, v), atol=1e-6)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_gradients_are_those_of_masked_attention(kernel):
    q, k, v = (x.double().requires_grad_() for x in random_qkv(GRID, 1, 2, 8))
    hidden = torch.randn(1, GRID.tokens, 12, dtype=torch.float64)
    module = VSAttention(12, 2, 8, VSA(0.6, (2, 2, 4)), kernel=kernel).double()
    torch.nn.init.normal_(module.coarse_gate.weight)
    weight = torch.randn(1, GRID.tokens, 2, 8, dtype=torch.float64)
    (module(q, k, v, hidden, place(GRID)) * weight).sum().backward()
    found = [x.grad.clone() for x in (q, k, v)]
    gate = module.coarse_gate(hidden).view_as(q).detach()
    for x in (q, k, v):
        x.grad = None
    ones = torch.ones(GRID.tokens, 8, dtype=torch.float64)
    for h in range(2):
        one = [x[0, :, h] for x in (q, k, v)]
        out = loop(*one, GRID, (2, 2, 4), 0.6, gate[0, :, h], ones)
        (out * weight[0, :, h]).sum().backward()
    for x, y in zip((q, k, v), found, strict=True):
        assert torch.allclose(x.grad, y, atol=1e-6)
    assert module.coarse_gate.weight.grad.abs().sum() > 0


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="unknown kernel 'tritn'"):
        VSAttention(12, 2, 8, kernel="tritn")
    with pytest.raises(ValueError, match=r"VSA\.sparsity must be at least 0, below 1"):
        VSA(1.0)
