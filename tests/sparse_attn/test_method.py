"""SparseAttention on pipelines: what it computes, says, refuses and leaves behind."""

import dataclasses

import pytest
import torch
from torch._dynamo.utils import counters

import accel
from accel.caching import TaylorSeer
from accel.self_attention import self_attention
from accel.sparse_attn import (
    Full,
    SlidingTile,
    SparseAttention,
)
from accel.sparse_attn.attending import _without, arranged
from accel.sparse_attn.kernels import KERNELS
from tests.contract.runs import counted, plain
from tests.tiny_pipelines import call, make

TILE = SlidingTile((1, 1, 1), (1, 2, 2))


def method(**fields):
    return SparseAttention(TILE, **({"shortest": 1} | fields))


def run(name="wan", **fields):
    pipe = make(name)
    pipe.enable_acceleration(method(**fields))
    call(pipe, name, steps=5)
    return pipe, pipe.acceleration.report()


@dataclasses.dataclass(frozen=True)
class Reversed(Full):
    """The same in another order of tokens."""

    def route(self, q, k, v, place):
        order = torch.arange(q.shape[1] - 1, -1, -1)[None, None]
        return dataclasses.replace(super().route(q, k, v, place), order_q=order, order_k=order)


@pytest.mark.parametrize("pattern", [Full(64, 64), Reversed(64, 64)], ids=str)
@pytest.mark.parametrize(
    "name", ["wan", "hunyuan_video", "hunyuan_video15", "cogvideox", "mochi", "flux"]
)
def test_a_kernel_over_every_block_computes_the_attention_of_the_model(name, pattern):
    """With the padding masks of HunyuanVideo, 1.5 a square one, and the shortened text of Mochi."""
    pipe = make(name)
    reference = call(pipe, name, steps=3)
    method = SparseAttention(pattern, kernel="gather", shortest=1, dense_until=0.0)
    pipe.enable_acceleration(method)
    latents = call(pipe, name, steps=3)
    scale = reference.abs().max()
    torch.testing.assert_close(latents / scale, reference / scale, rtol=2e-4, atol=2e-5)
    assert set(pipe.acceleration.report().attention.kernels) == {"gather"}


def test_dense_steps_and_layers_are_as_set():
    _, report = run(dense_until=0.4, dense_layers=(0, -1))
    dense = {(row.index, row.layer) for row in report.attention.rows if row.kernel == "dense"}
    assert dense == {(i, layer) for i in range(5) for layer in range(4) if i < 2 or layer in (0, 3)}
    assert all(sum(r.density) == 2 for r in report.attention.rows if r.kernel == "dense")


def test_the_report_tells_density_recall_and_times():
    _, report = run()
    record = report.attention
    assert record.by("index")[0] == 1 and record.by("index")[1] == pytest.approx(1 / 8)
    assert record.by("layer").keys() == {0, 1, 2, 3} and record.by("branch").keys() == {
        "cond",
        "uncond",
    }
    assert record.by("head") == pytest.approx(dict.fromkeys(range(2), record.density))
    with pytest.raises(ValueError, match=r"one of index, .*head, got 'heads'"):
        record.by("heads")
    measured = [row for row in record.rows if row.recall is not None]
    assert {row.layer for row in measured if row.index == 4} == {0, 1, 2, 3}
    assert {(row.index, row.layer) for row in measured if row.index < 4} == {(1, 1), (2, 2), (3, 3)}
    assert all(0 < r < 1 for row in measured for r in row.recall)
    assert record.seconds_map > 0 and record.seconds_kernel > 0 and record.seconds_report > 0
    assert "of pairs" in report.summary() and "gather" in report.summary()
    assert report.to_dict()["attention"]["rows"][0]["kernel"] == "dense"


def test_maps_are_drawn(tmp_path):
    _, report = run()
    path = report.plot_attention(1, 0, tmp_path / "map.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no sparse map of layer 9, head 0"):
        report.plot_attention(9, 0, tmp_path / "none.png")


def test_a_report_of_dense_attention_has_no_map(tmp_path):
    pipe = make("wan")
    pipe.enable_acceleration(accel.parse_method("TaylorSeer:interval=2"))
    call(pipe, "wan")
    with pytest.raises(ValueError, match="computes attention whole"):
        pipe.acceleration.report().plot_attention(0, 0, tmp_path / "none.png")


def test_it_is_explained_before_the_run():
    pipe = make("wan")
    pipe.enable_acceleration(method())
    told = pipe.acceleration.explain(steps=10)
    assert "computes 10 of 10 steps, the first 2 with dense attention" in told
    assert "kernel gather: the fastest that works for float32 on cpu, head size 12" in told


def test_plans_and_the_shell_write_it():
    read = accel.parse_method("SparseAttention:pattern=SlidingTile(window=(3,1,3)),kernel=gather")
    assert read == SparseAttention(SlidingTile((3, 1, 3)), kernel="gather")
    plan = accel.Plan((method(dense_layers=(0, -1)),))
    assert accel.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"kernel": "gahter"}, "did you mean gather"),
        ({"pattern": 3}, "must be a pattern"),
        ({"pattern": SlidingTile}, "must be a pattern"),
        ({"dense_until": 2.0}, "a share from 0 to 1"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        SparseAttention(**({"pattern": TILE} | wrong))


def test_a_layer_that_there_is_not_is_refused_when_enabled():
    pipe = make("wan")
    with pytest.raises(ValueError, match="4 self-attention modules: 0 to 3"):
        pipe.enable_acceleration(method(dense_layers=(4,)))
    assert not pipe.acceleration


def test_short_sequences_stay_dense():
    with pytest.warns(UserWarning, match="SparseAttention skipped nothing"):
        _, report = run(shortest=33)
    assert report.computed_fraction == 1


def test_attention_across_frames_is_sparse_where_there_are_enough_of_them():
    """Of AnimateDiff: 8 frames in 4 tiles; pictures of 16 x 16 tokens in 16."""
    sizes = {"num_frames": 8, "steps": 2}
    reference = call(make("animatediff"), "animatediff", **sizes)
    for pattern in (Full(), SlidingTile((1, 1, 1), (2, 4, 4))):
        pipe = make("animatediff")
        method = SparseAttention(pattern, kernel="gather", shortest=8, dense_until=0.0)
        pipe.enable_acceleration(method)
        latents = call(pipe, "animatediff", **sizes)
        layers = self_attention(pipe.acceleration.family, pipe.unet)
        temporal = {layer.number for layer in layers if layer.kind == "temporal"}
        rows = [r for r in pipe.acceleration.report().attention.rows if r.layer in temporal]
        density = 1.0 if isinstance(pattern, Full) else 0.25
        assert {row.kernel for row in rows} == {"gather"} and {r.layer for r in rows} == temporal
        assert {d for row in rows for d in row.density} == {density}
        near = torch.allclose(latents, reference, rtol=1e-3, atol=1e-4 * reference.abs().max())
        assert near == isinstance(pattern, Full)


def test_what_patterns_keep_is_counted_and_freed_after_the_run():
    @dataclasses.dataclass(frozen=True)
    class Keeping(Full):
        def route(self, q, k, v, place):
            place.state["kept"] = (torch.zeros(1000), {"layout": super().route(q, k, v, place)})
            return place.state["kept"][1]["layout"]

    pipe = make("wan")
    pipe.enable_acceleration(SparseAttention(Keeping(), kernel="gather", shortest=1))
    call(pipe, "wan", steps=2)
    states = 8  # 4 layers, 2 branches
    held = pipe.acceleration.report().bytes_held
    assert states * 4000 < held < states * 4400


@pytest.mark.parametrize("carrier", ["output", "module"])
def test_beside_a_cache_the_work_of_both_is_told_right(carrier):
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=2, warmup=1, carrier=carrier), method())
    with counted(pipe) as flops:
        call(pipe, "wan")
    fraction = pipe.acceleration.report().computed_fraction
    assert fraction == pytest.approx(sum(flops) / plain("wan").flops, abs=1e-6) and fraction < 0.6
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "wan"), plain("wan").latents)


def test_a_replaced_processor_is_noticed():
    pipe, _ = run()
    block = pipe.transformer.blocks[0]
    block.attn1.set_processor(type(block.attn1.processor)())
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attn1 in transformer was replaced"):
        call(pipe, "wan")


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 2, 1, 4)])
def test_masks_that_differ_between_queries_or_heads_are_refused(shape):
    q = torch.zeros(1, 4, 2, 8)
    routing = Full().route(q, q, q, None)
    with pytest.raises(ValueError, match="no boolean mask of keys alone"):
        _without(routing, torch.ones(shape, dtype=torch.bool), q, q)


def test_a_mask_is_followed_in_the_order_of_the_keys():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 100, 2, 8)
    mask = torch.rand(2, 1, 1, 100) < 0.6
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask
    ).transpose(1, 2)
    for pattern in (Full(64, 64), Reversed(64, 64)):
        found = _without(pattern.route(q, k, v, None), mask, q, k)
        near = [arranged(x, found.order_k) for x in (k, v)]
        own = arranged(q, found.order_q)
        out, _ = KERNELS["reference"].attend(own, *near, found.layout, 8**-0.5)
        if found.order_q is not None:
            out = out.flip(1)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", ["wan", "flux"])  # flux has two kinds of blocks
def test_regional_compile_gives_the_same_and_compiles_once(name):
    pipe = make(name)
    pipe.enable_acceleration(method())
    torch._dynamo.reset()
    counters.clear()
    eager = call(pipe, name, steps=3)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    compiled = call(pipe, name, steps=3)
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)
    assert set(pipe.acceleration.report().attention.kernels) == {"gather"}
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 3
    wider = SparseAttention(SlidingTile((1, 1, 1), (1, 2, 4)), shortest=1)
    pipe.enable_acceleration(wider)
    other = call(pipe, name, steps=3)
    assert counters["stats"]["unique_graphs"] == graphs
    fresh = make(name)
    fresh.enable_acceleration(wider)
    torch.testing.assert_close(other, call(fresh, name, steps=3), rtol=1e-3, atol=1e-3)
