"""GS-Jacobi on a small flow trained on pictures of shapes."""

import functools

import pytest
import torch

from accel.pipelines.tiny.tarflow import PATCH, SIZE, TarFlow, picture, pictures, trained
from accel.samplers import gs_jacobi
from accel.samplers.gs_jacobi import SEQUENTIAL, Inversion, invert, planned

flow = functools.cache(trained)


def sample(model, z, plan):
    """From noise to tokens, through the blocks from last to first; and the work of each."""
    order = list(reversed(model.blocks))
    return gs_jacobi.sample(order, z, plan, [block.backward for block in order])


def noise(count=4, seed=0):
    return torch.randn(count, 16, 48, generator=torch.Generator().manual_seed(seed))


def test_the_flow_has_learned_and_is_a_flow():
    model, held = flow(), pictures(64, 9)
    with torch.no_grad():
        before = float(TarFlow().loss(held))
    assert float(model.loss(held)) < before - 0.5
    z, _ = model(held)
    back, _ = sample(model, z, [SEQUENTIAL] * 4)
    torch.testing.assert_close(back, held, rtol=1e-3, atol=1e-3)
    assert z.std() == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("how", [SEQUENTIAL, Inversion(chunks=2, tolerance=0.0, clamp=None)])
def test_forward_of_the_inverse_is_the_noise(how):
    model, z = flow(), noise()
    x, _ = sample(model, z, [how] * 4)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chunks", [1, 3, 4, 16])
def test_as_many_iterations_as_positions_are_exact(chunks):
    """A chunk of n positions needs n; with as many chunks as positions it is sequential."""
    model, z = flow(), noise()
    for block in model.blocks:
        exact = invert(block, z, SEQUENTIAL)
        found = invert(block, z, Inversion(chunks, tolerance=0.0, clamp=None))
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def test_after_k_iterations_the_first_positions_are_exact():
    block, z = flow().blocks[0], noise()
    exact = invert(block, z, SEQUENTIAL)
    for done in (1, 4, 15):
        found = invert(block, z, Inversion(iterations=done, tolerance=0.0, clamp=None))
        torch.testing.assert_close(found[:, : done + 1], exact[:, : done + 1], rtol=1e-4, atol=1e-4)


def test_sequential_is_the_plain_loop():
    block, z = flow().blocks[1], noise()
    x = torch.zeros_like(z)
    x[:, 0] = z[:, 0]
    for i in range(1, 16):
        scale, shift, _ = block.extend(None, x, None)
        x[:, i] = z[:, i] * scale[:, i].exp() + shift[:, i]
    torch.testing.assert_close(invert(block, z, SEQUENTIAL), x, rtol=1e-4, atol=1e-4)


def test_fewer_passes_and_the_same_pictures():
    model = flow()
    order = list(reversed(model.blocks))
    turned = [block.backward for block in order]
    plan = planned(order, noise(8, 3), chunks=2, clamp=None, backward=turned)
    assert sum(how.chunks == 2 for how in plan) == 1
    exact, slow = sample(model, noise(), [SEQUENTIAL] * 4)
    found, quick = sample(model, noise(), plan)
    passes = [sum(work.passes for work in each) for each in (slow, quick)]
    assert passes[0] == 4 * 16 and passes[1] < 0.75 * passes[0]
    assert (picture(found) - picture(exact)).abs().max() < 0.02
    assert picture(exact).shape == (4, 3, SIZE, SIZE) and SIZE % PATCH == 0


def test_overflow_is_an_error_and_clamping_prevents_it():
    class Wild:
        def extend(self, before, tokens, cache):
            scale = 30 * torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1].abs()], 1)
            return scale, scale, None

    with pytest.raises(FloatingPointError, match="give clamp"):
        invert(Wild(), noise(), Inversion(clamp=None))
    assert invert(Wild(), noise(), Inversion(clamp=3.0)).abs().max() <= 3


@pytest.mark.parametrize(
    "wrong",
    [{"chunks": 0}, {"iterations": 0}, {"start": "x"}, {"tolerance": -1.0}, {"clamp": 0.0}],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="Inversion"):
        Inversion(**wrong)


def test_a_plan_for_other_blocks_is_refused():
    blocks = list(flow().blocks)
    with pytest.raises(ValueError, match="plan has 1 entries for 4 blocks"):
        gs_jacobi.sample(blocks, noise(), [SEQUENTIAL])
    with pytest.raises(ValueError, match="backward has 2 entries for 4 blocks"):
        gs_jacobi.sample(blocks, noise(), [SEQUENTIAL] * 4, [True, False])
