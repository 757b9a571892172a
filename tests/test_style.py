"""Ruff, the type checker, and the rules of the layout that neither of them knows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("caching", "samplers", "sparse_attn", "distill", "pipelines", "app")
SOURCES = sorted(
    path
    for folder in ("accel", *FOLDERS, "tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
)


def run(*command: str, cwd: Path = ROOT) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("check", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff(check):
    run("ruff", *check, "--no-cache", ".")


def test_types(tmp_path):
    """Type checkers cannot follow the mapped folders, so they get a folder of symbolic links."""
    package = tmp_path / "accel"
    package.mkdir()
    for source in [*(ROOT / "accel").iterdir(), *(ROOT / folder for folder in FOLDERS)]:
        (package / source.name).symlink_to(source)
    config = str(ROOT / "pyproject.toml")
    run("mypy", "--config-file", config, "--cache-dir", str(tmp_path / "cache"), ".", cwd=tmp_path)


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file of a mapped folder imports."""
    names: set[str] = set()
    here = ("accel", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_packages_do_not_import_one_another(folder):
    """Imports point from the packages to `accel`; only the demonstration stands above them."""
    others = [f"accel.{other}" for other in FOLDERS if other != folder]
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in imported(path)
        if folder != "app" and any(f"{name}.".startswith(f"{other}.") for other in others)
    ]
    assert not found


def test_files_are_short():
    long = {
        str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().split("\n"))) > 301
    }
    assert {name: n for name, n in long.items() if "kernels/" not in name} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_second_copy_is_refused(folder):
    """`import caching` at the repository's root would be a copy with a registry of its own."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert f"ImportError: import accel.{folder}, not {folder}" in result.stderr
