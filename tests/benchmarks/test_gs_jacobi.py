"""Every way of inverting a flow is told with its passes, its time and how exact it is."""

import pytest

from accel.pipelines.tiny.tarflow import trained
from benchmarks.gs_jacobi import WAYS, lines, measure


def test_every_way_is_told_beside_one_position_after_another():
    found = measure(trained(steps=20), batch=2, turns=1)
    assert list(found) == ["one after another", *WAYS]
    assert found["one after another"]["passes"] == found["one after another"]["positions"] == 64
    for name in WAYS:
        made, plain = found[name], found["one after another"]
        assert made["passes"] < 64 < made["positions"] and made["psnr"] > 60
        assert made["speedup"] == pytest.approx(plain["ms"] / made["ms"])
    table = lines(2, found | {"Jacobi": found["Jacobi"] | {"ms": 1.25, "psnr": 80.0}})
    assert table[0][:4] == ["2", "one after another", "64", "64"] and table[0][5:] == ["1", "–"]
    assert table[1][1] == "Jacobi" and table[1][4] == "1.2" and table[1][6] == "80.0"
