"""Integrator: what every sampler here is, a diffusers scheduler that integrates dy/dg = v.

A flow has y = (1 - g) x0 + g eps and v = eps - x0. A variance-preserving x is y times signal +
noise, and what its model predicts is turned into v, so that one rule serves both kinds, each on the
noise levels that diffusers gives it.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from . import grids
from .grid_of_model import grid_of_model
from .levels import FLOW, PREDICTIONS, Level, translated, velocity_of


class Integrator(SchedulerMixin, ConfigMixin, abc.ABC):
    """Base of the samplers. A subclass says in `advance` how a velocity moves the state.

    Make one by `from_config(pipe.scheduler.config)`: noise levels, shift and prediction type are
    those of the scheduler it replaces. Fields of that config are documented in diffusers.

    Args:
        grid: where the steps lie: "model" (as diffusers' flow Euler or Euler has them), or a policy
            of `grids.POLICIES`, which then also overrides sigmas that a pipeline passes; "fitted"
            for `levels`.
        levels: noise levels g of the steps, fitted to a model; other step counts lie as densely.
        sway: coefficient of the grids "sway" and "epss".
        snr_shift_scale: of CogVideoX, which shifts its cumulative alphas.

    Raises:
        ValueError: an unknown grid or prediction type.
    """

    _compatibles: ClassVar[list[str]] = []
    order = 1
    history = 1
    repeats = False
    movable = True  # whether noise levels that are moved during a run are heeded
    init_noise_sigma = 1.0
    _step_index: int | None = None
    _begin_index: int | None = None
    _past: list[tuple[float, Tensor]]
    _noise: torch.Generator | None = None

    @register_to_config
    def __init__(
        self,
        grid: str = "model",
        levels: list[float] | None = None,
        sway: float = -1.0,
        num_train_timesteps: int = 1000,
        prediction_type: str = FLOW,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        # of flows
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        # of models that preserve variance
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        interpolation_type: str = "linear",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
    ) -> None:
        if grid not in grids.POLICIES:
            raise ValueError(f"grid must be one of {', '.join(grids.POLICIES)}, got {grid!r}")
        if prediction_type not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise ValueError(f"prediction_type must be one of {known}, got {prediction_type!r}")
        if (grid == "fitted") != bool(levels):
            raise ValueError('levels go with grid="fitted", and with no other')
        self._own = grid_of_model(self.config)
        self.num_inference_steps: int | None = None
        self.timesteps, self.sigmas = self._own.timesteps, self._own.sigmas
        self.alphas_cumprod = getattr(self._own, "alphas_cumprod", None)
        self._reset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith(f"{__package__}."):
            cls.__module__ = __package__  # where a saved pipeline looks for it

    def register_to_config(self, **values: Any) -> None:
        values.pop("model", None)  # the base registers what a subclass passes on
        super().register_to_config(**values)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Names of the config: those of a subclass's own arguments, and the base's."""
        kinds = [k for k in input_class.__mro__ if "__init__" in vars(k) and k is not object]
        if not issubclass(input_class, Integrator):
            kinds = kinds[:1]
        found = {n for k in kinds for n in inspect.signature(vars(k)["__init__"]).parameters}
        return (found - {"model", "args", "kwargs"}) | {"self"}

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any):
        """As in diffusers; configs of flow, DDIM, DPM++ and UniPC schedulers are understood."""
        if not isinstance(config, Mapping):
            return super().from_config(config, return_unused_kwargs, **kwargs)
        values, known = translated(config), cls._get_init_keys(cls)
        used = {k: v for k, v in values.items() if k in known}
        made, rest = super().from_config(used, True, **kwargs)
        kept = {k: v for k, v in values.items() if k not in known and not k.startswith("_")}
        made.register_to_config(**kept)  # so that from_config also finds the way back
        return (made, {**rest, **kept}) if return_unused_kwargs else made

    @property
    def flow(self) -> bool:
        return self.config.prediction_type == FLOW

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def shift(self) -> float:
        return getattr(self._own, "shift", 1.0)

    def set_shift(self, shift: float) -> None:
        self._own.set_shift(shift)

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def _reset(self) -> None:
        self._step_index = self._begin_index = None
        self._past = []
        self._noise = None
        self._levels = [self._level(float(s)) for s in self.sigmas.tolist()]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begin a run; arguments as of `FlowMatchEulerDiscreteScheduler.set_timesteps`."""
        given = sigmas if sigmas is not None else timesteps
        if self.config.grid == "model":
            own: dict[str, Any] = {"device": device, "sigmas": sigmas, "timesteps": timesteps}
            if self.flow:
                own["mu"] = mu
            elif sigmas is not None and sigmas[-1] > 0:
                own["sigmas"] = [*sigmas, 0.0]
            count = num_inference_steps if self.flow or given is None else None
            self._own.set_timesteps(count, **own)
            levels, times = self._own.sigmas.cpu(), self._own.timesteps
        else:
            count = num_inference_steps if given is None else len(given)
            alphas = None if self.flow else self._own.alphas_cumprod.double().numpy()
            wanted = grids.levels(
                self.config.grid, count or 0, self.config.sway, alphas, self.config.levels or ()
            )
            levels, times = self.placed(wanted, device)
        self.sigmas, self.timesteps = self.arranged(levels, times)
        self.num_inference_steps = len(times)
        self._reset()

    def placed(self, wanted: np.ndarray, device: Any = None) -> tuple[Tensor, Tensor]:
        """Sigmas (N + 1,) and timesteps (N,) of noise levels g (N + 1,) that end in 0."""
        if self.flow:
            levels = 1 - wanted if self.config.invert_sigmas else wanted
            times = levels[:-1] * self.config.num_train_timesteps
        else:
            alphas = self._own.alphas_cumprod.double().numpy()
            told = self.config.timestep_type == "continuous"  # the sigma, and not a timestep
            top = (told and self.config.sigma_max) or grids.sigmas_of(alphas)[-1]
            levels = grids.within(wanted, top, self.config.grid)
            times = 0.25 * np.log(levels[:-1]) if told else grids.timesteps_of(levels[:-1], alphas)
        return torch.tensor(levels, dtype=torch.float32), torch.tensor(
            times, dtype=torch.float32, device=device
        )

    def arranged(self, sigmas: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The levels (N + 1,) and timesteps (N,) at which the model is asked, in order."""
        return sigmas, timesteps

    def _level(self, sigma: float) -> Level:
        if self.flow:
            g = 1 - sigma if self.config.invert_sigmas else sigma
            return Level(1 - g, g)
        signal = 1 / (1 + sigma * sigma) ** 0.5
        return Level(signal, sigma * signal)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The first step at this timestep."""
        times = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (times == torch.as_tensor(timestep, device=times.device)).nonzero()
        if not len(found):
            raise ValueError(f"timestep {float(timestep):g} is none of this run's; set_timesteps?")
        return int(found[0])

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step.

        Args:
            model_output: what the model predicts for `sample`, guided, of the same shape.
            timestep: one of `timesteps`.
            generator: of the noise, where the sampler adds any; or one per sample.

        Raises:
            ValueError: the timestep is not of this run.
            RuntimeError: there are no steps left.
        """
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        i = self._step_index
        if i + 1 >= len(self._levels):
            raise RuntimeError(f"all {i} steps are done; call set_timesteps to begin another run")
        now = self.sigmas[i : i + 2].tolist()  # stages of resolution move them during a run
        self._levels[i : i + 2] = level, after = [self._level(s) for s in now]
        work = torch.promote_types(sample.dtype, torch.float32)
        x, output = sample.to(work), model_output.to(work)
        y = x / level.scale
        velocity = velocity_of(self.config.prediction_type, output, x, level)
        if self.config.invert_sigmas:
            velocity = -velocity
        if after.g == level.g and not self.repeats:
            moved = x  # two timesteps of one level, as rounding makes them: nothing to do or learn
        else:
            self._past = [(level.g, velocity), *self._past][: self.history]
            moved = self.advance(i, y, velocity, generator) * after.scale
        self._step_index = i + 1
        found = moved.to(model_output.dtype)
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def drawn(self, like: Tensor, generator: Any) -> Tensor:
        """Noise; without a generator from one of our own, the same in every run."""
        if generator is None:
            if self._noise is None:
                self._noise = torch.Generator(like.device).manual_seed(0)
            generator = self._noise
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    @abc.abstractmethod
    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        """y at level i + 1, from y and v at level i; `_past` holds (g, v), this one first."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean samples (B, …) at the levels of `timesteps` (B,), for image-to-image."""
        begin = self._begin_index if self._step_index is None else self._step_index
        places = [self.index_for_timestep(t) if begin is None else begin for t in timesteps]
        found = [self._levels[place] for place in places]
        shape = (-1, *[1] * (original_samples.ndim - 1))
        pairs = original_samples.new_tensor([(v.signal, v.noise) for v in found])
        signals, noises = (pairs[:, i].reshape(shape) for i in range(2))
        return signals * original_samples + noises * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """As `add_noise`; the name that flow pipelines call."""
        return self.add_noise(sample, noise, torch.as_tensor(timestep).reshape(-1))
