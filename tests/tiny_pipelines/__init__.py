"""Real diffusers pipelines with tiny random weights, for tests: no hub, no network, float32, CPU.

`make(name)` returns a fresh pipeline that shares nothing with any other (a deep copy of one built
once per process), `call(pipe, name)` runs it from one seed to a latent tensor.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline

from . import (
    animatediff,
    cogvideox,
    dit,
    flux,
    hunyuan_video,
    hunyuan_video15,
    ltx,
    ltx2,
    lumina2,
    mochi,
    pixart,
    qwenimage,
    sana,
    sd,
    sd3,
    sdxl,
    svd,
    text,
    wan,
)
from .schedulers import SCHEDULERS

PROMPT = "a red circle moving left on a dark background"


@dataclass(frozen=True)
class Tiny:
    """How one pipeline is built and called; `guidance` is the name of its guidance argument, or
    "guider" where a part of the pipeline has the scale.

    `encode(pipe, prompts, negative)` gives the arguments to pass instead of prompts, if it must.
    """

    build: Callable[..., DiffusionPipeline]
    scheduler: str
    call: dict[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    default_guidance: float = 4.0
    encode: Callable[..., dict[str, Any]] | None = None


TINY = {
    "wan": Tiny(wan.build, wan.SCHEDULER, wan.CALL),
    "wan22": Tiny(functools.partial(wan.build, second=True), wan.SCHEDULER, wan.CALL),
    "wan_i2v": Tiny(wan.build_i2v, wan.SCHEDULER, wan.I2V, encode=text.embeddings),
    "flux": Tiny(flux.build, flux.SCHEDULER, flux.CALL, "true_cfg_scale"),
    "flux_distilled": Tiny(flux.build, flux.SCHEDULER, flux.CALL),
    "cogvideox": Tiny(cogvideox.build, cogvideox.SCHEDULER, cogvideox.CALL),
    "ltx": Tiny(ltx.build, ltx.SCHEDULER, ltx.CALL),
    "ltx2": Tiny(ltx2.build, ltx2.SCHEDULER, ltx2.CALL),
    "sd": Tiny(sd.build, sd.SCHEDULER, sd.CALL),
    "sd_img2img": Tiny(functools.partial(sd.build, task="img2img"), sd.SCHEDULER, sd.IMG2IMG),
    "sd_controlnet": Tiny(
        functools.partial(sd.build, task="controlnet"), sd.SCHEDULER, sd.CONTROLNET
    ),
    "sdxl": Tiny(sdxl.build, sdxl.SCHEDULER, sdxl.CALL),
    "sdxl_img2img": Tiny(functools.partial(sdxl.build, task="img2img"), sdxl.SCHEDULER, sd.IMG2IMG),
    "sd_controlnet_img2img": Tiny(
        functools.partial(sd.build, task="controlnet_img2img"),
        sd.SCHEDULER,
        sd.CONTROLNET_IMG2IMG,
    ),
    "sdxl_controlnet": Tiny(
        functools.partial(sdxl.build, task="controlnet"), sdxl.SCHEDULER, sd.CONTROLNET
    ),
    "flux_controlnet": Tiny(
        functools.partial(flux.build, control=True),
        flux.SCHEDULER,
        flux.CONTROLNET,
        "true_cfg_scale",
    ),
    "hunyuan_video": Tiny(
        hunyuan_video.build, hunyuan_video.SCHEDULER, hunyuan_video.CALL, "true_cfg_scale"
    ),
    "hunyuan_video_i2v": Tiny(
        functools.partial(hunyuan_video.build, replace=True),
        hunyuan_video.SCHEDULER,
        hunyuan_video.CALL,
        "true_cfg_scale",
    ),
    "hunyuan_video15": Tiny(
        hunyuan_video15.build,
        hunyuan_video15.SCHEDULER,
        hunyuan_video15.CALL,
        "guider",
        encode=hunyuan_video15.embeddings,
    ),
    "mochi": Tiny(mochi.build, mochi.SCHEDULER, mochi.CALL),
    "sd3": Tiny(sd3.build, sd3.SCHEDULER, sd3.CALL),
    "sd3_controlnet": Tiny(
        functools.partial(sd3.build, control=True), sd3.SCHEDULER, sd3.CONTROLNET
    ),
    "pixart": Tiny(pixart.build, pixart.SCHEDULER, pixart.CALL),
    "sana": Tiny(sana.build, sana.SCHEDULER, sana.CALL),
    "lumina2": Tiny(lumina2.build, lumina2.SCHEDULER, lumina2.CALL),
    "qwenimage": Tiny(
        qwenimage.build,
        qwenimage.SCHEDULER,
        qwenimage.CALL,
        "true_cfg_scale",
        encode=qwenimage.embeddings,
    ),
    "qwenimage_edit": Tiny(
        functools.partial(qwenimage.build, zero_time=True),
        qwenimage.SCHEDULER,
        qwenimage.CALL,
        "true_cfg_scale",
        encode=qwenimage.embeddings,
    ),
    "dit": Tiny(dit.build, dit.SCHEDULER, dit.CALL, encode=dit.labels),
    "svd": Tiny(svd.build, svd.SCHEDULER, svd.CALL, "max_guidance_scale", encode=svd.picture),
    "animatediff": Tiny(animatediff.build, animatediff.SCHEDULER, animatediff.CALL),
}
NAMES = tuple(TINY)


def make(name: str, scheduler: str | None = None) -> DiffusionPipeline:
    """A fresh pipeline. `scheduler` is a key of `SCHEDULERS`; by default the family's own, or what
    stands behind a colon in `name`.
    """
    name, _, given = name.partition(":")
    pipe = copy.deepcopy(_built(name))
    if scheduler or given:
        pipe.scheduler = SCHEDULERS[scheduler or given]()
    return pipe


def call(
    pipe: DiffusionPipeline,
    name: str,
    *,
    steps: int = 5,
    guidance: float | None = None,
    seed: int | Sequence[int] = 0,
    prompt: str | Sequence[str] = PROMPT,
    negative_prompt: str | None = "blue",
    output_type: str = "latent",
    batch: int = 1,
    callback: Callable | None = None,
    **overrides: Any,
) -> torch.Tensor:
    """Runs `pipe` and returns its first output (latents unless `output_type` says otherwise).

    `guidance` 1 is off, `None` the default of 4. Sample i of a batch is drawn from its own
    generator, seeded `seed + i` or `seed[i]`, so that it is the sample that seed gives alone.
    `overrides` go to the pipeline as they are.
    """
    tiny = TINY[name.partition(":")[0]]
    prompts = [prompt] * batch if isinstance(prompt, str) else list(prompt)
    seeds = [seed + i for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    guidance = tiny.default_guidance if guidance is None else guidance
    arguments: dict[str, Any] = dict(tiny.call)
    arguments |= {
        "prompt": prompts,
        "negative_prompt": None if negative_prompt is None else [negative_prompt] * len(prompts),
        "num_inference_steps": steps,
        tiny.guidance: guidance,
        "generator": [torch.Generator().manual_seed(s) for s in seeds],
        "output_type": output_type,
        "return_dict": False,
    }
    if tiny.guidance == "guider":
        pipe.guider = pipe.guider.new(guidance_scale=arguments.pop("guider"))
    known = inspect.signature(type(pipe).__call__).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for texts in ("prompt", "negative_prompt"):  # pipelines of classes or pictures have none
        if texts not in known and not anything:
            del arguments[texts]
    if tiny.encode is not None:
        arguments |= tiny.encode(pipe, prompts, arguments.get("negative_prompt"))
    if callback is not None:
        arguments["callback_on_step_end"] = callback
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # for what pipelines draw from no generator
        return torch.as_tensor(pipe(**(arguments | overrides))[0])


@functools.cache
def _built(name: str) -> DiffusionPipeline:
    if name not in TINY:
        raise KeyError(f"no tiny pipeline named {name!r}; there are {', '.join(NAMES)}")
    tiny = TINY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = tiny.build(tiny.scheduler)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
