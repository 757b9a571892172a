"""The grid of a call, from what the pipeline passes, at odd sizes too."""

import pytest
import torch

from accel.registry import recognise
from accel.token_grid import TokenGrid, call_grid
from tests.tiny_pipelines import call, make

CALLS = {  # sizes asked for, and frames, rows, columns of tokens
    "wan": ({"height": 48, "width": 80, "num_frames": 9}, (3, 3, 5)),
    "ltx": ({"height": 32, "width": 96, "num_frames": 9}, (3, 8, 24)),
    "hunyuan_video": ({"height": 48, "width": 80, "num_frames": 9}, (3, 6, 10)),
    "hunyuan_video15": ({"height": 48, "width": 80, "num_frames": 9}, (3, 6, 10)),
    "mochi": ({"height": 48, "width": 80, "num_frames": 7}, (2, 3, 5)),
    "cogvideox": ({"height": 48, "width": 80, "num_frames": 9}, (3, 6, 10)),
    "flux": ({"height": 48, "width": 80}, (1, 12, 20)),
    "qwenimage": ({"height": 48, "width": 80}, (1, 6, 10)),
    "sd3": ({"height": 24, "width": 40}, (1, 6, 10)),
    "animatediff": ({"height": 48, "width": 80, "num_frames": 3}, (3, 24, 40)),
}


def seen(name, **sizes):
    """Grids of the calls of a run, with the tokens and pixels that the test knows."""
    pipe, found = make(name), []
    _, denoisers = recognise(pipe)
    (module,) = denoisers.values()

    def read(model, args, kwargs):
        latents = kwargs.get("hidden_states", args[0] if args else None)
        found.append((call_grid(model, args, kwargs), latents))

    module.register_forward_pre_hook(read, with_kwargs=True)
    call(pipe, name, steps=2, **sizes)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_the_grid_is_that_of_the_pictures_asked_for(name):
    sizes, expected = CALLS[name]
    for grid, latents in seen(name, **sizes):
        assert (grid.frames, grid.height, grid.width) == expected
        assert latents is None or latents.ndim > 3 or grid.tokens == latents.shape[1]


def test_packed_tokens_of_an_oblong_picture_are_read_from_their_positions():
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
    ids = torch.stack([0 * rows, rows, columns], -1).flatten(0, 1)
    other = ids[:8] + torch.tensor([1, 0, 0])
    model = make("flux").transformer
    arguments = {
        "hidden_states": torch.zeros(1, 23, 16),
        "timestep": torch.zeros(1),
        "img_ids": torch.cat([ids, other]),
    }
    assert call_grid(model, (), arguments) == TokenGrid(1, 3, 5, text_last=8)
    assert call_grid(model, (), arguments | {"img_ids": ids[:13]}) is None


def test_text_goes_where_the_family_has_it():
    grid = TokenGrid(2, 3, 5)
    assert grid.with_text(37, "first") == TokenGrid(2, 3, 5, text_first=7)
    assert grid.with_text(37, "last") == TokenGrid(2, 3, 5, text_last=7)
    assert grid.with_text(30, "last") == grid and grid.with_text(29, "last") is None


def test_levels_of_a_unet_halve_and_round_up():
    grid = TokenGrid(4, 9, 14)
    levels = {n: grid.within_frame(n) for n in (126, 35, 12, 13)}
    assert levels[126] == TokenGrid(1, 9, 14) and levels[35] == TokenGrid(1, 5, 7)
    assert levels[12] == TokenGrid(1, 3, 4) and levels[13] is None
