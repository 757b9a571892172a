"""What the pattern benchmark judges on and how; its numbers are in benchmarks/results."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from accel.pipelines import tiny
from accel.sparse_attn import VSA, SlidingTile, SparseVideoGen
from accel.sparse_attn.pattern import Place
from accel.token_grid import TokenGrid
from benchmarks import attention_quality
from benchmarks.attention_data import Sample, recorded, synthetic
from benchmarks.attention_patterns import PATTERNS, Exact, Random
from benchmarks.attention_quality import dense, front, fronts, measure, present, samples
from tests.sparse_attn.places import token_mask

SMALL = TokenGrid(4, 8, 8)


def mass_near(sample: Sample, axis: int) -> float:
    """Mean share of attention on tokens at the same coordinate along an axis of (frames, place)."""
    q, k, _ = (x.transpose(1, 2) for x in sample.now)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean((0, 1))
    grid = sample.grid
    token = torch.arange(grid.video)
    at = (token // (grid.height * grid.width), token % (grid.height * grid.width))[axis]
    return (weights * (at[:, None] == at)).sum(-1).mean().item()


def test_made_data_has_the_structure_it_names():
    space, time, clusters = (synthetic(kind, SMALL) for kind in ("space", "time", "clusters"))
    assert mass_near(space, 0) > 0.6 > mass_near(time, 0)
    assert mass_near(time, 1) > 0.5 > mass_near(space, 1)
    assert mass_near(clusters, 0) < 0.7 and mass_near(clusters, 1) < 0.3
    assert not torch.equal(space.before[0], space.now[0])
    with pytest.raises(ValueError, match="known: space, time, clusters"):
        synthetic("motion")


def test_recorded_calls_are_those_of_the_model():
    samples = list(recorded("shapes-t2v", steps=5))
    assert [s.layer for s in samples] == list(range(len(samples))) and len(samples) > 2
    for sample in samples:
        assert sample.now[0].shape[:2] == (1, sample.grid.tokens)
        assert not torch.equal(sample.before[1], sample.now[1])


def test_a_model_is_taken_from_a_folder_and_the_time_is_bounded(monkeypatch):
    folders = {"shapes-t2v-long": str(tiny.path("shapes-t2v"))}  # its model, at the larger size
    first = next(recorded("shapes-t2v-long", steps=3, folder=folders["shapes-t2v-long"]))
    assert first.grid == TokenGrid(5, 16, 16) and first.now[0].shape[:2] == (1, 1280)
    assert present(None, folders) == ["shapes-t2v", "shapes-t2v-long"]
    assert list(samples(["shapes-t2v-long"], ["space"], folders, until=0.0)) == []
    with pytest.raises(SystemExit, match="unknown model 'wan'; known: shapes-t2v, shapes-t2v-long"):
        present(["wan"], {})
    monkeypatch.setattr(tiny, "NAMES", ("shapes-t2v",))
    assert present(None, {}) == ["shapes-t2v"]
    with pytest.raises(SystemExit, match="give --folder shapes-t2v-long=DIR"):
        present(["shapes-t2v-long"], {})


def test_the_front_has_what_nothing_else_beats():
    points = [(0.2, 0.5), (0.5, 0.2), (0.2, 0.6), (0.3, 0.5), (0.4, 0.3), (0.6, 0.2), (0.9, 0.1)]
    assert front(points) == [(0.2, 0.5), (0.4, 0.3), (0.5, 0.2), (0.9, 0.1)]
    assert front([(0.3, 0.1), (0.3, 0.1)]) == [(0.3, 0.1)] and front([]) == []
    patterns = {
        "exact blocks (control)": [(0.1, 0.0, 1.0)],
        "A": [(0.1, 0.4, 0.5), (0.3, 0.1, 0.6)],
        "B": [(0.2, 0.2, 0.75)],
    }
    errors, losses = fronts(patterns)
    assert errors == [(0.1, 0.4), (0.2, 0.2), (0.3, 0.1)]
    assert losses == [(0.1, 0.5), (0.2, 0.25)]


def test_measures_of_what_is_known():
    sample = synthetic("space", SMALL, heads=2)
    assert measure(SlidingTile((9, 9, 9), (2, 4, 4)), sample)["density"] is None  # left dense
    whole = measure(VSA(0.0, (2, 4, 4)), sample)
    assert whole == pytest.approx({"density": 1, "error": 0, "recall": 1}, abs=1e-4)
    exact, by_chance = (measure(kind(0.5), sample) for kind in (Exact, Random))
    assert exact["density"] == by_chance["density"] == 0.5
    assert exact["recall"] > by_chance["recall"] and exact["error"] < by_chance["error"]


def test_recall_is_the_mass_on_the_pairs_of_the_map():
    """Also where a pattern orders the tokens of each head its own way."""
    sample = synthetic("time", SMALL, heads=2)
    pattern = SparseVideoGen(0.4, block=64)
    found = measure(pattern, sample)
    state: dict = {}
    for fraction, call in ((0.24, sample.before), (0.4, sample.now)):
        routing = pattern.route(*call, Place(0, 1, fraction, None, None, SMALL, state))
    q, k, _ = (x.transpose(1, 2) for x in sample.now)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    assert routing is not None
    wanted = (weights * token_mask(routing)).sum(-1).mean().item()
    assert found["recall"] == pytest.approx(wanted, abs=2e-5)
    assert torch.allclose(
        dense(sample.now)[0].transpose(1, 2), weights @ sample.now[2].transpose(1, 2), atol=1e-5
    )


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(
        attention_quality,
        "samples",
        lambda models, kinds, *_: [synthetic("time", SMALL, 2)] * bool(kinds),
    )
    out = tmp_path / "attention.json"
    app = typer.Typer()
    app.command()(attention_quality.main)
    for names in (["VSA (untrained)"], ["VSA (untrained)", "Radial"]):
        arguments = [a for n in names for a in ("--pattern", n)]
        result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
        assert result.exit_code == 0, result.output
    cells = json.loads(out.read_text())["cells"]
    assert len(cells) == len(PATTERNS["VSA (untrained)"]) + len(PATTERNS["Radial"])
    assert out.with_suffix(".png").stat().st_size > 10_000
    page = out.with_suffix(".md").read_text()
    assert "| time (synthetic) | Radial |" in page and "320 tokens" in page
    assert " | error and recall |\n" in page
    out.with_suffix(".md").unlink()
    result = CliRunner().invoke(app, ["--report-only", "--out", str(out)])
    assert result.exit_code == 0 and out.with_suffix(".md").read_text() == page
    result = CliRunner().invoke(app, ["--minutes", "0", "--out", str(tmp_path / "none.json")])
    assert result.exit_code != 0 and "has no results to show" in str(result.exception)
