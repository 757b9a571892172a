"""Cells are run once, survive interruption, and say what they were measured on."""

import json

import pytest
import torch

from benchmarks.cells import Cells, environment, name


def test_a_finished_cell_is_not_run_again(tmp_path):
    path = tmp_path / "results" / "overhead.json"
    runs = []

    def compute():
        runs.append(1)
        return {"ratio": 1.25, "ratios": [1.0, 1.5]}

    cells = Cells(path)
    first = cells.run(compute, model="wan", interval=3)
    assert cells.run(compute, model="wan", interval=3) == first
    assert Cells(path).run(compute, model="wan", interval=3) == first == compute()
    assert len(runs) == 2
    Cells(path).run(compute, model="wan", interval=4)
    assert len(runs) == 3 and list(Cells(path).cells) == [
        "model=wan interval=3",
        "model=wan interval=4",
    ]
    assert "model=wan interval=3" in Cells(path)


def test_an_interrupted_cell_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "cells.json"
    cells = Cells(path)
    cells.run(lambda: {"x": 1}, cell=1)
    before = path.read_bytes()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells.run(interrupted, cell=2)
    with pytest.raises(ValueError, match="not JSON compliant"):
        cells.run(lambda: {"x": float("nan")}, cell=3)
    with pytest.raises(TypeError, match="not JSON serializable"):
        cells.run(lambda: {"x": object()}, cell=4)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["cells.json"]
    assert list(cells.cells) == ["cell=1"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "cells.json"
    Cells(path).run(lambda: {"x": 1}, cell=1)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        Cells(path).run(lambda: {"x": 2}, cell=2)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_environment_is_recorded_once_and_changes_are_kept_apart(tmp_path):
    path = tmp_path / "cells.json"
    Cells(path, seed=1).run(lambda: {}, cell=1)
    Cells(path, seed=1).run(lambda: {}, cell=2)
    Cells(path, seed=2).run(lambda: {}, cell=3)
    content = json.loads(path.read_text())
    assert [e["seed"] for e in content["environments"]] == [1, 2]
    assert [c["environment"] for c in content["cells"].values()] == [0, 0, 1]
    cell = content["cells"]["cell=1"]
    assert cell["fields"] == {"cell": 1} and cell["seconds"] >= 0 and "T" in cell["date"]


def test_environment_names_hardware_versions_and_threads():
    found = environment(seed=7)
    assert found["threads"] == torch.get_num_threads() and found["cores"] >= 1
    assert found["cpu"] and found["seed"] == 7
    assert found["versions"]["torch"] == torch.__version__
    assert {"python", "accel", "diffusers"} <= found["versions"].keys()
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "no file of"), ("{}", "no file of")]
)
def test_another_file_is_not_overwritten(tmp_path, text, message):
    path = tmp_path / "cells.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Cells(path)
    assert path.read_text() == text


def test_name_needs_fields():
    assert name(model="wan", steps=50) == "model=wan steps=50"
    with pytest.raises(ValueError, match="at least one field"):
        name()
