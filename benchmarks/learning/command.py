"""``python -m benchmarks learning``: every run of the suite in processes of its own, then tables and pictures."""

import argparse
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.learning import models, training
from benchmarks.learning.models import COMPARED, MODELS
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.training import Run, run

SEEDS = (0, 1, 2)
# Who runs on what: the comparison everywhere, each control on the task that it is about.
CONTROLS = {"marker": ("hawk-segments", "hawk-cut"), "parity": ("hawk-signed",)}
SUITE = {task: (*COMPARED, *CONTROLS.get(task, ())) for task in TASKS}
DOCS = Path(__file__).resolve().parents[2] / "docs"

Job = tuple[str, str, int, float | None, int | None, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the case."""
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: all that a task is meant for")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help=f"default: {SEEDS}")
    parser.add_argument("--steps", type=int, help="at most (default: each task's own)")
    parser.add_argument("--learning-rates", nargs="+", type=float, metavar="RATE", help="default: each task's own")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the models compute (default %(default)s)")
    parser.add_argument("--redraw", action="store_true", help="tables and pictures anew, from results that are there")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for results of a part (default, of all: docs)")


def main(options: argparse.Namespace, environment: dict[str, Any], console: Console) -> None:
    """Run what the options ask for, and write results, pictures and tables.

    Raises:
        ValueError: A part of the suite would replace the results of the whole.
    """
    from benchmarks.learning import report  # matplotlib is needed for nothing else here

    parts = ("tasks", "models", "seeds", "steps", "learning_rates")
    given = [name for name in parts if getattr(options, name) is not None]
    if given and options.output is None:
        raise ValueError(f"output: expected a folder together with {', '.join(given)}, as docs/ holds the whole suite.")
    folder = DOCS if options.output is None else options.output
    results = folder / "data" / "learning.json"
    if not options.redraw:
        results.parent.mkdir(parents=True, exist_ok=True)
        jobs = list(planned_jobs(options))
        started = time.perf_counter()
        runs: list[Run] = []
        for found in _run_all(jobs, options.jobs):
            runs.append(found)
            runs.sort(key=lambda r: (list(TASKS).index(r.task), list(MODELS).index(r.model), r.learning_rate, r.seed))
            console.print(f"{len(runs)}/{len(jobs)} {report.one_line(found)}", highlight=False, soft_wrap=True)
            # After every run, so that what an interrupted suite found is kept.
            _write(results, environment, options, time.perf_counter() - started, runs)
    written = report.write(folder, json.loads(results.read_text()))
    console.print("wrote " + ", ".join(str(path) for path in [results, *written]), highlight=False, soft_wrap=True)


def planned_jobs(options: argparse.Namespace) -> Iterator[Job]:
    # Seed by seed, so that an interrupted suite has something of everything.
    for seed in options.seeds or SEEDS:
        for task in options.tasks or TASKS:
            for model in SUITE[task] if options.models is None else options.models:
                for learning_rate in options.learning_rates or (None,):
                    yield task, model, seed, learning_rate, options.steps, options.device


def _run_all(jobs: Sequence[Job], processes: int) -> Iterator[Run]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(run_job, job) for job in jobs]):
            yield future.result()


def run_job(job: Job) -> Run:
    task, model, seed, learning_rate, steps, device = job
    return run(TASKS[task], MODELS[model], seed=seed, learning_rate=learning_rate, steps=steps, device=device)


def _write(
    path: Path, environment: dict[str, Any], options: argparse.Namespace, seconds: float, runs: Sequence[Run]
) -> None:
    settings = {
        "width": models.WIDTH,
        "layers": models.LAYERS,
        "heads": models.HEADS,
        "mlp_width": models.MLP_WIDTH,
        "window": models.WINDOW,
        "reach": models.REACH,
        "batch_rows": training.BATCH_ROWS,
        "test_rows": training.TEST_ROWS,
        "solved": training.SOLVED,
        "weight_decay": training.WEIGHT_DECAY,
        "max_gradient_norm": training.MAX_GRADIENT_NORM,
    }
    chosen = {
        name: value for name, value in vars(options).items() if name not in ("case", "output", "redraw") and value
    }
    head = {
        "environment": environment,
        "options": chosen,
        "settings": settings,
        "seconds": round(seconds),
        "cpu_seconds": round(sum(r.cpu_seconds for r in runs)),
    }
    # One line a run, which keeps differences of the file readable.
    lines = ",\n".join("    " + json.dumps(dataclasses.asdict(r)) for r in runs)
    path.write_text(json.dumps(head, indent=2)[:-2] + f',\n  "runs": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
