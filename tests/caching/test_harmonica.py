"""HarmoniCa: its mask executed, against hooks that overwrite a plain pipeline's outputs."""

import pytest
import torch

import accel
from accel.caching import HarmoniCa
from tests.caching.transcribed import Counted
from tests.tiny_pipelines import call, make

PARTS = {
    "wan": ("attn1", "attn2", "ffn"),
    "flux": ("attn", "ff", "ff_context"),
    "cogvideox": ("attn1", "ff"),
}
ROWS12 = ("1" * 12, "0" * 12, "101010101010", "011100110101", "1" * 12, "000000000001")
ROWS8 = ("1" * 8, "0" * 8, "10101010", "01110011", "1" * 8, "00000001")
MASKS = {"wan": ROWS12, "flux": ROWS12, "cogvideox": ROWS8}


def modules(pipe, name):
    """Attention and feed-forward modules in the order they run, named here once more."""
    model = pipe.transformer
    blocks = list(model.blocks if name == "wan" else model.transformer_blocks)
    order = PARTS[name]
    found = [b.get_submodule(part) for b in blocks for part in order]
    return found + [b.proj_out for b in getattr(model, "single_transformer_blocks", [])]


def masked(counted, units, mask):
    """The released executor: compute where the mask says so, else reuse the last output."""
    kept = {}

    def hook(unit):
        def overwrite(module, args, output):
            key = unit, counted.branch
            if mask[counted.step][unit] == "1":
                kept[key] = output
            return kept[key]

        return overwrite

    counted.hooks += [m.register_forward_hook(hook(i)) for i, m in enumerate(units)]


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox"])
def test_latents_are_those_of_the_mask(name):
    plain = make(name)
    counted = Counted(plain, branches=1 if name == "cogvideox" else 2)
    masked(counted, modules(plain, name), MASKS[name])
    expected = counted.run(plain, name, steps=6)
    pipe = make(name)
    pipe.enable_acceleration(HarmoniCa(MASKS[name]))
    assert torch.equal(call(pipe, name, steps=6), expected)
    assert not torch.equal(call(make(name), name, steps=6), expected)


@pytest.mark.parametrize("name", ["wan", "flux"])
def test_modules_run_where_the_mask_says_so(name):
    pipe, ran = make(name), []
    for unit, module in enumerate(modules(pipe, name)):
        module.register_forward_hook(lambda *_, unit=unit: ran.append(unit))
    pipe.transformer.register_forward_pre_hook(lambda *_: ran.append("|"))
    pipe.enable_acceleration(HarmoniCa(ROWS12))
    call(pipe, name, steps=6, guidance=1.0)
    steps = " ".join(map(str, ran)).split("|")[1:]
    for row, step in zip(ROWS12, steps, strict=True):
        assert [int(u) for u in step.split()] == [u for u in range(12) if row[u] == "1"]


def test_what_feeds_held_modules_alone_does_not_run():
    pipe, ran = make("flux"), []
    for block in pipe.transformer.single_transformer_blocks:
        for part in (block.attn, block.proj_mlp):
            part.register_forward_hook(lambda *_: ran.append(0))
    pipe.enable_acceleration(HarmoniCa(ROWS12))
    call(pipe, "flux", steps=6, guidance=1.0)
    singles = len(pipe.transformer.single_transformer_blocks)
    assert len(ran) == 2 * sum(row[-singles:].count("1") for row in ROWS12)


def test_only_what_the_next_step_holds_is_kept():
    pipe = make("wan")
    pipe.enable_acceleration(HarmoniCa(("1" * 12, "0" + "1" * 11, "1" * 12)))
    call(pipe, "wan", steps=3, guidance=1.0)
    held = pipe.acceleration.report().bytes_held
    pipe.enable_acceleration(HarmoniCa(("1" * 12, "0" * 12, "1" * 12)))
    call(pipe, "wan", steps=3, guidance=1.0)
    assert pipe.acceleration.report().bytes_held == 12 * held > 0


def test_a_mask_for_another_model_is_refused():
    pipe = make("cogvideox")
    with pytest.raises(ValueError, match=r"mask is for 12 modules, but CogVideoX.* has 8"):
        pipe.enable_acceleration(HarmoniCa(ROWS12))
    with pytest.raises(ValueError, match=r"no mask; it is learned .* plan file"):
        pipe.enable_acceleration(HarmoniCa())
    assert not pipe.acceleration


@pytest.mark.parametrize("mask", [("111", "11"), ("111", "12x"), ("101", "111"), ("",)])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(ValueError, match="mask must be texts of equal length"):
        HarmoniCa(mask)


def test_another_number_of_steps_is_refused_when_the_run_begins():
    pipe = make("wan")
    pipe.enable_acceleration(HarmoniCa(ROWS12))
    with pytest.raises(ValueError, match="mask is for 6 steps, this run has 5; run 6"):
        call(pipe, "wan")
    expected = call(pipe, "wan", steps=6)
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "wan"), call(make("wan"), "wan"))
    pipe.enable_acceleration(HarmoniCa(ROWS12))
    assert torch.equal(call(pipe, "wan", steps=6), expected)


@pytest.mark.parametrize(
    ("total", "rows"),
    [(6, [0, 1, 2, 3, 4, 5]), (11, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), (3, [0, 3, 5]), (1, [0])],
)
def test_resampling_takes_the_nearest_row(total, rows):
    method = HarmoniCa(tuple(f"1{i:03b}" if i else "1111" for i in range(6)), resample=True)
    assert [method.mask.index(method.row(i, total)) for i in range(total)] == rows


def test_the_mask_comes_from_a_plan_file(tmp_path):
    path = accel.Plan((HarmoniCa(ROWS12),), fingerprint={"steps": 6}).save(tmp_path / "mask.json")
    pipe = make("wan")
    pipe.enable_acceleration(accel.Plan.load(path))
    direct = make("wan")
    direct.enable_acceleration(HarmoniCa(ROWS12))
    assert torch.equal(call(pipe, "wan", steps=6), call(direct, "wan", steps=6))
    assert len(pipe.acceleration.explain(6)) < 400
