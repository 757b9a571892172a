"""PAB: against the published rule in timesteps, its windows by hand, kinds and branches apart."""

import pytest
import torch

from accel.caching import PAB
from accel.caching.pab import inside
from accel.noise import level_at, noise_levels
from tests.caching.transcribed import Counted
from tests.caching.transcribed_attention import pab
from tests.tiny_pipelines import SCHEDULERS, call, make

STEPS = 12
PARTS = {
    "wan": {"attn1": 2, "attn2": 3},
    "cogvideox": {"attn1": 2},
    "ltx": {"attn1": 2, "attn2": 3},
}


def ranged(pipe, name, ranges):
    blocks = pipe.transformer.blocks if name == "wan" else pipe.transformer.transformer_blocks
    return {b.get_submodule(part): n for b in blocks for part, n in ranges.items()}


@pytest.mark.parametrize(
    ("name", "scheduler", "window"),
    [
        ("wan", "flow_unipc", (300, 950)),
        ("wan", "flow_euler", (0, 1000)),
        ("ltx", None, (200, 930)),
        ("cogvideox", "cogvideox_ddim", (100, 850)),
        ("cogvideox", "cogvideox_dpm", (250, 700)),
    ],
)
def test_latents_are_those_of_the_published_rule(name, scheduler, window):
    plain = make(name, scheduler=scheduler)
    counted = Counted(plain, branches=2 if name == "wan" else 1)
    pab(counted, plain, ranged(plain, name, PARTS[name]), window)
    expected = counted.run(plain, name, steps=STEPS)

    pipe = make(name, scheduler=scheduler)
    pipe.enable_acceleration(PAB(full=2, cross=3, window=(window[0] / 1000, window[1] / 1000)))
    latents = call(pipe, name, steps=STEPS)
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)
    rows = pipe.acceleration.report().rows
    kept = {r.index for r in rows if r.action == "reused"}
    timesteps = plain.scheduler.timesteps.tolist()
    assert kept == {
        i
        for i, t in enumerate(timesteps)
        if window[0] < t < window[1] and any(i % n for n in PARTS[name].values())
    }
    assert 0 < len(kept) < STEPS


def test_feed_forward_is_broadcast_where_it_is_asked_for():
    plain = make("wan")
    counted = Counted(plain, branches=2)
    pab(counted, plain, ranged(plain, "wan", {"attn1": 2, "attn2": 4, "ffn": 3}), (0, 2000))
    expected = counted.run(plain, "wan", steps=STEPS)
    pipe = make("wan")
    pipe.enable_acceleration(PAB(full=2, cross=4, feed_forward=3, window=(0.0, 1.0)))
    latents = call(pipe, "wan", steps=STEPS)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_in_a_block_with_one_last_projection_attention_and_feed_forward_are_apart():
    """Flux's single blocks: `proj_out` runs on every step, on what was kept of either half."""
    plain = make("flux_distilled")
    counted, model = Counted(plain, branches=1), plain.transformer
    modules = {b.attn: 2 for b in model.transformer_blocks}
    for block in model.transformer_blocks:
        modules |= {block.ff: 3, block.ff_context: 3}
    for block in model.single_transformer_blocks:
        modules |= {block.attn: 2, block.proj_mlp: 3}
    pab(counted, plain, modules, (0, 2000))
    expected = counted.run(plain, "flux_distilled", steps=STEPS)
    pipe = make("flux_distilled")
    pipe.enable_acceleration(PAB(full=2, feed_forward=3, window=(0.0, 1.0)))
    ran = []
    for block in pipe.transformer.single_transformer_blocks:
        block.proj_mlp.register_forward_hook(lambda *_: ran.append("proj_mlp"))
        block.proj_out.register_forward_hook(lambda *_: ran.append("proj_out"))
    latents = call(pipe, "flux_distilled", steps=STEPS)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    blocks = len(pipe.transformer.single_transformer_blocks)
    assert ran.count("proj_out") == STEPS * blocks
    assert ran.count("proj_mlp") == STEPS // 3 * blocks


def test_windows_by_hand_on_either_kind_of_scheduler():
    """(100, 850) of 1000: timesteps of CogVideoX's alphas, noise levels of a flow model."""
    pipe = make("cogvideox")
    pipe.scheduler.set_timesteps(10)
    assert pipe.scheduler.timesteps.tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    _, sigmas = noise_levels(pipe, pipe.scheduler)
    assert inside(pipe, sigmas, (0.1, 0.85)) == [False, *[True] * 7, False, False]

    pipe = make("wan", scheduler="flow_euler")  # shift 3: sigma = 3 s / (1 + 2 s)
    levels = [3 * s / (1 + 2 * s) for s in (1.0, 0.8, 0.65, 0.6, 0.4, 0.2, 0.03)]
    assert [round(v, 2) for v in levels] == [1.0, 0.92, 0.85, 0.82, 0.67, 0.43, 0.08]
    expected = [False, False, True, True, True, True, False]
    assert inside(pipe, levels, (0.1, 0.85)) == expected
    assert level_at(pipe.scheduler, 0.85) == 0.85


@pytest.mark.parametrize("name", ["ddim", "unipc", "euler"])
def test_levels_of_variance_preserving_schedulers_are_those_of_their_timesteps(name):
    scheduler = SCHEDULERS[name]()
    alpha = float(scheduler.alphas_cumprod[400])
    assert level_at(scheduler, 0.4) == pytest.approx(((1 - alpha) / alpha) ** 0.5)


def test_a_scheduler_without_alphas_is_measured_by_its_ratio_of_signal_to_noise():
    class Sigmas:
        config = {}

    assert level_at(Sigmas(), 0.75) == pytest.approx(3) and level_at(Sigmas(), 1) == float("inf")


def test_a_scheduler_that_does_not_tell_is_refused_at_the_first_call():
    pipe = make("wan")
    pipe.enable_acceleration(PAB())
    pipe.acceleration._site.clock.on_begin.append(lambda run: run.sigmas.__setitem__(0, None))
    with pytest.raises(ValueError, match=r"UniPC.* does not tell its noise levels.*window=\(0"):
        call(pipe, "wan")


def test_work_is_reported_by_kind():
    shares = {}
    for kind in ("full", "cross"):
        pipe = make("wan")
        pipe.enable_acceleration(PAB(**({"full": 1, "cross": 1} | {kind: 2}), window=(0.0, 1.0)))
        call(pipe, "wan", steps=4)
        shares[kind] = 1 - pipe.acceleration.report().rows[2].work
    pipe = make("wan")
    pipe.enable_acceleration(PAB(full=2, cross=2, window=(0.0, 1.0)))
    call(pipe, "wan", steps=4)
    assert 1 - pipe.acceleration.report().rows[2].work == pytest.approx(sum(shares.values()))
    assert min(shares.values()) > 0.05


def test_a_branch_that_was_away_is_computed_when_it_returns():
    def interval(pipe, i, t, kwargs):
        pipe._guidance_scale = 1.0 if 2 <= i < 6 else 4.0
        return kwargs

    pipe = make("wan")
    pipe.enable_acceleration(PAB(full=2, cross=2, window=(0.0, 1.0)))
    call(pipe, "wan", steps=10, callback=interval)
    rows = pipe.acceleration.report().rows
    uncond = {r.index: r.action for r in rows if r.branch == "uncond"}
    assert list(uncond) == [0, 1, 2, 7, 8, 9] and uncond[7] == "computed"


def test_outputs_that_no_step_will_reuse_are_not_kept():
    pipe = make("wan")
    pipe.enable_acceleration(PAB(full=2, cross=1, window=(0.999, 1.0)))
    with pytest.warns(UserWarning, match="skipped nothing"):
        call(pipe, "wan")
    assert pipe.acceleration.report().bytes_held == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"full": 0}, "full must be at least 1"),
        ({"window": (0.5, 0.5)}, "window must be two rising fractions from 0 to 1"),
        ({"window": (100.0, 850.0)}, "window must be two rising fractions from 0 to 1"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=rf"PAB\.{message}"):
        PAB(**fields)


def test_models_without_known_attention_are_refused():
    with pytest.raises(ValueError, match="PAB"):
        make("sd").enable_acceleration(PAB())
