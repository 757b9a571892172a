"""Both ways of gathering give the same tokens, and the table says which is faster."""

import pytest
import torch

from benchmarks.region_reading import SHARE, TOKENS, by_slices, by_token, chosen, measure, row


@pytest.mark.parametrize("together", [1, 16])
def test_both_ways_gather_the_same_tokens(together):
    values, starts = torch.rand(1, TOKENS, 2), chosen(together)
    taken = [way(values, starts, together)() for way in (by_token, by_slices)]
    assert torch.equal(*taken) and taken[0].shape[1] == SHARE * TOKENS
    assert (starts % together == 0).all() and len(starts.unique()) == len(starts)


def test_a_line_has_both_times_and_their_ratio():
    found = measure(64, 1, repeats=1)
    assert found["ratio"] == pytest.approx(found["slices_ms"] / found["token_ms"])
    line = row(64, found | {"token_ms": 0.5, "slices_ms": 0.25, "linear_ms": 80.0, "ratio": 0.5})
    assert line[:3] == ["64", "0.50 ms", "0.25 ms"] and line[4] == "80.00 ms"
    assert line[3].startswith("0.50 (")
