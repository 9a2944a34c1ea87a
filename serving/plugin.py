"""What vLLM calls in each of its processes: it is told by name which classes serve this family.

vLLM loads its plugins in the front end, the engine and every worker, whatever the model is. So nothing here imports
the model; vLLM does that once a checkpoint asks for it.
"""

from recurrent_gemma.registration import register as register_with_transformers
from recurrent_gemma.serving.requirements import require_vllm

# What config.json names under ``architectures``.
ARCHITECTURE = "RecurrentGemmaForCausalLM"

# The op that compilers and CUDA graphs see in place of a recurrent block's convolution and recurrence.
RECURRENCE_OP = "recurrent_gemma_recurrence"

# vLLM's name for the builder of what that op has to know of a batch.
STATE_BACKEND = "RECURRENT_GEMMA"

# Where vLLM is told to run a model of Transformers as it is.
_TRANSFORMERS_BACKEND = "TransformersForCausalLM"

_MODEL = ("recurrent_gemma.serving.engine.model", ARCHITECTURE)
_STATE_BACKEND_CLASS = "recurrent_gemma.serving.engine.batch.RecurrentStateBackend"


def register() -> None:
    """Register this family with vLLM: model, config, tokenizer, state backend, and the op to split graphs at.

    Entry point ``recurrent_gemma`` of the group ``vllm.general_plugins``. Calling it again changes nothing.

    Raises:
        ImportError: vLLM is not installed.
    """
    require_vllm()
    from vllm import ModelRegistry
    from vllm.config import CompilationConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum, register_backend

    from recurrent_gemma.serving.engine.checks import RecurrentGemmaChecks, TransformersBackendChecks

    # vLLM reads configs and tokenizers through the Auto classes. The import above bound them, unless undone since.
    register_with_transformers()
    ModelRegistry.register_model(ARCHITECTURE, ":".join(_MODEL))
    MODELS_CONFIG_MAP[ARCHITECTURE] = RecurrentGemmaChecks
    MODELS_CONFIG_MAP.setdefault(_TRANSFORMERS_BACKEND, TransformersBackendChecks)
    if STATE_BACKEND not in MambaAttentionBackendEnum.__members__:
        register_backend(STATE_BACKEND, _STATE_BACKEND_CLASS, is_mamba=True)
    # Piecewise CUDA graphs leave these ops out. Captured, one would go on with the pages of the batch that it was
    # captured with.
    operation = f"vllm::{RECURRENCE_OP}"
    if operation not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(operation)


__all__ = ["ARCHITECTURE", "RECURRENCE_OP", "STATE_BACKEND", "register"]
