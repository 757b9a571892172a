"""Plans in a model's folder: recipes find them, and calibration can put them there."""

import json

import pytest
from typer.testing import CliRunner

import accel
from accel import Plan, plan_beside
from accel.caching import Planned, TaylorSeer
from accel.cli import app
from accel.registry import recognise
from tests.tiny_pipelines import TINY, call, make

HALF, THIRD = TaylorSeer(interval=2), TaylorSeer(interval=3)


def saved(name, folder):
    """A pipeline that was loaded from `folder`."""
    make(name).save_pretrained(folder)
    loaded = type(make(name)).from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_recipes_of_the_folder_come_before_those_of_the_family(tmp_path):
    pipe = saved("wan", tmp_path)
    assert plan_beside.find(pipe, "fast") is None
    path = plan_beside.keep(pipe, "fast", Plan((THIRD,), note="mine"))
    assert path == tmp_path / "acceleration.json"
    plan_beside.keep(pipe, "draft", Plan((HALF,)))
    assert pipe.enable_acceleration("fast").plan == Plan((THIRD,), "fast", f"{path}: mine")
    assert pipe.enable_acceleration("draft").plan == Plan((HALF,), "draft", str(path))
    family = recognise(pipe)[0]
    assert pipe.enable_acceleration().plan == family.recipes["balanced"]()
    plan_beside.keep(pipe, "fast", Plan((HALF,)))
    assert list(json.loads(path.read_text())) == ["fast", "draft"]
    assert pipe.enable_acceleration("fast").plan.methods == (HALF,)


def test_a_file_with_one_plan_is_balanced_and_stays_when_others_come(tmp_path):
    pipe = saved("sd", tmp_path)
    Plan((HALF,)).save(tmp_path / "acceleration.json")
    plan_beside.keep(pipe, "fast", Plan((THIRD,)))
    assert pipe.enable_acceleration("balanced").plan.methods == (HALF,)
    assert pipe.enable_acceleration("fast").plan.methods == (THIRD,)


@pytest.mark.parametrize("text", ["[]", "{", '{"balanced": 3}', '{"balanced": {"nodes": []}}'])
def test_a_file_that_is_none_is_named(tmp_path, text):
    pipe = saved("sd", tmp_path)
    (tmp_path / "acceleration.json").write_text(text)
    with pytest.raises(ValueError, match=r"acceleration\.json: not a plan"):
        pipe.enable_acceleration()
    assert not pipe.acceleration


def test_a_pipeline_from_nowhere_has_no_folder():
    with pytest.raises(ValueError, match="save the pipeline with save_pretrained"):
        plan_beside.keep(make("sd"), "fast", Plan((HALF,)))


def test_a_plan_made_here_serves_as_a_recipe_and_is_refused_elsewhere(tmp_path):
    pipe = saved("sd", tmp_path / "sd")
    prompts = ["a red circle", "a blue square"]
    arguments = {"progress": False, **TINY["sd"].call}
    plan = accel.calibrate(pipe, prompts, steps=6, budget=3, guidance_scale=4.0, **arguments)
    plan_beside.keep(pipe, "fast", plan)
    found = pipe.enable_acceleration("fast")
    (method,) = found.plan.methods
    assert isinstance(method, Planned) and found.plan.measured == plan.measured
    text = found.explain(6)
    assert "recipe fast" in text and "acceleration.json: calibrated on 2 samples" in text
    call(pipe, "sd", steps=6)
    assert found.report().computed_fraction == pytest.approx(0.5)
    other = saved("wan", tmp_path / "wan")
    (tmp_path / "sd" / "acceleration.json").rename(tmp_path / "wan" / "acceleration.json")
    with pytest.raises(ValueError, match="made for architecture UNet2DConditionModel"):
        other.enable_acceleration("fast")


def test_the_command_keeps_a_plan_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("sd").save_pretrained("model")
    (tmp_path / "prompts.txt").write_text("one\n")
    made = CliRunner().invoke(
        app,
        [
            *("calibrate", "--budget", "2", "--model", "model", "--prompts", "prompts.txt"),
            *("--steps", "4", "--height", "32", "--width", "32", "--recipe", "fast"),
        ],
    )
    plan_beside.keep(type(make("sd")).from_pretrained("model"), "draft", Plan((HALF,)))
    assert made.exit_code == 0, made.output
    assert "--recipe fast" in made.output and not (tmp_path / "plan.json").exists()
    shown = CliRunner().invoke(app, ["plan", "model/acceleration.json"])
    assert shown.exit_code == 0 and "model/acceleration.json: fast" in shown.output
    assert len(plan_beside.read(tmp_path / "model" / "acceleration.json")["fast"].methods) == 1


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_interrupt_leaves_the_older_plan_whole(tmp_path, monkeypatch):
    pipe = saved("sd", tmp_path)
    path = plan_beside.keep(pipe, "draft", Plan((HALF,)))
    alone = Plan((HALF,)).save(tmp_path / "plan.json")
    before = path.read_text(), alone.read_text()
    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan_beside.keep(pipe, "fast", Plan((THIRD,)))
    with pytest.raises(KeyboardInterrupt):
        Plan((THIRD,)).save(alone)
    assert (path.read_text(), alone.read_text()) == before
