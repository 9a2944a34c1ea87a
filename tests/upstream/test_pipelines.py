"""Transformers' pipeline tests, run with the checkpoint inside the package."""

import json
import os
import tempfile
import unittest
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

import recurrent_gemma
from recurrent_gemma import RecurrentGemmaForCausalLM, RecurrentGemmaModel
from tests.upstream import sources

TASKS = {
    "feature-extraction": (RecurrentGemmaModel, "tests.upstream.pipeline_tasks.FeatureExtraction"),
    "text-generation": (RecurrentGemmaForCausalLM, "tests.upstream.pipeline_tasks.TextGeneration"),
}


def _load() -> ModuleType:
    # Read on import: a list of small checkpoints. The fixture below says which ones there are.
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder, "reports")
        reports.mkdir()
        (reports / "tiny_model_summary.json").write_text(json.dumps({}))
        with mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=folder):
            return sources.load("test_pipeline_mixin")


mixin = _load()


class RecurrentGemmaPipelineTest(mixin.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {task: model for task, (model, _) in TASKS.items()}

    @pytest.fixture(autouse=True)
    def _checkpoints(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "recurrent_gemma").mkdir()
        checkpoints = {}
        for task, (model, checks) in TASKS.items():
            (tmp_path / "recurrent_gemma" / model.__name__).symlink_to(recurrent_gemma.demo_path())
            checkpoints[model.__name__] = {"tokenizer_classes": ["AutoTokenizer"], "processor_classes": []}
            monkeypatch.setitem(mixin.pipeline_test_mapping, task, {"test": checks})
        monkeypatch.setattr(mixin, "tiny_model_summary", checkpoints)
        monkeypatch.setattr(mixin, "TRANSFORMERS_TINY_MODEL_PATH", str(tmp_path))


_TESTS = {f"test_pipeline_{task.replace('-', '_')}{dtype}" for task in TASKS for dtype in ("", "_fp16")}
for _name in dir(mixin.PipelineTesterMixin):
    if _name.startswith("test_") and _name not in _TESTS:
        # Tasks for other models: images, sound, classification.
        setattr(RecurrentGemmaPipelineTest, _name, None)


def test_every_task_was_found():
    assert set(unittest.TestLoader().getTestCaseNames(RecurrentGemmaPipelineTest)) == _TESTS
