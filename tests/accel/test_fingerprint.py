"""What a plan was made for: which runs pass, which warn, which are refused."""

import dataclasses
import warnings

import pytest
import torch

import accel
from accel import Plan
from accel.caching import TaylorSeer
from accel.fingerprint import differences, fingerprint
from accel.identity import adapters, weights
from accel.step import Run
from tests.tiny_pipelines import SCHEDULERS, call, make

METHOD = TaylorSeer(interval=2, warmup=1)


def plan_for(pipe, name, steps=5):
    """A plan with the fingerprint of a run of `pipe` like that of `call`."""
    call(pipe, name, steps=steps)
    return Plan((METHOD,), fingerprint=fingerprint(pipe, Run(None, None, total=steps)))


def warned(pipe, name, **how):
    """What a run warns of, apart from the word before."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        call(pipe, name, **how)
    texts = [str(n.message) for n in notes if "this plan was made for" in str(n.message)]
    return texts


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_the_same_run_passes_and_so_does_a_copy_elsewhere(name, tmp_path):
    pipe = make(name)
    plan = plan_for(pipe, name)
    assert Plan.from_json(plan.to_json()).fingerprint == plan.fingerprint
    pipe.enable_acceleration(plan)
    assert not warned(pipe, name, steps=5)
    pipe.disable_acceleration()
    pipe.save_pretrained(tmp_path / "elsewhere")
    copy = type(pipe).from_pretrained(tmp_path / "elsewhere")
    copy.set_progress_bar_config(disable=True)
    assert fingerprint(copy, Run(None, None, total=5))["model"] == "elsewhere"
    copy.enable_acceleration(plan)
    assert not warned(copy, name, steps=5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("weights", "weights "),
        ("guidance", "guidance 4.0, this run has 2.0"),
        ("steps", "steps 5, this run has 6"),
        ("scheduler", "scheduler UniPCMultistepScheduler, this run has FlowMatchEuler"),
        ("settings", "scheduler settings flow_shift="),
        ("lora", "lora none, this run has style × 0.5"),
    ],
)
def test_another_run_is_warned_of_once(change, said):
    pipe = make("wan")
    pipe.enable_acceleration(plan_for(pipe, "wan"))
    how = {"steps": 5}
    if change == "weights":
        for parameter in pipe.transformer.blocks[1].parameters():
            parameter.data.mul_(1.05)
    elif change == "guidance":
        how["guidance"] = 2.0
    elif change == "steps":
        how["steps"] = 6
    elif change == "scheduler":
        pipe.scheduler = SCHEDULERS["flow_euler"]()
    elif change == "settings":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=9.0)
    else:
        adapt(pipe.transformer.blocks[0].attn1, 0.5)
    (text,) = warned(pipe, "wan", **how)
    assert said in text and text.count("this run has") == 1
    assert not warned(pipe, "wan", **how)


SCALES = {
    "true_cfg_scale": "flux",
    "guidance_scale_2": "wan22",
    "guidance_rescale": "sd",
    "guidance_scale": "hunyuan_video15",
}


@pytest.mark.parametrize("argument", SCALES)
def test_every_way_to_mix_the_branches_is_compared(argument):
    name, pipe = SCALES[argument], make(SCALES[argument])
    key = "guidance" if argument == "guidance_scale" else argument

    def run(scale):
        how = {"guidance": scale} if argument == "guidance_scale" else {argument: scale}
        return warned(pipe, name, steps=2, **how)

    class Seen(TaylorSeer):
        def install(self, site):
            site.clock.on_begin.append(lambda r: found.update(fingerprint(pipe, r)))
            super().install(site)

    found = {}
    with accel.accelerated(pipe, Seen(interval=2, warmup=1)):
        run(0.5)
    assert found[key] == 0.5
    pipe.enable_acceleration(Plan((METHOD,), fingerprint=dict(found)))
    assert not run(0.5)
    (text,) = run(0.75)
    assert text.count("this run has") == 1 and f"{key} 0.5, this run has 0.75" in text
    pipe.enable_acceleration(Plan((METHOD,), fingerprint={k: found[k] for k in found if k != key}))
    assert not run(0.75)  # plans of before


def test_the_image_guidance_of_a_pipeline_is_told():
    pipe = make("sd")
    pipe._image_guidance_scale = 1.5
    assert fingerprint(pipe, Run(None, None, total=5))["image_guidance_scale"] == 1.5
    assert "true_cfg_scale" not in fingerprint(pipe, Run(None, None, total=5))
    told = fingerprint(make("flux"), Run(None, None, total=5), {"true_cfg_scale": 2})
    assert told["true_cfg_scale"] == 2.0


class Adapted(torch.nn.Linear):
    """A layer with a low-rank adapter, as peft lays it out."""

    def __init__(self, inner, scale):
        super().__init__(inner.in_features, inner.out_features)
        self.active_adapters, self.scaling = ["style"], {"style": scale}
        self.disable_adapters = False
        for side, shape in (("lora_A", (2, inner.in_features)), ("lora_B", (3, 2))):
            own = torch.nn.ParameterDict({"style": torch.nn.Parameter(torch.ones(shape))})
            setattr(self, side, torch.nn.ModuleDict({"style": torch.nn.Module()}))
            getattr(self, side)["style"].weight = own["style"]
        self.base_layer = inner
        del self.weight, self.bias

    def forward(self, x):
        return self.base_layer(x)


def adapt(attention, scale):
    attention.to_q = Adapted(attention.to_q, scale)


def test_adapters_are_told_apart_and_leave_the_weights_as_they_are():
    pipe = make("wan")
    denoisers = {"transformer": pipe.transformer}
    before = weights(denoisers)
    adapt(pipe.transformer.blocks[0].attn1, 0.5)
    assert weights(denoisers) == before
    one = adapters(denoisers)
    assert one.startswith("style × 0.5 ")
    layer = pipe.transformer.blocks[0].attn1.to_q
    layer.lora_A["style"].weight.data.mul_(2)
    assert adapters(denoisers).startswith("style × 0.5 ") and adapters(denoisers) != one
    layer.disable_adapters = True
    assert adapters(denoisers) == ""


def test_weights_in_bfloat16_are_the_same_and_in_float16_have_their_own_name():
    pipe = make("sd")
    before = weights({"unet": pipe.unet})
    assert list(before) == ["weights"]
    pipe.unet.to(torch.bfloat16)
    assert weights({"unet": pipe.unet}) == before
    pipe.unet.to(torch.float16)
    assert list(weights({"unet": pipe.unet})) == ["weights in float16"]
    assert weights({"unet": pipe.unet.to("meta")}) == {}


def test_another_architecture_is_refused_and_what_was_enabled_stays():
    made_for = plan_for(make("wan"), "wan").fingerprint
    other = str(made_for["architecture"]).replace("num_layers=", "num_layers=1")
    pipe = make("wan")
    pipe.enable_acceleration(METHOD)
    plan = Plan((METHOD,), fingerprint={**made_for, "architecture": other})
    with pytest.raises(ValueError, match=r"made for architecture Wan.*calibrate or tune a plan"):
        pipe.enable_acceleration(plan)
    assert pipe.acceleration.plan == Plan((METHOD,))
    with pytest.raises(ValueError, match="this pipeline has UNet2DConditionModel"):
        make("sd").enable_acceleration(Plan((METHOD,), fingerprint=made_for))


def test_another_prediction_type_is_refused_at_once_or_when_the_run_begins():
    pipe = make("sd")
    plan = plan_for(pipe, "sd")
    pipe.enable_acceleration(plan)
    own = pipe.scheduler
    pipe.scheduler = type(own).from_config(own.config, prediction_type="sample")
    with pytest.raises(ValueError, match=r"prediction .*, this pipeline has sample"):
        call(pipe, "sd", steps=5)
    pipe.scheduler = own
    assert not warned(pipe, "sd", steps=5)
    flow = dataclasses.replace(plan, fingerprint={"prediction": "flow_prediction"})
    with pytest.raises(ValueError, match="made for prediction flow_prediction"):
        pipe.enable_acceleration(flow)
    assert pipe.acceleration.plan == plan
    accel.disable(pipe)


def test_only_what_both_have_is_compared():
    assert differences({"steps": 50, "guidance": 4.0}, {"steps": 50.0}) == []
    assert differences({"model": "a", "weights": "1"}, {"model": "b", "weights": "1"}) == []
    assert differences({"model": "a", "weights": "1"}, {"model": "b", "weights": "2"}) == [
        "model a, this run has b",
        "weights 1, this run has 2",
    ]
