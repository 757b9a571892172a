"""The attention seam: whose attention is met, with what, and that nothing is left of it."""

import copy
import gc
import pickle
import subprocess
import sys

import pytest
import torch

from accel.attention_seam import attach, missing
from accel.patch import PatchConflict, PatchStack, Scope, active
from accel.registry import recognise
from tests.contract.runs import anatomy, plain
from tests.tiny_pipelines import call, make

FAMILIES = (
    *("wan", "wan_i2v", "flux", "ltx", "hunyuan_video", "hunyuan_video15", "qwenimage"),
    *("cogvideox", "mochi", "sd3", "lumina2", "dit", "pixart"),
    *("sd", "animatediff", "svd"),
)


class Seam:
    """Handlers on a pipeline that note what they see and call the model's attention."""

    def __init__(self, pipe, handler=None):
        self.pipe, self.seen, self.key = pipe, [], object()
        self.patches = PatchStack(self.key)
        family, denoisers = recognise(pipe)
        (denoiser,) = denoisers.values()
        self.layers = attach(self.patches, family, denoiser, self.make, "a test")
        self.change = handler

    def make(self, layer):
        def handler(q, k, v, plain):
            self.seen.append((layer, q.shape, k.shape, plain.part))
            return plain(q, k, v) if self.change is None else self.change(q, k, v, plain)

        return handler

    def run(self, name):
        token = active.set(Scope(self.key, None))
        try:
            return call(self.pipe, name, steps=2)
        finally:
            active.reset(token)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_self_attention_is_met_and_nothing_changes(name):
    pipe, reference = make(name), plain(name, steps=2).latents
    seam = Seam(pipe)
    assert torch.equal(seam.run(name), reference)
    assert {layer.number for layer, *_ in seam.seen} == set(range(len(seam.layers)))
    assert all(q == k for _, q, k, _ in seam.seen)
    assert all(layer.module.heads == q[2] for layer, q, *_ in seam.seen)
    assert not missing(seam.layers)
    seam.seen.clear()
    assert torch.equal(call(pipe, name, steps=2), reference)
    assert not seam.seen, "met outside of the runs of its acceleration"
    seam.patches.undo()
    assert anatomy(pipe) == plain(name).shape
    assert all("_attention_backend" not in vars(layer.processor) for layer in seam.layers)


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_a_handler_replaces_attention_and_its_layers_run_in_order(name):
    seam = Seam(make(name), lambda q, k, v, plain: plain(q, k, 0 * v))
    latents = seam.run(name)
    assert not torch.equal(latents, plain(name, steps=2).latents)
    numbers = [layer.number for layer, *_ in seam.seen]
    assert numbers[: len(seam.layers)] == list(range(len(seam.layers)))


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_the_first_handler_attached_is_outermost(name):
    pipe, order = make(name), []
    seam = Seam(pipe, lambda q, k, v, plain: (order.append("first"), plain(q, k, 2 * v))[1])
    family, denoisers = recognise(pipe)

    def second(q, k, v, plain):
        order.append("second")
        return plain(q, k, v / 2)

    attach(seam.patches, family, denoisers["transformer"], lambda layer: second, "another")
    assert torch.equal(seam.run(name), plain(name, steps=2).latents)
    assert order == ["first", "second"] * (len(order) // 2) and order


@pytest.mark.parametrize("name", ["wan", "sd3"])
def test_a_deep_copy_runs_plain(name):
    seam = Seam(make(name), lambda q, k, v, plain: 0 * q)
    twin = copy.deepcopy(seam.pipe)
    token = active.set(Scope(seam.key, None))
    assert torch.equal(call(twin, name, steps=2), plain(name, steps=2).latents)
    active.reset(token)
    assert not seam.seen


def test_pipelines_that_share_a_denoiser_are_undone_in_any_order():
    pipe = make("wan")
    processor = pipe.transformer.blocks[0].attn1.processor
    first, second = Seam(pipe), Seam(pipe, lambda q, k, v, plain: 0 * q)
    first.patches.undo()
    assert not torch.equal(second.run("wan"), plain("wan", steps=2).latents) and second.seen
    second.patches.undo()
    assert "_attention_backend" not in vars(processor)
    assert torch.equal(call(pipe, "wan", steps=2), plain("wan", steps=2).latents)


def test_an_acceleration_that_is_dropped_gives_the_backend_back():
    pipe = make("wan")
    Seam(pipe)
    gc.collect()
    assert "_attention_backend" not in vars(pipe.transformer.blocks[0].attn1.processor)


def test_a_backend_the_user_chose_is_what_runs_and_comes_back():
    pipe = make("wan")
    for block in pipe.transformer.blocks:
        block.attn1.processor._attention_backend = "_native_math"
    reference = call(pipe, "wan", steps=2)
    seam = Seam(pipe)
    assert torch.equal(seam.run("wan"), reference)
    seam.patches.undo()
    assert pipe.transformer.blocks[0].attn1.processor._attention_backend == "_native_math"


def test_a_pickled_processor_finds_the_backend_in_another_process():
    seam = Seam(make("wan"))
    data = pickle.dumps(seam.layers[0].processor)
    code = (
        "import pickle, sys, torch; p = pickle.loads(sys.stdin.buffer.read());"
        "from diffusers.models.attention_dispatch import dispatch_attention_fn as dispatch;"
        "x = torch.ones(1, 2, 1, 4);"
        "print(p._attention_backend.value, dispatch(x, x, x, backend=p._attention_backend).sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, timeout=240
    )
    assert done.stdout.split() == [b"accel", b"tensor(8.)"], done.stderr.decode()[-2000:]


def test_a_backend_set_on_top_of_ours_is_named_and_refused():
    seam = Seam(make("wan"))
    seam.pipe.transformer.blocks[0].attn1.processor._attention_backend = None
    assert missing(seam.layers) == ["blocks.0.attn1"]
    with pytest.raises(PatchConflict, match="_attention_backend"):
        seam.patches.undo()


def test_regional_compile_keeps_blocks_whole():
    pipe = make("wan")
    torch._dynamo.reset()
    seam = Seam(pipe, lambda q, k, v, plain: plain(q, k, 0.5 * v))
    eager = seam.run("wan")
    seen = len(seam.seen)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    seam.patches.adopt()
    torch.testing.assert_close(seam.run("wan"), eager, rtol=1e-4, atol=1e-4)
    assert len(seam.seen) == 2 * seen
    numbers = {layer.number for layer, *_ in seam.seen[seen:]}
    assert numbers == set(range(len(seam.layers)))


def test_samples_that_the_model_attends_apart_have_parts():
    seam = Seam(make("mochi"))
    seam.run("mochi")
    assert {part for *_, part in seam.seen} == {0, 1}
