"""What families say of their blocks, checked against the blocks of the tiny pipelines."""

import functools
import inspect

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from accel.pipelines import FAMILIES
from tests.tiny_pipelines import call, make

PROMPTS = (
    "a red circle moving left on a dark background",
    "a blue square on a light background",
    "a green cat",
)
BLOCKS = [(name, i) for name, family in FAMILIES.items() for i in range(len(family.blocks))]
TWICE = {"qwenimage_edit"}  # its time embedding holds the batch twice
# a norm that takes both streams, or embeds by itself; a layer of the block; two embeddings
OWN_WAY = {"cogvideox", "dit", "qwenimage", "qwenimage_edit", "hunyuan_video_i2v"}
ATTENTIONS = {"spatial", "temporal", "self", "cross"}


def bound(module, args, kwargs):
    """A module's arguments by name; None for those that are not given."""
    parameters = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    parameters.apply_defaults()
    return {k: v for k, v in parameters.arguments.items() if k != "self"}


@functools.cache
def seen(name):
    """Per block path, in a run of three samples: arguments, output, inputs of attentions."""
    family, pipe = FAMILIES[name], make(name)
    denoiser, found = getattr(pipe, family.attributes[0]), {}

    def before(path, block, args, kwargs):
        found.setdefault(path, {"arguments": bound(block, args, kwargs), "attended": []})

    def attended(path, part, module, args, kwargs):
        given = args[0] if args else kwargs["hidden_states"]
        found[path]["attended"].append((part, given))

    for path, block, spec in family.flat_blocks(denoiser):
        block.register_forward_pre_hook(functools.partial(before, path), with_kwargs=True)
        for part in spec.attention:
            block.get_submodule(part).register_forward_pre_hook(
                functools.partial(attended, path, part), with_kwargs=True
            )
    call(pipe, name, steps=2, prompt=PROMPTS)
    return denoiser, found


def described(name, i):
    """Path, module and description of every block of a family's i-th list, and what it saw."""
    denoiser, found = seen(name)
    stated = FAMILIES[name].blocks[i]
    return [
        (block, spec, found[path])
        for path, block, spec in FAMILIES[name].flat_blocks(denoiser)
        if spec.path == stated.path
    ]


def run(block, arguments):
    names = list(inspect.signature(type(block).forward).parameters)
    given = {k: v for k, v in arguments.items() if k in names and k not in ("args", "kwargs")}
    with torch.no_grad():
        return block(**given)


@pytest.mark.parametrize(("name", "i"), BLOCKS)
def test_every_part_named_is_in_some_block_and_kept_parts_are_named_once(name, i):
    stated, blocks = FAMILIES[name].blocks[i], described(name, i)
    for part in (*stated.modules, *stated.idle, *stated.attention):
        assert any(part in (*s.modules, *s.idle, *s.attention) for _, s, _ in blocks), part
    assert len({*stated.modules, *stated.idle}) == len(stated.modules) + len(stated.idle)
    assert set(stated.attention) <= {*stated.modules, *stated.idle}
    assert set(stated.attention.values()) <= ATTENTIONS


@pytest.mark.parametrize(("name", "i"), BLOCKS)
def test_attentions_run_in_the_stated_order(name, i):
    for _, spec, found in described(name, i):
        order = list(dict.fromkeys(part for part, _ in found["attended"]))
        assert order == list(spec.attention)


@pytest.mark.parametrize(("name", "i"), BLOCKS)
def test_permuting_the_batched_arguments_permutes_what_a_block_returns(name, i):
    if FAMILIES[name].blocks[i].batched is None:
        assert name in TWICE
        return
    for block, spec, found in described(name, i):
        arguments = found["arguments"]
        assert not set(spec.batched) & set(spec.streams)
        count = len(arguments[spec.streams[0]])
        assert count in (3, 6)
        for key, value in arguments.items():
            batched = [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
            if key in (*spec.streams, *spec.batched):
                assert value is None or [len(t) for t in batched] == [count] * len(batched), key
            else:
                assert all(t.ndim == 0 or len(t) != count for t in batched), key
        flipped = {
            k: tree_map(lambda t: t.flip(0) if isinstance(t, torch.Tensor) else t, v)
            if k in (*spec.streams, *spec.batched)
            else v
            for k, v in arguments.items()
        }
        for plain, turned in zip(
            tree_leaves(run(block, arguments)), tree_leaves(run(block, flipped)), strict=True
        ):
            if plain is not None:
                assert not torch.allclose(plain.flip(0), plain, rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(turned.flip(0), plain, rtol=1e-4, atol=1e-5)


def modulated(block, spec, hidden, embedding):
    """The input of the first attention as `Blocks.modulation` describes it."""
    kind, path, _ = spec.modulation
    norm = block.get_submodule(path)
    if kind == "norm":
        value = norm(hidden, emb=embedding)
        return value[0] if isinstance(value, tuple) else value
    width = hidden.shape[-1]
    table = block.scale_shift_table.reshape(-1, width)
    parts = table + embedding.reshape(len(embedding), -1, *table.shape)
    return norm(hidden) * (1 + parts[:, :, 1]) + parts[:, :, 0]


@pytest.mark.parametrize(("name", "i"), BLOCKS)
def test_the_first_attention_reads_what_the_modulation_describes(name, i):
    for block, spec, found in described(name, i):
        if spec.modulation is None:
            continue
        hidden = found["arguments"][FAMILIES[name].stream]
        with torch.no_grad():
            wanted = modulated(block, spec, hidden, found["arguments"][spec.modulation[2]])
        part, given = found["attended"][0]
        assert part == next(iter(spec.attention))
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(given, hidden, rtol=1e-2, atol=1e-2)


def test_models_say_how_the_input_of_the_first_attention_is_modulated_or_cannot():
    known = {n for n, f in FAMILIES.items() if not f.blocks or f.blocks[0].modulation}
    assert set(FAMILIES) - known == OWN_WAY
