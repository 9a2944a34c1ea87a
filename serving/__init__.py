"""Serving on vLLM: the plugin that lets ``vllm.LLM(DIR)`` and ``vllm serve DIR`` run this family.

``plugin`` and ``limits`` import without vLLM. ``engine`` holds what runs inside it, and needs it to be imported.
"""

from recurrent_gemma.serving.plugin import register

__all__ = ["register"]
