"""What goes wrong in a run, told in one line where the user can do something about it."""

from __future__ import annotations

import dis
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .budget import OverBudget
from .inputs import BadInput
from .load import first_line


class RunFailed(RuntimeError):
    """The run could not be finished; the message is one line that says what may help."""


@contextmanager
def told(pipe: Any) -> Iterator[None]:
    """Runs of `pipe`, by the command line, whose refusals are one line; a bug stays as it is.

    Raises:
        BadInput: the pipeline or a method of ours refuses the run.
        RunFailed: out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunFailed(
            f"out of memory ({first_line(error)}); give a smaller --height and --width, fewer "
            f"--frames, or --offload"
        ) from None
    except OverBudget as error:
        raise BadInput(f"--max-bytes: {first_line(error)}") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and _refusal(error):
            raise BadInput(first_line(error)) from error
        names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if "check_inputs" not in names:
            raise
        raise BadInput(f"{type(pipe).__name__}: {first_line(error)}") from error


def _refusal(error: BaseException) -> bool:
    """Whether a `raise` of a method of ours made it, not a model or a call that went wrong."""
    last = error.__traceback__
    assert last is not None
    while last.tb_next is not None:
        last = last.tb_next
    name = str(last.tb_frame.f_globals.get("__name__"))
    ours = name.startswith("accel.") and not name.startswith("accel.pipelines.")
    return ours and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
