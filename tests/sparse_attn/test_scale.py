"""A model that scales its scores otherwise: patterns and kernels follow it."""

import dataclasses

import pytest
import torch

import accel
from accel.sparse_attn import Full, SparseAttention
from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.ordered import attend_routed
from accel.sparse_attn.patterns.sla2 import SLA2Attention, SLA2Settings
from accel.sparse_attn.patterns.vsa import VSA, VSAttention
from tests.sparse_attn.places import ODD, place, random_qkv
from tests.sparse_attn.test_patterns_in_pipelines import CLUSTERS, SPARSE
from tests.tiny_pipelines import call, make

LOOKING = {name: SPARSE[name] for name in sorted(SPARSE)} | {
    "SVG-EAR": dataclasses.replace(CLUSTERS, compensate=True, density=0.3)
}


@pytest.mark.parametrize("name", LOOKING)
def test_a_larger_scale_is_a_larger_query(name):
    """Four times the scale, a power of two, is bit for bit four times q."""
    pattern, default = LOOKING[name], 16**-0.5
    outs, maps = [], []
    for factor, scale in ((1, 4 * default), (4, None)):
        state = {}
        for fraction in (0.3, 0.8):
            q, k, v = random_qkv(ODD, batch=1, heads=2)
            q = q * factor
            found = pattern.route(q, k, v, place(ODD, fraction=fraction, state=state, scale=scale))
            out = attend_routed(KERNELS["reference"], found, q, k, v, scale)
        outs.append(out)
        maps.append(found.layout.dense())
    assert torch.equal(*maps)
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize("name", ["AdaSpa", "SVG-EAR", "SparseVideoGen2", "XAttention"])
def test_another_scale_is_another_choice(name):
    q, k, v = random_qkv(ODD, batch=1, heads=2)
    maps = []
    for scale in (None, 4.0):
        state = {}
        for fraction in (0.3, 0.8):
            found = LOOKING[name].route(
                q, k, v, place(ODD, fraction=fraction, state=state, scale=scale)
            )
            attend_routed(KERNELS["reference"], found, q, k, v, scale)
        maps.append(found.layout.dense())
    assert not torch.equal(*maps)


def test_trained_modules_follow_it():
    q, k, v = random_qkv(ODD, batch=1, heads=2)
    hidden = torch.randn(1, ODD.tokens, 8)
    vsa = VSAttention(8, 2, 16, VSA(0.7, (2, 4, 4)))
    torch.nn.init.ones_(vsa.coarse_gate.bias)
    wanted = vsa(4 * q, k, v, hidden, place(ODD))
    torch.testing.assert_close(vsa(q, k, v, hidden, place(ODD, scale=1.0)), wanted)
    sla = SLA2Attention(2, 16, SLA2Settings(density=1.0))
    dense = torch.nn.functional.scaled_dot_product_attention
    wanted = dense(*(x.transpose(1, 2) for x in (q, k, v)), scale=1.0).transpose(1, 2)
    for soft in (False, True):
        found = sla(q, k, v, place(ODD, scale=1.0), soft=soft)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_scale_of_a_model_is_told_and_used():
    pipe, told = make("lumina2"), set()
    for layer in pipe.transformer.layers:
        layer.attn.scale = 0.9
    reference = call(pipe, "lumina2", steps=2)

    @dataclasses.dataclass(frozen=True)
    class Telling(Full):
        def route(self, q, k, v, place):
            told.add(place.scale)
            return super().route(q, k, v, place)

    method = SparseAttention(Telling(), kernel="gather", shortest=20, dense_until=0.0)
    with accel.accelerated(pipe, method) as enabled:
        told.clear()
        latents = call(pipe, "lumina2", steps=2)
        rows = enabled.report().attention.rows
    assert 0.9 in told and any(row.kernel == "gather" for row in rows)
    torch.testing.assert_close(latents, reference, rtol=1e-3, atol=1e-4)
