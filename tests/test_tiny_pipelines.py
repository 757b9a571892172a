"""The pipelines that every other test stands on: real, quick, repeatable, unshared."""

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.tiny_pipelines import NAMES, call, make

OTHER = "a blue square moving up on a light background"


@pytest.fixture(scope="module", params=NAMES)
def plain(request: pytest.FixtureRequest) -> tuple[str, torch.Tensor]:
    return request.param, call(make(request.param), request.param)


def test_same_seed_gives_the_same_latents(plain):
    name, latents = plain
    assert latents.dtype == torch.float32 and latents.isfinite().all()
    assert torch.equal(call(make(name), name), latents)
    used = make(name)
    call(used, name, seed=5, steps=3)
    assert torch.equal(call(used, name), latents)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"prompt": OTHER}, {"guidance": 2.0}, {"guidance": 1.0}, {"steps": 6}]
)
def test_what_is_asked_for_matters(plain, change):
    name, latents = plain
    assert (call(make(name), name, **change) - latents).abs().max() > 1e-3


def test_batch_holds_the_samples_of_its_seeds(plain):
    name, latents = plain
    pair = call(make(name), name, batch=2)
    assert len(pair) == 2 * len(latents)
    torch.testing.assert_close(pair[: len(latents)], latents, rtol=1e-4, atol=1e-4)
    alone = call(make(name), name, seed=1)
    torch.testing.assert_close(pair[len(latents) :], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pipelines_share_nothing(name):
    first, second = make(name), make(name)
    for key, part in first.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        assert not part.training
        theirs = {tensor.data_ptr() for tensor in second.components[key].state_dict().values()}
        assert theirs.isdisjoint(t.data_ptr() for t in part.state_dict().values() if t.numel())
    assert first.scheduler is not second.scheduler


SWAPS = [
    *(("sd", other) for other in ("ddim", "pndm", "euler", "heun", "unipc", "dpm++", "lcm")),
    ("sd", "euler_ancestral"),
    ("sd_img2img", "pndm"),
    ("sd_img2img", "heun"),
    ("sdxl", "ddim"),
    ("sdxl", "heun"),
    *(("wan", other) for other in ("flow_euler", "flow_heun", "flow_unipc", "flow_dpm++")),
    ("cogvideox", "cogvideox_dpm"),
    ("flux", "flow_euler"),
    ("ltx", "flow_euler"),
]


@pytest.mark.parametrize(("name", "scheduler"), SWAPS)
def test_scheduler_can_be_swapped(name, scheduler):
    pipe = make(name, scheduler=scheduler)
    latents = call(pipe, name)
    assert latents.isfinite().all() and latents.std() > 0.1
    assert torch.equal(call(pipe, name), latents)


@pytest.mark.parametrize("name", NAMES)
def test_decodes_to_pixels(name):
    pixels = torch.as_tensor(call(make(name), name, steps=2, output_type="np"))
    assert pixels.shape[-1] == 3 and pixels.min() >= 0 and pixels.max() <= 1
    assert pixels.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_saves_and_loads_without_a_network(name, tmp_path):
    pipe = make(name)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipe)
    # not bit-equal: weights of a file are mapped unaligned, which changes rounding
    torch.testing.assert_close(call(loaded, name), call(pipe, name), rtol=1e-4, atol=1e-4)


def test_callback_is_called_after_each_step():
    seen = []
    call(make("wan"), "wan", steps=3, callback=lambda pipe, i, t, kw: seen.append(i) or kw)
    assert seen == [0, 1, 2]


def test_unknown_name_is_told_the_known_ones():
    with pytest.raises(KeyError, match="wan"):
        make("vann")
