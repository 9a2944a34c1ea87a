"""Checkpoints that several of the folder's tests read and none changes, made once."""

from pathlib import Path

import pytest

from recurrent_gemma import RecurrentGemmaForCausalLM
from recurrent_gemma.conversion_scripts import convert
from tests.conversion_scripts.checkpoints import small_config
from tests.conversion_scripts.small_models import NAMES, save


@pytest.fixture(scope="package")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model as all kinds."""
    folder = tmp_path_factory.mktemp("intact")
    source = save(folder)
    for kind in ("flax", "torch"):
        convert(source, folder / NAMES[kind], to=kind)
    return folder


@pytest.fixture(scope="package")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Transformers directory in one weight file."""
    path = tmp_path_factory.mktemp("directory") / "model"
    RecurrentGemmaForCausalLM(small_config("recurrentgemma-2b")).save_pretrained(path)
    return path
