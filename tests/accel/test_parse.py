"""The form in which a shell names a method."""

import math

import pytest

from accel import parse_method
from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from accel.plan import describe


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("TaylorSeer", TaylorSeer()),
        ("taylorseer", TaylorSeer()),
        (" TaylorSeer ", TaylorSeer()),
        ("TaylorSeer:", TaylorSeer()),
        ("TaylorSeer:interval=4,order=2", TaylorSeer(interval=4, order=2)),
        ("TaylorSeer: interval = 4 , last = True", TaylorSeer(interval=4, last=True)),
        ("TaylorSeer:last=true,carrier=hidden", TaylorSeer(last=True, carrier="hidden")),
        ("TaylorSeer:carrier='module'", TaylorSeer(carrier="module")),
        ("FirstBlockCache:threshold=0.1", FirstBlockCache(0.1)),
        ("FirstBlockCache:threshold=1", FirstBlockCache(1.0)),
        ("FirstBlockCache:threshold=1e-3", FirstBlockCache(0.001)),
        ("FirstBlockCache:threshold=inf", FirstBlockCache(math.inf)),
        ("DeepCache:steps=(0,3,7)", DeepCache(steps=(0, 3, 7))),
        ("DeepCache:steps=[0,3]", DeepCache(steps=(0, 3))),
        ("DeepCache:steps=none,branch=1", DeepCache(branch=1)),
    ],
)
def test_reads(text, method):
    assert parse_method(text) == method


@pytest.mark.parametrize(
    "method",
    [
        TaylorSeer(interval=2, carrier="hidden", last=True),
        FirstBlockCache(0.25),
        FirstBlockCache(math.inf),
        DeepCache(steps=(0, 2), branch=1),
    ],
)
def test_what_describe_writes_is_read(method):
    name, _, rest = describe(method).partition("(")
    assert parse_method(f"{name}:{rest.removesuffix(')')}") == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Tailorseer", r"unknown method 'Tailorseer'; did you mean TaylorSeer\?"),
        ("", "unknown method ''"),
        ("TaylorSeer:intervall=3", r"TaylorSeer has no field 'intervall'; did you mean interval\?"),
        ("TaylorSeer:interval=x", "TaylorSeer.interval must be int, got 'x'"),
        ("TaylorSeer:interval=-1", "TaylorSeer.interval must be at least 1, got -1"),
        ("TaylorSeer:interval=inf", "TaylorSeer.interval must be int, got inf"),
        ("FirstBlockCache:threshold=-inf", "FirstBlockCache.threshold must be 0 or more, got -inf"),
        ("TaylorSeer:3", "cannot read 'TaylorSeer:3'; write Name:field=value"),
        ("TaylorSeer:interval", "cannot read"),
        ("TaylorSeer:interval=", "cannot read"),
        ("TaylorSeer:interval=3,,", "cannot read"),
        ("TaylorSeer:**{}", "cannot read"),
        ("TaylorSeer:interval=3), f(order=1", "cannot read"),
        ("TaylorSeer:interval=3)(order=1", "cannot read"),
        ("TaylorSeer:interval=3,interval=4", "cannot read"),
        ("TaylorSeer:interval=2+3", "cannot read"),
        ("TaylorSeer:interval=\0", "cannot read"),
        ("TaylorSeer:carrier=f'{1}'", "cannot read"),
        ("DeepCache:steps=Slidin(window=3)", "unknown method 'Slidin'"),
        ("DeepCache:steps=" + "(" * 500, "cannot read"),
    ],
)
def test_what_it_cannot_read_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os').system('false')",
        "open('x')",
        "[print(1) for i in (1,)]",
        "(lambda: 1)()",
        "TaylorSeer.__init__",
        "TaylorSeer.__class__(interval=1)",
    ],
)
def test_nothing_is_executed(value, monkeypatch):
    def ran(*args, **kwargs):
        raise AssertionError("something was executed")

    for name in ("open", "print", "eval", "exec"):
        monkeypatch.setattr(f"builtins.{name}", ran)
    monkeypatch.setattr("os.system", ran)
    with pytest.raises(ValueError):
        parse_method(f"DeepCache:steps={value}")
