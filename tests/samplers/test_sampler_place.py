"""The scheduler that Sampler puts in the place of the pipeline's own: copies, and who takes it."""

import copy
import pickle

import pytest
import torch

from accel.samplers import Sampler
from tests.tiny_pipelines import SCHEDULERS, call, make


@pytest.mark.parametrize("again", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
@pytest.mark.parametrize("method", [Sampler(), Sampler("own", grid="sway")])
def test_a_copy_of_an_accelerated_pipeline_runs_plain(again, method):
    pipe = make("wan", "flow_euler")
    plain = call(pipe, "wan")
    pipe.enable_acceleration(method)
    assert not torch.equal(call(pipe, "wan"), plain)
    other = again(pipe)
    assert not other.acceleration and type(other.scheduler) is type(
        make("wan", "flow_euler").scheduler
    )
    assert torch.equal(call(other, "wan"), plain)
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "wan"), plain)


def test_a_scheduler_put_in_its_place_is_not_run_in_silence_and_stays():
    pipe, other = make("wan", "flow_euler"), SCHEDULERS["flow_unipc"]()
    pipe.enable_acceleration(Sampler())
    pipe.scheduler = other
    with pytest.raises(ValueError, match="was replaced, by UniPCMultistepScheduler, while Sampler"):
        call(pipe, "wan")
    pipe.disable_acceleration()
    assert pipe.scheduler is other and not pipe.acceleration
    assert torch.equal(call(pipe, "wan"), call(make("wan", "flow_unipc"), "wan"))
    pipe.enable_acceleration(Sampler())
    assert call(pipe, "wan").isfinite().all()
