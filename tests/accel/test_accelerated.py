"""accelerated(): undone on leaving, whatever happens inside."""

import pytest
import torch

from accel import Plan, accelerated
from accel.caching import TaylorSeer
from tests.probes import HALF, footprint, handlers, plain, skipped
from tests.tiny_pipelines import call, make

NOTHING = Plan(())
THIRD = TaylorSeer(interval=3, warmup=1)


def test_accelerated_is_undone_on_leaving_also_by_an_exception():
    pipe = make("wan")
    call(pipe, "wan")
    before = footprint(pipe)
    with accelerated(pipe, HALF) as state:
        assert pipe.acceleration is state
        assert torch.equal(call(pipe, "wan"), skipped("wan"))
    assert footprint(pipe) == before and not pipe.acceleration
    with pytest.raises(ZeroDivisionError), accelerated(pipe, HALF):
        raise ZeroDivisionError
    assert footprint(pipe) == before
    assert torch.equal(call(pipe, "wan"), plain("wan"))


def test_accelerated_restores_what_was_enabled_before():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    once = handlers(pipe)
    with pytest.raises(ZeroDivisionError), accelerated(pipe, THIRD):
        assert not torch.equal(call(pipe, "wan"), skipped("wan"))
        raise ZeroDivisionError
    assert pipe.acceleration.plan == Plan((HALF,)) and handlers(pipe) == once
    assert torch.equal(call(pipe, "wan"), skipped("wan"))


def test_accelerated_restores_the_family_that_was_named():
    pipe = make("sdxl")
    assert pipe.enable_acceleration(HALF).family.name == "sdxl"
    assert pipe.enable_acceleration(HALF, family="sd").family.name == "sd"
    with accelerated(pipe, THIRD) as state:
        assert state.family.name == "sdxl"
    assert pipe.acceleration.family.name == "sd"


def test_accelerated_nests():
    pipe = make("wan")
    with accelerated(pipe, HALF):
        with accelerated(pipe, THIRD):
            assert pipe.acceleration.plan == Plan((THIRD,))
        assert pipe.acceleration.plan == Plan((HALF,))
    assert not pipe.acceleration


def test_disabled_inside_of_accelerated_is_harmless():
    pipe = make("wan")
    with accelerated(pipe, HALF):
        pipe.disable_acceleration()
    assert not pipe.acceleration and handlers(pipe) == (0, 0)
