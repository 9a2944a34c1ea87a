"""Evaluates a model on rows of the card, or on any task of lm-eval's, and writes a report."""

import contextlib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma.evaluation.identity import checkpoint_digest, environment, request_key
from recurrent_gemma.evaluation.language_model import language_model
from recurrent_gemma.evaluation.report import TITLES, OtherResult, Report, RowResult
from recurrent_gemma.evaluation.requirements import require_lm_eval, require_matplotlib
from recurrent_gemma.evaluation.rows import GROUPS, ROWS, SUITES, CardRow, find_row
from recurrent_gemma.evaluation.task_loading import load_tasks

if TYPE_CHECKING:
    from recurrent_gemma.evaluation.classifier import Classifier

logger = logging.getLogger("recurrent_gemma")

CARD_MODELS = ("2b", "2b-it")
SEED = 1234

# Samples of a bootstrap: lm-eval's 100,000 take minutes for a figure whose second digit nobody reads.
_BOOTSTRAP_ITERATIONS = 1000
# A task does not load: an extra, a data set or a file of local data is missing, or the hub does not answer. (datasets
# raises RuntimeError for data sets that come with a script, and ValueError for those it finds in part.)
_CANNOT_LOAD = (ImportError, OSError, RuntimeError, ValueError)

_Unit = CardRow | str
_Result = RowResult | OtherResult


class OptionError(ValueError):
    """An option has a value that nothing can be evaluated with."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and its tokenizer, and the checkpoint directory that both are from."""

    directory: Path
    model: Any
    tokenizer: Any

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.resolve().name


def load_model(
    directory: str | os.PathLike[str], *, dtype: str | None = None, device: str | None = None
) -> LoadedModel:
    """A checkpoint directory's model and tokenizer, for :func:`evaluate`.

    Args:
        directory: A Transformers directory of this family.
        dtype: Such as ``"bfloat16"``; None: the checkpoint's.
        device: None: an accelerator if there is one.

    Raises:
        OSError, ValueError: As ``from_pretrained``.
    """
    path = Path(directory)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, config=model.config, local_files_only=True)
    return LoadedModel(path, model.to(device).eval(), tokenizer)


def evaluate(
    loaded: LoadedModel,
    *,
    output: str | os.PathLike[str],
    suite: str = "card",
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int | str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    card_model: str | None = None,
    chat_template: bool | None = None,
    classifier: "Classifier | Mapping[str, Classifier] | None" = None,
    unsafe_code: bool = False,
    shared_contexts: bool = True,
    seed: int = SEED,
    on_result: Callable[[_Result], None] | None = None,
) -> Report:
    """Run rows of the card through lm-eval, one after the other, and write the report after each.

    Every answer of the model is kept below ``output`` as it comes, under a key made of the checkpoint's contents, the
    dtype, the kind of device and the versions: the same call goes on where a killed one stopped, and another model
    never finds another's answers.

    Args:
        loaded: What to evaluate.
        output: Directory of ``results.json``, ``report.md`` and ``chart.svg``, and of the answers, ``requests/``.
        suite: ``"card"``, ``"safety"`` or ``"smoke"``.
        tasks: Instead of a suite: rows by their name in the card, or tasks by their name in lm-eval.
        limit: Only so many examples of each of lm-eval's tasks: to try things out.
        batch_size: Rows of a forward pass, or ``"auto"``. It does not change the figures.
        data_dir: Local files in place of data sets from the Hub, as :func:`load_tasks` describes.
        card_model: Whose figures to compare with, ``"2b"`` or ``"2b-it"``; None: 2b-it where the directory's name has
            the word ``it``, else 2b.
        chat_template: Whether prompts go through the tokenizer's chat template; None: with 2b-it only.
        classifier: What scores RealToxicity and BOLD: one for both, or by the row's task.
        unsafe_code: Whether programs that the model writes may be run on this machine.
        shared_contexts: False: read every context with every choice, as lm-eval's own model does.
        seed: Of the few-shot examples, the bootstrap and sampled answers.
        on_result: Called with each result as it comes.

    Raises:
        ImportError: lm-eval or matplotlib is not installed.
        OptionError: An option has no such value; no task could be loaded; the same task is asked for twice.
        ValueError: A data file's rows are not in its task's schema.
        OSError: The report cannot be written.
    """
    require_lm_eval()
    require_matplotlib()
    card_model = card_model or card_model_of(loaded.name)
    _expect_one_of("card_model", card_model, CARD_MODELS)
    chat_template = card_model == "2b-it" if chat_template is None else chat_template
    if chat_template and loaded.tokenizer.chat_template is None:
        raise OptionError("chat_template: expected False for a tokenizer without a chat template, got True.")
    _expect_positive(limit, batch_size)
    if data_dir is not None and not Path(data_dir).is_dir():
        raise OptionError(f"data_dir: expected a directory, got {data_dir}.")
    units = units_of(suite, tasks)
    found_environment = environment()
    identity = {
        "checkpoint": checkpoint_digest(loaded.directory),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
    }
    key = request_key({**identity, **found_environment, "shared_contexts": shared_contexts})
    report = Report(
        model={"name": loaded.name, **identity, "parameters": loaded.model.num_parameters()},
        card_model=card_model,
        settings={
            "suite": suite if tasks is None else None,
            "tasks": None if tasks is None else list(tasks),
            "limit": limit,
            "batch_size": batch_size,
            "chat_template": chat_template,
            "classifier": _description(classifier),
            "code_execution": unsafe_code,
            "shared_contexts": shared_contexts,
            "data_dir": None if data_dir is None else str(data_dir),
            "seed": seed,
        },
        environment=found_environment,
        warnings=() if limit is None else (_limit_warning(limit),),
    )

    ready: dict[_Unit, Any] = {}
    found: dict[_Unit, _Result] = {}
    for unit in units:
        reason, task = _load(unit, data_dir=data_dir, classifier=classifier, unsafe_code=unsafe_code)
        found[unit] = _without_figure(unit, card_model, reason or "not reached yet")
        if not reason:
            ready[unit] = task
        elif on_result is not None:
            on_result(found[unit])
    if not ready:
        reasons = "; ".join(sorted({result.reason for result in found.values()}))
        raise OptionError(f"tasks: expected at least one that can be run, got none: {reasons}")

    answers = Path(output) / "requests" / key
    with _language_model(loaded, answers, batch_size, shared_contexts, seed) as model:
        for unit, task in ready.items():
            results = _run(model, task, limit, chat_template, unsafe_code, seed)
            found[unit] = _with_figure(unit, card_model, results)
            report = _with_results(report, found)
            report.write(Path(output))
            if on_result is not None:
                on_result(found[unit])
    return report


def units_of(suite: str, tasks: Sequence[str] | None) -> list[_Unit]:
    """The rows, and names of lm-eval's tasks that are no row, in the order they are run in.

    Raises:
        OptionError: There is no such suite, no task is named, or one twice.
    """
    if tasks is None:
        _expect_one_of("suite", suite, tuple(SUITES))
        tables = dict(zip(GROUPS.values(), TITLES, strict=True))
        return [row for name in SUITES[suite] for row in ROWS if name == row.task or tables.get(name) == row.table]
    if not tasks:
        raise OptionError("tasks: expected the name of at least one row or task, got none.")
    units = [_row_or_name(name) for name in tasks]
    twice = [name for name, unit in zip(tasks, units, strict=True) if units.count(unit) > 1]
    if twice:
        raise OptionError(f"tasks: expected each once, got {', '.join(twice)} more often.")
    return units


def _row_or_name(name: str) -> _Unit:
    try:
        return find_row(name)
    except ValueError:
        return name


def card_model_of(name: str) -> str:
    words = name.lower().replace("_", "-").split("-")
    return "2b-it" if "it" in words else "2b"


def _expect_one_of(name: str, value: str, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise OptionError(f"{name}: expected one of {', '.join(expected)}, got {value!r}.")


def _expect_positive(limit: int | None, batch_size: int | str) -> None:
    if limit is not None and limit < 1:
        raise OptionError(f"limit: expected at least 1 example, or None for all, got {limit}.")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
        raise OptionError(f"batch_size: expected at least 1 or 'auto', got {batch_size!r}.")


def _limit_warning(limit: int) -> str:
    examples = "example" if limit == 1 else f"{limit} examples"
    return f"Limited to the first {examples} of each task: these figures are not comparable with the card's."


def _load(unit: _Unit, **options: Any) -> tuple[str, Any]:
    """Why the task of ``unit`` cannot be run, or nothing; and the task."""
    name = unit if isinstance(unit, str) else unit.task
    try:
        task = load_tasks([name], **options)
    except _CANNOT_LOAD as error:
        if isinstance(error, ValueError) and isinstance(unit, str):
            raise OptionError(str(error)) from error
        return f"{type(error).__name__}: {' '.join(str(error).split())}", None
    return task["missing"].get(name, ""), task


def _description(classifier: Any) -> Any:
    if isinstance(classifier, Mapping):
        return {row: scorer.description for row, scorer in classifier.items()}
    return None if classifier is None else classifier.description


@contextlib.contextmanager
def _language_model(
    loaded: LoadedModel, answers: Path, batch_size: int | str, shared_contexts: bool, seed: int
) -> Iterator[Any]:
    """lm-eval's model, which keeps its answers in lm-eval's cache; the cache's file is closed at the end."""
    from lm_eval.api.model import CachingLM

    # It warns that a loaded model is meant for one process, which this is.
    with _level("lm_eval", logging.ERROR):
        model: Any = language_model()(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=batch_size,
            shared_contexts=shared_contexts,
            seed=seed,
        )
    # It gives the model its cache, which the model looks into by itself.
    cache = CachingLM(model, f"{answers}.db")
    try:
        yield model
    finally:
        cache.dbdict.close()


def _run(model: Any, task: Any, limit: int | None, chat_template: bool, code: bool, seed: int) -> dict[str, Any]:
    """lm-eval's results of one row, which depend on no row before it."""
    from lm_eval import evaluator

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for leaf in task["tasks"].values():
        if leaf.get_config("num_fewshot") is None:
            leaf.set_config(key="num_fewshot", value=0)
        leaf.set_fewshot_seed(seed=seed)
    # What lm-eval prints is not this program's output.
    with contextlib.redirect_stdout(sys.stderr):
        return evaluator.evaluate(
            lm=model,
            task_dict=task,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            log_samples=False,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
            confirm_run_unsafe_code=code,
        )


def _with_figure(unit: _Unit, card_model: str, results: dict[str, Any]) -> _Result:
    examples = sum(counts["effective"] for counts in results["n-samples"].values())
    if isinstance(unit, str):
        scores = {
            f"{task}: {name}" if task != unit else name: value
            for task, found in results["results"].items()
            for name, value in found.items()
            if isinstance(value, (int, float)) and "," in name
        }
        return OtherResult(unit, scores, examples)
    figure = unit.measured(results["results"])
    if figure is None:
        raise ValueError(f"results: expected those of {unit.task!r}, got {sorted(results['results'])}.")
    measured, error = figure
    return RowResult(unit, unit.figures.get(card_model), measured, error, examples)


def _without_figure(unit: _Unit, card_model: str, reason: str) -> _Result:
    if isinstance(unit, str):
        return OtherResult(unit, {}, 0, reason)
    return RowResult(unit, unit.figures.get(card_model), reason=reason)


def _with_results(report: Report, found: dict[_Unit, _Result]) -> Report:
    rows = [result for result in found.values() if isinstance(result, RowResult)]
    others = [result for result in found.values() if isinstance(result, OtherResult)]
    return replace(report, rows=tuple(sorted(rows, key=lambda result: ROWS.index(result.row))), others=tuple(others))


@contextlib.contextmanager
def _level(name: str, level: int) -> Iterator[None]:
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


__all__ = ["CARD_MODELS", "SEED", "LoadedModel", "OptionError", "evaluate", "load_model", "units_of"]
