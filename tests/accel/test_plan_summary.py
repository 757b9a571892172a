"""A plan in the terminal says what is in it, in words."""

import io

from rich.console import Console

from accel import Plan
from accel.caching import Planned, TaylorSeer
from accel.plan_summary import found, show

MEASURED = {
    **{"budget": 3, "steps": 8, "samples": 4, "held_out": 4, "held_out_db": 41.26, "cost": 6.5},
    **{"tried": 2, "error": [0.1, 0.2], "output_db": 41.26, "module_db": 40.0},
    **{"gradient_gain": 0.5, "gradient_rounds": 7, "something_new": 1.25},
}


def test_measurements_are_said_and_unknown_ones_shown():
    assert found(MEASURED) == {
        "computes": "3 of 8 steps, 2.67x fewer",
        "held out": "41.3 dB PSNR to the full run, in latent space, 4 samples, each fitted on the "
        "others; the best of 2 tried, so expect less",
        "cost": "6.5 full runs of one sample, 4 of them to record",
        "compared": "whole outputs 41.3 dB, modules 40.0 dB",
        "gradient fit": "+0.50 dB after 7 rounds",
        "plans measured": "2",
        "something new": "1.25",
    }
    assert found({}) == {}


def test_that_nothing_was_held_out_is_said():
    (text,) = found({"samples": 1, "held_out": 0, "held_out_db": 50.0}).values()
    assert text.endswith("on the one sample it was fitted to: nothing was held out")
    (text,) = found({"held_out": 4, "held_out_db": 50.0}).values()
    assert text.endswith("4 samples, each fitted on the others")


def test_steps_are_marked_and_what_it_is_for_is_told():
    plan = Plan(
        (Planned(nodes=(0, 2, 5), steps=8, guidance=(0, 5)),),
        note="by hand",
        fingerprint={"model": "wan", "steps": 8},
        measured=MEASURED,
    )
    text = shown(plan)
    for part in ("█░█░░█░░", "steps 0 2 5", "guidance at 0 5", "plan.json", "41.3 dB", "by hand"):
        assert part in text


def test_long_runs_are_cut_and_other_methods_described():
    assert "░ +40" in shown(Plan((Planned(nodes=(0, 99), steps=100),)))
    assert "TaylorSeer(interval=3)" in shown(Plan((TaylorSeer(interval=3),)))


def shown(plan):
    console = Console(record=True, width=100, file=io.StringIO())
    show(console, plan, "plan.json")
    return console.export_text()
