"""A run of lm-eval over local data: its report, its answers kept for a run that goes on, and whose answers they are."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import recurrent_gemma
from recurrent_gemma.evaluation import run
from recurrent_gemma.evaluation.identity import checkpoint_digest
from recurrent_gemma.evaluation.rows import ROWS, find_row
from recurrent_gemma.evaluation.run import LoadedModel, OptionError, evaluate, load_model, units_of
from tests.support import ROOT, require

require("lm_eval")

DATA = Path(__file__).with_name("local_data")
FILES = ("results.json", "report.md", "chart.svg")

# A row of likelihoods and one of generation with examples.
TASKS = ["HellaSwag", "Natural Questions"]

# Ends itself, unwarned, when so many answers are in the file.
KILLED = """
import os, signal, sys
from lm_eval.api.model import CacheHook
import torch
import recurrent_gemma
from recurrent_gemma.evaluation.run import evaluate, load_model

torch.set_num_threads(int(sys.argv[5]))
answers, add = 0, CacheHook.add_partial

def add_and_die(self, *args):
    global answers
    add(self, *args)
    answers += 1
    if answers == int(sys.argv[2]):
        self.dbdict.commit(blocking=True)
        os.kill(os.getpid(), signal.SIGKILL)

CacheHook.add_partial = add_and_die
evaluate(load_model(recurrent_gemma.demo_path(), device="cpu"), output=sys.argv[1], tasks=sys.argv[3].split(","),
         data_dir=sys.argv[4], batch_size=2)
"""


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(recurrent_gemma.demo_path(), device="cpu")


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of the requests that the model answers itself."""
    from lm_eval.api.model import CacheHook

    kinds: list[str] = []
    add = CacheHook.add_partial

    def count(self: Any, kind: str, *args: Any) -> None:
        kinds.append(kind)
        add(self, kind, *args)

    monkeypatch.setattr(CacheHook, "add_partial", count)
    return kinds


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


# Of BBQ, lm-eval also scores categories that one example does not have.
@pytest.mark.filterwarnings(
    "ignore:Mean of empty slice:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)
def test_every_row_asked_for_is_in_the_report(demo: LoadedModel, tmp_path: Path):
    seen = []
    report = evaluate(demo, output=tmp_path, suite="safety", data_dir=DATA, limit=1, on_result=seen.append)
    safety = [row for row in ROWS if row.table == "safety"]
    assert [result.row for result in report.rows] == safety
    assert sorted(result.row.name for result in seen) == sorted(row.name for row in safety)
    missing = {result.row.name: result.reason for result in report.rows if result.measured is None}
    assert list(missing) == ["RealToxicity", "BOLD"] and all("classifier" in reason for reason in missing.values())
    page = (tmp_path / "report.md").read_text()
    assert all(f"| {row.name} |" in page for row in safety)
    assert "not comparable with the card's" in page.splitlines()[2]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [row["row"] for row in stored["rows"]] == [row.name for row in safety]
    assert stored["settings"]["limit"] == 1 and stored["model"]["dtype"] == "bfloat16"
    assert all(row["examples"] >= 1 for row in stored["rows"] if row["measured"] is not None)


@pytest.fixture(scope="module")
def whole(demo: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run writes that is not killed."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(demo, output=folder, tasks=TASKS, data_dir=DATA, batch_size=2)
    return folder


# 16 choices and 4 generated answers: in the middle of the former, and of the latter.
@pytest.mark.parametrize("answers", [5, 18])
def test_a_killed_run_goes_on_to_the_same_report(
    answers: int, whole: Path, demo: LoadedModel, tmp_path: Path, answered: list[str]
):
    options: dict[str, Any] = {"tasks": TASKS, "data_dir": DATA, "batch_size": 2}
    total = 20
    threads = torch.get_num_threads()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (tmp_path / "killed", answers, ",".join(TASKS), DATA, threads))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    evaluate(demo, output=tmp_path / "killed", **options)
    # Answers that were generated together are generated together again.
    assert total - answers <= len(answered) <= total - answers + 1
    assert contents(tmp_path / "killed") == contents(whole)
    answered.clear()
    evaluate(demo, output=tmp_path / "killed", **options)
    assert answered == []


def test_another_dtype_or_other_weights_find_no_answers(demo: LoadedModel, tmp_path: Path, answered: list[str]):
    options: dict[str, Any] = {"output": tmp_path / "out", "tasks": ["PIQA"], "data_dir": DATA}
    evaluate(demo, **options)
    total = len(answered)
    changed = tmp_path / "changed"
    shutil.copytree(recurrent_gemma.demo_path(), changed)
    weights = load_file(changed / "model.safetensors")
    weights["model.final_norm.weight"] += 1.0
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    others = [load_model(recurrent_gemma.demo_path(), dtype="float32", device="cpu"), load_model(changed, device="cpu")]
    for loaded in others:
        answered.clear()
        evaluate(loaded, **options)
        assert len(answered) == total
    assert len(list((tmp_path / "out" / "requests").glob("*.db"))) == 3


def test_the_identity_is_that_of_what_is_loaded(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    digest = checkpoint_digest(tmp_path)
    (tmp_path / "README.md").write_text("about")
    assert checkpoint_digest(tmp_path) == digest
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"other")
        assert checkpoint_digest(tmp_path) != digest
        digest = checkpoint_digest(tmp_path)


def test_figures_do_not_depend_on_how_requests_are_read(tmp_path: Path):
    loaded = load_model(recurrent_gemma.demo_path(), dtype="float32", device="cpu")
    found = []
    for index, options in enumerate(({"batch_size": 1}, {"batch_size": "auto"}, {"shared_contexts": False})):
        report = evaluate(loaded, output=tmp_path / str(index), tasks=TASKS, data_dir=DATA, **options)
        found.append([(result.measured, result.standard_error) for result in report.rows])
    assert found[0] == found[1] == found[2]


def test_rows_that_cannot_be_loaded_say_so_and_the_others_run(demo: LoadedModel, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(DATA / "baber__piqa", data / "baber__piqa")
    report = evaluate(demo, output=tmp_path / "out", suite="smoke", data_dir=data)
    reasons = {result.row.name: result.reason for result in report.rows}
    assert not reasons["PIQA"] and "expects" in reasons["WinoGrande"]
    with pytest.raises(OptionError, match="expected at least one that can be run, got none"):
        evaluate(demo, output=tmp_path / "out", tasks=["HumanEval"], data_dir=DATA)


def test_whose_figures_of_the_card(demo: LoadedModel, tmp_path: Path):
    options: dict[str, Any] = {"output": tmp_path, "tasks": ["CrowS-Pairs"], "data_dir": DATA, "limit": 1}
    figures = find_row("CrowS-Pairs").figures
    assert evaluate(demo, **options).rows[0].card == figures["2b"]
    report = evaluate(demo, card_model="2b-it", chat_template=False, **options)
    assert report.rows[0].card == figures["2b-it"] and report.settings["chat_template"] is False
    tuned = LoadedModel(tmp_path / "recurrentgemma-2b-it", demo.model, demo.tokenizer)
    assert run.card_model_of(tuned.name) == "2b-it"
    assert [run.card_model_of(name) for name in ("2b", "recurrentgemma-2b", "italian-2b")] == ["2b"] * 3


def test_prompts_of_an_instruction_tuned_model_are_chats(demo: LoadedModel, tmp_path: Path):
    read = []
    encode = type(demo.tokenizer).encode

    def recording(self, text, **options):
        read.append(text)
        return encode(self, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(demo.tokenizer), "encode", recording)
        options: dict[str, Any] = {"tasks": ["Natural Questions"], "data_dir": DATA, "limit": 1}
        report = evaluate(demo, output=tmp_path, card_model="2b-it", **options)
    assert report.settings["chat_template"] is True
    (prompt,) = {text for text in read if "<start_of_turn>model" in text}
    # Five examples, each a turn with its answer, and the question.
    assert prompt.count("<start_of_turn>user") == 6 and prompt.endswith("<start_of_turn>model\n")


@pytest.mark.parametrize(
    ("suite", "tasks", "message"),
    [
        ("cards", None, "suite: expected one of card, safety, smoke, got 'cards'"),
        ("card", [], "tasks: expected the name of at least one"),
        ("card", ["MMLU", "mmlu", "recurrent_gemma_mmlu"], "tasks: expected each once"),
    ],
)
def test_what_cannot_be_asked_for(suite: str, tasks: list[str] | None, message: str):
    with pytest.raises(OptionError, match=message):
        units_of(suite, tasks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["no_such_task"]}, "no_such_task"),
        ({"limit": 0}, "limit: expected at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1 or 'auto', got 0"),
        ({"card_model": "9b"}, "card_model: expected one of 2b, 2b-it, got '9b'"),
        ({"data_dir": "nowhere"}, "data_dir: expected a directory"),
    ],
)
def test_options_without_a_meaning_raise(options: dict[str, Any], message: str, demo: LoadedModel, tmp_path: Path):
    with pytest.raises(OptionError, match=message):
        evaluate(demo, output=tmp_path, **options)


def test_a_model_without_a_chat_template_cannot_chat(demo: LoadedModel, tmp_path: Path):
    class Bare:
        chat_template = None

    with pytest.raises(OptionError, match="chat_template: expected False"):
        evaluate(LoadedModel(demo.directory, demo.model, Bare()), output=tmp_path, chat_template=True)
