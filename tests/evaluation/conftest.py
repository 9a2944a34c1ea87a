"""What the evaluation's tests share."""

import importlib.util
from pathlib import Path

import pytest

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
