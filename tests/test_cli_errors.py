"""Bad input ends with exit code 2 and one line that says what was wrong, and no traceback."""

import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from accel.caching import HarmoniCa
from accel.caching.harmonica import mask_parts
from accel.cli import app
from accel.plan import Plan
from accel.registry import recognise
from tests.tiny_pipelines import PROMPT, make


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with saved pipelines, a folder that is none, and files that are no pictures."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("wan", "sd", "sd_img2img", "sdxl_img2img", "svd"):
        make(name).save_pretrained(folder / name)
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/model_index.json").write_text('{"_class_name": "WanPipeline"')
    (folder / "text.png").write_text("no picture")
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(*arguments: str) -> str:
    """The one line with which a command ends."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("accel: ") and "Traceback" not in line
    return line.removeprefix("accel: ")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--steps", "-3"], "--steps must be at least 1, got -3"),
        (["--steps", "many"], "Invalid value for '--steps'"),
        (["--guidance", "nan"], "--guidance must be a number of 0 or more, got nan"),
        (["--guidance", "inf"], "--guidance must be a number of 0 or more, got inf"),
        (["--guidance", "-1"], "--guidance must be a number of 0 or more"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--seed", str(2**63)], "--seed must be from 0"),
        (["--frames", "0"], "--frames must be at least 1"),
        (["--height", "0"], "--height must be at least 1"),
        (["--width", "-64"], "--width must be at least 1"),
        (["--fps", "0"], "--fps must be above 0"),
        (["--fps", "nan"], "--fps must be above 0"),
        (["--dtype", "float8"], "--dtype must be one of float32, bfloat16, float16"),
        (["--device", "tpu9"], "--device tpu9 does not work here"),
        (["--device", "cpu", "--offload"], "there is no GPU in use"),
        (["--image", "nowhere.png"], "--image nowhere.png: there is no such file"),
        (["--image", "."], "--image .: Is a directory"),
        (["--recipe", "fast", "--method", "TaylorSeer"], "exclude one another"),
        (["--method", "TailorSeer"], "did you mean TaylorSeer?"),
        (["--method", "TaylorSeer:intervall=2"], "did you mean interval?"),
        (["--method", "TaylorSeer:interval=0"], "TaylorSeer.interval must be at least 1, got 0"),
        (["--method", "TaylorSeer:interval="], "write Name:field=value"),
        (["--model", "shapes-t3v"], "did you mean shapes-t2v"),
        (["--model", "./nowhere"], "there is no such folder"),
        (["--model", "a/b/c"], "there is no such folder"),
        (["--model", "nobody/nothing"], "the hub did not give it"),
        (["--out", "/dev/null/out"], "--out /dev/null/out: cannot write there: Not a directory"),
        (["--max-bytes", "much"], "--max-bytes: cannot read 'much' as bytes"),
        (["--keep-on", "disk"], "'disk' is not one of 'device', 'cpu'"),
        (["--nonsense"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values(arguments, says):
    assert says in refused("generate", PROMPT, *arguments)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt(prompt):
    assert "the prompt is empty" in refused("generate", prompt)


def test_missing_prompt():
    assert "Missing argument" in refused("generate")


@pytest.mark.parametrize(
    "model, arguments, says",
    [
        ("empty", [], "has no model_index.json; --model takes a folder"),
        ("text.png", [], "is a file; --model takes a folder"),
        ("broken", [], "cannot load"),
        ("wan", ["--height", "40"], "--height must be a multiple of 16 for this model, got 40"),
        ("wan", ["--width", "8"], "try 16"),
        ("wan", ["--height", "1024"], "--height is at most 512 for this model"),
        ("wan", ["--frames", "16"], "--frames must be 4k+1 for this model, got 16; try 13 or 17"),
        ("wan", ["--recipe", "balnced"], "did you mean balanced?"),
        ("wan", ["--method", "DeepCache"], "DeepCache works on unet models"),
        (
            "wan",
            ["--method", "TaylorSeer", "--method", "FirstBlockCache"],
            "TaylorSeer and FirstBlockCache cannot be combined",
        ),
        ("wan", ["--method", "TaylorSeer", "--method", "taylorseer"], "TaylorSeer is given twice"),
        ("wan", ["--image", "red.png"], "--image: WanPipeline takes no picture"),
        ("sd", ["--image", "text.png"], "not a picture that Pillow can read"),
        ("sd", ["--image", "red.png", "--height", "36"], "--height must be a multiple of 8 here"),
        ("sd", ["--image", "red.png", "--steps", "1"], "give at least 2"),
        ("sd", ["--height", "36", "--width", "32"], "divisible by 8"),
        ("sd", ["--height", "33"], "--height must be a multiple of 2 for this model, got 33"),
        ("sd", ["--frames", "5"], "--frames: StableDiffusionPipeline takes no num_frames"),
        ("sd_img2img", [], "starts from a picture; give one with --image FILE"),
        ("sdxl_img2img", [], "starts from a picture; give one with --image FILE"),
        ("svd", [], "starts from a picture; give one with --image FILE"),
    ],
)
def test_what_a_model_cannot_do(models, model, arguments, says):
    paths = [str(models / a) if a.endswith(".png") else a for a in arguments]
    assert says in refused("generate", PROMPT, "--model", str(models / model), *paths)


def test_damaged_shipped_model(monkeypatch):
    def load(name, dtype):
        raise FileNotFoundError(f"{name}/vae/x.safetensors is missing; get it back with git")

    monkeypatch.setattr("accel.pipelines.tiny.load", load)
    line = refused("generate", PROMPT)
    assert line.endswith("shapes-t2v/vae/x.safetensors is missing; get it back with git")


def test_more_bytes_than_allowed():
    result = CliRunner().invoke(app, ["generate", PROMPT, "--max-bytes", "1kB"])
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("accel: --max-bytes: ") and "max_bytes is 1000 (1.0 kB)" in line


@pytest.mark.parametrize(
    "method, says",
    [
        ("TruncatedStart:start=0.8", "accel: TruncatedStart begins from latents: pass them"),
        ("harmonica.json", "accel: HarmoniCa's mask is for 3 steps, this run has 4; run 3"),
    ],
)
def test_what_a_method_refuses_when_the_run_begins(models, method, says):
    option = "--method"
    if method == "harmonica.json":
        parts = mask_parts(recognise(make("wan"))[0], make("wan").transformer)
        modules = 1 + max(unit for part in parts for unit in part.units)
        Plan((HarmoniCa(mask=("1" * modules,) * 3),)).save(method)
        option = "--plan"
    size = ("--height", "32", "--width", "32", "--frames", "5", "--steps", "4")
    place = ("--model", str(models / "wan"), *size, option, method)
    result = CliRunner().invoke(app, ["generate", PROMPT, *place])
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(says)


def test_a_shell_sees_one_line_and_code_2():
    """The whole process, with what the libraries print while they are imported."""
    result = subprocess.run(
        [sys.executable, "-m", "accel", "generate", PROMPT, "--steps", "0", "--json"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "accel: --steps must be at least 1, got 0\n"


def test_unknown_command():
    assert "'generate'?" in refused("genrate", "a")


def test_unknown_names_in_methods():
    assert "did you mean DeepCache" in refused("methods", "DeepCach")
    assert "unknown family 'unet'" in refused("methods", "--family", "unet")
