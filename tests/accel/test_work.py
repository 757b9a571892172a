"""Work is counted right, without computing, copying or changing anything."""

import functools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from accel.patch import PatchStack
from accel.registry import recognise
from accel.work import Work, count_flops, count_parameters, shapes_of
from tests.probes import HALF
from tests.tiny_pipelines import call, make


class Two(torch.nn.Module):
    """Two matrix products that anybody can count."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Asks(Two):
    """Looks at values, which a model without storage does not have."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def test_products_are_counted_by_hand():
    model, x = Two(), torch.ones(3, 4)
    work = count_flops(model, *shapes_of(((x,), {})))
    assert work.basis == "flops"
    assert work.modules["first"] == 2 * 3 * 4 * 8 and work.modules["second"] == 2 * 3 * 8 * 2
    assert work.total == work.modules["first"] + work.modules["second"] == 288
    assert work.share([]) == 0 and work.share([""]) == 1
    assert work.share(["first"]) == pytest.approx(192 / 288)
    assert work.share(["second", "first"]) == 1
    assert work.share(["no such module"]) == 0


def test_parameters_stand_in_where_values_decide():
    work = count_flops(Asks(), *shapes_of(((torch.ones(3, 4),), {})))
    assert work == count_parameters(Asks()) and work.basis == "parameters"
    assert work.total == 4 * 8 + 8 + 8 * 2 + 2 and work.modules["first"] == 40
    assert work.share(["second"]) == pytest.approx(18 / 58)


class Measures(Two):
    """Reads lengths from a mask, and multiplies by it."""

    def forward(self, x, mask):
        longest = max(mask.sum(1).tolist())
        return super().forward(x[:, :longest] * mask[:, :longest, None])


def test_masks_keep_the_values_that_models_read_lengths_from():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    args, kwargs = shapes_of(((torch.ones(2, 4, 4),), {"mask": mask}))
    assert args[0].is_meta and torch.equal(kwargs["mask"], mask)
    assert kwargs["mask"].data_ptr() != mask.data_ptr()
    work = count_flops(Measures(), args, kwargs)
    assert work.basis == "flops" and work.modules["first"] == 2 * 2 * 3 * 4 * 8


def test_a_model_without_work_leaves_nothing():
    assert Work(0, {}, "flops").share(["x"]) == 1


def test_counting_computes_and_changes_nothing():
    model, x = Two(), torch.ones(3, 4)
    ran, stack = [], PatchStack("a")
    stack.call(model.first, lambda c, *a: ran.append(1) or c(*a), "spy")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    keys = [sorted(vars(m)) for m in model.modules()]
    shapes = shapes_of(((x,), {"y": [x, (x, None, 3)]}))
    assert all(t.is_meta for t in (shapes[0][0], shapes[1]["y"][0], shapes[1]["y"][1][0]))
    count_flops(model, (shapes[0][0],), {})
    assert ran == [] and keys == [sorted(vars(m)) for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(p.is_meta for p in model.parameters())


def counted(pipe, name, **how):
    """FLOPs that the denoisers of a real run spend, by the test's own counter.

    Attention is taken apart into its products: torch does not count its fused kernel for CPUs.
    """
    spent = []

    def begin(module, args):
        counter = FlopCounterMode(display=False)
        counter.__enter__()
        spent.append(counter)

    def end(module, args, out):
        spent[-1].__exit__(None, None, None)
        spent[-1] = spent[-1].get_total_flops()

    hooks = []
    for module in recognise(pipe)[1].values():
        hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    with sdpa_kernel(SDPBackend.MATH):
        call(pipe, name, **how)
    for hook in hooks:
        hook.remove()
    return sum(spent)


@functools.cache
def in_full(name):
    return counted(make(name), name, steps=4)


CASES = [
    *((name, HALF) for name in ("wan", "flux", "ltx2", "sd")),
    ("wan", TaylorSeer(interval=2, warmup=2, carrier="hidden")),
    ("wan22", TaylorSeer(interval=2, warmup=1, carrier="hidden")),
    ("flux", TaylorSeer(interval=2, warmup=2, carrier="hidden")),
    ("flux", TaylorSeer(interval=2, warmup=2, carrier="module")),
    ("cogvideox", TaylorSeer(interval=2, warmup=2, carrier="module")),
    ("ltx", TaylorSeer(interval=2, warmup=2, carrier="module")),
    ("wan", TaylorSeer(interval=2, warmup=2, carrier="module")),
    ("flux", FirstBlockCache(0.5)),
    ("cogvideox", FirstBlockCache(0.5)),
    ("sd", DeepCache(interval=2, branch=3)),
    ("sd_controlnet", DeepCache(interval=2, branch=1)),
    ("sdxl", DeepCache(interval=3, branch=1)),
    ("sdxl_img2img", DeepCache(interval=2, branch=2)),
]


@pytest.mark.parametrize(("name", "method"), CASES, ids=lambda v: getattr(v, "carrier", None))
def test_computed_fraction_is_that_of_counted_flops(name, method):
    pipe = make(name)
    full = in_full(name)
    pipe.enable_acceleration(method)
    spent = counted(pipe, name, steps=4)
    report = pipe.acceleration.report()
    assert report.basis == "flops"
    assert 0 < spent < full
    assert report.computed_fraction == pytest.approx(spent / full, rel=1e-6)
    assert report.bound == pytest.approx(full / spent, rel=1e-6)
