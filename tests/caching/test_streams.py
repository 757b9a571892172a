"""Streams of a block where the last one ends the text, as in Stable Diffusion 3."""

import pytest
import torch

from accel.caching import FirstBlockCache
from accel.caching.adaptive import Threshold
from accel.caching.blocks import Streams
from accel.pipelines import FAMILIES
from tests.tiny_pipelines import call, make


@torch.no_grad()
def test_rows_of_a_block_that_ends_the_text_are_put_together_again():
    pipe, given = make("sd3"), []
    path, block, spec = FAMILIES["sd3"].flat_blocks(pipe.transformer)[-1]
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    call(pipe, "sd3", steps=1)
    hook.remove()
    (args, kwargs), streams, rows = given[0], Streams(block, spec), torch.tensor([1])
    some, named = streams.select(args, kwargs, rows)
    text, hidden = streams.merge(args, kwargs, block(*some, **named), rows)
    assert (
        path == "transformer_blocks.2"
        and text is None
        and streams.ended((text, hidden), spec.returns[0])
    )
    whole = block(*args, **kwargs)[1]
    torch.testing.assert_close(hidden[1:], whole[1:])
    assert torch.equal(hidden[:1], kwargs["hidden_states"][:1])
    assert not torch.allclose(hidden[:1], whole[:1])


@pytest.mark.parametrize("name", ["sd3", "hunyuan_video"])
def test_a_sample_that_computes_beside_one_that_skips_is_as_ever(name, monkeypatch):
    prompts = ("a red circle", "a blue square moving up on a light background")
    plain = call(make(name), name, prompt=prompts)
    monkeypatch.setattr(Threshold, "skips", lambda _, part, change: bool(part.rows[0] == 1))
    pipe = make(name)
    pipe.enable_acceleration(FirstBlockCache(0.1))
    pair = call(pipe, name, prompt=prompts)
    torch.testing.assert_close(pair[:1], plain[:1], rtol=1e-4, atol=1e-4)
    assert (pair[1:] - plain[1:]).abs().max() > 1e-3
