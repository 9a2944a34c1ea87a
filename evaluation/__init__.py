"""The model card's two tables as groups of lm-eval tasks."""

from recurrent_gemma.evaluation.classifier import Classifier, LocalClassifier, PerspectiveClassifier
from recurrent_gemma.evaluation.rows import GROUPS, ROWS, SUITES, CardRow, average, find_row
from recurrent_gemma.evaluation.task_loading import load_tasks

__all__ = [
    "GROUPS",
    "ROWS",
    "SUITES",
    "CardRow",
    "Classifier",
    "LocalClassifier",
    "PerspectiveClassifier",
    "average",
    "find_row",
    "load_tasks",
]
