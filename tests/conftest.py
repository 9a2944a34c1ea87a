"""Surroundings of every test: no hub, no accelerator for JAX, fixed seeds, one thread per parallel worker."""

import os
import signal
from pathlib import Path

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


# A shell has its jobs in the background ignore interrupts, and programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Modules that took longest when last timed. Begun first, they leave no worker alone with one of them at the end.
LONGEST = """
upstream/test_mixins.py modeling/generation/test_modes.py conversion_scripts/test_target.py cli/test_exec.py
evaluation/test_task_loading.py docs/test_readme.py modeling/cache/test_static.py docs/test_conversion_page.py
examples/test_convert_release.py evaluation/test_known_answers.py evaluation/test_run.py parity/test_live.py
conversion_scripts/test_round_trips.py modeling/prefix_cache/test_cache.py conversion_scripts/test_shim.py
modeling/generation/test_continuation.py training/test_distributed.py modeling/cache/test_file.py cli/test_chat.py
conversion_scripts/test_verify.py registration/test_import_orders.py training/test_truncated_bptt.py
benchmarks/test_suite.py evaluation/test_language_model.py cli/test_generate.py modeling/cache/test_rollback.py
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
