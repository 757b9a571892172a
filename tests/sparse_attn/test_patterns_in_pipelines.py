"""Every pattern in a running pipeline, sparse, and whole where nothing is left out."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel.pipelines import tiny
from accel.sparse_attn import (
    VSA,
    AdaSpa,
    AttentionTile,
    DraftAttention,
    Full,
    Jenga,
    Radial,
    SlidingTile,
    SpargeAttn,
    SparseAttention,
    SparseVideoGen,
    SparseVideoGen2,
    XAttention,
)
from accel.sparse_attn.pattern import Place
from accel.sparse_attn.patterns import PATTERNS
from tests.sparse_attn.places import ODD, attend, random_qkv
from tests.tiny_pipelines import call, make

CLUSTERS = SparseVideoGen2(8, 16, mass=0.5, first_rounds=5, block=64)

SPARSE = {
    "AdaSpa": AdaSpa(0.6, search_at=(0.25, 0.6)),
    "AttentionTile": AttentionTile(1, block=64),
    "DraftAttention": DraftAttention(0.4, (1, 4, 8)),
    "Jenga": Jenga(0.8, 0.1, neighbours=False, block=64),
    "Radial": Radial(0.2, False, 64),
    "SlidingTile": SlidingTile((1, 1, 1), (2, 4, 4)),
    "SpargeAttn": SpargeAttn(0.5, similarity=-1.0, block_q=64),
    "SparseVideoGen": SparseVideoGen(0.4, block=64),
    "SparseVideoGen2": replace(CLUSTERS, compensate=True),
    "VSA": VSA(0.7, (2, 4, 4)),
    "XAttention": XAttention(0.4, 8, 64),
}

STATEFUL = ("AdaSpa", "SparseVideoGen", "SparseVideoGen2")

WHOLE = {
    "AdaSpa": AdaSpa(0.0),
    "AttentionTile": AttentionTile(99, block=64),
    "DraftAttention": DraftAttention(1.0, (1, 4, 8)),
    "Full": Full(block_q=64),
    "Jenga": Jenga(0.0, block=64),
    "SlidingTile": SlidingTile((99, 99, 99), (2, 4, 4)),
    "SpargeAttn": SpargeAttn(None, 1.0, block_q=64),
    "SparseVideoGen": SparseVideoGen(1.0, block=64),
    "SparseVideoGen2": replace(CLUSTERS, mass=1.0, least=1.0),
    "VSA": VSA(0.0, (2, 4, 4)),
    "XAttention": XAttention(1.0, 8, 64),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny.load("shapes-t2v")


def sample(pipe, method=None):
    settings = tiny.call_defaults("shapes-t2v")
    settings |= {"num_inference_steps": 3, "output_type": "latent"}
    draw = torch.Generator().manual_seed(0)
    if method is None:
        return pipe("a red circle", generator=draw, **settings).frames, None
    with accel.accelerated(pipe, method):
        out = pipe("a red circle", generator=draw, **settings).frames
        return out, pipe.acceleration.report()


@pytest.fixture(scope="module")
def plain(pipe):
    return sample(pipe)[0]


def test_there_is_a_setting_for_every_pattern():
    assert set(SPARSE) == set(PATTERNS) - {"Full"}
    assert set(WHOLE) == set(PATTERNS) - {"Radial"}  # leaves out far frames at any width


@pytest.mark.parametrize("name", sorted(SPARSE))
def test_sparse_in_a_run(pipe, plain, name):
    method = SparseAttention(SPARSE[name], dense_until=0.25, shortest=1)
    out, report = sample(pipe, method)
    if name in STATEFUL:  # and nothing is left from the run before
        assert torch.equal(out, sample(pipe, method)[0])
    assert out.isfinite().all() and not torch.equal(out, plain)
    assert (out - plain).norm() < 1.0 * plain.norm()
    assert report is not None


@pytest.mark.parametrize("name", sorted(WHOLE))
@pytest.mark.filterwarnings("ignore:.*skipped nothing")
def test_whole_in_a_run(pipe, plain, name):
    method = SparseAttention(WHOLE[name], kernel="gather", dense_until=0.0, shortest=1)
    assert torch.allclose(sample(pipe, method)[0], plain, atol=1e-4)


@pytest.mark.parametrize("name", ["SparseVideoGen", "SparseVideoGen2", "DraftAttention"])
@pytest.mark.parametrize("family", ["hunyuan_video", "cogvideox"])
@pytest.mark.filterwarnings("ignore:.*skipped nothing")
def test_orders_leave_text_where_it_is(name, family):
    """Also where some of it is padding that a mask hides (HunyuanVideo)."""
    pipe = make(family)
    plain = call(pipe, family)
    method = SparseAttention(WHOLE[name], kernel="gather", dense_until=0.0, shortest=1)
    with accel.accelerated(pipe, method):
        assert torch.allclose(call(pipe, family), plain, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SPARSE))
def test_batch_entries_do_not_hear_of_one_another(name):
    """The two halves of a batch that carries guidance get what each gets alone."""
    pattern = SPARSE[name]
    calls = [random_qkv(ODD, batch=2, heads=2, seed=n) for n in range(2)]

    def run(rows):
        state = {}
        for fraction, qkv in zip((0.3, 0.5), calls, strict=True):
            q, k, v = (x[rows] for x in qkv)
            place = Place(1, 4, fraction, None, None, ODD, state)
            found = pattern.route(q, k, v, place)
            assert found is not None
            out = attend(found, q, k, v)
        return out

    both = run(slice(None))
    for one in range(2):
        assert torch.allclose(both[one : one + 1], run(slice(one, one + 1)), atol=1e-5)
    assert both[:, :11].isfinite().all()


class HostReads(TorchDispatchMode):
    """Operators that wait for the device, where there is one."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        mask = name in ("index", "index_put_", "index_put") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if mask or name in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(SPARSE))
def test_maps_are_built_without_waiting_for_the_device(name):
    """From the second call on; the first may make what only the shapes decide."""
    pattern, state = SPARSE[name], {}
    q, k, v = random_qkv(ODD, heads=2)

    def run(fraction):
        place = Place(1, 4, fraction, None, None, ODD, state)
        found = pattern.route(q, k, v, place)
        if found.compensate is not None:
            lse = torch.zeros(2, 2, ODD.tokens)
            found.compensate(q, k, v, q, lse)

    run(0.3)
    with HostReads() as seen:
        run(0.5)
        run(0.8)
    assert seen.found == []
    with HostReads() as seen:
        int(q.sum())
    assert seen.found  # what the test looks for is there to be found
