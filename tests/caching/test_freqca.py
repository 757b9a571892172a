"""FreqCa: the split against plain sums, and a whole run against the released update."""

import math

import pytest
import torch

from accel.caching import FreqCa
from accel.caching.frequency import split
from accel.caching.policies import Interval, schedule
from accel.token_grid import token_grid
from tests.caching.transcribed import Counted
from tests.tiny_pipelines import call, make

SQUARE = (1, 8, 8)


def low_by_cosines(tokens, side, cutoff):
    """Projections on sampled cosine products, one after another."""
    low, top = torch.zeros_like(tokens), math.sqrt(2) * (side - 1)
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for k in range(side):
        for m in range(side):
            if math.sqrt(k * k + m * m) <= cutoff * top + 1e-9:
                wave = torch.cos(math.pi * k * (2 * i + 1) / (2 * side))
                wave = wave * torch.cos(math.pi * m * (2 * j + 1) / (2 * side))
                wave = (wave / wave.norm()).flatten()[:, None].to(tokens)
                low += wave * (wave * tokens).sum(1, keepdim=True)
    return low


def low_by_masks(tokens, cutoff):
    """The released Fourier split: complex, with a mask on |frequency|."""
    values = torch.fft.fft(tokens, dim=1)
    frequencies = torch.fft.fftfreq(tokens.shape[1], dtype=torch.float64).abs()
    mask = frequencies <= cutoff * frequencies.max() + 1e-12
    return torch.fft.ifft(values * mask[:, None], dim=1).real


@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.3, 0.71, 1.0])
def test_a_square_is_split_by_cosines(cutoff):
    tokens = torch.randn(2, 64, 5)
    low, high = split(tokens, SQUARE, cutoff)
    torch.testing.assert_close(low, low_by_cosines(tokens, 8, cutoff), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low + high, tokens)
    if cutoff == 1:
        torch.testing.assert_close(low, tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 20, 33, 64])
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("grid", [None, (2, 4, 8), (1, 8, 8)])
def test_other_tokens_are_split_along_their_axis(count, cutoff, grid):
    if grid == SQUARE and count == 64:
        return
    tokens = torch.randn(2, count, 5)
    low, high = split(tokens, grid, cutoff)
    torch.testing.assert_close(low, low_by_masks(tokens, cutoff), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low + high, tokens)


@pytest.mark.parametrize("grid", [None, SQUARE])
def test_splitting_again_changes_nothing(grid):
    low, high = split(torch.randn(1, 64, 5), grid, 0.2)
    again, nothing = split(low, grid, 0.2)
    torch.testing.assert_close(again, low, rtol=1e-4, atol=1e-5)
    assert nothing.abs().max() < 1e-5 and split(high, grid, 0.2)[0].abs().max() < 1e-5


@pytest.mark.parametrize("grid", [None, SQUARE])
def test_half_precision_is_split_in_full(grid):
    tokens = torch.randn(1, 64, 5).bfloat16()
    low, high = split(tokens, grid, 0.2)
    assert low.dtype == high.dtype == torch.bfloat16
    torch.testing.assert_close(low, split(tokens.float(), grid, 0.2)[0].bfloat16())


GRIDS = {
    "wan": (2, 4, 4),
    "flux_distilled": (1, 8, 8),
    "cogvideox": (2, 4, 4),
    "ltx": (3, 8, 8),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_is_read_from_the_call(name):
    pipe, found = make(name), []

    def read(model, args, kwargs):
        found.append(token_grid(model, args, kwargs))

    pipe.transformer.register_forward_pre_hook(read, with_kwargs=True)
    call(pipe, name, steps=1)
    assert set(found) == {GRIDS[name]}


def last_block(pipe, name):
    model = pipe.transformer
    if name.startswith("flux"):
        return model.single_transformer_blocks[-1]
    return (model.blocks if name == "wan" else model.transformer_blocks)[-1]


def released(counted, block, name, square, interval, warmup, lows=None):
    """Both parts of the last block's output as factors: order 0 for the low, 2 for the high."""
    kept, last = {}, {}
    hermite = (lambda y: 1, lambda y: 2 * y, lambda y: 4 * y * y - 2)

    def hook(module, args, output):
        step, branch = counted.step, counted.branch
        hidden = output if name == "wan" else output[1 if name.startswith("flux") else 0]
        if step < warmup or (step - warmup + 1) % interval == 0:
            low = low_by_cosines(hidden, 8, 0.1) if square else low_by_masks(hidden, 0.1)
            factors, old = [hidden - low], kept.get(branch, (None, []))[1]
            for i in range(min(2, len(old)) if step > warmup - 2 else 0):
                factors.append((factors[i] - old[i]) / (step - last[branch]))
            kept[branch], last[branch] = (low, factors), step
            return None
        low, factors = kept[branch]
        y = 0.71 * (step - last[branch])
        total = low.clone()
        for i, factor in enumerate(factors):
            total = total + factor * (0.71**i * hermite[i](y) / math.factorial(i))
        if name == "wan":
            return total
        return (output[0], total) if name.startswith("flux") else (total, output[1])

    counted.hooks.append(block.register_forward_hook(hook))


@pytest.mark.parametrize(("name", "square"), [("flux", True), ("wan", False), ("cogvideox", False)])
def test_latents_are_those_of_the_released_update(name, square):
    plain = make(name)
    counted = Counted(plain, branches=1 if name == "cogvideox" else 2)
    released(counted, last_block(plain, name), name, square, interval=3, warmup=3)
    expected = counted.run(plain, name, steps=10)
    pipe = make(name)
    pipe.enable_acceleration(FreqCa(interval=3))
    latents = call(pipe, name, steps=10)
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)
    assert (latents - call(make(name), name, steps=10)).abs().max() > 1e-2 * scale


def test_what_is_low_stays_and_what_is_high_moves():
    pipe = make("flux_distilled")
    pipe.enable_acceleration(FreqCa(interval=3, warmup=2))
    hidden = []
    pipe.transformer.norm_out.register_forward_pre_hook(lambda m, args: hidden.append(args[0]))
    call(pipe, "flux_distilled", steps=8, guidance=1.0)
    computed = schedule(Interval(3, 2), 8)
    assert len(hidden) == 8 and computed == [0, 1, 4, 7]
    for step in (2, 3, 5, 6):
        newest = max(c for c in computed if c < step)
        (low, high), (old_low, old_high) = (split(hidden[i], SQUARE, 0.1) for i in (step, newest))
        torch.testing.assert_close(low, old_low, rtol=1e-4, atol=1e-5)
        assert (high - old_high).norm() > 1e-3 * high.norm()


def test_bytes_held_are_those_of_the_parts_kept():
    pipe = make("wan")
    pipe.enable_acceleration(FreqCa(interval=2, order=1))
    call(pipe, "wan", steps=9)
    # 32 tokens of 24 in float32; low once, high twice, for two branches
    assert pipe.acceleration.report().bytes_held == 2 * 3 * 32 * 24 * 4


@pytest.mark.parametrize("name", ["sd", "ltx2"])
def test_models_without_known_blocks_are_refused(name):
    with pytest.raises(ValueError, match="FreqCa"):
        make(name).enable_acceleration(FreqCa())
