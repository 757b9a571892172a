"""SLA2: both branches against a loop over tokens, the soft choice, gradients."""

import itertools
import math

import pytest
import torch

from accel.sparse_attn.patterns.sla2 import SLA2Attention, SLA2Settings, soft_top_k
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, dense, place, random_qkv

GRID = TokenGrid(3, 10, 9, 6, 5)


def loop(module, q, k, v, grid, h):
    """One head, with the hard choice."""
    settings, d = module.settings, q.shape[-1]

    def blocks(size):
        first = grid.text_first
        return [
            list(range(first + at, first + min(at + size, grid.video)))
            for at in range(0, grid.video, size)
        ]

    rows, columns = blocks(settings.block_q), blocks(settings.block_k)
    smooth = k - k.mean(0)
    means = [module.route_q(q[tokens].mean(0)) for tokens in rows]
    others = [module.route_k(smooth[tokens].mean(0)) for tokens in columns]
    number = max(1, int(settings.density * len(columns) + 0.5))
    phi_q, phi_k = q.softmax(-1), k.softmax(-1)
    out = (k @ q.T / math.sqrt(d)).softmax(0).T @ v  # text rows are dense
    for tokens, mean in zip(rows, means, strict=True):
        scores = [(mean @ other).item() for other in others]
        best = sorted(range(len(scores)), key=lambda j: -scores[j])[:number]
        left = [t for j, part in enumerate(columns) if j not in best for t in part]
        seen = [t for t in range(grid.tokens) if t not in left]
        state = sum(torch.outer(phi_k[t], v[t]) for t in left)
        total = sum(phi_k[t] for t in left)
        logit = module.mix[h] @ q[tokens].mean(0) + module.bias[h]
        alpha = torch.sigmoid(logit)
        for t in tokens:
            sparse = (k[seen] @ q[t] / math.sqrt(d)).softmax(0) @ v[seen]
            linear = phi_q[t] @ state / (phi_q[t] @ total)
            out[t] = alpha * sparse + (1 - alpha) * linear
    return out


def trained(heads=2, width=8, density=0.4):
    """A module as training might leave it."""
    torch.manual_seed(3)
    module = SLA2Attention(heads, width, SLA2Settings(density), start=0.5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def test_matches_the_transcription():
    q, k, v = random_qkv(GRID, batch=2, heads=2, width=8)
    module = trained()
    with torch.no_grad():
        out = module(q, k, v, place(GRID))
        for b, h in itertools.product(range(2), repeat=2):
            wanted = loop(module, *(x[b, :, h] for x in (q, k, v)), GRID, h)
            assert torch.allclose(out[b, :, h], wanted, atol=1e-5)


def test_density_one_is_dense_and_a_fresh_one_nearly_sparse():
    q, k, v = random_qkv(ODD)
    full = SLA2Attention(3, 16, SLA2Settings(1.0), start=-2.0)
    assert torch.allclose(full(q, k, v, place(ODD)), dense(q, k, v), atol=1e-6)


def test_soft_rows_sum_to_the_number_and_harden():
    scores = torch.randn(2, 3, 5, 20, generator=torch.Generator().manual_seed(4))
    for number in (1.0, 3.0, 19.5, 20.0):
        share = soft_top_k(scores, number, 0.1)
        assert torch.allclose(share.sum(-1), torch.tensor(number), atol=1e-3)
    hard = soft_top_k(scores, 4.0, 1e-4) > 0.5
    wanted = torch.zeros_like(hard).scatter(-1, scores.topk(4).indices, True)
    assert torch.equal(hard, wanted)


def test_soft_gradients_are_right():
    scores = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, 3.0, 0.5), (scores,), atol=1e-6)


def test_soft_becomes_hard_as_it_cools():
    q, k, v = random_qkv(GRID, batch=1, heads=2, width=8)
    module = trained()
    hard = module(q, k, v, place(GRID))
    errors = []
    for temperature in (1.0, 0.01, 1e-5):
        module.settings = SLA2Settings(0.4, temperature)
        errors.append((module(q, k, v, place(GRID), soft=True) - hard).norm().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


@pytest.mark.parametrize("soft", [True, False])
def test_gradients_reach_what_each_stage_trains(soft):
    q, k, v = random_qkv(GRID, batch=1, heads=2, width=8)
    module = trained()
    module(q, k, v, place(GRID), soft=soft).square().sum().backward()
    assert module.mix.grad.abs().sum() > 0 and module.bias.grad.abs().sum() > 0
    routed = [p.grad is not None for p in (module.route_q.weight, module.route_k.weight)]
    assert routed == [soft, soft]


def test_training_the_router_brings_it_to_dense():
    """A few steps of the first stage lower the distance to dense attention, also when hardened."""
    q, k, v = random_qkv(GRID, batch=1, heads=2, width=8)
    q = 2 * q
    module = trained()
    wanted = dense(q, k, v)

    def error(soft):
        return (module(q, k, v, place(GRID), soft=soft) - wanted).square().mean()

    before = error(False).item()
    tuned = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(25):
        tuned.zero_grad()
        error(True).backward()
        tuned.step()
    assert error(False).item() < 0.8 * before


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"SLA2Settings\.density"):
        SLA2Settings(0.0)
