import pytest
import torch

from accel.sparse_attn.gilbert import gilbert
from accel.token_grid import TokenGrid


@pytest.mark.parametrize(
    "sizes", [(4, 4, 4), (5, 7, 9), (1, 8, 8), (3, 5, 2), (1, 1, 7), (2, 1, 9), (9, 17, 30)]
)
def test_visits_every_token_once_by_short_steps(sizes):
    order = gilbert(TokenGrid(*sizes))
    assert order.sort().values.tolist() == list(range(len(order)))
    rows = order % (sizes[1] * sizes[2])
    places = torch.stack([order // (sizes[1] * sizes[2]), rows // sizes[2], rows % sizes[2]], 1)
    steps = places.diff(dim=0).abs().sum(1)
    even = all(side % 2 == 0 or side == 1 for side in sizes)
    assert steps.max() <= (1 if even else 2)
    assert (steps > 1).float().mean() < 0.1


def test_text_is_not_part_of_it():
    assert torch.equal(gilbert(TokenGrid(2, 3, 4, 7, 9)), gilbert(TokenGrid(2, 3, 4)))
