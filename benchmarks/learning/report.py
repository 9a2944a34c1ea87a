"""What the runs show: pictures of accuracy against length, and the tables of docs/evidence.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks import pages
from benchmarks.learning.models import COMPARED, MODELS
from benchmarks.learning.tasks import TASKS, Task
from benchmarks.learning.training import Run
from benchmarks.style import drawing, save

# Tables of the same page that other commands make.
OTHERS = ("exactness/", "long-context/")
# Accuracy below which a run counts among the failures.
HELD = 0.9
COLOURS = {
    "hawk": "#0b7285",
    "griffin": "#2b8a3e",
    "local": "#c2255c",
    "wide": "#e8590c",
    "hawk-segments": "#5f3dc4",
    "hawk-cut": "#868e96",
    "hawk-signed": "#5f3dc4",
}


def one_line(run: Run) -> str:
    """A run in one line, for whoever watches."""
    solved = "never" if run.solved_at is None else f"at {run.solved_at}"
    scores = " ".join(f"{score.length}:{score.accuracy:.3f}" for score in run.scores)
    return (
        f"{run.task} {run.model} seed {run.seed} lr {run.learning_rate:g}: solved {solved} of {run.steps} steps, "
        f"{run.cpu_seconds:.0f} s; {scores}"
    )


def write(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Draw the pictures into ``folder/images`` and renew the tables of ``folder/evidence.md`` if it is there."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    written = []
    for name, models in (("learning", COMPARED), ("learning_controls", None)):
        path = folder / "images" / f"{name}.svg"
        if _draw(path, results["runs"], models):
            written.append(path)
    return written + pages.renew_file(folder / "evidence.md", lambda page: renew(page, results))


def renew(page: str, results: dict[str, Any]) -> str:
    """``page`` with every ``<!-- table NAME -->`` block filled from the results, but for those of another command.

    Raises:
        ValueError: The page asks for a table that does not exist.
    """

    def table(name: str) -> str | None:
        if name.startswith(OTHERS):
            return None
        made = _table(name, results)
        if made is None:
            raise ValueError(f"table: expected the name of a task or of a table in {sorted(_TABLES)}, got {name!r}.")
        return made

    return pages.renew(page, table)


def _table(name: str, results: dict[str, Any]) -> str | None:
    if name in _TABLES:
        return _TABLES[name](results)
    task, _, measure = name.partition("/")
    if task not in TASKS or measure not in ("", "beyond"):
        return None
    return _accuracy_table(TASKS[task], results["runs"], measure or "accuracy")


def _accuracy_table(task: Task, runs: Sequence[dict[str, Any]], measure: str) -> str:
    """Rows: models and tests; columns: lengths; cells: mean over seeds and, below it, least and most."""
    present = [name for name in MODELS if any((run["task"], run["model"]) == (task.name, name) for run in runs)]
    lines = [
        f"| | {' | '.join(f'{length:,}' for length in task.test_lengths)} |",
        f"|---|{'---|' * len(task.test_lengths)}",
    ]
    for test in task.tests:
        for name in present:
            title = MODELS[name].title + (f"; {test}" if test else "")
            cells = [_cell(_values(runs, task.name, name, test, length, measure)) for length in task.test_lengths]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _training_table(results: dict[str, Any]) -> str:
    lines = [
        "| task | model | parameters | solved at step, by seed | steps taken | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for name, contestant in MODELS.items():
            runs = [run for run in results["runs"] if (run["task"], run["model"]) == (task, name)]
            if not runs:
                continue
            solved = ", ".join("never" if run["solved_at"] is None else str(run["solved_at"]) for run in runs)
            steps = ", ".join(str(run["steps"]) for run in runs)
            seconds = ", ".join(f"{run['cpu_seconds']:.0f}" for run in runs)
            title = f"{TASKS[task].title} | {contestant.title}"
            lines.append(f"| {title} | {runs[0]['parameters']:,} | {solved} | {steps} | {seconds} |")
    return "\n".join(lines)


def _tasks_table(results: dict[str, Any]) -> str:
    lines = ["| task | source | trained at | chance | steps at most | learning rate |", "|---|---|---|---|---|---|"]
    for task in TASKS.values():
        rates = sorted({run["learning_rate"] for run in results["runs"] if run["task"] == task.name})
        rate = ", ".join(f"{rate:g}" for rate in rates)
        cells = (task.title, task.source, task.train_length, f"{task.chance:.3f}", f"{task.steps:,}", rate)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _failures_table(results: dict[str, Any]) -> str:
    """Every run that did not learn its task at the training length, or lost it at the longest one."""
    lines = ["| task | model | seed | at the training length | at the longest | |", "|---|---|---|---|---|---|"]
    for run in results["runs"]:
        task = TASKS[run["task"]]
        for test in task.tests:
            scores = {score["length"]: score["accuracy"] for score in run["scores"] if score["test"] == test}
            first, last = scores[task.train_length], scores[task.test_lengths[-1]]
            what = "did not learn it" if first < HELD else "learned it, and does not hold it" if last < HELD else None
            if what is not None:
                title = f"{task.title}, {test}" if test else task.title
                cells = (title, MODELS[run["model"]].title, run["seed"], f"{first:.3f}", f"{last:.3f}", what)
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _run_table(results: dict[str, Any]) -> str:
    machine = results["environment"]
    rows = {
        "hardware": f"{machine['hardware']} ({machine['cpu_capability']}), {machine['cores']} cores",
        "processes": f"{results['options']['jobs']} of one thread each",
        "load before": machine["load_average"],
        "versions": f"torch {machine['torch']}, transformers {machine['transformers']}, Python {machine['python']}",
        "runs": len(results["runs"]),
        "steps": f"{sum(run['steps'] for run in results['runs']):,}",
        "CPU time": f"{results['cpu_seconds'] / 60:.0f} minutes",
        "time": f"{results['seconds'] / 60:.0f} minutes",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


_TABLES = {"run": _run_table, "tasks": _tasks_table, "training": _training_table, "failures": _failures_table}


def _values(
    runs: Sequence[dict[str, Any]], task: str, model: str, test: str, length: int, measure: str = "accuracy"
) -> list[float]:
    """The measure of every seed."""
    return [
        score[measure]
        for run in runs
        for score in run["scores"]
        if (run["task"], run["model"], score["test"], score["length"]) == (task, model, test, length)
        and score[measure] is not None
    ]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _draw(path: Path, runs: Sequence[dict[str, Any]], models: Sequence[str] | None) -> bool:
    """One panel a test: mean over seeds, least and most. ``models`` None draws the tasks that have controls, with them.

    Returns:
        Whether there was anything to draw.
    """
    made = {(run["task"], run["model"]) for run in runs}
    shown = {}
    for task in TASKS.values():
        names = [name for name in MODELS if (task.name, name) in made and (models is None or name in models)]
        if models is None:
            names = [name for name in names if name == "hawk" or name not in COMPARED]
            names = names if len(names) > 1 else []
        for test in task.tests if names else ():
            shown[task.name, test] = names
    if not shown:
        return False
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with drawing(**{"font.size": 9}):
        figure, grid = plt.subplots(
            rows, columns, figsize=(3.4 * columns, 2.9 * rows), layout="constrained", squeeze=False
        )
        for axes, ((task_name, test), names) in zip(grid.flat, shown.items(), strict=False):
            _panel(axes, TASKS[task_name], test, names, runs)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        handles = {
            label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        place = {"loc": "outside lower center", "ncols": 5 if columns > 2 else 2, "frameon": False}
        figure.legend(handles.values(), handles.keys(), **place)
        save(figure, path)
    return True


def _panel(axes: Axes, task: Task, test: str, names: Sequence[str], runs: Sequence[dict[str, Any]]) -> None:
    lengths = list(task.test_lengths)
    for name in names:
        values = [_values(runs, task.name, name, test, length) for length in lengths]
        at = [length for length, found in zip(lengths, values, strict=True) if found]
        values = [found for found in values if found]
        axes.fill_between(at, [min(v) for v in values], [max(v) for v in values], color=COLOURS[name], alpha=0.15, lw=0)
        mean = [sum(v) / len(v) for v in values]
        # Segments lie on top of whole rows where both learn the same.
        style = {
            "linestyle": "--" if name == "hawk-segments" else "-",
            "marker": "o",
            "markersize": 3,
            "linewidth": 1.8,
        }
        axes.plot(at, mean, color=COLOURS[name], label=MODELS[name].title, **style)
    axes.axhline(task.chance, color="0.5", linestyle="--", linewidth=1, label="chance")
    axes.axvline(task.train_length, color="0.7", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.set_title(task.title + (f", {test}" if test else ""), loc="left", fontsize=9)
    axes.set_xlabel("length (trained at the dotted line)")
    axes.set_ylabel("accuracy")
    axes.grid(color="0.93")
