"""What a step of a plan costs beside the model: one combination, and nothing waited for."""

import collections

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, UniPCMultistepScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from accel.caching import Planned
from accel.caching.planning.combination import Combination
from accel.caching.planning.passing import RETURNS, passed
from accel.caching.planning.response import check_arguments, response
from accel.caching.planning.rule import extrapolated
from tests.caching.planning.analytic import SCHEDULERS
from tests.tiny_pipelines import call, make

STEPS, NODES = 20, (0, 2, 5, 8, 14)
VIEWS = {"view", "select", "slice", "permute", "split", "expand", "unsqueeze", "t", "detach"}


class Operations(TorchDispatchMode):
    """Counts operations by name, without those that only look at a tensor in another way."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        self.count[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


def rule():
    scheduler = UniPCMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    return extrapolated(response(scheduler, STEPS), NODES, correct=True)


def walk(combination, advance, place):
    """States along the plan as `advance` makes them, beside those of a plain sum."""
    generator = torch.Generator().manual_seed(2)
    state = torch.randn(2, 3, 4, generator=generator)
    expected, kept = state.double(), []
    for step in range(STEPS):
        if step in NODES:
            kept.append(torch.randn(state.shape, generator=generator))
            combination.keep(step, kept[-1])
        weights = combination.rule.weights[step]
        terms = [w * o.double() for w, o in zip(weights, kept, strict=False)]
        expected = combination.rule.decay[step] * expected + sum(terms)
        state = advance(place(step), state)
        torch.testing.assert_close(state.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_step_is_the_sum_the_rule_says():
    combination = Combination(rule())
    walk(combination, combination.advance, int)
    assert combination.bytes() == 4 * 2 * 3 * 4 * combination.length <= 4 * 24 * len(NODES)


@pytest.mark.parametrize(("place", "most"), [(torch.tensor, 1), (int, 3)])
def test_a_step_is_compiled_whole_and_not_anew_for_every_step(place, most):
    """A number is taken for a constant at 0 and at 1, and for any number from then on."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    combination = Combination(rule())
    walk(combination, torch.compile(combination.advance, backend=backend, fullgraph=True), place)
    assert 1 <= len(graphs) <= most
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not any("matmul" in each or "mv" in each for each in called)  # all of it fuses
    torch.compiler.reset()


def test_a_step_told_by_a_tensor_reads_the_same_memory_and_asks_the_host_nothing():
    """As a captured graph wants it, which repeats what was launched at the addresses it was."""
    combination, seen = Combination(rule()), set()

    def advance(step, state):
        with Operations() as found:
            state = combination.advance(step, state)
        kept, table = combination._kept, combination._table
        seen.add((kept.data_ptr(), table.data_ptr(), *sorted(found.count.items())))
        return state

    walk(combination, advance, torch.tensor)
    (told,) = seen
    assert not {"_local_scalar_dense", "nonzero", "_to_copy"} & set(dict(told[2:]))


def a_skipped_step(name, scheduler):
    """Operations of one, the pipeline's own among them."""
    count = collections.Counter()
    for steps, sign in ((10, -1), (14, 1)):
        pipe = make(name, scheduler)
        pipe.enable_acceleration(Planned(nodes=(0, 1), steps=steps, guard=False))
        call(pipe, name, steps=steps)  # what is found out once and kept is no part of a step
        with Operations() as found:
            call(pipe, name, steps=steps)
        for operation, times in found.count.items():
            count[operation] += sign * times
    return {operation: times / 4 for operation, times in count.items() if times}


@pytest.mark.parametrize(
    ("name", "scheduler", "own"),
    [
        ("wan", "flow_unipc", {"_local_scalar_dense": 1}),  # the progress bar shows the level
        ("wan", "flow_euler", {"_local_scalar_dense": 1}),
        ("sd", "ddim", {"cat": 1}),  # the latents, twice
        ("sd", "dpm++", {"cat": 1}),
        ("sd", "euler", {"cat": 1, "pow": 2, "add": 1, "div": 1}),  # the latents, scaled
    ],
)
def test_a_skipped_step_is_one_combination(name, scheduler, own):
    guidance = {"sub": 1, "mul": 1, "add": 1}
    expected = collections.Counter(own) + collections.Counter(guidance)
    assert a_skipped_step(name, scheduler) == {**expected, "addmv": 1}


def test_a_scheduler_that_is_not_known_is_called_for_every_step():
    pipe = make("sd", "pndm")
    pipe.enable_acceleration(Planned(nodes=(0, 1, 4), steps=7))
    call(pipe, "sd", steps=6)
    assert type(pipe.scheduler) not in RETURNS
    assert pipe.scheduler.counter == len(pipe.scheduler.timesteps) == 7


@pytest.mark.parametrize("make_one", [*SCHEDULERS.values(), CogVideoXDDIMScheduler])
@pytest.mark.parametrize("return_dict", [True, False])
def test_a_scheduler_taken_past_some_steps_goes_on_as_one_that_begins_there(make_one, return_dict):
    scheduler, fresh = make_one(), make_one()
    assert type(scheduler) in RETURNS
    for each in (scheduler, fresh):
        each.set_timesteps(8)
    state, output = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps[:3]:
        found = passed(scheduler, t, state, return_dict)
        assert (found.prev_sample if return_dict else found[0]) is state
    t = fresh.timesteps[3]
    expected = fresh.step(output, t, state, return_dict=return_dict)
    got = scheduler.step(output, t, state, return_dict=return_dict)
    assert type(found) is type(got) and (return_dict or len(found) == len(got))
    assert torch.equal(got[0], expected[0])
    assert getattr(scheduler, "step_index", None) == getattr(fresh, "step_index", None)


@pytest.mark.parametrize(("name", "scheduler"), [("wan", "flow_unipc"), ("sd", "dpm++")])
def test_a_plan_is_the_same_whether_the_scheduler_computes_beside_it_or_not(name, scheduler):
    latents = []
    for beside in (False, True):
        pipe = make(name, scheduler)
        pipe.enable_acceleration(Planned(nodes=(0, 1, 4), steps=7))
        if beside:
            handlers, seen = pipe.acceleration._site.clock.step_handlers, []

            def note(call, *args, seen=seen, **kwargs):
                seen.append(call(*args, **kwargs))
                return seen[-1]

            handlers.append(note)
        latents.append(call(pipe, name, steps=7))
    assert len(seen) == 7 and torch.equal(*latents)


def test_noise_that_a_plan_would_leave_out_is_refused():
    pipe = make("sd", "ddim")
    plain = call(pipe, "sd", steps=4, eta=0.5)
    pipe.enable_acceleration(Planned(nodes=(0, 1), steps=4))
    with pytest.raises(ValueError, match=r"DDIMScheduler\.step was given eta=0\.5.* at 0\.0"):
        call(pipe, "sd", steps=4, eta=0.5)
    call(pipe, "sd", steps=4, eta=0.0)
    pipe.enable_acceleration(Planned(nodes=(0, 1, 2, 3), steps=4))
    with pytest.warns(UserWarning, match="skipped nothing"):
        assert torch.equal(call(pipe, "sd", steps=4, eta=0.5), plain)


@pytest.mark.parametrize(("name", "value"), [("per_token_timesteps", torch.ones(2)), ("other", 1)])
def test_what_the_plan_did_not_ask_the_scheduler_with_is_refused(name, value):
    scheduler = SCHEDULERS["flow euler"]()
    check_arguments(scheduler, {"s_churn": 0.0, "generator": torch.Generator(), name: None})
    with pytest.raises(ValueError, match=f"was given {name}="):
        check_arguments(scheduler, {name: value})
