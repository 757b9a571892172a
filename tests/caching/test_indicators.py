"""Indicators: what is computed of a block's arguments is what its first attention is given."""

from dataclasses import dataclass, field

import pytest
import torch

from accel.caching.indicators import embedded, modulated
from accel.caching.recording import Recorder, record
from accel.calibration import Recording
from accel.registry import families
from tests.caching.stack import given
from tests.tiny_pipelines import NAMES, call, make

KNOWN = [
    name
    for name in NAMES
    if (family := families().get(name)) and family.blocks and family.blocks[0].modulation
]


class Seen(Recorder):
    def __init__(self):
        self.values, self.embeddings = [], []

    def entered(self, state, entry):
        self.values.append(modulated(entry))
        self.embeddings.append(embedded(entry))


@dataclass(frozen=True)
class Look(Recording):
    seen: Seen = field(default_factory=Seen)

    def install(self, site):
        record(site, "Look", self.seen)

    def fit(self):
        return self


@pytest.mark.parametrize("name", KNOWN)
def test_the_modulated_input_is_what_the_first_attention_is_given(name):
    pipe, look, inputs = make(name), Look(), []
    spec = families()[name].blocks[0]
    block = pipe.transformer.get_submodule(spec.path)[0]
    attention = block.get_submodule(next(iter(spec.attention)))
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(given(args, kwargs)), with_kwargs=True
    )
    pipe.enable_acceleration(look)
    call(pipe, name, steps=2)
    assert len(inputs) == len(look.seen.values) >= 2
    for seen, value, time in zip(inputs, look.seen.values, look.seen.embeddings, strict=True):
        torch.testing.assert_close(value, seen)
        assert len(time) == len(value)
    assert not torch.equal(look.seen.embeddings[0], look.seen.embeddings[-1])
