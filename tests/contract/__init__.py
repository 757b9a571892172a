"""The methods under contract: one row each. A new method is one more row."""

from __future__ import annotations

from dataclasses import dataclass

from accel.caching import (
    PAB,
    ClusCa,
    DBCache,
    DeepCache,
    DiCache,
    DuCa,
    EasyCache,
    FasterCache,
    FasterDiffusion,
    FeatureInheritance,
    FirstBlockCache,
    FreqCa,
    HarmoniCa,
    HiCache,
    MagCache,
    Planned,
    SeaCache,
    SpeCa,
    Spectrum,
    StepRehash,
    TaylorSeer,
    TeaCache,
    ToCa,
)
from accel.method import Method

TRANSFORMERS = ("wan", "wan22", "wan_i2v", "flux", "flux_distilled", "cogvideox", "ltx")
BLOCKS = (  # of every other family whose blocks are described
    *TRANSFORMERS,
    "hunyuan_video",
    "mochi",
    "sd3",
    "pixart",
    "sana",
    "lumina2",
    "qwenimage",
    "dit",
    "flux_controlnet",
)
SPECIAL = ("ltx2", "hunyuan_video_i2v", "qwenimage_edit", "sd3_controlnet")
PICTURES = (
    *("sd", "sd_img2img", "sd_controlnet", "sd_controlnet_img2img"),
    *("sdxl", "sdxl_img2img", "sdxl_controlnet"),
)
UNETS = (*PICTURES, "svd", "animatediff")


@dataclass(frozen=True)
class Row:
    """What a method promises.

    Attributes:
        method: a setting that skips work on the tiny pipelines in 5 steps.
        idle: a setting that skips nothing.
        names: tiny pipelines of every family it claims.
        full: those that get every clause, one with fused and one with separate guidance if any.
        frozen: on repeated input a skipped step equals a full one "exactly" or to "rounding".
        static: which steps are skipped does not depend on the samples.
        shared: samples of a batch decide together, and the help says so.
    """

    method: Method
    idle: Method
    names: tuple[str, ...]
    full: tuple[str, ...]
    frozen: str = "exactly"
    static: bool = True
    shared: bool = False

    def __str__(self) -> str:
        return "-".join(str(v) for v in (type(self.method).__name__, *vars(self.method).values()))


ROWS = (
    Row(
        TaylorSeer(interval=2, warmup=1),
        TaylorSeer(interval=1),
        (*BLOCKS, *SPECIAL, *UNETS),
        ("wan", "cogvideox"),
    ),
    Row(
        TaylorSeer(interval=3, warmup=2, carrier="hidden", last=True, settle=True),
        TaylorSeer(interval=1, carrier="hidden"),
        (*BLOCKS, "sd3_controlnet"),
        ("flux", "ltx"),
    ),
    Row(
        TaylorSeer(interval=2, warmup=1, order=2, carrier="module"),
        TaylorSeer(interval=1, carrier="module"),
        BLOCKS,
        ("wan", "cogvideox"),
    ),
    Row(
        TaylorSeer(interval=2, warmup=1, order=2, carrier="module", basis="newton"),
        TaylorSeer(interval=1, carrier="module", basis="newton"),
        ("flux", "ltx"),
        ("flux", "ltx"),
    ),
    Row(
        FirstBlockCache(threshold=0.4),
        FirstBlockCache(threshold=0),
        (*BLOCKS, "sd3_controlnet", "hunyuan_video_i2v"),
        ("flux", "ltx"),
        frozen="rounding",
        static=False,
    ),
    Row(
        FirstBlockCache(threshold=0.4, per_sample=False),
        FirstBlockCache(threshold=0, per_sample=False),
        ("wan",),
        ("cogvideox",),
        frozen="rounding",
        static=False,
        shared=True,
    ),
    Row(
        DBCache(threshold=0.5, front=1, back=1, order=1, warmup=2),
        DBCache(threshold=0, front=1, back=1),
        TRANSFORMERS,
        ("flux", "wan"),
        frozen="rounding",
        static=False,
    ),
    Row(
        DBCache(steps=(0, 1, 3), front=2, warmup=1),
        DBCache(steps=(0, 1, 2, 3, 4), front=2),
        ("wan", "flux"),
        ("cogvideox", "ltx"),
        frozen="rounding",
    ),
    Row(
        HiCache(interval=2, warmup=2, last=True),
        HiCache(interval=1),
        ("wan", "cogvideox", "sd"),
        ("flux", "ltx"),
        frozen="rounding",
    ),
    Row(
        HarmoniCa(("1" * 12, "0" * 12, "110" * 4, "010" * 4, "1" * 12), resample=True),
        HarmoniCa(("1" * 12,), resample=True),
        ("wan", "wan22", "flux", "ltx"),
        ("flux",),
    ),
    Row(
        HarmoniCa(("1" * 8, "10" * 4, "0" * 8, "1" * 8, "01" * 4), resample=True),
        HarmoniCa(("1" * 8,), resample=True),
        ("cogvideox",),
        ("cogvideox",),
    ),
    Row(
        Spectrum(interval=2, growth=0.75, warmup=2, relative=True),
        Spectrum(interval=1, growth=0),
        ("cogvideox", "sd"),
        ("wan", "ltx"),
    ),
    Row(
        Spectrum(growth=0, warmup=2, mix=0.5, carrier="hidden", relative=True),
        Spectrum(interval=1, growth=0, carrier="hidden"),
        ("flux", "wan_i2v"),
        ("flux",),
    ),
    Row(
        FasterDiffusion(steps=(0, 2)),
        FasterDiffusion(interval=1, noise=0),
        ("sd_controlnet", "sdxl_img2img", "svd", "animatediff"),
        ("sd", "sdxl"),
    ),
    Row(
        FasterDiffusion(interval=3, decoder="batched"),
        FasterDiffusion(interval=1, decoder="batched", noise=0),
        ("sd_controlnet", "sd_img2img", "animatediff"),
        ("sdxl", "svd"),
        frozen="rounding",
    ),
    Row(
        FeatureInheritance("unit", ("*.attn2", "*.ff", "up_blocks.[01].resnets.*")),
        FeatureInheritance("unit", interval=1),
        ("sd_controlnet", "animatediff"),
        ("sd", "svd"),
    ),
    Row(
        FeatureInheritance("block", pattern="last", interval=3, part=0.8),
        FeatureInheritance("block", ()),
        ("sd_img2img", "svd"),
        ("sdxl",),
    ),
    Row(StepRehash(reuse=2), StepRehash(reuse=0), ("svd", "animatediff"), ("animatediff",)),
    Row(
        FreqCa(interval=2, warmup=2),
        FreqCa(interval=1),
        ("wan22", "cogvideox"),
        ("flux", "ltx"),
        frozen="rounding",
    ),
    Row(
        ToCa(interval=2, ratio=0.2, ease=0, step_weight=0),
        ToCa(interval=1),
        ("wan22", "cogvideox"),
        ("flux", "ltx"),
        frozen="rounding",
    ),
    Row(
        DuCa(interval=3, ratio=0.2, warmup=2, step_weight=0),
        DuCa(interval=1),
        ("wan", "cogvideox"),
        ("flux",),
        frozen="rounding",
    ),
    Row(
        ClusCa(interval=2, clusters=4, warmup=2, spread=0),
        ClusCa(interval=1),
        ("ltx", "flux"),
        ("wan", "cogvideox"),
        frozen="rounding",
    ),
    Row(DeepCache(interval=2, branch=1), DeepCache(interval=1), PICTURES, ("sd", "sdxl")),
    Row(DeepCache(2, branch=2, power=1.5), DeepCache(1, power=1.5), ("sd",), ("sdxl",)),
    Row(DeepCache(steps=(0, 3), branch=4), DeepCache(steps=(0, 1, 2, 3, 4)), PICTURES, ("sd",)),
    Row(DeepCache(steps=(0, 3)), DeepCache(interval=1), ("svd", "animatediff"), ()),
    Row(
        PAB(full=3, cross=2, feed_forward=2, window=(0.0, 1.0)),
        PAB(full=1, cross=1),
        ("wan22", "flux", "hunyuan_video", "sd3", "dit", "qwenimage"),
        ("wan", "cogvideox"),
    ),
    Row(
        FasterCache(3, attention_start=0.0, guidance_interval=3, guidance_start=0.0, boost=1.0),
        FasterCache(attention_interval=1, guidance_interval=1),
        ("wan22", "hunyuan_video", "flux_distilled", "sd", "sd3", "dit"),
        ("wan", "cogvideox"),
        frozen="rounding",
    ),
    Row(
        TeaCache(0.4, (1.0, 0.0)),
        TeaCache(0, (1.0, 0.0)),
        ("wan", "wan_i2v", "cogvideox", "ltx"),
        ("wan", "ltx"),
        frozen="rounding",
        static=False,
    ),
    Row(
        MagCache((1.0, 1.0, 1.1, 1.0, 1.0), threshold=0.12),
        MagCache((1.0,) * 5, threshold=0),
        ("wan22", "flux", "cogvideox", "ltx"),
        ("flux", "cogvideox"),
        frozen="rounding",
    ),
    Row(
        DiCache(0.9, retention=0.2),
        DiCache(0),
        ("wan_i2v", "flux", "cogvideox"),
        ("wan", "ltx"),
        frozen="rounding",
        static=False,
    ),
    Row(
        SpeCa(0.5, shortest=1, longest=2, warmup=2),
        SpeCa(0),
        ("wan", "flux", "cogvideox", "ltx"),
        ("flux", "cogvideox"),
        frozen="rounding",
        static=False,
    ),
    Row(
        SeaCache(0.9, tail=0),
        SeaCache(0),
        ("wan", "flux", "cogvideox", "ltx"),
        ("flux", "cogvideox"),
        frozen="rounding",
        static=False,
    ),
    Row(
        EasyCache(0.6, warmup=2),
        EasyCache(0),
        ("wan_i2v", "wan22", "flux", "cogvideox"),
        ("wan", "ltx"),
        static=False,
    ),
    Row(
        Planned(nodes=(0, 1, 3), steps=5),
        Planned(nodes=(0, 1, 2, 3, 4), steps=5),
        ("wan", "sd", "flux", "cogvideox", "sdxl"),
        ("wan", "sd"),
    ),
)
PAIRS = [(row, name) for row in ROWS for name in row.names]
FULL = [(row, name) for row in ROWS for name in row.full]
