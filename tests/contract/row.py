"""What a row of the contract's table says, and the tiny pipelines by group."""

from __future__ import annotations

from dataclasses import dataclass

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
SPECIAL = ("ltx2", "hunyuan_video_i2v", "hunyuan_video15", "qwenimage_edit", "sd3_controlnet")
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
        names: tiny pipelines of every family it claims; `name:scheduler` where it needs another.
        full: those that get every clause, one with fused and one with separate guidance if any.
        frozen: on repeated input a skipped step equals a full one "exactly" or to "rounding", or
            has the "unguided" prediction, or is "sparse": computed, and the same in every step.
        static: which steps are skipped does not depend on the samples.
        shared: samples of a batch decide together, and the help says so.
        spends: most of the FLOPs of a plain run; attention is a small part of tiny models.
    """

    method: Method
    idle: Method
    names: tuple[str, ...]
    full: tuple[str, ...]
    frozen: str = "exactly"
    static: bool = True
    shared: bool = False
    spends: float = 0.9

    def __str__(self) -> str:
        return "-".join(str(v) for v in (type(self.method).__name__, *vars(self.method).values()))
