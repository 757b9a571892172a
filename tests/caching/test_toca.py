"""ToCa and DuCa: schedules, scores and ages, and whole runs against a transcription."""

import pytest
import torch

from accel.caching import DuCa, ToCa
from accel.caching.policies import schedule
from accel.caching.toca import ScoredTokens, favour_cells
from tests.caching.token_wise import Tokens, favoured, share
from tests.caching.transcribed import Counted
from tests.tiny_pipelines import call, make

RELEASED = [0, 4, 5, 9, 13, 17, 19, 22, 25, 28, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49]
WAN = ("attn1", "ffn")
GRID = (2, 4, 4)


def eased(total, interval, ease=0.4):
    """The released rule, steps counted down: a threshold set at every full step."""
    full, threshold = [], None
    for left in range(total - 1, -1, -1):
        if threshold is None or left % threshold == 0:
            full.append(total - 1 - left)
            threshold = max(round(interval / (1 + ease - 2 * ease * left / total)), 1)
            if left in range(int(total * 0.2), int(total * 0.4)):
                threshold = 2
    return full


def test_full_steps_are_those_worked_out_by_hand():
    assert schedule(ToCa().policy, 50) == RELEASED == eased(50, 3)


@pytest.mark.parametrize("interval", [2, 3, 4, 6])
@pytest.mark.parametrize("total", [5, 20, 50, 250])
def test_full_steps_are_those_of_the_released_rule(interval, total):
    assert schedule(ToCa(interval=interval).policy, total) == eased(total, interval)


def test_other_schedules():
    assert schedule(ToCa(interval=5, warmup=3, ease=0).policy, 15) == [0, 1, 2, 7, 12]
    assert schedule(ToCa(interval=5, warmup=3, ease=0, last=True).policy, 15)[-1] == 14
    assert schedule(DuCa().policy, 12) == [0, 1, 2, 5, 8, 11]
    assert schedule(ToCa(interval=1).policy, 9) == list(range(9))


def test_shares_are_those_of_the_released_factors():
    released = ToCa()
    assert released.share(0, 0, 50) == 0  # 1 + 2 - 4 * 49 / 50 is negative
    assert released.share(0, 49, 50) == pytest.approx(0.07 * 2.5 * 0.8 * 3)
    assert released.share(1, 49, 50) == pytest.approx(0.07 * 2.5 * 1.2 * 3)
    for layer in range(28):
        for index in range(0, 50, 7):
            expected = share(released, layer, 28, index, 50)
            assert released.share(layer / 27, index, 50) == pytest.approx(expected)
    assert ToCa(ratio=1, step_weight=0, layer_weight=0).share(0.3, 5, 50) == 1


@pytest.mark.parametrize("grid", [(1, 4, 4), (2, 4, 6), (3, 5, 3), (1, 1, 7)])
@pytest.mark.parametrize("before", [0, 5])
def test_the_best_of_every_cell_gains(grid, before):
    count = grid[0] * grid[1] * grid[2]
    score = torch.randn(2, before + count)
    found = favour_cells(score, grid, 0.6)
    assert torch.equal(found[:, :before], score[:, :before])
    torch.testing.assert_close(found[:, before:], favoured(score[:, before:], grid, 0.6))
    assert torch.equal(favour_cells(score, None, 0.6), score)
    assert torch.equal(favour_cells(score, (9, 9, 9), 0.6), score)


SETTINGS = [
    ToCa(interval=3, ratio=0.2, ease=0, step_weight=0.3, layer_weight=0.4),
    ToCa(interval=4, ratio=0.1, warmup=2, ease=0, step_weight=0, bonus=0, age_weight=2),
    ToCa(ratio=0.3),
]


def transcribed(settings, total, bare=()):
    plain = make("wan")
    counted, blocks = Counted(plain, branches=2), list(plain.transformer.blocks)
    tokens = Tokens(counted, blocks, WAN, set(schedule(settings.policy, total)), set(bare))
    tokens.toca(settings, GRID, total)
    tokens.hold([b.get_submodule(part) for b in blocks for part in ("attn1", "attn2")])
    tokens.pass_by(blocks[-1])
    return counted.run(plain, "wan", steps=total)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_latents_are_those_of_the_transcription(settings):
    expected = transcribed(settings, 9)
    pipe = make("wan")
    pipe.enable_acceleration(settings)
    latents = call(pipe, "wan", steps=9)
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)
    assert (latents - call(make("wan"), "wan", steps=9)).abs().max() > 1e-2 * scale


def test_duca_runs_no_block_on_even_steps():
    settings = DuCa(interval=4, ratio=0.2, warmup=2, step_weight=0)
    assert schedule(settings.policy, 10) == [0, 1, 5, 9]
    expected = transcribed(settings, 10, bare=(3, 7))
    pipe = make("wan")
    pipe.enable_acceleration(settings)
    latents = call(pipe, "wan", steps=10)
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)
    rows = [r for r in pipe.acceleration.report().rows if r.branch == "cond"]
    least = min(r.work for r in rows)
    assert [r.index for r in rows if r.work == least] == [3, 7]
    said = pipe.acceleration.explain(10)
    assert "4 others run every feed-forward for some tokens, 2 run no block" in said


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox"])
def test_at_ratio_one_feed_forwards_are_computed_in_full(name):
    """As when attention alone is held: no feed-forward is gathered, none is reused."""
    settings = ToCa(interval=3, ratio=1, ease=0, step_weight=0, layer_weight=0)
    plain = make(name)
    counted = Counted(plain, branches=1 if name == "cogvideox" else 2)
    tokens = Tokens(counted, [], WAN, set(schedule(settings.policy, 8)))
    model = plain.transformer
    blocks = list(model.blocks if name == "wan" else model.transformer_blocks)
    parts = {"wan": ("attn1", "attn2"), "flux": ("attn",), "cogvideox": ("attn1",)}[name]
    held = [b.get_submodule(part) for b in blocks for part in parts]
    held += [b.proj_out for b in getattr(model, "single_transformer_blocks", [])]
    tokens.hold(held)
    expected = counted.run(plain, name, steps=8)
    pipe = make(name)
    pipe.enable_acceleration(settings)
    latents = call(pipe, name, steps=8)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def chosen(monkeypatch):
    """Tokens computed: path of the feed-forward -> a list of indices for every skipped step."""
    found, choose = {}, ScoredTokens.choose

    def watched(self, state, place, tokens):
        indices = choose(self, state, place, tokens)
        found.setdefault(place.path, []).append(indices[0].tolist())
        return indices

    monkeypatch.setattr(ScoredTokens, "choose", watched)
    return found


def test_ages_grow_until_a_token_is_computed(chosen):
    """With nothing but age to go by, every token has its turn before any has its second."""
    settings = ToCa(
        interval=9, ratio=0.1, ease=0, step_weight=0, layer_weight=0, age_weight=1e6, bonus=0
    )
    pipe, seen = make("wan"), []
    pipe.enable_acceleration(settings)
    ff = pipe.transformer.blocks[1].ffn.net[0]
    ff.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    call(pipe, "wan", steps=9, guidance=1.0)
    assert seen == [32] + [8] * 8
    for turns in chosen.values():
        for cycle in (turns[:4], turns[4:]):
            assert sorted(t for step in cycle for t in step) == list(range(32))


def test_a_full_step_begins_ages_anew_and_scores_by_values(chosen):
    """Right after a full step, and without bonus, the smallest values are taken first."""
    settings = ToCa(interval=2, ratio=0.1, ease=0, step_weight=0, layer_weight=0, bonus=0)
    pipe, values = make("wan"), []
    pipe.enable_acceleration(settings)
    attention = pipe.transformer.blocks[2].attn1
    attention.to_v.register_forward_hook(lambda m, args, out: values.append(out[0]))
    call(pipe, "wan", steps=6, guidance=1.0)
    assert len(values) == len(chosen["blocks.2.ffn"]) == 3
    for value, taken in zip(values, chosen["blocks.2.ffn"], strict=True):
        norms = value.unflatten(-1, (attention.heads, -1)).norm(dim=-1).sum(-1)
        assert sorted(taken) == sorted(norms.argsort()[:8].tolist())


@pytest.mark.parametrize(
    ("field", "value"), [("ratio", 1.5), ("ease", 1.0), ("boost", -1.0), ("interval", 0)]
)
def test_bad_settings_are_named(field, value):
    for method in (ToCa, DuCa):
        with pytest.raises(ValueError, match=f"{method.__name__}.{field} must be"):
            method(**{field: value})


def test_fused_projections_are_named():
    pipe = make("flux")
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        pipe.enable_acceleration(ToCa())


def test_much_to_gather_is_said():
    pipe = make("wan")
    pipe.enable_acceleration(ToCa(ratio=0.1, step_weight=0))
    assert "saves little" not in pipe.acceleration.explain(50)
    assert "run for 25% of their tokens on average" in pipe.acceleration.explain(50)
    pipe.enable_acceleration(ToCa(ratio=0.4, step_weight=0, layer_weight=0))
    assert "run for 100% of their tokens on average; gathering so many saves little" in (
        pipe.acceleration.explain(50)
    )


@pytest.mark.parametrize("name", ["sd", "ltx2"])
def test_models_without_known_feed_forwards_are_refused(name):
    with pytest.raises(ValueError, match="ToCa"):
        make(name).enable_acceleration(ToCa())
