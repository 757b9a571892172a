"""Muon beside another optimizer."""

from __future__ import annotations

import torch
from torch import nn

from accel.pipelines.tiny.muon import Muon, hidden_matrices, orthogonalised


def test_orthogonalised_keeps_directions_and_levels_singular_values() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 40)
    for given in (matrices, matrices.mT):
        result = orthogonalised(given)
        left, values, right = torch.linalg.svd(result, full_matrices=False)
        assert values.min() > 0.5 and values.max() < 1.4
        u, _, v = torch.linalg.svd(given, full_matrices=False)
        assert ((left @ right - u @ v).abs().max() < 0.05).item()


def test_takes_over_its_weights_only_inside_the_block() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    weights = hidden_matrices(net)
    assert [id(w) for w in weights] == [id(net[0].weight), id(net[2].weight)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        before = net[0].weight.detach().clone()
        optimizer.zero_grad()
        net(torch.randn(16, 8)).square().mean().backward()
        gradient = net[0].weight.grad.clone()
        optimizer.step()
        return net[0].weight.detach() - before, gradient

    with Muon(weights, ratio=2.0, momentum=0.0):
        moved, gradient = step()
        assert net[0].weight.grad is None and net[0].bias.grad is not None
    wanted = -0.1 * 2.0 * 0.2 * 8**0.5 * orthogonalised(gradient[None])[0]
    assert torch.allclose(moved, wanted, atol=1e-6)
    moved, gradient = step()
    assert torch.allclose(moved, -0.1 * gradient, atol=1e-6)


def test_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    target, net = torch.randn(12, 12) / 12**0.5, nn.Linear(12, 12)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    losses = []
    with Muon(hidden_matrices(net)):
        for i in range(200):
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * (1 - i / 200)
            x = torch.randn(32, 12)
            loss = (net(x) - x @ target.T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
