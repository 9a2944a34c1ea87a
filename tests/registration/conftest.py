"""One checkpoint for the folder's tests; they must not change it."""

from pathlib import Path

import pytest

from tests.registration.checkpoint import write_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
