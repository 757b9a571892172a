"""RAS on real pipelines: exact where it must be, held where it is, and refused with the reason."""

import pytest
import torch
from diffusers import DDIMScheduler

from accel.samplers import RegionAdaptive
from accel.samplers.regions import hold as hold_of
from accel.sparse_attn import SlidingTile, SparseAttention
from tests.samplers.region_runs import HALF, PROMPTS, Indices, run, stepped
from tests.tiny_pipelines import call, make

EVERY = [
    ("sd3", None),
    ("flux", None),
    ("lumina2", None),
    ("qwenimage", None),
    ("pixart", "ddim"),
    ("wan", "flow_euler"),
    ("hunyuan_video", None),
    ("ltx", None),
    ("cogvideox", "cogvideox_ddim"),
]
BESIDE = [("flux_controlnet", None), ("sd3_controlnet", None), ("wan22", "flow_euler")]
every = pytest.mark.parametrize(("name", "scheduler"), EVERY)


@every
def test_a_step_that_chooses_every_token_is_a_dense_one(name, scheduler, monkeypatch):
    monkeypatch.setattr(hold_of, "Selection", Indices)
    for prompt in (PROMPTS[0], PROMPTS):
        latents, pipe = run(name, scheduler, prompt=prompt)
        plain = call(make(name, scheduler), name, prompt=prompt)
        torch.testing.assert_close(latents, plain, rtol=1e-4, atol=1e-4 * plain.std().item())
        actions = [row.action for row in pipe.acceleration.report().rows]
        assert actions.count("reused") == len(actions) * 3 // 5


@pytest.mark.parametrize(("name", "scheduler"), [*EVERY[:4], EVERY[5]])
def test_the_order_of_the_tokens_changes_nothing(name, scheduler, monkeypatch):
    expected, _ = run(name, scheduler, prompt=PROMPTS)
    monkeypatch.setattr(Indices, "everything", False)
    monkeypatch.setattr(Indices, "order", staticmethod(lambda n: torch.arange(n).flip(0)))
    monkeypatch.setattr(hold_of, "Selection", Indices)
    found, _ = run(name, scheduler, prompt=PROMPTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


@every
def test_samples_of_a_batch_choose_apart(name, scheduler):
    pair, pipe = run(name, scheduler, prompt=PROMPTS, seed=(0, 1))
    regions = pipe.acceleration.report().regions
    assert any(not torch.equal(*regions.active[step]) for step in regions.active)
    for i, latents in enumerate(pair.split(len(pair) // 2)):
        alone, _ = run(name, scheduler, prompt=PROMPTS[i], seed=i)
        torch.testing.assert_close(latents, alone, rtol=1e-3, atol=1e-3 * alone.std().item())


@pytest.mark.parametrize(("name", "scheduler"), [EVERY[0], *EVERY[2:4], EVERY[5]])
def test_lines_of_keys_and_values_are_each_samples_own(name, scheduler, monkeypatch):
    method = RegionAdaptive.by_error(0.5, start=0.4, end=1, dense=(0.6,))
    pair, _ = run(name, scheduler, method, prompt=PROMPTS, seed=(0, 1))
    for i, latents in enumerate(pair.split(len(pair) // 2)):
        alone, _ = run(name, scheduler, method, prompt=PROMPTS[i], seed=i)
        torch.testing.assert_close(latents, alone, rtol=1e-3, atol=1e-3 * alone.std().item())
    monkeypatch.setattr(hold_of, "Selection", Indices)
    every, _ = run(name, scheduler, method, prompt=PROMPTS, seed=(0, 1))
    plain = call(make(name, scheduler), name, prompt=PROMPTS, seed=(0, 1))
    assert not torch.allclose(pair, plain, rtol=1e-3)
    torch.testing.assert_close(every, plain, rtol=1e-4, atol=1e-4 * plain.std().item())


@pytest.mark.parametrize("name", ["flux", "ltx"])
def test_samples_that_share_their_decision_compute_the_same_tokens(name):
    shared = RegionAdaptive(ratio=0.5, start=0.2, dense=(0.6,), per_sample=False)
    _, pipe = run(name, None, shared, prompt=PROMPTS)
    assert {len(a) for a in pipe.acceleration.report().regions.active.values()} == {1}


def token(latents, i, columns):
    """Token `i` of latents (C, H, W): (4, C)."""
    row, column = i // columns * 2, i % columns * 2
    return latents[:, row : row + 2, column : column + 2].flatten(1).T


def test_tokens_are_held_and_chosen_as_a_plain_loop_does_on_a_picture_that_is_not_square():
    pipe = make("sd3")
    with stepped(pipe) as seen:
        method = RegionAdaptive(ratio=0.375, start=0.2, dense=(0.72,), strength=0.3)
        pipe.enable_acceleration(method)
        call(pipe, "sd3", steps=7, width=64, height=32)
        report = pipe.acceleration.report()
    columns, tokens, sigmas = 16, 128, pipe.scheduler.sigmas
    drops, active = [0] * tokens, None
    for step, (_, output, sample, result) in enumerate(seen):
        partial = step in (1, 2, 3, 4, 6)  # 7 steps: from 1, dense at 5
        assert (step in report.regions.active) == partial
        if partial:
            assert report.regions.active[step][0].tolist() == active
            for i in set(range(tokens)) - set(active):
                before = token(seen[step - 1][1][0], i, columns)
                assert torch.equal(token(output[0], i, columns), before)
        expected = sample + (sigmas[step + 1] - sigmas[step]) * output
        torch.testing.assert_close(result, expected)
        score = []
        for i in range(tokens):
            change = (sigmas[step + 1] - sigmas[step]).abs() * token(output[0], i, columns)
            score.append(float(change.std(dim=1).mean()) * 2.718281828459045 ** (-0.3 * drops[i]))
        if step + 1 in (1, 2, 3, 4, 6):
            order = sorted(range(tokens), key=lambda i: score[i])
            active = sorted(order[: tokens - int(0.625 * tokens)])
            for i in order[tokens - int(0.625 * tokens) :]:
                drops[i] += 1
    assert report.regions.grid == (1, 8, 16) and report.regions.share == pytest.approx(
        (2 + 5 * 48 / 128) / 7
    )


def test_tokens_left_out_go_on_along_the_line_through_their_last_two_predictions():
    pipe = make("sd3")
    with stepped(pipe) as seen:
        pipe.enable_acceleration(RegionAdaptive(0.5, start=0.2, dense=(), strength=3.0, order=1))
        call(pipe, "sd3", steps=8)
        regions = pipe.acceleration.report().regions
    columns, tokens = regions.grid[2], regions.grid[1] * regions.grid[2]
    known = {i: [] for i in range(tokens)}
    left_out = 0
    for step, (_, output, _, _) in enumerate(seen):
        active = regions.active[step][0].tolist() if step in regions.active else range(tokens)
        for i in range(tokens):
            value = token(output[0], i, columns)
            if i in active:
                known[i].append((step, value))
                continue
            left_out += 1
            (then, before), (last, now) = known[i][-2:]
            ahead = now + (now - before) * (step - last) / (last - then)
            torch.testing.assert_close(value, ahead, rtol=1e-4, atol=1e-5)
    assert left_out == tokens // 2 * 6 and any(len(found) > 4 for found in known.values())


@pytest.mark.parametrize(
    ("ratio", "between"), [(0.5, []), (0.35, [12, 16, 20, 24]), (0.125, [11, 14, 17, 20, 23])]
)
def test_the_fewer_tokens_the_more_dense_steps(ratio, between):
    schedule = RegionAdaptive.by_error(ratio).schedule(28)
    dense = [step for step in range(28) if not schedule.partial(step)]
    assert dense == [*range(8), *between, 26, 27]


def test_tokens_are_chosen_by_what_their_line_missed_them_by():
    pipe = make("sd3")
    method = RegionAdaptive.by_error(0.25, start=0.375, end=1, dense=())
    with stepped(pipe) as seen:
        pipe.enable_acceleration(method)
        call(pipe, "sd3", steps=8)
        regions = pipe.acceleration.report().regions
    columns, tokens = regions.grid[2], regions.grid[1] * regions.grid[2]
    assert sorted(regions.active) == [3, 4, 5, 6, 7]
    known = {i: [] for i in range(tokens)}
    rate = dict.fromkeys(range(tokens), 0.0)
    for step, (_, output, _, _) in enumerate(seen):
        active = range(tokens)
        if step in regions.active:
            expected = {i: rate[i] * (step - known[i][-1][0]) ** 2 for i in known}
            active = regions.active[step][0].tolist()
            left_out = max(expected[i] for i in known if i not in active)
            assert min(expected[i] for i in active) >= left_out * (1 - 1e-3)
        for i in active:
            value, line = token(output[0], i, columns), known[i][-2:]
            if len(line) == 2:
                (then, before), (last, now) = line
                ahead = now + (now - before) * (step - last) / (last - then)
                missed = (value - ahead).norm(dim=1).mean()
                rate[i] = float(missed) / (step - last) ** 2
            known[i].append((step, value))


def test_held_tokens_of_a_model_of_v_keep_the_noise_they_predict():
    pipe = make("cogvideox", "cogvideox_ddim")
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    with stepped(pipe) as seen:
        pipe.enable_acceleration(HALF)
        call(pipe, "cogvideox")
        regions = pipe.acceleration.report().regions
    noises = []
    for timestep, output, sample, _ in seen:
        alpha = pipe.scheduler.alphas_cumprod[int(timestep)].sqrt()
        noises.append(alpha * output + (1 - alpha**2).sqrt() * sample)
    frames, rows, columns = regions.grid
    for step in regions.active:
        change = (noises[step] - noises[step - 1]).abs().amax(dim=2)[0]
        cells = change.unflatten(1, (rows, -1)).unflatten(3, (columns, -1)).amax((2, 4))
        held = ~regions.mask(step)
        cells = cells.unflatten(0, (frames, -1)).amax(1)
        assert cells[held].max() < 1e-3 * noises[step].abs().max()
        assert cells[~held].max() > 1e-2


@pytest.mark.parametrize(("name", "scheduler"), BESIDE)
def test_controls_and_second_experts_are_followed(name, scheduler):
    latents, pipe = run(name, scheduler)
    plain = call(make(name, scheduler), name)
    report = pipe.acceleration.report()
    assert report.computed_fraction < 0.95 and latents.isfinite().all()
    assert not torch.equal(latents, plain)
    assert (latents - plain).std() < plain.std()


def test_expected_bytes_are_those_that_are_kept():
    for name, methods in (("flux", ()), ("sd3", ()), ("sd3", (RegionAdaptive.by_error(0.5),))):
        _, pipe = run(name, None, *methods)
        report, recorder = pipe.acceleration.report(), pipe.acceleration._site.report
        assert recorder.expected() == pytest.approx(report.bytes_held, rel=0.2)


def test_what_cannot_be_done_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"sana is a transformer .*: its feed-forwards are conv"):
        make("sana").enable_acceleration(HALF)
    with pytest.raises(ValueError, match="need their neighbours"):
        make("sd").enable_acceleration(HALF)
    both = HALF, SparseAttention(SlidingTile())
    with pytest.raises(ValueError, match="both are sparse attention methods"):
        make("wan", "flow_euler").enable_acceleration(*both)
    with pytest.raises(ValueError, match=r"UniPC.* mixes .*Scheduler\(shift=3.0\)"):
        make("wan").enable_acceleration(HALF)
    with pytest.raises(ValueError, match="must stay on the device"):
        make("flux").enable_acceleration(HALF, keep_on="cpu")
    pipe = make("flux")
    pipe.scheduler.register_to_config(stochastic_sampling=True)
    with pytest.raises(ValueError, match="draws new noise"):
        pipe.enable_acceleration(HALF)
    pipe = make("pixart", "ddim")
    pipe.enable_acceleration(HALF)
    with pytest.raises(ValueError, match=r"eta=0\.5 adds new noise"):
        call(pipe, "pixart", eta=0.5)
    pipe.scheduler = make("wan").scheduler
    with pytest.raises(ValueError, match="one-step solvers"):
        call(pipe, "pixart")
    assert isinstance(make("pixart", "ddim").scheduler, DDIMScheduler)


def test_compiled_blocks_compute_the_same_tokens():
    method = RegionAdaptive.by_error(0.5, start=0.4, end=1)
    expected, _ = run("flux", None, method)
    pipe = make("flux")
    pipe.enable_acceleration(method)
    pipe.transformer.compile_repeated_blocks(backend="eager")
    torch.testing.assert_close(call(pipe, "flux"), expected)
