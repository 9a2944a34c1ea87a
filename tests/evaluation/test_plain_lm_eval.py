"""lm-eval's own command line, started with ``recurrent-gemma exec``, runs this package's model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import recurrent_gemma
from tests.evaluation.by_hand import TOLERANCE, held_out, log_likelihood
from tests.evaluation.test_language_model import pair_of
from tests.support import ROOT, require

require("lm_eval")

TASK = """
task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
"""


# Other programs are started with exec in tests/cli/test_exec.py, and lm-eval's numbers are in test_language_model.py.
@pytest.mark.slow
def test_lm_eval_with_exec(tmp_path: Path):
    # Contexts of more than a window of 128 tokens: Transformers' own class gives other figures there.
    docs = [
        {"context": held_out(700, begin), "choices": ["and", "of the", "Lord"], "gold": index}
        for index, begin in enumerate((0, 5000, 9000))
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tiny.yaml").write_text(TASK.format(rows=rows))
    arguments = ["--model", "hf", "--model_args", f"pretrained={recurrent_gemma.demo_path()},dtype=float32"]
    arguments += ["--tasks", "tiny", "--include_path", str(tmp_path), "--device", "cpu", "--batch_size", "2"]
    arguments += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(
        [sys.executable, "-m", "recurrent_gemma", "exec", "--", sys.executable, "-m", "lm_eval", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (samples,) = (tmp_path / "out").rglob("samples_tiny_*.jsonl")
    found = {sample["doc_id"]: sample for sample in map(json.loads, samples.read_text().splitlines())}
    assert len(found) == 3
    for index, doc in enumerate(docs):
        expected = [log_likelihood(*pair_of((doc["context"], f" {choice}")))[0] for choice in doc["choices"]]
        values = [float(response[0][0]) for response in found[index]["resps"]]
        assert values == pytest.approx(expected, abs=TOLERANCE)
