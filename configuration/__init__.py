"""Configuration of the Griffin family: the config class and the published presets. Imports no model code."""

from recurrent_gemma.configuration.config import RecurrentGemmaConfig
from recurrent_gemma.configuration.presets import PRESETS

__all__ = ["PRESETS", "RecurrentGemmaConfig"]
