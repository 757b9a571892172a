"""The wheel and the source archive hold everything, and what is installed works from anywhere."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("caching", "samplers", "sparse_attn", "distill", "pipelines", "app")
PROBE_WEIGHTS = "pipelines/tiny/probe/transformer/model.safetensors"


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """Output of a fresh interpreter; a failure shows what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the project with one subpackage and one model more than it has."""
    copy = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("accel", *FOLDERS, "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, copy)
    (copy / "caching/probe").mkdir()
    (copy / "caching/probe/__init__.py").write_text("")
    (copy / PROBE_WEIGHTS).parent.mkdir(parents=True)
    (copy / PROBE_WEIGHTS).write_bytes(b"weights")
    (copy / PROBE_WEIGHTS).parent.with_name("model_index.json").write_text("{}")
    return copy


@pytest.fixture(scope="module")
def archives(source) -> tuple[Path, Path]:
    """Source archive, and the wheel that was built from its contents."""
    python("-m", "build", "--no-isolation", cwd=source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return sdist, wheel


def expected(source: Path) -> set[str]:
    """Modules and files of shipped models, relative to the project's root."""
    modules = [path for top in ("accel", *FOLDERS) for path in (source / top).rglob("*.py")]
    models = [index.parent for index in (source / "pipelines/tiny").rglob("model_index.json")]
    weights = [path for model in models for path in model.rglob("*") if path.is_file()]
    files = [*modules, *weights, source / "accel/py.typed"]
    return {path.relative_to(source).as_posix() for path in files}


def test_sdist_is_complete(source, archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    project = {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "tests/test_packaging.py"}
    assert expected(source) | project <= names
    assert PROBE_WEIGHTS in names


def test_wheel_is_complete_and_maps_the_folders(source, archives):
    names = set(zipfile.ZipFile(archives[1]).namelist())
    mapped = {n if n.startswith("accel/") else f"accel/{n}" for n in expected(source)}
    assert mapped <= names
    assert {f"accel/{PROBE_WEIGHTS}", "accel/caching/probe/__init__.py"} <= names
    assert {name.partition("/")[0] for name in names} == {"accel", "accel-0.1.0.dist-info"}
    assert not any("__pycache__" in name or name.startswith("accel/tests") for name in names)


def test_wheel_runs_outside_the_project(archives, tmp_path):
    zipfile.ZipFile(archives[1]).extractall(tmp_path / "site")
    site = str(tmp_path / "site")
    shown = python(
        "-c",
        "import accel, accel.caching.probe as sub; print(accel.__file__, sub.__file__)",
        cwd=tmp_path,
        PYTHONPATH=site,
    )
    assert [name.startswith(site) for name in shown.split()] == [True, True]
    assert "0.1.0" in python("-m", "accel", "--version", cwd=tmp_path, PYTHONPATH=site)


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_installed_package_runs_from_anywhere(place, tmp_path):
    cwd = ROOT if place == "root" else tmp_path
    assert "0.1.0" in python("-m", "accel", "--version", cwd=cwd)
    script = Path(sys.executable).parent / "accel"
    shown = subprocess.run([script, "--version"], cwd=cwd, capture_output=True, text=True)
    assert (shown.returncode, "0.1.0" in shown.stdout) == (0, True), shown.stderr


def test_readme_begins_with_the_two_commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [len(block.strip().splitlines()) for block in blocks[:2]] == [1, 1]
    assert "accel generate" in blocks[0] and "--compare" in blocks[0]
    assert "pytest" in blocks[1]
