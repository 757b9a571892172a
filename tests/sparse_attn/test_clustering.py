from itertools import pairwise

import torch

from accel.sparse_attn.clustering import cluster_blocks, cluster_means, count, k_means


def loop_k_means(x, centroids, rounds):
    """One head: x (N, D), centroids (C, D)."""
    centroids = [c.clone() for c in centroids]
    labels = []
    for _ in range(rounds):
        labels = [min(range(len(centroids)), key=lambda c: (t - centroids[c]).norm()) for t in x]
        for c in range(len(centroids)):
            own = [t for t, label in zip(x, labels, strict=True) if label == c]
            if own:
                centroids[c] = torch.stack(own).mean(0)
    return labels, torch.stack(centroids)


def test_matches_the_loop_and_empty_clusters_stay():
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, 50, 4, generator=draw)
    first = torch.randn(2, 3, 7, 4, generator=draw)
    first[:, :, 3] = 99.0  # nobody's nearest
    labels, means, sizes = k_means(x, first, 3)
    for b in range(2):
        for h in range(3):
            wanted, centroids = loop_k_means(x[b, h], first[b, h], 3)
            assert labels[b, h].tolist() == wanted
            assert torch.allclose(means[b, h], centroids, atol=1e-5)
    assert (means[:, :, 3] == 99.0).all() and (sizes[:, :, 3] == 0).all()
    assert sizes.sum(-1).eq(50).all()
    assert not cluster_means(x, labels, sizes)[:, :, 3].any()


def test_going_on_is_going_further():
    draw = torch.Generator().manual_seed(6)
    x, first = (torch.randn(1, 2, n, 4, generator=draw) for n in (60, 5))
    _, half, _ = k_means(x, first, 2)
    labels, means, _ = k_means(x, half, 2)
    whole = k_means(x, first, 4)
    assert torch.equal(labels, whole[0]) and torch.equal(means, whole[1])


def test_blocks_of_clusters():
    sizes = torch.tensor([[[3, 0, 9, 1, 4]]])
    start, owner = cluster_blocks(sizes, 4, 17)
    assert start.tolist() == [[[0, 3, 7, 11, 12, 13, 17, 17, 17, 17]]]
    assert owner[0, 0, :6].tolist() == [0, 2, 2, 2, 3, 4]


def test_blocks_always_suffice():
    draw = torch.Generator().manual_seed(7)
    for clusters, tokens in ((1, 37), (40, 37), (7, 64), (5, 3)):
        labels = torch.randint(clusters, (2, 2, tokens), generator=draw)
        sizes = count(labels, clusters)
        start, owner = cluster_blocks(sizes, 8, tokens)
        for b in range(2):
            for h in range(2):
                ordered = labels[b, h].sort().values.tolist()
                assert start[b, h, 0] == 0 and start[b, h, -1] == tokens
                for n, (a, z) in enumerate(pairwise(start[b, h].tolist())):
                    assert 0 <= z - a <= 8
                    assert set(ordered[a:z]) <= {owner[b, h, n].item()}
