"""Step Rehash on video U-Nets: hooks that overwrite what a stage is handed, and DeepCache."""

import pytest
import torch

from accel.caching import DeepCache, FasterDiffusion, FeatureInheritance, StepRehash
from accel.caching.policies import schedule
from tests.caching.test_asdm import deeper
from tests.tiny_pipelines import call, make

VIDEO = ("svd", "animatediff")


def run(name, method, **how):
    pipe = make(name)
    pipe.enable_acceleration(method)
    return call(pipe, name, **how)


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_latents_are_those_of_a_stage_handed_what_was_kept(name, stages):
    pipe, kept, calls = make(name), [], []
    before = [pipe.unet.mid_block, *pipe.unet.up_blocks][-1 - stages]

    def overwrite(module, args, output):
        if len(calls) % 3 == 1:
            kept[:] = [output]
        return kept[0]

    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(0))
    before.register_forward_hook(overwrite)
    assert torch.equal(run(name, StepRehash(reuse=2, stages=stages)), call(pipe, name))


@pytest.mark.parametrize(("name", "layers"), [("svd", 2), ("animatediff", 2), ("sd", 3)])
def test_a_stage_is_a_branch_of_deepcache(name, layers):
    latents = run(name, StepRehash(reuse=2))
    assert torch.equal(latents, run(name, DeepCache(interval=3, branch=layers - 1)))


@pytest.mark.parametrize("name", VIDEO)
def test_motion_and_temporal_layers_of_skipped_stages_do_not_run(name):
    pipe, ran = make(name), []
    for path, module in pipe.unet.named_modules():
        if path.count(".") == 3 and path.split(".")[2] in ("attentions", "motion_modules"):
            module.register_forward_hook(lambda *_, path=path: ran.append(path))
    pipe.unet.register_forward_pre_hook(lambda *_: ran.append("|"))
    pipe.enable_acceleration(StepRehash(reuse=1))
    call(pipe, name, steps=2)
    whole, skipped = " ".join(ran).split("|")[1:]
    assert {p.rsplit(".", 2)[0] for p in skipped.split()} == {"down_blocks.0", "up_blocks.2"}
    assert len(whole.split()) > len(skipped.split())


def test_every_reuse_plus_first_step_is_whole():
    assert schedule(StepRehash(reuse=3).policy, 10) == [0, 4, 8]
    assert schedule(StepRehash(reuse=0).policy, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("decoder", ["in turn", "batched"])
def test_encoder_propagation_on_video(name, decoder):
    pipe, kept, calls = make(name), {}, []

    def overwrite(module, args, output):
        if len(calls) in (1, 3):
            kept[module] = output
        return kept[module]

    unet = pipe.unet
    unet.register_forward_pre_hook(lambda *_: calls.append(0))
    for module in (unet.conv_in, *unet.down_blocks, unet.mid_block):
        module.register_forward_hook(overwrite)
    method = FasterDiffusion(steps=(0, 2), decoder=decoder, noise=0)
    expected = call(pipe, name)
    scale = expected.std()
    torch.testing.assert_close(run(name, method) / scale, expected / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VIDEO)
def test_layers_deeper_than_a_branch_on_video(name):
    method = FeatureInheritance("layer", deeper(make(name).unet, 1), interval=3)
    assert torch.equal(run(name, method), run(name, DeepCache(interval=3, branch=1)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"reuse": -1}, "reuse must be 0 or more"), ({"stages": 0}, "stages must be at least 1")],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        StepRehash(**fields)


def test_more_stages_than_there_are_is_refused():
    pipe = make("svd")
    with pytest.raises(ValueError, match="stages must be from 1 to 3 on this U-Net, got 4"):
        pipe.enable_acceleration(StepRehash(stages=4))
