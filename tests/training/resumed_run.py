"""A run of ten steps over one and a quarter epochs: whole, or killed behind the checkpoint of a step, or going on.

python resumed_run.py FOLDER [--kill-at STEP | --resume]
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from tests.training.trainers import rows, trainer


class Kill(TrainerCallback):
    """Ends the process, with no chance to put anything in order, when the checkpoint of ``step`` is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, *, kill_at: int | None = None, resume: bool = False) -> Trainer:
    training = trainer(
        folder,
        data=rows(32),
        max_steps=10,
        save_strategy="steps",
        save_steps=2,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        learning_rate=1e-2,
        callbacks=[] if kill_at is None else [Kill(kill_at)],
    )
    training.train(resume_from_checkpoint=resume)
    return training


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    run(options.folder, kill_at=options.kill_at, resume=options.resume)
