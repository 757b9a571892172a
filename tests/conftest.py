"""What every test starts from: no network, no display, one thread, known seeds."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import random

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_flatten

from accel import recorder
from accel.work import count_flops

torch.set_num_threads(1)
COUNTED = {}


def counted_once(denoiser, args, kwargs):
    """`count_flops`, which traces a model, once for each that tests make many copies of."""
    leaves, structure = tree_flatten((args, kwargs))
    config = str(getattr(denoiser, "config", ""))
    key = (type(denoiser), repr(denoiser), config, str(structure), *map(str, leaves))
    if key not in COUNTED:
        COUNTED[key] = count_flops(denoiser, args, kwargs)
    return COUNTED[key]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """What tests keep for the session is kept per process: those of a file share one, and those of
    the contract that are of one method on one pipeline."""
    from xdist.scheduler import LoadScopeScheduling

    from tests.contract import PAIRS

    pairs = [f"{row}-{name}]" for row, name in PAIRS]

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            contract = file.endswith("test_contract.py")
            return next((p for p in pairs if contract and nodeid.endswith(p)), file)

    return Together(config, log)


@pytest.fixture(autouse=True, scope="session")
def work_counted_once():
    """Tests of `count_flops` have it as it is, as has each method once (`contract.runs.clean`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "count_flops", counted_once)
        yield


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Seed every generator, so that a test does not depend on those before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
