"""Which kernel is chosen, what is refused when acceleration is enabled, and dense attention."""

import pytest
import torch

import accel
from accel.self_attention import self_attention
from accel.sparse_attn import (
    AttentionTile,
    DraftAttention,
    Full,
    SlidingTile,
    SparseAttention,
    SparseVideoGen2,
)
from accel.sparse_attn.asking import query, usual
from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.kernels.choice import choose
from accel.sparse_attn.kernels.flex import Flex
from accel.sparse_attn.layout import BlockLayout, uniform
from tests.contract.runs import plain
from tests.tiny_pipelines import call, make

TILE = SlidingTile((1, 1, 1), (1, 2, 2))


def method(**fields):
    return SparseAttention(TILE, **({"shortest": 1} | fields))


def test_a_kernel_asked_for_by_name_is_used_or_refused():
    pipe = make("wan")
    with accel.accelerated(pipe, method(kernel="reference")) as enabled:
        call(pipe, "wan", steps=2)
        assert set(enabled.report().attention.kernels) == {"reference"}
    with pytest.raises(ValueError, match=r"'flex' cannot be used for float32 on cpu.*can: gather"):
        pipe.enable_acceleration(method(kernel="flex"))
    assert not pipe.acceleration


def test_auto_passes_over_kernels_that_do_not_work_or_were_never_launched():
    class Other:
        def __init__(self, reason, unproven=None):
            self.reason, self.unproven = reason, unproven

        def why_not(self, q, layout):
            return self.reason

    q = torch.empty(1, 64, 1, 64, device="meta")
    kernels = {
        "triton": Other(None, "never launched"),
        "flex": Other("ragged"),
        "gather": Other(None),
    }
    cuda = type("Q", (), {"dtype": q.dtype, "shape": q.shape, "device": torch.device("cuda")})()
    name, kernel, why = choose("auto", kernels, cuda, None)
    assert name == "gather" and kernel is kernels["gather"]
    assert "not triton (never launched), flex (ragged)" in why
    assert choose("triton", kernels, cuda, None)[0] == "triton"


def test_auto_leaves_maps_that_are_too_full_to_the_model(monkeypatch):
    class Fast:
        def why_not(self, q, layout):
            return None

    cuda = type("Q", (), {"dtype": torch.float16, "shape": (1, 64, 1, 64)})()
    cuda.device = torch.device("cuda")
    start = uniform(64, 64)
    map = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    blocks = {"seq_q": 64, "seq_k": 64}
    found = {
        share: choose(
            "auto",
            {"triton": Fast()},
            cuda,
            BlockLayout.from_map(map, start, start, 64, 64, share=share, **blocks),
            dense=True,
        )
        for share in (None, 0.7, 0.8)
    }
    assert [found[s][0] for s in (None, 0.7, 0.8)] == ["triton", "triton", "dense"]
    assert "80% of pairs are kept, and triton gains below 75% alone" in found[0.8][2]


@pytest.mark.parametrize("pattern", [Full(), DraftAttention(1.0, (1, 4, 4))], ids=str)
def test_a_full_map_is_left_to_the_model_unless_a_kernel_is_named(pattern):
    method = SparseAttention(pattern, shortest=1, dense_until=0.0)
    pipe = make("wan")
    pipe.enable_acceleration(method)
    assert "kernel dense: the attention of the model: 100%" in pipe.acceleration.explain(steps=2)
    with pytest.warns(UserWarning, match="SparseAttention skipped nothing"):
        latents = call(pipe, "wan")
    assert torch.equal(latents, plain("wan").latents)
    assert set(pipe.acceleration.report().attention.kernels) == {"dense"}


def test_what_was_never_launched_here_is_refused_when_enabled_unless_named(monkeypatch):
    monkeypatch.setattr(type(KERNELS["gather"]), "proven_on", ())
    pipe = make("wan")
    with pytest.raises(ValueError, match=r"no kernel that 'auto' may choose.*kernel='gather'"):
        pipe.enable_acceleration(method())
    assert not pipe.acceleration
    pipe.enable_acceleration(method(kernel="gather"))


@pytest.mark.parametrize(
    ("pattern", "family", "told"),
    [
        (SlidingTile(), "wan", None),
        (SlidingTile(), "flux", None),  # one frame of 32 x 32 would not do, a video does
        (AttentionTile(2), "wan", None),
        (SlidingTile((1, 1, 1), (1, 2, 2)), "wan", "vary in size"),
        (SparseVideoGen2(), "wan", "vary in size"),
        (Full(), "hunyuan_video", None),
    ],
    ids=str,
)
def test_kernels_are_asked_about_layouts_of_the_pattern(pattern, family, told):
    """FlexAttention as tests can use it takes blocks of one size."""
    pipe = make(family)
    with accel.accelerated(pipe, SparseAttention(pattern)) as enabled:
        site = enabled._site
        layers = self_attention(site.family, pipe.transformer)
        q = query(site, pipe.transformer, layers)
        assert q.shape[2] == layers[0].module.heads
        reason = Flex(compiled=False).why_not(q, usual(pattern, site.family, q, len(layers), 0))
        assert reason is None if told is None else told in reason
        if not isinstance(pattern, Full):  # text has blocks of its own
            layout = usual(pattern, site.family, q, len(layers), 77)
            assert "vary in size" in Flex(compiled=False).why_not(q, layout)
