"""lm-eval's tasks of the card's tables, by its own task manager; on local files where a data directory is given."""

import contextlib
import dataclasses
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from recurrent_gemma.evaluation import task_functions
from recurrent_gemma.evaluation.classifier import Classifier
from recurrent_gemma.evaluation.code_eval import CodeEval, supplied_code_eval
from recurrent_gemma.evaluation.requirements import require_lm_eval
from recurrent_gemma.evaluation.rows import GROUPS, ROWS

TASKS = Path(__file__).with_name("tasks").resolve()

# Folders of lm-eval's tasks that the tables use. Its index of all of them takes seconds.
_FOLDERS = """
agieval arc bbh/cot_fewshot bbq commonsense_qa crows_pairs gsm8k hellaswag humaneval mbpp minerva_math mmlu/default
nq_open openbookqa piqa realtoxicityprompts siqa super_glue/boolq toxigen triviaqa truthfulqa winogender winogrande
""".split()
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


class LoadedTasks(TypedDict):
    """What :func:`load_tasks` returns; ``lm_eval.evaluator.evaluate`` takes it as ``task_dict``."""

    tasks: dict[str, Any]
    groups: dict[str, Any]
    group_map: dict[str, list[str]]
    # Rows left out, by their group's name, with what they need.
    missing: dict[str, str]
    # The objects of the names asked for, which ``lm_eval.simple_evaluate`` takes as ``tasks``, and the manager that
    # they come from, its ``task_manager``: it would read all of lm-eval's files for one of its own.
    selected: list[Any]
    manager: Any


def load_tasks(
    names: str | Sequence[str],
    *,
    data_dir: str | Path | None = None,
    classifier: Classifier | Mapping[str, Classifier] | None = None,
    unsafe_code: bool = False,
) -> LoadedTasks:
    """Load tasks for ``lm_eval.evaluator.evaluate`` or ``lm_eval.simple_evaluate``.

    Args:
        names: Groups of the tables (``GROUPS``), of their rows (``CardRow.task``), or lm-eval's own tasks and groups.
        data_dir: Directory with ``<dataset_path, with "/" as "__">/<dataset_name or "default">/<split>.jsonl`` in
            place of data sets of the hub.
        classifier: What scores the rows RealToxicity and BOLD: one for both, or by the row's group. Without one they
            are among ``missing``.
        unsafe_code: Whether programs that the model writes may be run. Without it HumanEval and MBPP are ``missing``.

    Returns:
        Tasks, groups, and rows left out with the reason. To run code, lm-eval wants ``confirm_run_unsafe_code=True``
        as well.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: A name is not known, or ``classifier`` names another row.
        FileNotFoundError: ``data_dir`` lacks a file; the message names its path and the schema it has to have.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("names: expected at least one task or group, got none.")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise FileNotFoundError(f"data_dir: expected a directory, got {data_dir}.")
    classifiers = _classifiers(classifier)
    manager = _task_manager(names)
    index = manager.task_index
    missing = _missing(classifiers, unsafe_code)
    for name in names:
        if any(index[leaf].cfg.get("unsafe_code") for leaf, _ in _leaves(index, name)) and not unsafe_code:
            missing.setdefault(name, _NEEDS_UNSAFE_CODE)
    for group in GROUPS.values():
        missing.pop(group, None)
        _rewrite(index, group, lambda cfg: {**cfg, "task": [row for row in cfg["task"] if row not in missing]})
    wanted = [name for name in names if name not in missing]
    leaves = {leaf: overrides for name in wanted for leaf, overrides in _leaves(index, name)}

    for row, scorer in classifiers.items():
        for name in (row, *(leaf for leaf, _ in _leaves(index, row))):
            _rewrite(index, name, _with_classifier(scorer))
    runs_code = any(index[leaf].cfg.get("unsafe_code") for leaf in leaves)
    with supplied_code_eval(CodeEval(confirm_run_unsafe_code=True)) if runs_code else contextlib.nullcontext():
        if data_dir is not None:
            for leaf, overrides in leaves.items():
                _rewrite(index, leaf, _with_local_data(Path(data_dir), overrides))
        selected = [loaded for name in wanted for loaded in _built(manager, name)]
    loaded = manager.load(selected)
    asked_for = {row for name in names for row in _rows_of(name)}
    return {
        "tasks": loaded["tasks"],
        "groups": loaded.get("groups", {}),
        "group_map": loaded.get("group_map", {}),
        "missing": {row: reason for row, reason in missing.items() if row in asked_for},
        "selected": selected,
        "manager": manager,
    }


_NEEDS_UNSAFE_CODE = "runs programs that the model writes: allow it with unsafe_code=True"
_NEEDS_CLASSIFIER = "is scored by a classifier: pass classifier=, a LocalClassifier or a PerspectiveClassifier"


def _task_manager(names: Sequence[str]) -> Any:
    """lm-eval's task manager with our tasks; over all of lm-eval's where other names than ours are asked for."""
    require_lm_eval()
    lm_eval_tasks = importlib.import_module("lm_eval.tasks")
    ours = {*GROUPS.values(), *(row.task for row in ROWS)}
    if ours.issuperset(names):
        folder = Path(str(lm_eval_tasks.__file__)).parent
        # It warns of tags that have members in several of the folders; none of ours is made of those.
        with _quiet("lm_eval.tasks._index"):
            return lm_eval_tasks.TaskManager(
                include_path=[TASKS, *(folder / name for name in _FOLDERS)], include_defaults=False
            )
    manager = lm_eval_tasks.TaskManager(include_path=TASKS)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise ValueError(
            f"names: expected tasks or groups of lm-eval, {', '.join(GROUPS.values())} or their rows' groups, got "
            f"{', '.join(map(repr, unknown))}."
        )
    return manager


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Drop the warnings of a logger within the block."""

    def drop(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logging.getLogger(logger).addFilter(drop)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(drop)


def _classifiers(classifier: Classifier | Mapping[str, Classifier] | None) -> dict[str, Classifier]:
    rows = [row.task for row in ROWS if row.needs == "classifier"]
    if classifier is None:
        return {}
    if not isinstance(classifier, Mapping):
        return dict.fromkeys(rows, classifier)
    unknown = [name for name in classifier if name not in rows]
    if unknown:
        raise ValueError(f"classifier: expected rows of {rows} as keys, got {unknown}.")
    return dict(classifier)


def _missing(classifiers: Mapping[str, Classifier], unsafe_code: bool) -> dict[str, str]:
    reasons = {}
    for row in ROWS:
        if row.needs == "classifier" and row.task not in classifiers:
            reasons[row.task] = _NEEDS_CLASSIFIER
        elif row.needs == "unsafe_code" and not unsafe_code:
            reasons[row.task] = _NEEDS_UNSAFE_CODE
    return reasons


def _rows_of(name: str) -> list[str]:
    tables = {GROUPS["card"]: "capability", GROUPS["safety"]: "safety"}
    return [row.task for row in ROWS if row.table == tables[name]] if name in tables else [name]


def _leaves(index: Mapping[str, Any], name: str, overrides: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Names of the tasks below ``name``, each with what the groups above it change."""
    overrides = overrides or {}
    entry = index[name]
    if entry.kind.name == "TAG":
        for member in sorted(entry.tags):
            yield from _leaves(index, member, overrides)
    elif entry.kind.name == "GROUP":
        yield from _members(index, entry.cfg["task"], overrides)
    else:
        yield name, overrides


def _members(index: Mapping[str, Any], members: Sequence[Any], overrides: Mapping[str, Any]) -> Iterator[Any]:
    for member in members:
        if isinstance(member, str):
            yield from _leaves(index, member, overrides)
            continue
        name = member.get("group") or member["task"]
        if name in index:
            changes = {key: value for key, value in member.items() if key not in ("task", "group")}
            yield from _leaves(index, name, {**overrides, **changes})
        elif isinstance(member["task"], list):
            yield from _members(index, member["task"], overrides)
        else:
            raise ValueError(
                f"names: expected groups whose members are tasks of their own, got one with {name!r} written inside "
                "of it; name the tasks instead."
            )


def _rewrite(index: dict[str, Any], name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Put a changed configuration in place of a YAML file, for the manager to build from."""
    entry = index.get(name)
    if entry is None:
        return
    cfg = entry.cfg
    if entry.yaml_path is not None:
        cfg = importlib.import_module("lm_eval.tasks._yaml_loader").load_yaml(entry.yaml_path)
    index[name] = dataclasses.replace(entry, yaml_path=None, cfg=change(cfg))


def _with_classifier(classifier: Classifier) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Functions for lm-eval's own command line become those of ``classifier``, wherever they stand."""
    replacements = {
        task_functions.perspective_scores: task_functions.scores_by(classifier),
        task_functions.expect_perspective: None,
        task_functions.bold_docs_for_perspective: task_functions.bold_docs,
    }

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        return replacements.get(value, value) if callable(value) else value

    return replaced


def _with_local_data(data_dir: Path, overrides: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The configuration of a task that reads ``data_dir`` in place of its data set."""

    def local(cfg: dict[str, Any]) -> dict[str, Any]:
        settled = {**cfg, **overrides}
        path, name = cfg["dataset_path"], cfg.get("dataset_name")
        folder = data_dir / path.replace("/", "__") / (name or "default")
        files = {settled[key]: folder / f"{settled[key]}.jsonl" for key in _SPLITS if settled.get(key)}
        for split in _needed_splits(settled):
            if not files[split].is_file():
                config = f", configuration {name!r}" if name else ""
                raise FileNotFoundError(
                    f"data_dir: {cfg['task']} expects {files[split]}, one JSON object a line in the schema of the "
                    f"split {split!r} of the data set {path!r}{config}."
                )
        # A split that is not there is one that the task declares and these settings do not read.
        absent: dict[str, Any] = {
            key: None for key in _SPLITS if settled.get(key) and not files[settled[key]].is_file()
        }
        present = {split: str(file) for split, file in files.items() if file.is_file()}
        return {
            **cfg,
            **absent,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": present},
        }

    return local


def _needed_splits(cfg: Mapping[str, Any]) -> list[str]:
    """The split that is evaluated, and the one that examples come from."""
    evaluated = cfg.get("test_split") or cfg["validation_split"]
    fewshot = cfg.get("fewshot_config") or {}
    if not cfg.get("num_fewshot") or fewshot.get("samples"):
        return [evaluated]
    return [
        evaluated,
        cfg.get("fewshot_split") or cfg.get("training_split") or cfg.get("validation_split") or evaluated,
    ]


def _built(manager: Any, name: str) -> list[Any]:
    """The group or tasks of a name; a tag has several."""
    loaded = manager.load(name)
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


__all__ = ["TASKS", "LoadedTasks", "load_tasks"]
