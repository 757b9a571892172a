"""What every test starts from: no network, no display, one thread, known seeds."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Seed every generator, so that a test does not depend on those before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
