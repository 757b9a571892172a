"""A-SDM's feature inheritance: against hooks that overwrite outputs, and against DeepCache."""

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from accel.caching import DeepCache, FeatureInheritance
from accel.caching.policies import schedule
from accel.caching.unet_parts import groups
from tests.tiny_pipelines import call, make


def deeper(unet, branch):
    """Every layer that branch `branch` of DeepCache skips, by the path of its ResNet."""
    names, residual = [], 0
    for b, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            residual += 1
            if residual > branch:
                names.append(f"down_blocks.{b}.resnets.{i}")
        residual += len(block.downsamplers or ())
    names += [f"mid_block.resnets.{i}" for i in range(len(unet.mid_block.resnets))]
    ups = [
        f"up_blocks.{b}.resnets.{i}"
        for b, block in enumerate(unet.up_blocks)
        for i in range(len(block.resnets))
    ]
    return tuple(names + ups[: len(ups) - 1 - branch])


def run(name, method, **how):
    pipe = make(name)
    pipe.enable_acceleration(method)
    return call(pipe, name, **how)


@pytest.mark.parametrize(
    ("name", "branch"),
    [*(("sd", b) for b in (0, 1, 2, 3, 5, 8)), ("sdxl", 1), ("sdxl", 4), ("sd_controlnet", 1)],
)
def test_everything_deeper_than_a_branch_is_deepcache(name, branch):
    layers = deeper(make(name).unet, branch)
    latents = run(name, FeatureInheritance("layer", layers, interval=3))
    assert torch.equal(latents, run(name, DeepCache(interval=3, branch=branch)))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_blocks_below_full_resolution_are_deepcache_too(name):
    assert torch.equal(run(name, FeatureInheritance()), run(name, DeepCache(2, branch=2)))


@pytest.mark.parametrize("granularity", ["block", "layer", "unit"])
def test_nothing_inherits_where_nothing_is_named(granularity):
    with pytest.warns(UserWarning, match="FeatureInheritance skipped nothing"):
        latents = run("sd", FeatureInheritance(granularity, ()))
    assert torch.equal(latents, call(make("sd"), "sd"))


COMPUTED = {
    "every": [0, 2, 4, 6, 8],
    "first": [0, 2, 4, 5, 6, 7, 8, 9],
    "last": [0, 1, 2, 3, 4, 6, 8],
}


@pytest.mark.parametrize("pattern", COMPUTED)
def test_patterns_in_time(pattern):
    method = FeatureInheritance(pattern=pattern, interval=2)
    assert schedule(method, 10) == COMPUTED[pattern]
    whole = FeatureInheritance(pattern=pattern, interval=2, part=1.0)
    assert schedule(whole, 10) == [0, 2, 4, 6, 8]


def test_a_last_part_of_three_by_threes():
    method = FeatureInheritance(pattern="last", interval=3, part=0.6)
    assert schedule(method, 10) == [0, 1, 2, 3, 6, 9]


INHERITED = {
    "block": ("mid_block", "up_blocks.0", "down_blocks.3"),
    "layer": ("up_blocks.1.resnets.2", "mid_block.resnets.1", "down_blocks.0.resnets.1"),
    "unit": ("up_blocks.*.attn2", "mid_block.resnets.0", "*.ff", "down_blocks.1.resnets.*"),
}
OVERWRITTEN = {
    "block": INHERITED["block"],
    "layer": ("up_blocks.1.attentions.2", "mid_block.resnets.1", "down_blocks.0.attentions.1"),
}


@pytest.mark.parametrize("granularity", INHERITED)
def test_latents_are_those_of_overwritten_outputs(granularity):
    def units(unet):
        for path, module in unet.named_modules():
            if (
                (path.startswith("up_blocks") and path.endswith(".attn2"))
                or path.endswith(".ff")
                or path == "mid_block.resnets.0"
                or path in ("down_blocks.1.resnets.0", "down_blocks.1.resnets.1")
            ):
                yield module

    pipe, kept, steps = make("sd"), {}, []

    def overwrite(module, args, output):
        if (len(steps) - 1) % 2 == 0:
            kept[module] = output
        return kept[module]

    paths = OVERWRITTEN.get(granularity)
    found = list(units(pipe.unet)) if paths is None else map(pipe.unet.get_submodule, paths)
    pipe.unet.register_forward_pre_hook(lambda *_: steps.append(0))
    for module in found:
        module.register_forward_hook(overwrite)
    method = FeatureInheritance(granularity, INHERITED[granularity])
    assert torch.equal(run("sd", method), call(pipe, "sd"))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_units_are_all_resnets_attentions_and_feed_forwards(name):
    unet = make(name).unet
    wanted = [
        p for p, m in unet.named_modules() if isinstance(m, ResnetBlock2D | FeedForward | Attention)
    ]
    assert sorted(name for name, _, _ in groups(unet, "unit")) == sorted(wanted)


def test_layers_hold_what_follows_their_resnet():
    by_name = {name: paths for name, paths, _ in groups(make("sd").unet, "layer")}
    assert len(by_name) == 22
    assert by_name["up_blocks.1.resnets.2"] == ["up_blocks.1.resnets.2", "up_blocks.1.attentions.2"]
    assert by_name["down_blocks.3.resnets.0"] == ["down_blocks.3.resnets.0"]
    assert by_name["mid_block.resnets.0"] == ["mid_block.resnets.0"]
    assert by_name["mid_block.resnets.1"] == ["mid_block.attentions.0", "mid_block.resnets.1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"granularity": "head"}, "granularity must be block, layer or unit, got 'head'"),
        ({"pattern": "odd"}, "pattern must be every, first or last"),
        ({"interval": 0}, "interval must be at least 1"),
        ({"part": 1.5}, "part must be from 0 to 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FeatureInheritance(**fields)


def test_a_part_there_is_not_is_named():
    pipe = make("sd")
    with pytest.raises(ValueError, match=r"'up_blocks\.4' names no block of this U-Net; there are"):
        pipe.enable_acceleration(FeatureInheritance(inherit=("up_blocks.4",)))
    assert not pipe.acceleration
