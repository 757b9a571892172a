"""A plan draws itself into a file, or says why it cannot."""

from dataclasses import dataclass

import pytest
from PIL import Image

from accel import Plan
from accel.caching import TaylorSeer
from accel.plan_picture import heading


@dataclass(frozen=True)
class Drawing(TaylorSeer):
    """A method that draws a line through what was measured."""

    def draw(self, figure, measured):
        figure.add_subplot().plot(measured["errors"])


MADE_FOR = {"model": "shapes-t2v", "scheduler": "Euler", "lora": "none", "guidance": 2.5}


def test_the_file_is_a_picture(tmp_path):
    plan = Plan((Drawing(),), "mine", "a note", MADE_FOR, {"errors": [3.0, 2.0, 1.0]})
    path = plan.plot(tmp_path / "plan.png")
    with Image.open(path) as picture:
        assert min(picture.size) > 500 and len(picture.convert("L").getcolors(256)) > 10
    assert plan.plot(str(tmp_path / "plan.svg")).read_text().startswith("<?xml")


def test_the_heading_says_what_the_plan_is_for():
    plan = Plan((Drawing(),), "mine", "calibrated " * 20, MADE_FOR)
    first, *rest = heading(plan)
    assert first == "mine · model shapes-t2v · scheduler Euler · guidance 2.5"
    assert len(rest) == 2 and max(map(len, rest)) <= 130


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing of this plan \(TaylorSeer\(interval=3\)\)"):
        Plan((TaylorSeer(interval=3),)).plot(tmp_path / "plan.png")
    with pytest.raises(ValueError, match=r"plan\.jpgg: the ending must be one of .*png"):
        Plan((Drawing(),)).plot(tmp_path / "plan.jpgg")
