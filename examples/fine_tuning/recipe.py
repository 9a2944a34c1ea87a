"""What the recipes share: their options, the small model's text as documents, and the plot of losses."""

import argparse
import json
from pathlib import Path
from typing import Any

import recurrent_gemma


def parser(description: str, *, steps: int, output: str, learning_rate: float) -> argparse.ArgumentParser:
    """A parser with the options that every recipe has.

    Args:
        description: The recipe's docstring; its first line is shown by ``--help``.
        steps, output, learning_rate: Defaults.
    """
    options = argparse.ArgumentParser(
        description=description.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--model", default=str(recurrent_gemma.demo_path()), help="checkpoint directory or hub id")
    options.add_argument("--output", type=Path, default=Path(output), help="folder for the result and the plot")
    options.add_argument("--steps", type=int, default=steps, help="optimizer steps")
    options.add_argument("--learning-rate", type=float, default=learning_rate, help="peak learning rate")
    options.add_argument("--seed", type=int, default=0, help="of the data's order and of everything random")
    return options


def documents() -> list[str]:
    """English documents, chapters of books, that the small model was not trained on."""
    text = (recurrent_gemma.demo_path() / "heldout.txt").read_text(encoding="utf-8")
    return [document.strip() for document in text.split("<bos>") if document.strip()]


def save(trainer: Any, folder: Path) -> None:
    """Write what a Trainer has made, with its ``processing_class``, as one would have it for generation.

    The Trainer turns the cache off in the model's config, and recipes pad on the right to train.
    """
    trainer.model.config.use_cache = True
    if trainer.processing_class is not None:
        trainer.processing_class.padding_side = "left"
    trainer.save_model(str(folder))


def save_curves(log: list[dict[str, Any]], folder: Path, *, title: str, per: str = "token") -> Path:
    """Write a Trainer's ``state.log_history`` as ``log.json`` and its losses as ``loss.svg``; returns the plot's path.

    Args:
        log: Entries with ``step`` and ``loss`` or ``eval_loss``.
        folder: Made if it does not exist.
        title: Of the plot.
        per: What the loss is a mean over.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.json").write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for key, label, marker in (("loss", "training", None), ("eval_loss", "held out", "o")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker)
    axes.set(xlabel="step", ylabel=f"loss (nats per {per})", title=title)
    axes.legend()
    path = folder / "loss.svg"
    figure.savefig(path)
    pyplot.close(figure)
    return path
