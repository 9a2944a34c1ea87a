"""Tasks are lm-eval's own, on local files where they are given, and on the hub where they are not."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from recurrent_gemma.evaluation import GROUPS, ROWS, load_tasks
from recurrent_gemma.evaluation.task_loading import TASKS
from tests.evaluation.make_data import LOCAL_DATA, data_sets, write_data
from tests.evaluation.planted import PlantedLM, WordClassifier, run
from tests.support import require

datasets = require("datasets")
TABLES = list(GROUPS.values())


def test_local_data_is_what_the_script_writes(tmp_path: Path):
    write_data(tmp_path / "data")
    written = {file.relative_to(tmp_path / "data"): file.read_bytes() for file in _files(tmp_path / "data")}
    assert written == {file.relative_to(LOCAL_DATA): file.read_bytes() for file in _files(LOCAL_DATA)}


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_every_task_builds_its_requests_from_local_files_alone(monkeypatch: pytest.MonkeyPatch):
    original, read = datasets.load_dataset, []

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        assert path == "json" and name is None
        read.extend(Path(file) for file in options["data_files"].values())
        return original(path, name, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_tasks(TABLES, data_dir=LOCAL_DATA, classifier=WordClassifier(), unsafe_code=True)
    assert len(loaded["tasks"]) == 127
    for name, task in loaded["tasks"].items():
        task.set_fewshot_seed(1234)
        task.build_all_requests()
        assert task.instances, name
    # All that was written is read: no task escapes, and no rows lie about.
    assert sorted(set(read)) == sorted(_files(LOCAL_DATA))


# Of the 57 subjects of MMLU and the like one each: they differ by name.
ONE_OF_EACH = list({path: (path, name) for path, name in data_sets()}.values())


@pytest.mark.parametrize(("path", "name"), ONE_OF_EACH, ids=str)
def test_a_missing_file_is_named(path: str, name: str | None, tmp_path: Path):
    row = _row_that_reads(path, name)
    shutil.copytree(LOCAL_DATA, tmp_path / "data")
    folder = tmp_path / "data" / path.replace("/", "__") / (name or "default")
    for split in data_sets()[path, name]:
        file, kept = folder / f"{split}.jsonl", folder / "kept"
        file.rename(kept)
        with pytest.raises(FileNotFoundError) as raised:
            load_tasks(row, data_dir=tmp_path / "data", classifier=WordClassifier(), unsafe_code=True)
        assert str(file) in str(raised.value)
        assert f"split {split!r} of the data set {path!r}" in str(raised.value)
        assert name is None or f"configuration {name!r}" in str(raised.value)
        kept.rename(file)


ROWS_BY_PATH = {
    "cais/mmlu": "mmlu", "Rowan/hellaswag": "hellaswag", "baber/piqa": "piqa", "lighteval/siqa": "social_iqa",
    "aps/super_glue": "boolq", "allenai/winogrande": "winogrande", "tau/commonsense_qa": "commonsense_qa",
    "allenai/openbookqa": "openbookqa", "mandarjoshi/trivia_qa": "triviaqa", "openai/openai_humaneval": "humaneval",
    "google-research-datasets/nq_open": "nq_open", "google-research-datasets/mbpp": "mbpp", "openai/gsm8k": "gsm8k",
    "SaylorTwift/bbh": "bbh", "EleutherAI/hendrycks_math": "math", "AmazonScience/bold": "bold",
    "allenai/real-toxicity-prompts": "realtoxicity", "jannalu/crows_pairs_multilingual": "crows_pairs",
    "oskarvanderwal/bbq": "bbq_ambig", "oskarvanderwal/winogender": "winogender", "skg/toxigen-data": "toxigen",
    "truthfulqa/truthful_qa": "truthfulqa",
}  # fmt: skip


def _row_that_reads(path: str, name: str | None) -> str:
    if path == "allenai/ai2_arc":
        return {"ARC-Easy": "recurrent_gemma_arc_easy", "ARC-Challenge": "recurrent_gemma_arc_challenge"}[str(name)]
    if path == "uclanlp/wino_bias":
        return f"recurrent_gemma_winobias_{str(name)[4]}_2"
    return f"recurrent_gemma_{ROWS_BY_PATH.get(path, 'agieval')}"


def test_examples_come_from_local_files(tmp_path: Path):
    shutil.copytree(LOCAL_DATA, tmp_path / "data")
    file = tmp_path / "data" / "google-research-datasets__nq_open" / "default" / "train.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("where is", "in what is"), encoding="utf-8")
    model = PlantedLM([])
    run("recurrent_gemma_nq_open", model, data_dir=tmp_path / "data")
    assert {context.count("Q: in what is") for context, _ in model.seen} == {5}
    assert {context.count("Q: where is") for context, _ in model.seen} == {1}


class _AskedError(Exception):
    """The hub was asked for a data set."""


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ("recurrent_gemma_hellaswag", ("Rowan/hellaswag", None)),
        ("recurrent_gemma_mmlu", ("cais/mmlu", "management")),
        ("recurrent_gemma_winobias_2_2", ("uclanlp/wino_bias", "type2_pro")),
    ],
)
def test_without_local_data_lm_eval_asks_the_hub(
    row: str, asked: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
):
    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        if (path, name) == asked:
            raise _AskedError
        return datasets.DatasetDict(_splits(path, name))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(_AskedError):
        load_tasks(row)


def _splits(path: str, name: str | None) -> dict[str, Any]:
    return {split: datasets.Dataset.from_list(rows) for split, rows in data_sets()[path, name].items()}


def test_rows_that_lack_something_are_left_out_and_say_so():
    loaded = load_tasks(TABLES, data_dir=LOCAL_DATA)
    assert loaded["missing"] == {
        "recurrent_gemma_humaneval": "runs programs that the model writes: allow it with unsafe_code=True",
        "recurrent_gemma_mbpp": "runs programs that the model writes: allow it with unsafe_code=True",
        **dict.fromkeys(
            ("recurrent_gemma_realtoxicity", "recurrent_gemma_bold"),
            "is scored by a classifier: pass classifier=, a LocalClassifier or a PerspectiveClassifier",
        ),
    }
    assert not loaded["missing"].keys() & loaded["groups"].keys()
    assert not {"humaneval", "mbpp", "realtoxicityprompts"} & loaded["tasks"].keys()
    present = [row.task for row in ROWS if row.task not in loaded["missing"]]
    assert sorted(loaded["groups"].keys() & {row.task for row in ROWS}) == sorted(present)


def test_a_row_alone_that_lacks_something():
    loaded = load_tasks("recurrent_gemma_humaneval", data_dir=LOCAL_DATA)
    assert (loaded["tasks"], loaded["selected"], list(loaded["missing"])) == ({}, [], ["recurrent_gemma_humaneval"])


def test_what_is_missing_is_told_of_the_names_asked_for_alone():
    assert load_tasks("recurrent_gemma_piqa", data_dir=LOCAL_DATA)["missing"] == {}
    assert list(load_tasks(GROUPS["card"], data_dir=LOCAL_DATA)["missing"]) == [
        "recurrent_gemma_humaneval",
        "recurrent_gemma_mbpp",
    ]


def test_a_classifier_for_one_row():
    loaded = load_tasks(GROUPS["safety"], data_dir=LOCAL_DATA, classifier={"recurrent_gemma_bold": WordClassifier()})
    assert list(loaded["missing"]) == ["recurrent_gemma_realtoxicity"]
    with pytest.raises(
        ValueError, match=r"classifier: expected rows of \[.*\] as keys, got \['recurrent_gemma_piqa'\]"
    ):
        load_tasks(GROUPS["safety"], data_dir=LOCAL_DATA, classifier={"recurrent_gemma_piqa": WordClassifier()})


def test_other_names_are_lm_evals_own():
    loaded = load_tasks(["hellaswag", "humaneval"], data_dir=LOCAL_DATA)
    assert list(loaded["tasks"]) == ["hellaswag"] and loaded["missing"].keys() == {"humaneval"}
    # A tag has all its tasks, not only those in the folders that our rows are made of, whose data is there.
    with pytest.raises(FileNotFoundError, match=r"data_dir: \w+ expects .*jsonl"):
        load_tasks("math_word_problems", data_dir=LOCAL_DATA)
    with pytest.raises(ValueError, match=r"names: expected tasks or groups of lm-eval, .* got 'no_such_task'"):
        load_tasks(["piqa", "no_such_task"], data_dir=LOCAL_DATA)


def test_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match="names: expected at least one"):
        load_tasks([])
    with pytest.raises(FileNotFoundError, match=r"data_dir: expected a directory, got .*absent"):
        load_tasks("recurrent_gemma_piqa", data_dir=tmp_path / "absent")


def test_lm_evals_own_command_line_finds_every_row():
    manager = require("lm_eval.tasks").TaskManager(include_path=str(TASKS))
    assert {*TABLES, *(row.task for row in ROWS)} <= set(manager.all_groups)


def test_lm_evals_own_command_line_wants_a_key_before_it_generates(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name=None, **options: datasets.DatasetDict(_splits(path, name))
    )
    folder = Path(require("lm_eval.tasks").__file__).parent / "realtoxicityprompts"
    manager = require("lm_eval.tasks").TaskManager(include_path=[TASKS, folder], include_defaults=False)
    for row in ("recurrent_gemma_bold", "recurrent_gemma_realtoxicity"):
        with pytest.raises(ValueError, match="set PERSPECTIVE_API_KEY"):
            manager.load(row)
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "a key")
    assert manager.load("recurrent_gemma_bold")["tasks"]
