"""enable, disable, accelerated: replaced, rolled back, restored."""

import gc
import json
import weakref
from dataclasses import dataclass

import pytest
import torch

import accel
from accel import Plan
from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from accel.method import Method
from accel.patch import CALL, PatchConflict
from tests.probes import HALF, Watch, computed, footprint, handlers, plain, skipped
from tests.tiny_pipelines import NAMES, call, make

NOTHING = Plan(())
THIRD = TaylorSeer(interval=3, warmup=1)


@dataclass(frozen=True)
class Fails(Method):
    """Wraps every module and then fails, as a method on an unsuitable model does."""

    level = "step"

    def install(self, site):
        for name, module in site.denoisers.items():
            for path, part in module.named_modules():
                site.patches.call(part, lambda c, *a, **k: c(*a, **k), f"Fails on {name}.{path}")
        raise ValueError("cannot be installed here")

    def expect(self, site, steps):
        return "fails"


@pytest.mark.parametrize("name", NAMES)
def test_disabling_is_exact_and_may_be_repeated(name):
    pipe = make(name)
    call(pipe, name)
    before = footprint(pipe)
    pipe.disable_acceleration()
    pipe.enable_acceleration(HALF)
    with computed(*denoisers(pipe)) as few:
        assert not torch.equal(call(pipe, name), plain(name))
    pipe.disable_acceleration()
    for _ in range(2):
        with computed(*denoisers(pipe)) as every:
            assert torch.equal(call(pipe, name), plain(name))
        assert 0 < len(few) < len(every)
        assert footprint(pipe) == before
        pipe.disable_acceleration()


def denoisers(pipe):
    names = ("transformer", "transformer_2", "unet")
    return [m for n in names if (m := getattr(pipe, n, None)) is not None]


@pytest.mark.parametrize("method", [HALF, TaylorSeer(carrier="module"), FirstBlockCache()])
def test_enabling_twice_replaces_and_nothing_accumulates(method):
    pipe = make("wan")
    pipe.enable_acceleration(THIRD)
    first = pipe.enable_acceleration(method)
    once = handlers(pipe)
    for _ in range(3):
        second = pipe.enable_acceleration(method)
        call(pipe, "wan")
    assert pipe.acceleration is second is not first
    assert handlers(pipe) == once
    pipe.disable_acceleration()
    assert handlers(pipe) == (0, 0)


def test_the_last_enabled_is_what_acts():
    pipe = make("wan")
    pipe.enable_acceleration(THIRD)
    pipe.enable_acceleration(HALF)
    assert torch.equal(call(pipe, "wan"), skipped("wan"))
    pipe.enable_acceleration(NOTHING)
    assert torch.equal(call(pipe, "wan"), plain("wan"))


@pytest.mark.parametrize("name", NAMES)
def test_enabling_nothing_changes_nothing(name):
    pipe = make(name)
    pipe.enable_acceleration(NOTHING)
    assert pipe.acceleration
    with computed(*denoisers(pipe)) as seen:
        assert torch.equal(call(pipe, name), plain(name))
    report = pipe.acceleration.report()
    assert report.computed_fraction == report.bound == 1
    assert len(report.rows) == len(seen)
    assert {row.action for row in report.rows} == {"computed"}


def test_a_failing_install_leaves_a_plain_pipeline_plain():
    pipe = make("wan")
    call(pipe, "wan")
    before = footprint(pipe)
    with pytest.raises(ValueError, match="cannot be installed here"):
        pipe.enable_acceleration(HALF, Fails())
    assert footprint(pipe) == before and not pipe.acceleration
    assert torch.equal(call(pipe, "wan"), plain("wan"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda pipe: pipe.enable_acceleration(Fails()),
        lambda pipe: pipe.enable_acceleration("blanced"),
        lambda pipe: pipe.enable_acceleration(DeepCache()),
        lambda pipe: pipe.enable_acceleration(HALF, family="wam"),
        lambda pipe: pipe.enable_acceleration(HALF, FirstBlockCache()),
    ],
    ids=["install", "recipe", "kind", "family", "conflict"],
)
def test_what_was_enabled_stays_when_the_next_fails(wrong):
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    once = handlers(pipe)
    with pytest.raises(ValueError):
        wrong(pipe)
    assert pipe.acceleration.plan == Plan((HALF,)) and handlers(pipe) == once
    assert torch.equal(call(pipe, "wan"), skipped("wan"))
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "wan"), plain("wan"))


@pytest.mark.parametrize(
    ("name", "what", "how", "message"),
    [
        ("wan", ("balansed",), {}, r"family wan has no recipe 'balansed'; did you mean balanced\?"),
        ("wan", ("turbo",), {}, r"no recipe 'turbo'; known: balanced, fast"),
        ("wan", ("TaylorSeer",), {}, r"'TaylorSeer' is a method: give an instance"),
        ("wan", ("taylorseer",), {}, r"'TaylorSeer' is a method: give an instance"),
        ("wan", (HALF,), {"family": "wam"}, r"unknown family 'wam'; did you mean wan\?"),
        ("wan", (HALF,), {"family": "flux"}, r"family flux describes FluxTransformer2DModel"),
        ("wan", (3,), {}, r"expected one recipe name, one Plan or methods, got 3"),
        ("wan", (TaylorSeer,), {}, r"expected one recipe name, one Plan or methods"),
        ("wan", ("fast", HALF), {}, r"expected one recipe name, one Plan or methods, got 'fast'"),
        ("wan", (DeepCache(),), {}, r"DeepCache works on unet models.*wan is a transformer"),
        ("sd", (FirstBlockCache(),), {}, r"FirstBlockCache works on transformer models"),
        ("sd", (TaylorSeer(carrier="hidden"),), {}, r"TaylorSeer works on .* as set; sd is a unet"),
        ("wan", (HALF, FirstBlockCache()), {}, r"TaylorSeer and FirstBlockCache cannot be comb"),
        ("wan", (HALF, THIRD), {}, r"TaylorSeer is given twice"),
    ],
)
def test_a_wrong_request_is_named(name, what, how, message):
    pipe = make(name)
    before = footprint(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.enable_acceleration(*what, **how)
    assert footprint(pipe) == before


def test_a_bare_denoiser_and_a_stranger_are_refused():
    pipe = make("wan")
    with pytest.raises(ValueError, match=r"bare denoiser.*on the pipeline that holds it"):
        accel.enable(pipe.transformer, HALF)
    with pytest.raises(ValueError, match="int has no denoiser that acceleration knows"):
        accel.enable(3, HALF)


def test_family_may_be_named():
    pipe = make("wan")
    assert pipe.enable_acceleration(HALF, family="wan").family.name == "wan"


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox", "ltx", "ltx2", "sd", "sdxl"])
@pytest.mark.parametrize("recipe", ["balanced", "fast"])
def test_recipes_of_every_family(name, recipe):
    pipe = make(name)
    if name == "ltx2":
        with pytest.raises(ValueError, match="has no recipes; give methods"):
            pipe.enable_acceleration(recipe)
        return
    state = pipe.enable_acceleration(recipe)
    assert state.plan.name == recipe and state.plan.note
    assert recipe in state.explain()
    assert call(pipe, name, steps=4).isfinite().all()


def test_without_arguments_the_balanced_recipe_is_enabled():
    pipe = make("wan")
    assert pipe.enable_acceleration().plan.name == "balanced"


def test_a_plain_pipeline_has_no_acceleration():
    pipe = make("wan")
    assert not pipe.acceleration
    for ask in (pipe.acceleration.report, pipe.acceleration.explain):
        with pytest.raises(RuntimeError, match="not enabled on this WanPipeline"):
            ask()


def test_a_report_before_any_run_is_refused():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    with pytest.raises(RuntimeError, match="run the pipeline first"):
        pipe.acceleration.report()


def test_explain_says_that_each_of_two_denoisers_warms_up():
    two, one = (make(name).enable_acceleration(THIRD) for name in ("wan22", "wan"))
    assert "transformer and transformer_2 take turns" in two.explain(5)
    assert "take turns" not in one.explain(5)


def test_explain_says_what_a_run_will_do():
    pipe = make("wan")
    text = pipe.enable_acceleration(HALF).explain(5)
    assert "WanPipeline (family wan)" in text
    assert "TaylorSeer(interval=2, warmup=2): computes 3 of 5 steps (60%)" in text
    assert "settings: " in pipe.enable_acceleration("fast").explain()


def test_a_plan_beside_the_model_is_found(tmp_path):
    pipe = make("sd")
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    assert loaded.enable_acceleration().plan.name == "balanced"
    Plan((HALF,), note="tuned").save(tmp_path / "acceleration.json")
    found = loaded.enable_acceleration()
    assert found.plan == Plan((HALF,), "balanced", f"{tmp_path / 'acceleration.json'}: tuned")
    assert "recipe balanced" in found.explain() and "acceleration.json: tuned" in found.explain()
    assert loaded.enable_acceleration("fast").plan.name == "fast"
    (tmp_path / "acceleration.json").write_text(json.dumps({"methods": [{"method": "Tailor"}]}))
    with pytest.raises(ValueError, match=r"acceleration\.json: unknown method 'Tailor'"):
        loaded.enable_acceleration()
    assert loaded.acceleration.plan.name == "fast"


def test_a_plan_file_is_enabled(tmp_path):
    pipe = make("wan")
    pipe.enable_acceleration(Plan.load(Plan((HALF,)).save(tmp_path / "plan.json")))
    assert torch.equal(call(pipe, "wan"), skipped("wan"))


def test_a_foreign_patch_on_top_is_refused_and_the_pipeline_goes_on():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    ours = pipe.progress_bar
    pipe.progress_bar = lambda *args, **kwargs: ours(*args, **kwargs)
    for change in (pipe.disable_acceleration, lambda: pipe.enable_acceleration(THIRD)):
        with pytest.raises(PatchConflict, match=r"WanPipeline\.progress_bar was patched"):
            change()
    assert torch.equal(call(pipe, "wan"), skipped("wan"))
    pipe.progress_bar = ours
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "wan"), plain("wan"))


def test_a_dropped_pipeline_is_collected():
    pipe = make("wan")
    pipe.enable_acceleration(HALF, Watch())
    call(pipe, "wan")
    gone = [weakref.ref(pipe), weakref.ref(pipe.transformer), weakref.ref(pipe.acceleration)]
    del pipe
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_nothing_is_kept_between_runs():
    """Tensors that methods hold are let go of at the end of the run."""
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    call(pipe, "wan")
    assert pipe.acceleration.report().bytes_held > 0
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    for _ in range(3):
        call(pipe, "wan")
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= before


def test_importing_adds_three_names_and_nothing_else():
    pipe = make("wan")
    assert not [k for k in vars(pipe) if "accel" in k]
    assert all(CALL not in vars(m) for m in pipe.transformer.modules())
    for name in ("enable_acceleration", "disable_acceleration", "acceleration"):
        assert name in vars(accel.DiffusionPipeline)
