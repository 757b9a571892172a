"""Families are data: arguments cut to rows, denoisers recognised, blocks in order."""

import functools

import pytest
import torch
from diffusers import DiffusionPipeline

from accel.family import inspected, select_rows
from accel.registry import families, find_family, recognise
from tests.tiny_pipelines import NAMES, call, make

KNOWN = {
    "wan": "wan",
    "wan22": "wan",
    "wan_i2v": "wan",
    "flux": "flux",
    "flux_distilled": "flux",
    "cogvideox": "cogvideox",
    "ltx": "ltx",
    "sd": "sd",
    "sd_img2img": "sd",
    "sd_controlnet": "sd",
    "sdxl": "sdxl",
    "sdxl_img2img": "sdxl",
    "sd_controlnet_img2img": "sd",
    "sdxl_controlnet": "sdxl",
    "flux_controlnet": "flux",
    "hunyuan_video": "hunyuan_video",
    "hunyuan_video_i2v": "hunyuan_video_i2v",
    "hunyuan_video15": "hunyuan_video15",
    "mochi": "mochi",
    "sd3": "sd3",
    "sd3_controlnet": "sd3",
    "pixart": "pixart",
    "sana": "sana",
    "lumina2": "lumina2",
    "qwenimage": "qwenimage",
    "qwenimage_edit": "qwenimage_edit",
    "dit": "dit",
    "svd": "svd",
    "animatediff": "animatediff",
}


@functools.cache
def first_call(name):
    """The denoiser of a run over two samples, and the arguments and output of its first call."""
    pipe = make(name)
    denoiser = next(iter(recognise(pipe)[1].values()))
    seen = []
    hook = denoiser.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    call(pipe, name, steps=2, batch=2)
    hook.remove()
    return denoiser, *seen[0]


@pytest.mark.parametrize("name", KNOWN)
def test_pipelines_are_recognised(name):
    pipe = make(name)
    family, denoisers = recognise(pipe)
    assert family.name == KNOWN[name] and find_family(family.name) is family
    wanted = ["transformer", "transformer_2"] if name == "wan22" else list(family.attributes)[:1]
    assert {n: id(m) for n, m in denoisers.items()} == {n: id(getattr(pipe, n)) for n in wanted}


@pytest.mark.parametrize("name", KNOWN)
def test_half_of_a_batch_gives_half_of_the_output(name):
    denoiser, args, kwargs, out = first_call(name)
    family = find_family(KNOWN[name])
    count = len(out[0])
    assert count >= 2
    for rows in (torch.arange(count // 2), torch.arange(count // 2, count), torch.tensor([1])):
        chosen = select_rows(family, denoiser, args, kwargs, rows)
        with torch.no_grad():
            part = denoiser(**chosen)
        torch.testing.assert_close(part[0], out[0][rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KNOWN)
def test_rows_in_any_order_and_more_than_once(name):
    denoiser, args, kwargs, out = first_call(name)
    rows = torch.tensor([1, 0, 1])
    with torch.no_grad():
        part = denoiser(**select_rows(find_family(KNOWN[name]), denoiser, args, kwargs, rows))
    torch.testing.assert_close(part[0], out[0][rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KNOWN)
def test_every_argument_of_a_call_is_known_and_none_is_changed(name):
    denoiser, args, kwargs, _ = first_call(name)
    family = find_family(KNOWN[name])
    assert set(kwargs) - {"return_dict"} <= set(family.axes)
    before = {k: v.clone() for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
    chosen = select_rows(family, denoiser, args, kwargs, torch.tensor([0]))
    assert all(torch.equal(kwargs[k], v) for k, v in before.items())
    assert set(kwargs) <= set(chosen) and chosen.get("return_dict") in (None, False)


def test_an_argument_the_family_does_not_know_is_refused():
    denoiser, args, kwargs, _ = first_call("wan")
    family = find_family("flux")
    with pytest.raises(ValueError, match=r"family flux does not say which axis .*'hidden_state"):
        select_rows(type(family)("flux", ()), denoiser, args, kwargs, torch.tensor([0]))


def test_an_argument_the_denoiser_does_not_take_is_refused():
    denoiser, args, kwargs, _ = first_call("wan")
    with pytest.raises(TypeError, match="wrong"):
        select_rows(find_family("wan"), denoiser, args, {**kwargs, "wrong": 1}, torch.tensor([0]))


def test_a_value_of_an_unknown_kind_is_refused():
    denoiser, args, kwargs, _ = first_call("wan")
    strange = {**kwargs, "encoder_hidden_states_image": object()}
    with pytest.raises(ValueError, match=r"encoder_hidden_states_image.*unsupported type object"):
        select_rows(find_family("wan"), denoiser, args, strange, torch.tensor([0]))


def test_entries_of_one_sample_stay_together():
    denoiser, args, kwargs, _ = first_call("animatediff")
    family, text = find_family("animatediff"), kwargs["encoder_hidden_states"]
    frames = len(text) // len(args[0])
    chosen = select_rows(family, denoiser, args, kwargs, torch.tensor([2, 0]))
    assert frames == 3 and len(chosen["sample"]) == 2
    wanted = torch.cat([text[6:9], text[:3]])
    assert torch.equal(chosen["encoder_hidden_states"], wanted)
    with pytest.raises(ValueError, match=r"encoder_hidden_states' has 11 entries .* 4 samples"):
        cut = {**kwargs, "encoder_hidden_states": text[:-1]}
        select_rows(family, denoiser, args, cut, torch.tensor([0]))


def test_lists_with_one_entry_per_sample_are_cut():
    denoiser, args, kwargs, _ = first_call("qwenimage")
    shapes = [[(1, 4, 4)], [(1, 4, 4), (1, 2, 2)]]
    chosen = select_rows(
        find_family("qwenimage"),
        denoiser,
        args,
        {**kwargs, "img_shapes": shapes},
        torch.tensor([1]),
    )
    assert chosen["img_shapes"] == shapes[1:]


def test_residuals_in_lists_and_conditions_in_dicts_are_cut_too():
    denoiser, args, kwargs, _ = first_call("sd_controlnet")
    chosen = select_rows(find_family("sd"), denoiser, args, kwargs, torch.tensor([0, 1]))
    assert {len(t) for t in chosen["down_block_additional_residuals"]} == {2}
    denoiser, args, kwargs, _ = first_call("sdxl")
    chosen = select_rows(find_family("sdxl"), denoiser, args, kwargs, torch.tensor([0, 1]))
    assert {len(t) for t in chosen["added_cond_kwargs"].values()} == {2}


@pytest.mark.parametrize("name", [n for n, f in KNOWN.items() if find_family(f).blocks])
def test_blocks_run_in_the_order_the_family_lists_them(name):
    pipe = make(name)
    family, denoisers = recognise(pipe)
    denoiser = denoisers["transformer"]
    blocks = family.flat_blocks(denoiser)
    seen = []
    for path, block, spec in blocks:
        assert denoiser.get_submodule(path) is block
        for part in (*spec.modules, *spec.idle):
            assert isinstance(block.get_submodule(part), torch.nn.Module)
        block.register_forward_hook(lambda m, a, o, path=path: seen.append(path))
    call(pipe, name, steps=2, guidance=1.0)
    assert seen
    order = [path for path, _, _ in blocks]
    assert seen == order * 2
    kinds, repeated = {type(b).__name__ for _, b, _ in blocks}, set(denoiser._repeated_blocks)
    assert kinds <= repeated or not kinds & repeated


@pytest.mark.parametrize("name", [n for n, f in families().items() if f.kind == "transformer"])
def test_every_argument_of_the_forward_is_stated(name):
    import inspect

    import diffusers

    family = find_family(name)
    for kind in family.classes:
        names = set(inspect.signature(getattr(diffusers, kind).forward).parameters)
        missing = names - {"self", "return_dict", "controlnet_blocks_repeat", "kwargs"}
        assert missing <= set(family.axes), missing - set(family.axes)
        assert set(family.axes) <= names


def test_a_denoiser_no_family_names_is_described_where_that_is_safe():
    class Block(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, temb=None) -> torch.Tensor:
            return hidden_states + 1

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Block(), Block()])

    family = inspected(Model(), "transformer")
    assert family.name == "inspected:Model" and family.matches(Model())
    assert [path for path, _, _ in family.flat_blocks(Model())] == ["layers.0", "layers.1"]


def test_a_denoiser_with_two_streams_is_described_at_its_output_only():
    assert inspected(make("ltx2").transformer, "transformer").blocks == ()
    assert inspected(make("flux").transformer, "transformer").blocks == ()
    assert inspected(make("sd").unet, "unet").blocks == ()


def test_a_pipeline_without_denoiser_is_refused():
    class Empty(DiffusionPipeline):
        def __init__(self):
            super().__init__()

    with pytest.raises(
        ValueError, match=r"Empty has no denoiser .* known families: animatediff, cog"
    ):
        recognise(Empty())


def test_unknown_families_are_named():
    with pytest.raises(ValueError, match=r"unknown family 'fluks'; did you mean flux\?"):
        find_family("fluks")
    assert set(KNOWN) | {"ltx2"} == set(NAMES)
