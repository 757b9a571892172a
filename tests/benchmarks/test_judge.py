"""Settings are judged on the right samples, once; the table says what the cells hold."""

import multiprocessing
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accel.caching import TaylorSeer
from accel.pipelines.tiny.scenes import caption, parse, place, render, sample_scene
from benchmarks import peers
from benchmarks.adherence import Adherence, adherence, change
from benchmarks.cells import Cells
from benchmarks.fidelity_picture import draw
from benchmarks.fidelity_report import best_of, markdown, rows, shown, table
from benchmarks.judge import Judge
from benchmarks.references import References
from benchmarks.settings import Setting, plain
from benchmarks.shapes import Made, Model, Sample
from benchmarks.spread import spread

OURS = Setting("TaylorSeer output", TaylorSeer(interval=3))
THEIRS = Setting("diffusers MagCache", peers.MagCache((1.0,)))


class Pictures:
    """A model that draws its captions, dimmer the fewer steps; a skipping method halves work."""

    name, moving, checkpoint, options = "shapes-t2i", False, "ab" * 32, {"guidance_scale": 4.0}

    def __init__(self):
        self.made = []

    def samples(self, which, count):
        return Model.samples(self, which, count)

    def make(self, setting, samples):
        self.made += [(str(setting), s.seed) for s in samples]
        drawn = np.stack([_drawn(s) for s in samples])
        by = 0.0 if setting == plain() else 0.01 + 0.001 * (setting.by != "ours")
        flops = 2.0 * setting.steps * (0.5 if setting.method else 1.0)
        return Made((drawn * (1 - by)).astype(np.float32), (flops,) * len(samples))


def _drawn(sample):
    return render(place(np.random.default_rng(sample.seed), parse(sample.caption)), frames=1)[0]


@pytest.fixture
def judge(tmp_path):
    model = Pictures()
    return Judge(model, Cells(tmp_path / "cells.json"), tmp_path / "kept", workers=0, batch=2)


def test_adherence_of_drawn_scenes_and_its_change():
    rng = np.random.default_rng(0)
    moving = [sample_scene(rng) for _ in range(2)]
    texts = [caption(scene) for scene in moving]
    videos = np.stack([render(scene) for scene in moving])
    good = adherence(videos, texts)
    assert good == Adherence((1.0, 1.0), (True, True))
    bad = adherence(np.zeros_like(videos), texts)
    assert max(bad.share) < 0.5 and not any(bad.all_right)
    assert all(adherence(videos[:, 0], [_still(scene) for scene in moving]).all_right)
    fell = change(good, bad)
    assert fell["adherence_change"] < -0.5 and fell["all_right_change"] == -1
    assert fell["adherence_change_low"] <= fell["adherence_change"]
    with pytest.raises(ValueError, match="as many captions"):
        adherence(videos, texts[:1])


def _still(scene):
    words = caption(scene).split()
    drop = {i for i, w in enumerate(words) if w == "moving"}
    return " ".join(w for i, w in enumerate(words) if i not in drop and i - 1 not in drop)


def test_sets_are_apart_and_longer_ones_begin_alike():
    model = Pictures()
    few, many = model.samples("evaluation", 4), model.samples("evaluation", 8)
    assert many[:4] == few
    seeds = {s.seed for s in model.samples("sweep", 64)}
    assert not seeds & {s.seed for s in model.samples("evaluation", 64)}


def test_spread_keeps_order_and_passes_errors_on():
    offset = 10  # of a closure, which no queue could carry
    jobs = list(range(5))
    assert spread(lambda x: x + offset, jobs, 2) == spread(lambda x: x + offset, jobs, 0)
    assert not multiprocessing.active_children()
    with pytest.raises(ZeroDivisionError):
        spread(lambda x: 1 // x, [1, 0], 2)


def test_references_are_made_once_and_kept_per_caption(tmp_path):
    asked = []

    def make(samples):
        asked.extend(s.seed for s in samples)
        return np.stack([np.full((3, 2, 2), s.seed, np.float32) for s in samples])

    kept = References(tmp_path, Pictures(), "own", make, chunk=2)
    samples = [Sample("a", 3), Sample("a", 1), Sample("b", 2)]
    assert kept.frames(samples)[:, 0, 0, 0].tolist() == [3, 1, 2]
    again = References(tmp_path, Pictures(), "own", make)
    assert again.frames(samples[::-1])[:, 0, 0, 0].tolist() == [2, 1, 3]
    assert asked == [3, 1, 2]
    again.frames([Sample("c", 3)])
    assert asked == [3, 1, 2, 3]
    assert {path.suffix for path in again.folder.iterdir()} == {".npy"}


def test_more_samples_only_add_to_those_judged(judge):
    first = judge.evaluate(OURS, 2, 2)
    made = len(judge.model.made)
    more = judge.evaluate(OURS, 2, 4)
    assert more["psnr"][:2] == first["psnr"] and len(more["psnr"]) == 4
    own = [seed for text, seed in judge.model.made if text == str(OURS)]
    assert len(own) == len(set(own)) == 4
    judge.evaluate(OURS, 2, 4)
    at_another_ratio = judge.evaluate(OURS, 3, 4)
    assert at_another_ratio == more
    assert len(judge.model.made) == made + 4  # two samples and their references
    assert more["means"]["work"] == pytest.approx(0.5)
    assert more["means"]["adherence_change"] == 0 and more["means"]["share"] == 1


def test_psnr_is_to_the_plain_sample_of_the_same_caption(judge):
    result = judge.evaluate(OURS, 2, 3)
    for sample, psnr in zip(judge.model.samples("evaluation", 3), result["psnr"], strict=True):
        error = np.mean((0.01 * _drawn(sample)) ** 2)
        assert psnr == pytest.approx(-10 * np.log10(error), abs=0.01)


def test_table_ranks_and_picks_ours_only_where_adherence_holds(judge, tmp_path):
    for setting in (OURS, THEIRS, plain(steps=25)):
        judge.evaluate(setting, 2, 3)
    found = rows(judge.cells, "shapes-t2i", "own")
    assert [r.by for r in found] == ["ours", "diffusers", "plain"]
    judge.evaluate(OURS, 2, 6)
    found = sorted(rows(judge.cells, "shapes-t2i", "own"), key=lambda r: r.by != "ours")
    assert len(found) == 3 and [r.samples for r in found] == [6, 3, 3]
    assert best_of(found, 2) is found[0] and best_of(found, 3) is None
    assert best_of(found, 2, ours=False).row == THEIRS.row
    fallen = replace(found[0], means={**found[0].means, "adherence_change": -0.5})
    assert best_of([fallen], 2) is None and best_of([fallen], 2, fallen=True) is fallen
    page = markdown(judge.cells, ["shapes-t2i"])
    assert "TaylorSeer(interval=3)" in page and "abababababab" in page
    assert "2× (work at most 0.530): `TaylorSeer(interval=3)`" in page
    assert "| ours | TaylorSeer output | 4" in page and " | – | – | – | – |" in page
    assert table(found, "x").row_count == 3
    draw(found, "shapes-t2i", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_only_the_checkpoint_judged_last_is_shown(judge, tmp_path):
    judge.evaluate(OURS, 2, 2)
    newer = Pictures()
    newer.checkpoint = "cd" * 32
    Judge(newer, judge.cells, tmp_path / "kept", workers=0).evaluate(THEIRS, 2, 2)
    (row,) = rows(judge.cells, "shapes-t2i", "own")
    assert row.row == THEIRS.row


def test_checkpoint_is_of_the_weights(tmp_path):
    folder = Path(tmp_path)
    (folder / "unet").mkdir()
    (folder / "unet" / "a.safetensors").write_bytes(b"1")

    class Pipe:
        def set_progress_bar_config(self, disable):
            assert disable

    first = Model("shapes-t2i", Pipe(), folder, {}).checkpoint
    (folder / "unet" / "config.json").write_text("{}")
    assert Model("shapes-t2i", Pipe(), folder, {}).checkpoint == first
    (folder / "unet" / "a.safetensors").write_bytes(b"2")
    assert Model("shapes-t2i", Pipe(), folder, {}).checkpoint != first


@pytest.mark.parametrize(
    "setting, text",
    [
        ("TaylorSeer(interval=3, last=True)", "TaylorSeer(interval=3, last=True)"),
        (
            "Planned(nodes=(0, 2), weights=((), (0.1…, sigmas=(1.0, 0.5…, limits=(0.0, 2.0))",
            "Planned(nodes=(0, 2), weights=…, sigmas=…, limits=…)",
        ),
        (
            "TeaCache(threshold=0.1, coefficients=(-4.5, 0.2), indicator='modulated')",
            "TeaCache(threshold=0.1, coefficients=…, indicator='modulated')",
        ),
        ("MagCache(ratios=<50 values>, max_skip=2)", "MagCache(ratios=…, max_skip=2)"),
    ],
)
def test_what_is_fitted_is_not_shown(setting, text):
    assert shown(setting) == text


def test_what_was_timed_is_not_timed_again(judge, monkeypatch):
    called = []
    monkeypatch.setattr("benchmarks.judge.ready", lambda pipe, setting: nullcontext())
    judge.model.pipe = None
    judge.model.call = lambda pipe, steps, samples, kind: called.append(steps)
    for settings, ratio, calls in (
        ([OURS], 2, 4),  # and the plain one, twice
        ([OURS, THEIRS], 2, 8),
        ([THEIRS, OURS], 2, 8),
        ([OURS], 3, 12),
    ):
        judge.time(settings, ratio, rounds=2)
        assert len(called) == calls
    told = [set(cell["result"]) for cell in judge.cells.cells.values()]
    names = [f"{setting.row}: {setting}" for setting in (OURS, THEIRS)]
    assert told == [{names[0]}, {names[1]}, {names[0]}]
