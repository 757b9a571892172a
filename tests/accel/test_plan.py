"""Plans: JSON out and in without loss; what does not fit is named; nothing is executed."""

import enum
import json
import math
import typing
from dataclasses import dataclass
from typing import Literal

import pytest

from accel import Plan
from accel.caching import METHODS, DeepCache, FirstBlockCache, MagCache, TaylorSeer
from accel.method import Method
from accel.plan import _decode, _encode, as_method, build, describe
from accel.registry import families


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Inner:
    window: tuple[int, int, int] = (3, 3, 3)
    scale: float = 1.0


@dataclass(frozen=True)
class Everything(Method):
    """A field of every kind that a plan can hold."""

    number: int = 1
    ratio: float = 0.5
    flag: bool = False
    name: str = "a"
    kind: Literal["a", "b", 3] = "a"
    listed: tuple[int, ...] | None = None
    pair: tuple[float, str] = (1.0, "x")
    nested: tuple[tuple[float, ...], ...] = ()
    colour: Colour = Colour.RED
    inner: Inner | None = None
    either: int | float = 1

    level = "step"

    def install(self, site):
        return None

    def expect(self, site, steps):
        return ""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    import accel.caching

    monkeypatch.setitem(accel.caching.METHODS, "Everything", Everything)
    types = getattr(accel.caching, "TYPES", {})
    monkeypatch.setattr(accel.caching, "TYPES", {**types, "Inner": Inner}, raising=False)
    from accel.registry import methods

    methods.cache_clear()
    yield
    methods.cache_clear()


@pytest.mark.parametrize(
    "method",
    [
        TaylorSeer(),
        TaylorSeer(interval=3, order=0, warmup=5, carrier="module", basis="newton", last=True),
        FirstBlockCache(threshold=0.125),
        FirstBlockCache(threshold=math.inf),
        DeepCache(steps=(0, 3, 7), branch=2),
        DeepCache(interval=4),
        Everything(),
        Everything(
            number=-7,
            ratio=-math.inf,
            flag=True,
            name="None",
            kind=3,
            listed=(),
            pair=(math.inf, "inf"),
            nested=((1.0, 2.5), (), (math.inf,)),
            colour=Colour.BLUE,
            inner=Inner(window=(1, 2, 3), scale=1e-30),
            either=2.5,
        ),
        Everything(listed=(1, 2), either=3, ratio=0.1 + 0.2),
    ],
    ids=describe,
)
def test_json_keeps_everything(method):
    made_for = {"model": "wan", "steps": 50, "guidance": 7.5}
    plan = Plan((method,), "mine", "a note", made_for, {"db": 41.5, "errors": [0.1, 0.2]})
    again = Plan.from_json(plan.to_json())
    assert again == plan and repr(again) == repr(plan)
    assert json.loads(plan.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_a_file_keeps_everything(tmp_path):
    plan = Plan((TaylorSeer(),), "mine")
    assert Plan.load(plan.save(tmp_path / "plan.json")) == plan


def test_a_plan_of_nothing():
    assert Plan.from_json(Plan(()).to_json()) == Plan(())
    assert str(Plan(())) == "nothing"


@pytest.mark.parametrize("name", [n for n, f in families().items() if f.recipes])
def test_recipes_survive_json(name):
    for recipe in families()[name].recipes.values():
        plan = recipe()
        assert Plan.from_json(plan.to_json()) == plan


def test_every_method_survives_json_and_has_help():
    for name, kind in METHODS.items():
        assert kind.__name__ == name and kind.__doc__
        assert Plan.from_json(Plan((kind(),)).to_json()) == Plan((kind(),))


def wrong(method, **fields):
    return json.dumps({"methods": [{"method": method, **fields}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a plan: "),
        ("[]", 'expected an object with a list "methods"'),
        ('{"methods": 3}', 'expected an object with a list "methods"'),
        ('{"methods": [], "nam": "x"}', r"plan has no field 'nam'; did you mean name\?"),
        ('{"methods": [3]}', 'methods must be an object with a "method", got 3'),
        ('{"methods": [{"interval": 3}]}', 'methods must be an object with a "method"'),
        (wrong("TailorSeer"), r"unknown method 'TailorSeer'; did you mean TaylorSeer\?"),
        (wrong(["x"]), r"name of a method must be a string, got \['x'\]"),
        (wrong("Inner"), r'methods must be an object with a "method", got Inner'),
        (
            wrong("TaylorSeer", intervall=3),
            r"TaylorSeer has no field 'intervall'; did you mean interval\?",
        ),
        (wrong("TaylorSeer", interval="3"), "TaylorSeer.interval must be int, got '3'"),
        (wrong("TaylorSeer", interval=3.5), "TaylorSeer.interval must be int, got 3.5"),
        (wrong("TaylorSeer", interval=True), "TaylorSeer.interval must be int, got True"),
        (wrong("TaylorSeer", interval=0), "TaylorSeer.interval must be at least 1, got 0"),
        (wrong("TaylorSeer", last=1), "TaylorSeer.last must be bool, got 1"),
        (wrong("TaylorSeer", interval=None), "TaylorSeer.interval must be int, got None"),
        (
            wrong("TaylorSeer", carrier="outputs"),
            "TaylorSeer.carrier must be one of 'output', 'hidden', 'module', got 'outputs'",
        ),
        (
            wrong("TaylorSeer", carrier=["output"]),
            "TaylorSeer.carrier must be one of",
        ),
        (wrong("FirstBlockCache", threshold="0.08"), "threshold must be float, got '0.08'"),
        (wrong("FirstBlockCache", threshold=True), "threshold must be float, got True"),
        (wrong("FirstBlockCache", threshold=[1]), r"threshold must be float, got \[1\]"),
        (
            wrong("DeepCache", steps="0"),
            r"DeepCache.steps must be tuple\[int, ...\] \| None, got '0'",
        ),
        (wrong("DeepCache", steps=[0, "x"]), r"DeepCache.steps must be tuple.*, got \[0, 'x'\]"),
        (wrong("Everything", pair=[1.0]), r"Everything.pair must have 2 entries, got \[1.0\]"),
        (wrong("Everything", colour="YELLOW"), "Everything.colour 'YELLOW'; known: BLUE, RED"),
        (wrong("Everything", colour=["RED"]), "Everything.colour"),
        (
            wrong("Everything", inner={"method": "TaylorSeer"}),
            r"Everything.inner must be Inner \| None, got",
        ),
        (wrong("Everything", number={"method": "Inner"}), "Everything.number must be int, got"),
        ('{"methods": [], "name": 5}', "name must be a string, got 5"),
        ('{"methods": [], "fingerprint": 5}', "fingerprint must be an object, got 5"),
    ],
)
def test_what_does_not_fit_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_method_names_are_read_in_any_case():
    assert Plan.from_json(wrong("taylorseer")) == Plan((TaylorSeer(),))
    assert as_method("deepcache", branch=1) == DeepCache(branch=1)


def test_errors_of_a_file_name_it(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the plan .*no\.json: No such file"):
        Plan.load(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("?")
    with pytest.raises(ValueError, match=r"bad\.json: not a plan"):
        Plan.load(tmp_path / "bad.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"bytes\.json: "):
        Plan.load(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    "pair",
    [
        (TaylorSeer(), FirstBlockCache()),
        (FirstBlockCache(), DeepCache()),
        (DeepCache(), TaylorSeer()),
    ],
)
def test_a_conflict_names_both_and_the_way_out(pair):
    for one, other in (pair, pair[::-1]):
        names = f"{type(one).__name__} and {type(other).__name__} cannot be combined"
        with pytest.raises(ValueError, match=f"{names}.*enable one of them"):
            Plan((one, other))
    with pytest.raises(ValueError, match="given twice"):
        Plan((pair[0], pair[0]))


def test_a_conflict_in_a_file_is_refused():
    text = json.dumps({"methods": [{"method": "TaylorSeer"}, {"method": "DeepCache"}]})
    with pytest.raises(ValueError, match="cannot be combined"):
        Plan.from_json(text)


def test_describe_shows_what_differs_from_the_defaults():
    assert describe(TaylorSeer()) == "TaylorSeer()"
    assert describe(TaylorSeer(interval=3)) == "TaylorSeer(interval=3)"
    assert str(Plan((TaylorSeer(order=2),))) == "TaylorSeer(order=2)"


def test_describe_leaves_out_what_is_long():
    fitted = [MagCache((1.25,) * 50), MagCache((1.25,) * 49 + (1.0,))]
    assert [describe(method) for method in fitted] == ["MagCache(ratios=…)"] * 2
    assert describe(fitted[0], 12, begun=True) == "MagCache(ratios=(1.25, 1.25,…)"


def test_build_takes_values_that_are_right_already():
    fields = {"colour": Colour.BLUE, "inner": Inner(scale=2.0), "pair": (1, "x")}
    assert build(Everything, fields) == Everything(**fields)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_are_written_as_text(value):
    assert isinstance(_encode(value), str)
    assert _decode(_encode(value), float, "x") == value


def test_every_field_of_every_method_has_a_type_that_plans_can_read():
    for kind in METHODS.values():
        for name, hint in typing.get_type_hints(kind).items():
            if typing.get_origin(hint) is not typing.ClassVar:
                value = getattr(kind(), name)
                assert _decode(_encode(value), hint, name) == value


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (TaylorSeer, {"interval": 0}, "TaylorSeer.interval must be at least 1, got 0"),
        (TaylorSeer, {"order": -1}, "TaylorSeer.order must be from 0 to 6, got -1"),
        (TaylorSeer, {"warmup": 0}, "TaylorSeer.warmup must be at least 1, got 0"),
        (TaylorSeer, {"carrier": "x"}, "TaylorSeer.carrier must be one of output, hidden"),
        (TaylorSeer, {"basis": "x"}, "TaylorSeer.basis must be taylor or newton, got 'x'"),
        (FirstBlockCache, {"threshold": -1.0}, "FirstBlockCache.threshold must be 0 or more"),
        (FirstBlockCache, {"threshold": math.nan}, "FirstBlockCache.threshold must be 0 or more"),
        (DeepCache, {"interval": 0}, "DeepCache.interval must be at least 1"),
        (DeepCache, {"steps": (1, 2)}, "DeepCache.steps must be rising step numbers that begin"),
        (DeepCache, {"steps": (0, 2, 2)}, "DeepCache.steps must be rising"),
        (DeepCache, {"steps": ()}, "DeepCache.steps must be rising"),
    ],
)
def test_settings_out_of_range_are_named(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)
