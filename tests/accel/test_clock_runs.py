"""Runs begin and end as the pipeline's do, however that is."""

import gc
import io
import sys

import pytest
import torch

from accel.patch import active_key
from accel.samplers import RegionAdaptive
from tests.probes import HALF, Watch, computed, plain, skipped
from tests.tiny_pipelines import SCHEDULERS, call, make

FAMILIES = ["wan", "flux", "sd", "ltx2"]


class Stop(Exception):
    """An abort of the test's own."""


def stopping(error, at):
    def callback(pipe, index, timestep, values):
        if index == at:
            raise error
        return values

    return callback


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("name", FAMILIES)
def test_after_an_abort_the_next_run_equals_a_clean_one(name, error):
    pipe = make(name)
    pipe.enable_acceleration(HALF)
    with pytest.raises(error):
        call(pipe, name, callback=stopping(error, at=2))
    assert active_key() is None
    assert torch.equal(call(pipe, name), skipped(name))
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, name), plain(name))


def test_an_abort_inside_the_denoiser_poisons_nothing():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    block = pipe.transformer.blocks[1]
    hook = block.register_forward_hook(lambda m, a, o: (_ for _ in ()).throw(Stop("here")))
    with pytest.raises(Stop, match="here"):
        call(pipe, "wan")
    hook.remove()
    assert active_key() is None
    assert torch.equal(call(pipe, "wan"), skipped("wan"))


def test_a_pipeline_told_to_interrupt_itself_ends_its_run():
    def callback(pipe, index, timestep, values):
        pipe._interrupt = index >= 1
        return values

    watch, pipe = Watch(), make("wan")
    pipe.enable_acceleration(watch)
    call(pipe, "wan", callback=callback)
    assert watch.indices == [0, 0, 1, 1] and not pipe.acceleration.report().complete
    call(pipe, "wan")
    assert watch.indices[4:] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert pipe.acceleration.report().complete


@pytest.mark.parametrize("change", [{"steps": 4}, {"guidance": 1.0}, {"batch": 2}, {"seed": 3}])
@pytest.mark.parametrize("name", ["wan", "sd"])
def test_after_another_setting_the_next_run_equals_a_clean_one(name, change):
    pipe = make(name)
    pipe.enable_acceleration(HALF)
    assert torch.equal(call(pipe, name, **change), skipped(name, **change))
    assert torch.equal(call(pipe, name), skipped(name))


def test_after_another_shape_the_next_run_equals_a_clean_one():
    pipe = make("sd")
    pipe.enable_acceleration(HALF)
    assert call(pipe, "sd", height=48).shape != skipped("sd").shape
    assert torch.equal(call(pipe, "sd"), skipped("sd"))


@pytest.mark.parametrize(("name", "other"), [("sd", "heun"), ("sd", "pndm"), ("wan", "flow_heun")])
def test_a_scheduler_swapped_after_enabling_is_adopted(name, other):
    watch, pipe = Watch(), make(name)
    pipe.enable_acceleration(watch, HALF)
    first = pipe.scheduler
    assert torch.equal(call(pipe, name), skipped(name))
    del watch.seen[:]
    pipe.scheduler = second = SCHEDULERS[other]()
    call(pipe, name)
    assert torch.equal(call(pipe, name), skipped(name, other))
    assert watch.totals == {len(second.timesteps)} == {max(watch.indices) + 1}
    assert "step" not in vars(first), "the old scheduler is given back"
    pipe.scheduler = first
    assert torch.equal(call(pipe, name), skipped(name))
    assert "step" not in vars(second) and "step" in vars(first)
    pipe.disable_acceleration()
    assert "step" not in vars(first)


def test_a_pipeline_in_a_callback_of_another_is_a_run_of_its_own():
    outer, inner, plain_inner = make("wan"), make("sd"), make("sd")
    outer.enable_acceleration(HALF)
    inner.enable_acceleration(HALF)

    def callback(pipe, index, timestep, values):
        if index in (0, 2):
            assert torch.equal(call(inner, "sd"), skipped("sd"))
            assert torch.equal(call(plain_inner, "sd"), plain("sd"))
        return values

    assert torch.equal(call(outer, "wan", callback=callback), skipped("wan"))
    assert outer.acceleration.report().complete and inner.acceleration.report().complete
    assert active_key() is None


def test_disabling_in_a_callback_finishes_the_run_plain():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)

    def callback(pipe, index, timestep, values):
        if index == 1:
            pipe.disable_acceleration()
        return values

    with computed(pipe.transformer) as seen:
        call(pipe, "wan", callback=callback)
    assert len(seen) == 10, "steps 0 and 1 are computed by HALF, the others by the pipeline"
    assert torch.equal(call(pipe, "wan"), plain("wan"))


def test_a_bar_that_is_iterated_ends_the_run():
    pipe = make("sd")
    pipe.enable_acceleration(HALF)
    for i in pipe.progress_bar([1, 2, 3]):
        assert active_key() is not None
        if i == 2:
            break
    gc.collect()
    assert active_key() is None
    assert list(pipe.progress_bar([1, 2, 3])) == [1, 2, 3] and active_key() is None


def test_a_bare_bar_ends_when_the_pipeline_frees_its_models_or_lets_go_of_it():
    pipe = make("sd")
    pipe.set_progress_bar_config(disable=False, file=io.StringIO())
    pipe.enable_acceleration(HALF)
    bar = pipe.progress_bar(total=3)
    assert active_key() is not None and len(bar) == 3
    bar.update()
    assert bar.n == 1
    pipe.maybe_free_model_hooks()
    assert active_key() is None
    bar = pipe.progress_bar(total=3)
    assert active_key() is not None
    del bar
    assert active_key() is None
    first, second = pipe.progress_bar(total=3), pipe.progress_bar(total=3)
    del first
    assert active_key() is not None, "an older bar does not end a newer run"
    del second
    assert active_key() is None


def test_no_run_is_left_by_an_error_before_the_first_step():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    with pytest.raises(ValueError, match="total"):
        pipe.progress_bar()
    assert active_key() is None


def test_a_run_that_a_method_refuses_is_not_left_open():
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(RegionAdaptive(0.5))
    own, pipe.scheduler = pipe.scheduler, make("wan").scheduler
    with pytest.raises(ValueError, match="one-step solvers"):
        call(pipe, "wan")
    assert active_key() is None
    other = make("sd")
    assert torch.equal(call(other, "sd"), plain("sd"))
    pipe.scheduler = own
    assert call(pipe, "wan").isfinite().all()


def test_the_bar_of_a_refused_run_is_closed(capsys):
    pipe = make("wan", "flow_euler")
    pipe.set_progress_bar_config(disable=False)
    pipe.enable_acceleration(RegionAdaptive(0.5))
    pipe.scheduler = make("wan").scheduler
    with pytest.raises(ValueError, match="one-step solvers") as refused:
        call(pipe, "wan")
    shown = capsys.readouterr().err
    assert "0%" in shown and shown.endswith("\n"), refused


def test_traceback_names_what_wrapped_what():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    block = pipe.transformer.blocks[0]
    hook = block.register_forward_hook(lambda m, a, o: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop) as caught:
        call(pipe, "wan")
    hook.remove()
    notes = " ".join(caught.value.__notes__)
    assert "TaylorSeer" in notes and "transformer" in notes
    assert sys.exc_info() == (None, None, None)
