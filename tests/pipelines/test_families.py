"""Families: every recipe works on the tiny pipeline of its family, and what data says is true."""

import pytest
import torch

from accel.caching import FirstBlockCache, TaylorSeer
from accel.pipelines import FAMILIES
from accel.plan import Plan
from tests.contract.runs import counted, frozen
from tests.tiny_pipelines import call, make

RECIPES = [(name, recipe) for name in FAMILIES for recipe in FAMILIES[name].recipes]
ALIKE = {"wan": ("wan22", "wan_i2v"), "flux": ("flux_distilled",), "sd": ("sd_img2img",)}


def test_every_family_has_the_two_recipes():
    for family in FAMILIES.values():
        assert {"balanced", "fast"} <= set(family.recipes)


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_a_recipe_says_where_its_settings_come_from_and_survives_json(name, recipe):
    plan = FAMILIES[name].recipes[recipe]()
    assert plan.name == recipe
    assert "published" in plan.note or "benchmarks/results" in plan.note
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_a_recipe_drops_work(name, recipe):
    """On steps that all see the same, since random weights know no published threshold."""
    pipe = make(name)
    frozen(pipe)
    with counted(pipe) as plain:
        call(pipe, name, steps=12)
    pipe.enable_acceleration(recipe)
    assert pipe.acceleration.family.name == name
    with counted(pipe) as accelerated:
        call(pipe, name, steps=12)
    assert sum(accelerated) < 0.7 * sum(plain)
    assert pipe.acceleration.report().computed_fraction < 0.7


@pytest.mark.filterwarnings("ignore:.*skipped nothing")
@pytest.mark.parametrize("name", FAMILIES)
def test_fast_computes_less_than_balanced(name):
    fractions = []
    for recipe in ("balanced", "fast"):
        pipe = make(name)
        pipe.enable_acceleration(recipe)
        call(pipe, name, steps=24)
        fractions.append(pipe.acceleration.report().computed_fraction)
    assert fractions[1] < fractions[0]


@pytest.mark.parametrize(("name", "alike"), [(n, a) for n in ALIKE for a in ALIKE[n]])
def test_pipelines_of_one_family_are_recognised(name, alike):
    pipe = make(alike)
    pipe.enable_acceleration()
    assert pipe.acceleration.family.name == name


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_run_in_the_stated_order_and_modules_exist(name):
    family, pipe = FAMILIES[name], make(name)
    denoiser = getattr(pipe, family.attributes[0])
    order, stated = [], family.flat_blocks(denoiser)
    for path, block, blocks in stated:
        block.register_forward_hook(lambda *_, path=path: order.append(path))
        for part in (*blocks.modules, *blocks.idle, *blocks.attention):
            block.get_submodule(part)
    call(pipe, name, steps=2, guidance=1.0)
    assert order == [path for path, _, _ in stated] * 2
    assert bool(stated) == (family.kind == "transformer")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_argument_the_pipeline_passes_has_a_batch_axis_stated(name):
    family, pipe, seen = FAMILIES[name], make(name), set()
    denoiser = getattr(pipe, family.attributes[0])
    denoiser.register_forward_pre_hook(lambda _, args, kw: seen.update(kw), with_kwargs=True)
    call(pipe, name, steps=2)
    assert seen and seen - {"return_dict"} <= set(family.axes)


@pytest.mark.parametrize(
    "method", [TaylorSeer(interval=3, warmup=1, carrier="hidden"), FirstBlockCache(0.4)], ids=str
)
def test_a_model_no_family_names_is_served_as_if_one_did(method):
    named, unnamed = make("wan"), make("wan")
    unnamed.transformer.__class__ = type("Unheard", (type(named.transformer),), {})
    latents = []
    for pipe in (named, unnamed):
        pipe.enable_acceleration(method)
        latents.append(call(pipe, "wan"))
    assert unnamed.acceleration.family.name == "inspected:Unheard"
    assert torch.equal(*latents)
