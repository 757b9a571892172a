"""Says which devices, kernels and extras work here, and why the others do not."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Literal

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch.nn.attention import SDPBackend, sdpa_kernel

from .load import TINY, first_line, shipped
from .versions import SUPPORTED, __version__

STYLES = {"works": "green", "absent": "dim", "broken": "bold red"}
EXTRAS = {"gradio": "app", "cache_dit": "bench", "DeepCache": "bench"}


@dataclass(frozen=True)
class Finding:
    """One thing that was tried: "absent" is optional and missing, "broken" is needed and not."""

    group: str
    name: str
    state: Literal["works", "absent", "broken"]
    detail: str


def examine() -> list[Finding]:
    """Try everything once; takes a few seconds and needs no network."""
    checks = (_versions, _devices, _attention, _compilers, _media, _models, _extras)
    return [finding for check in checks for finding in check()]


def table(findings: list[Finding]) -> Table:
    """A line a finding, grouped."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column()
    last = None
    for found in findings:
        group = found.group if found.group != last else ""
        last = found.group
        state = Text(found.state, STYLES[found.state])
        shown.add_row(group, found.name, state, Text(found.detail))
    return shown


def attempt(group: str, name: str, work: Callable[[], str], needed: bool, hint: str) -> Finding:
    """Run `work`; its result is the detail, its error with `hint` the reason why not."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return Finding(group, name, "works", work())
    except Exception as error:  # a broken extra may raise anything while it is imported
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = ["not installed" if missing else first_line(error), *filter(None, [hint])]
        return Finding(group, name, "broken" if needed else "absent", "; ".join(why))


def _versions() -> Iterator[Finding]:
    yield Finding("version", "accel", "works", f"{__version__}, Python {platform.python_version()}")
    for name in ("torch", "diffusers", "transformers", "accelerate"):
        wanted = f" (supported: {SUPPORTED[name]})" if name in SUPPORTED else ""
        yield Finding("version", name, "works", f"{metadata.version(name)}{wanted}")


def _devices() -> Iterator[Finding]:
    threads = torch.get_num_threads()
    yield Finding("device", "cpu", "works", f"{platform.machine()}, {threads} threads")
    for index in range(torch.cuda.device_count()):
        yield attempt("device", f"cuda:{index}", partial(_gpu, index), False, "see nvidia-smi")
    if not torch.cuda.device_count():
        built = torch.version.cuda or torch.version.hip
        why = "no GPU is visible" if built else "this torch is built for CPU only"
        yield Finding("device", "cuda", "absent", why)
    if platform.system() == "Darwin":
        ready = torch.backends.mps.is_available()
        state: Literal["works", "absent"] = "works" if ready else "absent"
        yield Finding("device", "mps", state, "--device mps" if ready else "not available")


def _gpu(index: int) -> str:
    found = torch.cuda.get_device_properties(index)
    torch.ones(16, 16, device=f"cuda:{index}", dtype=torch.bfloat16).matmul(
        torch.ones(16, 16, device=f"cuda:{index}", dtype=torch.bfloat16)
    ).sum().item()
    return f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB"


def _attention() -> Iterator[Finding]:
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"

    def sdpa(backend: SDPBackend) -> str:
        q = torch.ones(1, 2, 64, 64, device=device, dtype=torch.bfloat16)
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, q, q).sum().item()
        return f"{device}, bfloat16"

    kernels = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}
    gpu_only = {
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    for name, backend in (kernels | gpu_only).items():
        if name in gpu_only and not gpu:
            yield Finding("attention", f"sdpa {name}", "absent", "its kernels need a GPU")
            continue
        needed = backend is SDPBackend.MATH
        yield attempt("attention", f"sdpa {name}", partial(sdpa, backend), needed, "")
    external = importlib.import_module("accel.sparse_attn.kernels.external")
    for name, kernel in external.EXTERNAL.items():
        reason = external.probe(name)
        if reason is None:
            yield Finding("attention", name, "works", external.version(name))
        else:
            yield Finding("attention", name, "absent", f"{reason}; {kernel.install}")


def _compilers() -> Iterator[Finding]:
    yield attempt("compiler", "triton", _triton, False, "pip install 'accel[triton]'")
    compiler = next(
        filter(None, map(shutil.which, [os.environ.get("CXX", ""), "g++", "clang++"])), ""
    )
    detail = compiler or "no C++ compiler found; torch.compile and flex attention need one on CPU"
    yield Finding("compiler", "C++", "works" if compiler else "absent", detail)


def _triton() -> str:
    triton = importlib.import_module("triton")
    if not torch.cuda.is_available():
        raise RuntimeError(f"{triton.__version__} is installed, but without a GPU nothing launches")
    return str(triton.__version__)


def _media() -> Iterator[Finding]:
    def ffmpeg() -> str:
        found = importlib.import_module("imageio_ffmpeg")
        return f"{found.get_ffmpeg_version()} for mp4"

    yield attempt("media", "ffmpeg", ffmpeg, True, "pip install 'imageio[ffmpeg]'")


def _models() -> Iterator[Finding]:
    def loads(name: str) -> str:
        pipe = importlib.import_module(TINY).load(name)
        parts = [p for p in pipe.components.values() if isinstance(p, torch.nn.Module)]
        count = sum(p.numel() for part in parts for p in part.parameters())
        return f"{type(pipe).__name__}, {count / 1e6:.1f} M parameters"

    for name in shipped():
        yield attempt("model", name, partial(loads, name), True, "")


def _extras() -> Iterator[Finding]:
    def version(name: str) -> str:
        importlib.import_module(name)
        return metadata.version(name)

    for module, extra in EXTRAS.items():
        hint = f"pip install 'accel[{extra}]'"
        yield attempt("extra", module, partial(version, module), False, hint)
