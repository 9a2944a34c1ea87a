"""Checkpoints of DeepMind's code, JAX and PyTorch, to Transformers directories and back, bit for bit."""

from recurrent_gemma.conversion_scripts.checkpoints import ConversionError, OptionsError
from recurrent_gemma.conversion_scripts.convert import ConversionResult, convert
from recurrent_gemma.conversion_scripts.plan import ConversionPlan
from recurrent_gemma.conversion_scripts.verify import Verification, verify

__all__ = ["ConversionError", "ConversionPlan", "ConversionResult", "OptionsError", "Verification", "convert", "verify"]
