"""Recipes import their neighbours by plain names, as they do when they run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples" / "fine_tuning"))
