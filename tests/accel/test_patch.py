"""PatchStack: everything is given back, in any order, and nothing else is disturbed."""

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch

from accel.patch import CALL, PatchConflict, PatchStack, is_compiled
from tests.probes import Running


class Thing:
    """Something with methods, as a scheduler is."""

    def step(self, value: int, scale: int = 1) -> int:
        """Doc of step."""
        return value * scale


def adding(amount):
    return lambda call, *args, **kwargs: call(*args, **kwargs) + amount


@pytest.fixture
def layer():
    return torch.nn.Linear(2, 2).requires_grad_(False)


@pytest.fixture
def x():
    return torch.ones(1, 2)


def test_a_handler_acts_only_while_its_run_goes_on(layer, x):
    plain, stack = layer(x), PatchStack("a")
    stack.call(layer, adding(1), "one")
    assert torch.equal(layer(x), plain)
    with Running("a"):
        assert torch.equal(layer(x), plain + 1)
    with Running("b"):
        assert torch.equal(layer(x), plain)
    assert torch.equal(layer(x), plain)


def test_the_first_handler_added_is_outermost(layer, x):
    seen, stack = [], PatchStack("a")

    def note(name):
        def handler(call, *args, **kwargs):
            seen.append(f"{name} in")
            value = call(*args, **kwargs)
            seen.append(f"{name} out")
            return value

        return handler

    stack.call(layer, note("first"), "first")
    stack.call(layer, note("second"), "second")
    with Running("a"):
        layer(x)
    assert seen == ["first in", "second in", "second out", "first out"]


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c")])
def test_stacks_join_one_slot_and_leave_it_in_any_order(layer, x, order):
    before, plain = dict(vars(layer)), layer(x)
    stacks = {key: PatchStack(key) for key in "abc"}
    for i, stack in enumerate(stacks.values()):
        stack.call(layer, adding(i + 1), "adding")
    put = vars(layer)[CALL]
    left = set("abc")
    for key in order:
        assert vars(layer)[CALL] is put
        stacks[key].undo()
        left.remove(key)
        for i, other in enumerate("abc"):
            with Running(other):
                assert torch.equal(layer(x), plain + (i + 1 if other in left else 0))
    assert vars(layer) == before and CALL not in vars(layer)


def test_what_was_absent_is_deleted_and_what_was_there_comes_back():
    thing, stack = Thing(), PatchStack("a")
    thing.kept = 1
    stack.set(thing, "kept", 2)
    stack.set(thing, "new", 3)
    stack.method(thing, "step", adding(1), "adding")
    assert thing.kept == 2 and thing.new == 3
    stack.undo()
    assert vars(thing) == {"kept": 1}
    stack.undo()
    assert vars(thing) == {"kept": 1}


def test_an_instance_method_that_was_there_is_called_and_comes_back():
    thing, stack = Thing(), PatchStack("a")
    mine = thing.step = lambda value, scale=1: value - scale
    stack.method(thing, "step", adding(100), "adding")
    assert thing.step(5) == 4
    with Running("a"):
        assert thing.step(5) == 104
    stack.undo()
    assert vars(thing)["step"] is mine


def test_a_method_keeps_its_signature_and_name():
    thing, stack = Thing(), PatchStack("a")
    stack.method(thing, "step", adding(1), "adding")
    assert inspect.signature(thing.step) == inspect.signature(Thing().step)
    assert set(inspect.signature(thing.step).parameters) == {"value", "scale"}
    assert thing.step.__name__ == "step" and thing.step.__doc__ == "Doc of step."


def test_always_acts_outside_of_runs_too():
    thing, stack = Thing(), PatchStack("a")
    stack.method(thing, "step", adding(1), "adding", always=True)
    assert thing.step(5) == 6


@pytest.mark.parametrize("what", ["method", "value"])
def test_a_patch_on_top_is_refused_by_name_and_nothing_is_undone(layer, x, what):
    thing, stack, plain = Thing(), PatchStack("a"), layer(x)
    stack.call(layer, adding(1), "adding")
    stack.method(thing, "step", adding(1), "adding")
    stack.set(thing, "mark", 1)
    name = "step" if what == "method" else "mark"
    ours = vars(thing)[name]
    theirs = (lambda value: ours(value) * 2) if what == "method" else 7
    setattr(thing, name, theirs)
    with pytest.raises(PatchConflict, match=rf"Thing\.{name} was patched by somebody else"):
        stack.undo()
    assert vars(thing)[name] is theirs
    with Running("a"):
        assert torch.equal(layer(x), plain + 1)
    setattr(thing, name, ours)
    stack.undo()
    assert vars(thing) == {} and CALL not in vars(layer)


def test_compile_over_a_slot_is_adopted_and_left_as_compiled(layer, x):
    plain, stack = layer(x), PatchStack("a")
    stack.call(layer, adding(1), "adding")
    layer.compile(backend="eager")
    compiled = vars(layer)[CALL]
    with Running("a"):
        assert torch.equal(layer(x), plain), "not yet adopted"
        stack.adopt()
        assert torch.equal(layer(x), plain + 1)
    assert is_compiled(layer)
    stack.undo()
    assert vars(layer)[CALL] is compiled
    assert torch.equal(layer(x), plain)


def test_compile_over_a_slot_that_no_run_has_seen_is_left_as_compiled(layer):
    stack = PatchStack("a")
    stack.call(layer, adding(1), "adding")
    layer.compile(backend="eager")
    compiled = vars(layer)[CALL]
    stack.undo()
    assert vars(layer)[CALL] is compiled


def test_compile_before_is_wrapped_and_comes_back(layer, x):
    layer.compile(backend="eager")
    compiled, plain, stack = vars(layer)[CALL], layer(x), PatchStack("a")
    stack.call(layer, adding(1), "adding")
    with Running("a"):
        assert torch.equal(layer(x), plain + 1)
    stack.undo()
    assert vars(layer)[CALL] is compiled


def test_adoption_moves_every_handler_once(layer, x):
    """Two share a slot, `compile()` overwrites it, a third comes: each still acts exactly once."""
    plain, stacks = layer(x), {key: PatchStack(key) for key in "abc"}
    for key in "ab":
        stacks[key].call(layer, adding(1), "adding")
    layer.compile(backend="eager")
    compiled = vars(layer)[CALL]
    stacks["c"].call(layer, adding(1), "adding")
    for key in "abcabc":
        stacks[key].adopt()
        with Running(key):
            assert torch.equal(layer(x), plain + 1), key
    for key in "bca":
        stacks[key].undo()
    assert vars(layer)[CALL] is compiled


def test_bypassed_names_what_lies_inside_compiled_modules():
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Linear(2, 2))
    stack = PatchStack("a")
    for module in (model, model[0], model[0][0], model[1]):
        stack.call(module, adding(1), "adding")
    assert stack.bypassed(model) == []
    model[0].compile(backend="eager")
    assert stack.bypassed(model) == ["0.0"]
    model.compile(backend="eager")
    assert stack.bypassed(model) == ["0", "0.0", "1"]


def test_copies_and_pickles_run_plain(layer, x):
    thing, stack, plain = Thing(), PatchStack("a"), layer(x)
    stack.call(layer, adding(1), "adding")
    stack.method(thing, "step", adding(1), "adding")
    for again in (copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))):
        module, other = again(layer), again(thing)
        assert CALL not in vars(module)
        with Running("a"):
            assert torch.equal(module(x), plain)
            assert other.step(5) == 5 and other.step.__self__ is other
            assert torch.equal(layer(x), plain + 1) and thing.step(5) == 6


def test_a_copy_can_be_patched_itself_and_is_left_clean(layer, x):
    thing, stack = Thing(), PatchStack("a")
    stack.method(thing, "step", adding(1), "adding")
    other, second = copy.deepcopy(thing), PatchStack("b")
    second.method(other, "step", adding(10), "adding")
    with Running("b"):
        assert other.step(5) == 15 and thing.step(5) == 5
    stack.undo()
    second.undo()
    assert vars(thing) == vars(other) == {}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_copy_does_not_keep_its_original(layer, again):
    thing, stack = Thing(), PatchStack("a")
    stack.method(thing, "step", adding(1), "adding")
    stack.call(layer, adding(1), "adding")
    copies, gone = (again(thing), again(layer)), weakref.ref(thing)
    del thing, stack
    gc.collect()
    assert gone() is None
    assert copies[0].step(5) == 5 and copies[1](torch.ones(1, 2)).shape == (1, 2)


def test_a_value_that_yields_gives_way_to_what_is_set_later():
    thing, stack = Thing(), PatchStack("a")
    thing.kept = "before"
    stack.set(thing, "kept", "ours", yields=True)
    thing.kept = "theirs"
    stack.undo()
    assert thing.kept == "theirs"
    stack.set(thing, "kept", "ours", yields=True)
    stack.undo()
    assert thing.kept == "theirs"


def test_release_gives_back_one_method_only():
    first, second, stack = Thing(), Thing(), PatchStack("a")
    stack.method(first, "step", adding(1), "adding")
    stack.method(second, "step", adding(1), "adding")
    stack.release(first, "step")
    assert vars(first) == {}
    with Running("a"):
        assert first.step(5) == 5 and second.step(5) == 6
    stack.undo()
    assert vars(second) == {}


def test_an_error_is_noted_with_method_and_module(layer, x):
    def fails(call, *args):
        raise ValueError("no")

    stack = PatchStack("a")
    stack.call(layer, adding(1), "Outer on transformer")
    stack.call(layer, fails, "Inner on transformer.blocks.3")
    with Running("a"), pytest.raises(ValueError, match="no") as caught:
        layer(x)
    notes = ["accel: Inner on transformer.blocks.3", "accel: Outer on transformer"]
    assert caught.value.__notes__ == notes
