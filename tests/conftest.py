"""Surroundings of every test: no hub, no accelerator for JAX, fixed seeds, one thread per parallel worker."""

import os

# Read by the libraries when they are imported, so they are set before anything else is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without a GPU, Triton's kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidiactl") else "1")

import hypothesis
import pytest
import torch

# Machines differ in speed and a failure must come back: no deadline, the same examples every time.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
