"""What acceleration must not cost: waiting for the host, and memory."""

import collections
import gc
import weakref

import pytest
import torch
from diffusers import WanPipeline
from torch.utils._python_dispatch import TorchDispatchMode

from accel import Plan
from accel.caching import DeepCache, FirstBlockCache, Planned, TaylorSeer
from accel.patch import CALL
from tests.probes import HALF, plain
from tests.tiny_pipelines import call, make

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        if name in WAITING:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def waits(pipe, name, steps):
    with Waits() as mode:
        call(pipe, name, steps=steps)
    return mode.count


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("wan", Plan(())),
        ("wan", HALF),
        ("wan", TaylorSeer(interval=2, order=2, carrier="hidden")),
        ("wan", TaylorSeer(interval=2, order=2, carrier="module")),
        ("wan22", HALF),
        ("flux", HALF),
        ("flux", TaylorSeer(interval=2, carrier="module")),
        ("ltx", HALF),
        ("cogvideox", HALF),
        ("sd", Plan(())),
        ("sd", HALF),
        ("sd", DeepCache(interval=2)),
    ],
)
def test_no_step_of_a_static_schedule_waits_for_the_host(name, method):
    pipe = make(name)
    by_itself = waits(pipe, name, 8) - waits(pipe, name, 4)
    pipe.enable_acceleration(method)
    enabled = waits(pipe, name, 8) - waits(pipe, name, 4)
    assert enabled - by_itself == collections.Counter()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("wan", {"guard": False, "limits": (0.0,) * 4}),
        ("wan", {"guidance": (0, 3)}),
        ("wan", {"carrier": "module"}),
        ("sd", {"guard": False}),
    ],
)
def test_no_step_of_a_plan_waits_for_the_host(name, fields):
    pipe = make(name)
    by_itself = waits(pipe, name, 8) - waits(pipe, name, 4)
    pipe.enable_acceleration(Planned(nodes=(0, 1, 3, 6), steps=8, **fields))
    for steps in (8, 4):  # the scheduler is found out about once for each number of steps
        call(pipe, name, steps=steps)
    enabled = waits(pipe, name, 8) - waits(pipe, name, 4)
    assert enabled - by_itself == collections.Counter()


def test_a_decision_on_values_is_seen_to_wait():
    pipe = make("wan")
    by_itself = waits(pipe, "wan", 4)
    pipe.enable_acceleration(FirstBlockCache())
    assert sum((waits(pipe, "wan", 4) - by_itself).values()) == 3 * 2


def test_a_pipeline_dropped_while_another_uses_its_denoiser_is_collected():
    pipe = make("wan")
    other = WanPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    pipe.enable_acceleration(HALF)
    call(pipe, "wan")
    gone = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None
    assert CALL not in vars(other.transformer) and "step" not in vars(other.scheduler)
    assert torch.equal(call(other, "wan"), plain("wan"))
