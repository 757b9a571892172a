"""`accel calibrate` on the shipped models, its plan in `accel generate`, and bad input."""

import json
import shlex

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from accel.caching import TaylorSeer
from accel.cli import app
from accel.pipelines import tiny
from accel.plan import Plan
from accel.prompts import GENERIC, drawn
from tests.tiny_pipelines import make

PROMPT = "a red circle moving left on a dark background"
SMALL = ("--height", "32", "--width", "32", "--frames", "5")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def accel(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("name", ["teacache", "MagCache:threshold=2.0,longest=2"])
def test_a_plan_is_made_and_used(name, tmp_path):
    made = accel("calibrate", "--for", name, "--samples", "2", "--steps", "6", *SMALL)
    assert made.exit_code == 0, made.output
    assert "calibrated on 2 samples" in made.output
    plan = Plan.load("plan.json")
    assert plan.fingerprint["steps"] == 6 and plan.fingerprint["model"] == "shapes-t2v"
    (method,) = plan.methods
    if type(method).__name__ == "MagCache":
        assert (method.threshold, method.longest) == (2.0, 2)
        assert len(method.ratios) == len(method.uncond) == 6
        assert method.ratios[0] == 1 != method.ratios[1]
    else:
        assert len(method.coefficients) == 5
    used = accel("generate", PROMPT, "--plan", "plan.json", "--steps", "6", *SMALL, "--json")
    assert used.exit_code == 0, used.output
    assert json.loads(used.stdout)["methods"][0]["method"] == type(method).__name__


def test_a_budget_gives_a_plan_that_says_what_was_found(tmp_path):
    call = ("--steps", "6", "--guidance", "3", *SMALL)
    made = accel("calibrate", "--budget", "3", "--samples", "2", *call, "--picture", "plan.png")
    assert made.exit_code == 0, made.output
    plan = Plan.load("plan.json")
    assert len(plan.methods[0].nodes) == 3 and plan.fingerprint["guidance"] == 3
    held_out = f"{plan.measured['held_out_db']:.1f} dB PSNR"
    for text in ("3 of 6 steps, 2.00x fewer", held_out, "full runs of one sample", "weights"):
        assert text in made.output
    with Image.open("plan.png") as picture:
        assert picture.width > 1000
    line = next(row for row in made.output.splitlines() if row.startswith("  use it  accel "))
    used = accel(*shlex.split(line)[3:], "--json")
    assert used.exit_code == 0, used.output
    assert "note" not in used.stderr  # it is the run that the plan was made for
    assert json.loads(used.stdout)["computed_fraction"] == pytest.approx(0.5)
    shown = accel("plan", "plan.json", "--picture", "again.svg")
    assert shown.exit_code == 0 and held_out in shown.output
    assert "picture again.svg" in shown.output and (tmp_path / "again.svg").exists()


def test_a_speed_up_is_a_budget():
    made = accel("calibrate", "--speedup", "3", "--samples", "1", "--steps", "6", *SMALL)
    assert made.exit_code == 0, made.output
    assert "2 of 6 steps, 3.00x fewer" in made.output
    assert "nothing was held out" in " ".join(made.output.replace("│", " ").split())
    assert len(Plan.load("plan.json").methods[0].nodes) == 2


def test_plans_without_measurements_are_shown_and_bad_files_named(tmp_path):
    Plan((TaylorSeer(interval=3),), "mine", "by hand").save("plan.json")
    shown = accel("plan", "plan.json")
    assert shown.exit_code == 0 and "TaylorSeer(interval=3)" in shown.output
    for arguments, message in (
        (["none.json"], "cannot read the plan none.json"),
        (["plan.json", "--picture", "plan.png"], "--picture nothing of this plan (TaylorSeer"),
        (["plan.json", "--picture", "/proc/x/plan.png"], "cannot write there"),
    ):
        result = accel("plan", *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
        assert "Traceback" not in result.output


def test_prompts_come_from_a_file_and_go_round(tmp_path):
    make("wan").save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    made = accel(
        *("calibrate", "--for", "magcache", "--model", "model", "--prompts", "prompts.txt"),
        *("--samples", "3", "--steps", "2", "--out", "wan.json", *SMALL),
    )
    assert made.exit_code == 0, made.output
    assert Plan.load("wan.json").note == "calibrated on 3 samples"


def test_eight_prompts_are_drawn_from_a_long_file_or_from_our_own_list(tmp_path):
    make("wan").save_pretrained(tmp_path / "model")
    lines = [f"prompt {i}" for i in range(1000)]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    for given, known in ((("--prompts", "prompts.txt"), lines), ((), list(GENERIC))):
        made = accel(
            *("calibrate", "--for", "magcache", "--model", "model", *given),
            *("--steps", "2", "--out", "wan.json", *SMALL),
        )
        assert made.exit_code == 0, made.output
        assert Plan.load("wan.json").note == "calibrated on 8 samples"
        line = next(row for row in made.output.splitlines() if row.startswith("  use it  accel "))
        assert shlex.split(line)[4] == drawn(known, None, 0)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "teacash"], "unknown method 'teacash'; did you mean TeaCache"),
        (["--for", "teacache", "--out", "/proc/x/plan.json"], "cannot write there"),
        (["--for", "teacache", "--prompts", "none.txt"], "--prompts none.txt: No such file"),
        (["--for", "deepcache", "--steps", "1"], "DeepCache is not calibrated; these are:"),
        ([], "give either --budget N (steps computed, such as 12) or --speedup R"),
        (["--budget", "4", "--speedup", "2"], "give either --budget N"),
        (["--budget", "51"], "--budget must be at most the 50 steps of a run, got 51"),
        (["--speedup", "1"], "--speedup must be above 1, got 1"),
        (["--budget", "4", "--effort", "hard"], "--effort must be one of normal, high"),
        (["--budget", "4", "--picture", "/proc/x/plan.png"], "--picture /proc/x/plan.png: cannot"),
        (["--budget", "4", "--out", "."], "--out .: cannot write there: Is a directory"),
        (["--budget", "4", "--picture", "."], "--picture .: cannot write there: Is a directory"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = accel("calibrate", *arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


@pytest.fixture
def uncalibrated(monkeypatch):
    """Calibration, which must not begin."""

    def calibrate(*_, **__):
        raise AssertionError("calibrated, though the plan cannot be kept")

    monkeypatch.setattr("accel.cli_calibrate.calibrate", calibrate)


@pytest.mark.parametrize("content", ["{", '{"_class_name": "Other"}', "/proc/x/plan.json"])
def test_a_plan_that_cannot_be_kept_is_refused_before_calibrating(content, tmp_path, uncalibrated):
    make("sd").save_pretrained(tmp_path / "model")
    beside = tmp_path / "model" / "acceleration.json"
    beside.symlink_to(content) if content[0] == "/" else beside.write_text(content)
    result = accel("calibrate", "--budget", "2", "--model", "model", "--recipe", "fast")
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert "accel: --recipe fast: " in result.output and "give --out instead" in result.output
    assert beside.is_symlink() or beside.read_text() == content


def test_a_plan_that_cannot_be_saved_after_all_is_printed(monkeypatch):
    plan = Plan((TaylorSeer(interval=3),))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accel.cli_calibrate.calibrate", lambda *_, **__: plan)
    monkeypatch.setattr("os.replace", full)
    result = accel("calibrate", "--budget", "2", "--steps", "4")
    assert result.exit_code == 2 and Plan.from_json(result.stdout) == plan
    assert "--out plan.json: No space left on device; the plan is printed" in result.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("tried to allocate 80 GiB"), "80 GiB); give a smaller --height"),
        (ValueError("a bug of the model"), None),
    ],
)
def test_of_a_failed_calibration_only_what_helps_is_one_line(error, said, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("diffusers.WanTransformer3DModel.forward", fail)
    result = accel("calibrate", "--budget", "2", "--steps", "4", *SMALL)
    if said is None:
        assert result.exception is error
    else:
        assert result.exit_code == 1 and said in result.output, result.output


def used_line(made):
    """The arguments of the command that `calibrate` says to use."""
    assert made.exit_code == 0, made.output
    line = next(row for row in made.output.splitlines() if row.startswith("  use it  accel "))
    return shlex.split(line)[3:]


def test_a_sampler_is_used_with_its_own_number_of_steps():
    options = ("--for", "Sampler:steps=3", "--samples", "1", "--steps", "6")
    line = used_line(accel("calibrate", *options, *SMALL))
    assert line[line.index("--steps") + 1] == "3"
    used = accel(*line, "--json")
    assert used.exit_code == 0 and len(json.loads(used.stdout)["methods"][0]["levels"]) == 3


def test_a_model_that_starts_from_a_picture_is_calibrated_from_one(tmp_path):
    make("sd_img2img").save_pretrained(tmp_path / "model")
    Image.new("RGB", (32, 32), "red").save("red.png")
    place = ("--model", "model", "--image", "red.png")
    line = used_line(accel("calibrate", "--budget", "2", "--samples", "1", "--steps", "5", *place))
    assert line[line.index("--image") + 1] == "red.png"
    assert Plan.load("plan.json").fingerprint["steps"] == 4  # strength 0.8 of 5
    used = accel(*line, "--json")
    assert used.exit_code == 0, used.output
    assert json.loads(used.stdout)["computed_fraction"] == pytest.approx(0.5)


def test_a_model_without_prompts_is_not_calibrated(tmp_path):
    make("svd").save_pretrained(tmp_path / "model")
    Image.new("RGB", (32, 32), "red").save("red.png")
    place = ("--model", "model", "--image", "red.png")
    result = accel("calibrate", "--budget", "2", *place)
    assert result.exit_code == 2
    assert "accel: StableVideoDiffusionPipeline takes no prompt" in result.stderr


def test_a_plan_is_given_alone_and_must_be_one(tmp_path):
    (tmp_path / "no.json").write_text("{}")
    for arguments, message in (
        (["--plan", "no.json", "--recipe", "fast"], "exclude one another"),
        (["--plan", "no.json"], "no.json: not a plan"),
        (["--plan", "none.json"], "cannot read the plan none.json"),
    ):
        result = accel("generate", PROMPT, *arguments)
        assert result.exit_code == 2 and message in result.output


def test_a_file_beside_a_model_is_a_plan_where_it_holds_one(tmp_path):
    one = json.loads(Plan((TaylorSeer(interval=2, warmup=1),)).to_json())
    (tmp_path / "acceleration.json").write_text(json.dumps({"fast": one}))
    size = (*SMALL, "--steps", "4")
    used = accel("generate", PROMPT, "--plan", "acceleration.json", *size, "--json")
    assert used.exit_code == 0, used.output
    assert json.loads(used.stdout)["methods"][0]["interval"] == 2
    (tmp_path / "acceleration.json").write_text(json.dumps({"fast": one, "draft": one}))
    result = accel("generate", PROMPT, "--plan", "acceleration.json", *size)
    assert result.exit_code == 2
    says = "--plan acceleration.json holds several plans (fast, draft): give --recipe NAME instead"
    assert says in result.stderr


def test_captions_are_always_the_same_and_fit_the_model():
    assert tiny.captions("shapes-t2v", 3) == tiny.captions("shapes-t2v", 5)[:3]
    assert any("moving" in text for text in tiny.captions("shapes-t2v", 8))
    assert not any("moving" in text for text in tiny.captions("shapes-t2i", 8))
