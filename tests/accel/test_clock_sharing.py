"""Pipelines of one class, on shared parts, in several threads."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from diffusers import StableDiffusionPipeline, WanPipeline

from accel.patch import CALL
from tests.probes import HALF, Watch, computed, footprint, plain, skipped
from tests.tiny_pipelines import call, make


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_two_pipelines_of_one_class(name):
    first, second = make(name), make(name)
    first.enable_acceleration(HALF)
    assert torch.equal(call(second, name), plain(name))
    assert torch.equal(call(first, name), skipped(name))
    second.enable_acceleration(HALF)
    assert torch.equal(call(second, name), skipped(name))
    first.disable_acceleration()
    assert torch.equal(call(first, name), plain(name))
    assert torch.equal(call(second, name), skipped(name))


def shared(name):
    """Two pipelines on the same denoiser and the same scheduler."""
    first = make(name)
    kind = WanPipeline if name == "wan" else StableDiffusionPipeline
    second = kind.from_pipe(first)
    second.set_progress_bar_config(disable=True)
    part = "transformer" if name == "wan" else "unet"
    assert getattr(first, part) is getattr(second, part) and first.scheduler is second.scheduler
    return first, second


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_a_plain_pipeline_on_an_accelerated_denoiser_runs_plain(name):
    first, second = shared(name)
    first.enable_acceleration(HALF)
    assert torch.equal(call(second, name), plain(name))
    assert torch.equal(call(first, name), skipped(name))
    assert torch.equal(call(second, name), plain(name))
    assert not second.acceleration


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("name", ["wan", "sd"])
def test_sharing_pipelines_are_disabled_in_any_order(name, last):
    pipes = shared(name)
    call(pipes[0], name)
    call(pipes[1], name)
    before = [footprint(pipe) for pipe in pipes]
    watches = Watch(), Watch()
    for pipe, watch in zip(pipes, watches, strict=True):
        pipe.enable_acceleration(watch, HALF)
    for pipe, watch in zip(pipes, watches, strict=True):
        assert torch.equal(call(pipe, name), skipped(name))
        assert len(set(watch.indices)) == 5 and watch.totals == {5}
    assert len(watches[0].seen) == len(watches[1].seen), "each sees its own calls only"
    pipes[1 - last].disable_acceleration()
    assert torch.equal(call(pipes[1 - last], name), plain(name))
    assert torch.equal(call(pipes[last], name), skipped(name))
    pipes[last].disable_acceleration()
    for pipe, was in zip(pipes, before, strict=True):
        assert torch.equal(call(pipe, name), plain(name))
        assert footprint(pipe) == was


def in_threads(*work):
    """Runs all at once; the errors they ended with."""
    errors, barrier = [None] * len(work), threading.Barrier(len(work))

    def body(i):
        barrier.wait()
        try:
            work[i]()
        except Exception as error:
            errors[i] = error

    threads = [threading.Thread(target=body, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_two_pipelines_on_two_threads():
    pipes, out = [make("wan"), make("wan"), make("wan")], {}
    pipes[0].enable_acceleration(HALF)
    pipes[1].enable_acceleration(HALF)
    errors = in_threads(*(lambda i=i: out.update({i: call(pipes[i], "wan")}) for i in range(3)))
    assert errors == [None] * 3
    assert torch.equal(out[0], skipped("wan")) and torch.equal(out[1], skipped("wan"))
    assert torch.equal(out[2], plain("wan"))


def test_sharing_pipelines_on_two_threads():
    """They share the denoiser; each has a scheduler of its own, as two threads always need."""
    first, second = shared("wan")
    second.scheduler = copy.deepcopy(first.scheduler)
    first.enable_acceleration(HALF)
    out = {}
    errors = in_threads(
        *(lambda p=p, n=n: out.update({n: call(p, "wan")}) for n, p in enumerate((first, second)))
    )
    assert errors == [None, None]
    assert torch.equal(out[0], skipped("wan")) and torch.equal(out[1], plain("wan"))


def test_one_pipeline_on_two_threads_is_refused():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    refused = []

    def callback(pipe, index, timestep, values):
        if index == 2:
            other = threading.Thread(target=intrude)
            other.start()
            other.join()
        return values

    def intrude():
        kept = {k: copy.deepcopy(v) for k, v in vars(pipe.scheduler).items() if k != "step"}
        try:
            call(pipe, "wan")
        except RuntimeError as error:
            refused.append(str(error))
        vars(pipe.scheduler).update(kept)

    call(pipe, "wan", callback=callback)
    assert len(refused) == 1 and "already running in thread 'MainThread'" in refused[0]
    assert "a pipeline of its own" in refused[0]
    assert pipe.acceleration.report().complete
    assert torch.equal(call(pipe, "wan"), skipped("wan"))
    out = {}
    assert in_threads(lambda: out.update(latents=call(pipe, "wan"))) == [None]
    assert torch.equal(out["latents"], skipped("wan")), "one thread after another is fine"


def by_pickle(pipe):
    return pickle.loads(pickle.dumps(pipe))


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("wan", copy.deepcopy),
        ("sd", copy.deepcopy),
        ("ltx2", copy.deepcopy),
        ("wan", by_pickle),
        ("sd", by_pickle),
    ],
)
def test_a_copy_runs_plain_and_can_be_enabled_itself(name, again):
    pipe = make(name)
    pipe.enable_acceleration(HALF)
    call(pipe, name)
    other = again(pipe)
    assert not other.acceleration
    denoiser = getattr(other, "transformer", None) or other.unet
    assert CALL not in vars(denoiser)
    assert torch.equal(call(other, name), plain(name))
    assert torch.equal(call(pipe, name), skipped(name))
    other.enable_acceleration(HALF)
    with computed(denoiser) as seen:
        assert torch.equal(call(other, name), skipped(name))
    assert 0 < len(seen) < 10
    pipe.disable_acceleration()
    assert torch.equal(call(other, name), skipped(name))
    other.disable_acceleration()
    other.disable_acceleration()
    assert torch.equal(call(other, name), plain(name))
    assert torch.equal(call(pipe, name), plain(name))


def test_a_copy_does_not_keep_its_original():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    call(pipe, "wan", steps=2)
    other, gone = copy.deepcopy(pipe), [weakref.ref(pipe), weakref.ref(pipe.transformer)]
    del pipe
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert torch.equal(call(other, "wan"), plain("wan"))


def test_a_denoiser_replaced_after_enabling_is_named():
    pipe, other = make("wan"), make("wan")
    pipe.enable_acceleration(HALF)
    pipe.transformer = other.transformer
    with pytest.raises(RuntimeError, match=r"pipe\.transformer was replaced after acceleration"):
        call(pipe, "wan")
    pipe.enable_acceleration(HALF)
    assert torch.equal(call(pipe, "wan"), skipped("wan"))
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "wan"), plain("wan"))
