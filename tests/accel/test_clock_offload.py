"""Acceleration under offloading, whose hooks come and go around every module."""

import pytest
import torch

from tests.probes import HALF, Watch, footprint, plain, skipped
from tests.tiny_pipelines import call, make


def by_model(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def by_group(pipe):
    for name in ("transformer", "unet"):
        if (part := getattr(pipe, name, None)) is not None:
            part.enable_group_offload(
                onload_device=torch.device("cpu"),
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
            )


def by_leaf(pipe):
    for name in ("transformer", "unet"):
        if (part := getattr(pipe, name, None)) is not None:
            part.enable_group_offload(
                onload_device=torch.device("cpu"),
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
            )


OFFLOADS = [by_model, by_group, by_leaf]


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", ["wan22", "sd"])
def test_offload_before_enabling(name, offload):
    pipe = make(name)
    offload(pipe)
    call(pipe, name)
    before = footprint(pipe)
    pipe.enable_acceleration(HALF)
    for _ in range(2):
        assert torch.equal(call(pipe, name), skipped(name))
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, name), plain(name))
    assert footprint(pipe) == before


@pytest.mark.parametrize(
    ("name", "offload"), [*(("wan", offload) for offload in OFFLOADS), ("sd", by_model)]
)
def test_offload_after_enabling(name, offload):
    pipe, watch = make(name), Watch()
    pipe.enable_acceleration(watch, HALF)
    offload(pipe)
    for _ in range(2):
        del watch.seen[:]
        assert torch.equal(call(pipe, name), skipped(name))
        assert len(set(watch.indices)) == 5
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, name), plain(name))


@pytest.mark.parametrize("offload", OFFLOADS)
def test_hooks_removed_while_enabled(offload):
    pipe = make("wan")
    offload(pipe)
    pipe.enable_acceleration(HALF)
    call(pipe, "wan")
    if offload is by_model:
        pipe.remove_all_hooks()
    else:
        registry = pipe.transformer._diffusers_hook
        registry.remove_hook("group_offloading", recurse=True)
    assert torch.equal(call(pipe, "wan"), skipped("wan"))
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "wan"), plain("wan"))


@pytest.mark.parametrize("offload", OFFLOADS)
def test_work_is_counted_in_flops_under_offloading(offload):
    pipe = make("wan")
    offload(pipe)
    pipe.enable_acceleration(HALF)
    call(pipe, "wan")
    report = pipe.acceleration.report()
    assert report.basis == "flops" and report.computed_fraction == pytest.approx(3 / 5)


def test_counting_work_copies_no_other_model():
    """The hooks of model offloading refer to the models before; none of them is copied."""
    pipe = make("wan")
    by_model(pipe)
    pipe.enable_acceleration(HALF)
    call(pipe, "wan")
    copied = []
    kind = type(pipe.text_encoder)
    kept = kind.__dict__.get("__deepcopy__")
    kind.__deepcopy__ = lambda self, memo: copied.append(self) or self
    try:
        pipe.acceleration.report()
    finally:
        if kept is None:
            del kind.__deepcopy__
        else:
            kind.__deepcopy__ = kept
    assert copied == []
