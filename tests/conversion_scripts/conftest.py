"""One model as all kinds of checkpoints, converted once for the folder."""

from pathlib import Path

import pytest

from recurrent_gemma.conversion_scripts import convert
from tests.conversion_scripts.small_models import NAMES, save


@pytest.fixture(scope="package")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model as all kinds, not to be changed."""
    folder = tmp_path_factory.mktemp("intact")
    source = save(folder)
    for kind in ("flax", "torch"):
        convert(source, folder / NAMES[kind], to=kind)
    return folder
