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
