"""Outputs kept in host memory: the same bits, fetched in the order they are wanted."""

import gc
import weakref

import pytest
import torch

from accel.caching import (
    PAB,
    DBCache,
    DeepCache,
    FasterCache,
    FirstBlockCache,
    Spectrum,
    TaylorSeer,
)
from accel.caching.forecasters import hold, newton
from accel.caching.host_memory import OnHost, got, put
from accel.caching.state import History, State
from tests.tiny_pipelines import call, make

STEPS = 9


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (TaylorSeer(interval=3), "wan"),
        (TaylorSeer(interval=3, carrier="hidden"), "flux"),
        (TaylorSeer(interval=3, order=2, carrier="module"), "cogvideox"),
        (Spectrum(), "wan"),
        (FirstBlockCache(threshold=0.4), "flux"),
        (DBCache(threshold=0.4, front=1, back=1, order=1), "wan"),
        (DeepCache(branch=1), "sd"),
        (PAB(window=(0.0, 1.0)), "wan"),
        (FasterCache(), "cogvideox"),
    ],
    ids=str,
)
def test_latents_are_the_same_bits_wherever_outputs_lie(method, name, monkeypatch):
    made = []
    begin = OnHost.__init__
    monkeypatch.setattr(OnHost, "__init__", lambda self, v: (made.append(v), begin(self, v))[1])
    latents, held = [], []
    for keep_on in ("device", "cpu"):
        pipe = make(name)
        pipe.enable_acceleration(method, keep_on=keep_on)
        latents.append(call(pipe, name, steps=STEPS))
        held.append(pipe.acceleration.report().bytes_held)
        assert bool(made) == (keep_on == "cpu")
    assert torch.equal(*latents) and held[0] == held[1] > 0


def test_what_nobody_else_holds_is_kept_without_a_copy():
    value = torch.rand(2, 3)
    own, copied = History(hold, 1), History(hold, 1)
    own.keep(0, value, own=True)
    copied.keep(0, value)
    assert own.values[0][0].data_ptr() == value.data_ptr() != copied.values[0][0].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_comes_back_as_it_was_and_is_nobody_elses(dtype):
    value = torch.arange(6).view(2, 3).t().to(dtype)
    kept, plain = put(value, "cpu"), value.clone()
    assert isinstance(kept, OnHost) and kept.nbytes == value.nbytes
    value.zero_()
    kept.prefetch()
    back = got(kept)
    assert torch.equal(back, plain) and back.dtype == dtype and back.stride() == plain.stride()
    assert put(None, "cpu") is None and got("text") == "text"


def test_each_is_prefetched_while_the_one_before_it_is_used(monkeypatch):
    state = State(0, newton, 2, keep_on="cpu")
    for index in (0, 1):
        for size, name in enumerate("abc", start=1):
            state.keep(name, index, torch.full((size,), float(index)))
    order = []
    begun, wanted = History.prefetch, History.forecast

    def prefetch(self):
        order.append(("prefetch", names[self]))
        begun(self)

    def forecast(self, index):
        order.append(("forecast", names[self]))
        return wanted(self, index)

    names = {history: name for name, history in state.histories.items()}
    monkeypatch.setattr(History, "prefetch", prefetch)
    monkeypatch.setattr(History, "forecast", forecast)
    state.prefetch()
    values = [state.histories[name].forecast(2) for name in "abc"]
    assert [v.tolist() for v in values] == [[2.0], [2.0] * 2, [2.0] * 3]
    assert order == [
        ("prefetch", "a"),
        *(("forecast", "a"), ("prefetch", "b")),
        *(("forecast", "b"), ("prefetch", "c")),
        *(("forecast", "c"), ("prefetch", "a")),
    ]


def test_a_run_begins_to_fetch_when_the_denoiser_is_entered(monkeypatch):
    seen, begun = [], History.prefetch
    monkeypatch.setattr(History, "prefetch", lambda self: (seen.append(0), begun(self))[1])
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=3, warmup=1), keep_on="cpu")
    call(pipe, "wan", steps=3, guidance=1.0)
    # on entering steps 1 and 2, and after the forecast of each for the step to come
    assert len(seen) == 4


@pytest.mark.parametrize("keep_on", ["device", "cpu"])
def test_what_was_kept_is_freed_without_the_garbage_collector(keep_on):
    pipe, kept = make("wan"), []
    pipe.enable_acceleration(TaylorSeer(interval=2, carrier="module"), keep_on=keep_on)
    plain = State.keep

    def note(self, name, index, value, own=False):
        plain(self, name, index, value, own)
        kept.append(weakref.ref(self.histories[name]))

    gc.disable()
    try:
        State.keep = note
        call(pipe, "wan", steps=4)
    finally:
        State.keep = plain
        gc.enable()
    assert kept and all(reference() is None for reference in kept)


def test_histories_of_tensors_and_other_things_are_kept_apart():
    history = History(hold, 1, "cpu")
    history.keep(0, (torch.ones(2), None, "mask"))
    assert history.bytes() == history.full_bytes() == 8
    value = history.forecast(3)
    assert torch.equal(value[0], torch.ones(2)) and value[1:] == (None, "mask")
    value[0].zero_()
    assert torch.equal(history.forecast(4)[0], torch.ones(2))
