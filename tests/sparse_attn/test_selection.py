import pytest
import torch

from accel.sparse_attn.selection import force, select

PAPER = torch.tensor([[0.5, 0.3, 0.15, 0.05]])


def kept(map):
    return [row.nonzero().flatten().tolist() for row in map]


def loop_select(scores, keep, mass, include_crossing, minimum):
    """One row, entry by entry."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    number = minimum
    if keep is not None:
        number = max(number, int(keep * len(scores) + 0.5))
    if mass is not None:
        total, covered = 0.0, 0
        for j in order:
            if include_crossing:
                if total >= mass:
                    break
                total += scores[j]
            else:
                total += scores[j]
                if total > mass:
                    break
            covered += 1
        number = max(number, covered)
    return sorted(j for j in order[:number] if scores[j] > float("-inf"))


def test_both_cdf_rules():
    """The off-by-one of SpargeAttn: two blocks hold .8, the cover of .9 needs three."""
    assert kept(select(PAPER, mass=0.9, include_crossing=False)) == [[0, 1]]
    assert kept(select(PAPER, mass=0.9)) == [[0, 1, 2]]
    assert kept(select(PAPER, mass=0.4, include_crossing=False)) == [[0]]  # by the minimum
    assert kept(select(PAPER, mass=0.4, include_crossing=False, minimum=0)) == [[]]


@pytest.mark.parametrize("include_crossing", [True, False])
@pytest.mark.parametrize(("keep", "mass"), [(0.3, None), (None, 0.7), (0.4, 0.6), (0.0, 1.0)])
def test_rows_match_the_loop(keep, mass, include_crossing):
    draw = torch.Generator().manual_seed(1)
    scores = (3 * torch.randn(2, 3, 6, 9, generator=draw, dtype=torch.float64)).softmax(-1)
    for minimum in (0, 1, 4):
        found = select(
            scores, keep=keep, mass=mass, include_crossing=include_crossing, minimum=minimum
        )
        wanted = [
            loop_select(row, keep, mass, include_crossing, minimum)
            for row in scores.flatten(0, 2).tolist()
        ]
        assert kept(found.flatten(0, 2)) == wanted


def test_equal_scores_and_infinities():
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [float("-inf")] * 3 + [0.0]])
    assert kept(select(scores, keep=0.5)) == [[0, 1], [3]]
    assert not select(torch.full((2, 3), -torch.inf), keep=1.0, minimum=2).any()


def test_budgets_per_head_and_per_row():
    scores = torch.arange(24.0).view(1, 2, 3, 4)
    rows = select(scores, keep=torch.tensor([[[0.25], [0.75]]]))
    assert rows.sum(-1).tolist() == [[[1, 1, 1], [3, 3, 3]]]
    head = select(scores, keep=torch.tensor([[0.25, 0.5]]), budget="head", minimum=0)
    assert head.sum(-1).tolist() == [[[0, 0, 3], [0, 2, 4]]]
    fed = select(scores, keep=torch.tensor([[0.25, 0.5]]), budget="head", minimum=1)
    assert fed.sum(-1).tolist() == [[[1, 1, 3], [1, 2, 4]]]


def test_forced_rows_and_columns():
    map = torch.zeros(3, 4, dtype=torch.bool)
    rows, columns = torch.tensor([0, 1, 0]).bool(), torch.tensor([0, 0, 0, 1]).bool()
    assert kept(force(map, rows, columns)) == [[3], [0, 1, 2, 3], [3]]
    assert not force(map).any()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="needs keep"):
        select(PAPER)
    with pytest.raises(ValueError, match="mass is a share from 0 to 1, got 90"):
        select(PAPER, mass=90)
