"""What the evaluation's tests share."""

import copy
import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from recurrent_gemma.evaluation.task_loading import TASKS

if importlib.util.find_spec("lm_eval") is not None:
    import datasets


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Tables made of local rows stay out of the user's cache, and out of one another's way."""
    if importlib.util.find_spec("lm_eval") is None:
        yield
        return
    before, datasets.config.HF_DATASETS_CACHE = (
        datasets.config.HF_DATASETS_CACHE,
        Path(tmp_path_factory.mktemp("datasets")),
    )
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session", autouse=True)
def _files_of_tasks_are_read_once():
    """A task manager reads the files of all its tasks, lm-eval's 14 thousand in many seconds; here each gets a copy."""
    if importlib.util.find_spec("lm_eval") is None:
        yield
        return
    from lm_eval.tasks._index import TaskIndex

    build, read = TaskIndex.build, {}
    unchanging = (TASKS, Path(importlib.import_module("lm_eval.tasks").__file__).parent)

    def copied(paths: Iterable[Path], **options: Any) -> dict[str, Any]:
        key = (*paths, *options.items())
        if not all(any(path.is_relative_to(folder) for folder in unchanging) for path in paths):
            return build(paths, **options)
        if key not in read:
            read[key] = build(paths, **options)
        return copy.deepcopy(read[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(copied))
        yield


# Warnings of other packages that their use here cannot avoid, and that say nothing of ours.
_WARNINGS = (
    # lm-eval's BBQ also averages over the clear questions of a task that has ambiguous ones alone, and vice versa.
    "ignore:Mean of empty slice:RuntimeWarning",
    "ignore:invalid value encountered in scalar divide:RuntimeWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for warning in _WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
