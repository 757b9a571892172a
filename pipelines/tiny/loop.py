"""The training loop of the shipped models: resumable, pausable, with averaged weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from diffusers.training_utils import EMAModel
from safetensors.torch import save_model
from torch import Tensor, nn
from tqdm.auto import tqdm

SEGMENT = 32
"""Steps drawn from one data iterator: a resumed run replays at most this many batches."""
LOG_EVERY_S = 20.0


class _Progress:
    """How far a run has come; saved and loaded with the rest of the state."""

    def __init__(self) -> None:
        self.seen, self.step, self.seconds = 0, 0, 0.0

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)


class _Stop:
    """Turns SIGTERM and SIGINT into a flag, so that no step is cut in half."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.signal = number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def learning_rate(lr: float, step: int, warmup: int, done: float, anneal: bool) -> float:
    """Trapezoid: linear warm-up over `warmup` steps, then constant; with `anneal` it falls to zero
    over the last 40 % of the samples, `done` being the share of them already seen."""
    rate = lr * min(1.0, (step + 1) / max(1, warmup))
    return rate * min(1.0, (1 - done) / 0.4) if anneal else rate


def fit(
    modules: dict[str, nn.Module],
    loss: Callable[[Any], Tensor | tuple[Tensor, dict[str, Tensor]]],
    batches: Callable[[int], Iterator[Any]],
    *,
    folder: Path,
    samples: int,
    batch_size: int,
    lr: float,
    warmup: int = 200,
    anneal: bool = True,
    ema: float = 0.999,
    save_every_s: float = 120.0,
    seed: int = 0,
    bf16: bool = False,
    clip: float = 1.0,
    rates: dict[str, float] | None = None,
) -> int:
    """Trains `modules` until `samples` samples were seen; returns the number seen.

    `loss` maps a batch (nested tensors, moved to the device here) to a scalar, or to a scalar and a
    dict of scalars for the log. `batches` maps a seed to an endless iterator of batches of
    `batch_size`. `clip` bounds the norm of the gradients, `ema` is the decay of the averaged
    weights, `save_every_s` is in seconds, `rates` are factors on `lr` for modules by name.

    Writes `folder/state` (replaced whole; a later call goes on from it), `folder/log.jsonl` and
    `folder/ema-<name>.safetensors`. Sleeps while the file named by the environment variable
    `ACCEL_PAUSE_FILE` exists. On SIGTERM saves and raises SystemExit, on SIGINT KeyboardInterrupt.

    Raises:
        ValueError: a budget, batch size or rate that is not positive, nothing to train, or `rates`
            for a module that is not there.
        RuntimeError: started as more than one process, or the loss is not finite.
    """
    for name, given in (("samples", samples), ("batch_size", batch_size), ("lr", lr)):
        if not given > 0:
            raise ValueError(f"{name} must be positive, got {given}")
    weights = {name: list(module.parameters()) for name, module in modules.items()}
    trained = [w for group in weights.values() for w in group if w.requires_grad]
    if not trained:
        raise ValueError("modules hold no parameter that requires a gradient")
    if unknown := set(rates or {}) - set(modules):
        raise ValueError(f"rates names {sorted(unknown)}; the modules are {sorted(modules)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # precision is kept out of Accelerator, whose state could not change for a second run
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise RuntimeError(f"trains in one process, started as {accelerator.num_processes}")

    factors = dict.fromkeys(modules, 1.0) | (rates or {})
    groups = [
        {"params": [w for w in group if w.requires_grad], "factor": factors[name]}
        for name, group in weights.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    averages = {name: EMAModel(group, decay=ema) for name, group in weights.items()}
    progress = _Progress()
    accelerator.prepare(*modules.values())
    optimizer = accelerator.prepare(optimizer)
    for average in averages.values():
        average.to(accelerator.device)
    accelerator.register_for_checkpointing(progress, *averages.values())
    set_seed(seed)
    if (saved := _saved_state(folder)) is not None:
        accelerator.load_state(str(saved))
        for average in averages.values():
            average.decay = ema  # a resumed run may ask for another

    pause = os.environ.get("ACCEL_PAUSE_FILE")
    logged, saved_at, tallies = time.monotonic(), time.monotonic(), _Tallies()
    stream: Iterator[Any] | None = None

    def save() -> None:
        _save_state(accelerator, folder)
        for name, module in modules.items():
            _save_average(module, averages[name], folder / f"ema-{name}.safetensors")

    bar = tqdm(total=samples, initial=progress.seen, unit="sample", mininterval=2.0)
    with _Stop() as stop, bar:
        while progress.seen < samples and stop.signal is None:
            if pause and os.path.exists(pause):
                time.sleep(0.5)
                continue
            began = time.monotonic()
            if stream is None or progress.step % SEGMENT == 0:
                stream = batches(seed * 1_000_003 + progress.step // SEGMENT)
                for _ in range(progress.step % SEGMENT):
                    next(stream)
            for group in optimizer.param_groups:
                rate = learning_rate(lr, progress.step, warmup, progress.seen / samples, anneal)
                group["lr"] = rate * group["factor"]
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16):
                made = loss(send_to_device(next(stream), accelerator.device))
            value, extra = made if isinstance(made, tuple) else (made, {})
            if not torch.isfinite(value):
                raise RuntimeError(f"the loss is {value.item()} at step {progress.step}: lower lr")
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(value)
            accelerator.clip_grad_norm_(trained, clip)
            optimizer.step()
            for name, average in averages.items():
                average.step(weights[name])
            now = time.monotonic()
            progress.step, progress.seen = progress.step + 1, progress.seen + batch_size
            progress.seconds += now - began
            tallies.add({"loss": value, **extra})
            bar.update(batch_size)
            if now - logged > LOG_EVERY_S or progress.seen >= samples:
                means, logged = tallies.take(), now
                bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
                row = {"samples": progress.seen, "seconds": round(progress.seconds, 1), **means}
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
            if now - saved_at > save_every_s:
                save()
                saved_at = time.monotonic()
    save()
    accelerator.free_memory()
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if stop.signal is not None:
        raise SystemExit(128 + stop.signal)
    return progress.seen


class _Tallies:
    """Means of named scalars since they were last taken."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())

    def take(self) -> dict[str, float]:
        means = {name: round(total / self._count, 6) for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


def _saved_state(folder: Path) -> Path | None:
    """The newest whole state: `state`, or `state.old` if a save ended between its two renames."""
    return next((p for p in (folder / "state", folder / "state.old") if p.is_dir()), None)


def _save_state(accelerator: Accelerator, folder: Path) -> None:
    new, now, old = (folder / name for name in ("state.new", "state", "state.old"))
    shutil.rmtree(new, ignore_errors=True)
    accelerator.save_state(str(new))
    if now.exists():
        shutil.rmtree(old, ignore_errors=True)
        now.rename(old)
    new.rename(now)
    shutil.rmtree(old, ignore_errors=True)


def _save_average(module: nn.Module, average: EMAModel, path: Path) -> None:
    weights = list(module.parameters())
    average.store(weights)
    average.copy_to(weights)
    partial = path.with_suffix(".partial")
    save_model(module, str(partial))
    partial.replace(path)
    average.restore(weights)
