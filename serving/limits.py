"""What is refused when an engine starts, each with the reason: vLLM would run some of it, and answer wrongly.

A state is no list of keys. What takes tokens back, or reads another engine's pages, needs code of its own here.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from recurrent_gemma.configuration import RecurrentGemmaConfig

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

# Where nobody names a longest sequence: the length that the published models were trained at.
DEFAULT_MAX_MODEL_LEN = 8192

# Where ``max_model_len=-1`` asks for what memory allows: there is no bound but vLLM's tables, 4 bytes a block and row.
LARGEST_MAX_MODEL_LEN = 2**20


def expect_servable_model(model: "ModelConfig") -> None:
    """Check the checkpoint.

    Args:
        model: vLLM's description of it.

    Raises:
        ValueError: It is of another family, or has a form that is not served.
    """
    config = model.hf_config
    if not isinstance(config, RecurrentGemmaConfig):
        raise ValueError(
            f"model: expected a checkpoint of model_type {RecurrentGemmaConfig.model_type!r}, got "
            f"{getattr(config, 'model_type', None)!r} with the architectures of this family; correct config.json."
        )
    if config.conv1d_width < 2:
        raise ValueError("conv1d_width: expected at least 2, got 1; vLLM has no pages of size 0 for its history.")


def expect_supported(vllm_config: "VllmConfig") -> None:
    """Check an engine's options.

    Args:
        vllm_config: The engine's.

    Raises:
        ValueError: One or more options are not supported; all are named, with the reasons.
    """
    refused = [
        f"{option}: expected {expected}, got {got}; {why}" for option, expected, got, why in _refused(vllm_config)
    ]
    if refused:
        raise ValueError("This family is not served with these options.\n" + "\n".join(refused))


def _refused(vllm_config: "VllmConfig") -> Iterator[tuple[str, str, object, str]]:
    """Option, what it may be, what it is, and why."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    if model.runner_type != "generate":
        why = "the language model alone is served. Embeddings and classes come from the models in Transformers."
        yield "runner", "'generate'", repr(model.runner_type), why
    if vllm_config.speculative_config is not None:
        method = repr(vllm_config.speculative_config.method)
        yield "speculative_config", "None", method, "a rejected draft's tokens cannot be taken out of a state again."
    if vllm_config.lora_config is not None:
        why = "adapters reach the stacked matrices in no tested way. Merge the adapter into the weights first."
        yield "enable_lora", "False", True, why
    if model.quantization is not None:
        why = "no quantized form is tested. Serve the checkpoint in bf16."
        yield "quantization", "None", repr(model.quantization), why
    pipeline = parallel.pipeline_parallel_size
    if pipeline > 1:
        yield "pipeline_parallel_size", "1", pipeline, "layers are not handed over. Use tensor_parallel_size."
    for option in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        ranks = getattr(parallel, option, 1)
        if ranks > 1:
            yield option, "1", ranks, "one rank has to read a sequence from its start. Use tensor_parallel_size."
    if vllm_config.kv_transfer_config is not None:
        why = "moving states between engines is not tested."
        yield "kv_transfer_config", "None", vllm_config.kv_transfer_config.kv_connector, why
    dtype = str(model.dtype).removeprefix("torch.")
    if cache.cache_dtype not in ("auto", dtype):
        yield "kv_cache_dtype", f"'auto' or {dtype!r}", repr(cache.cache_dtype), "quantized keys are not tested."
    if cache.mamba_cache_dtype not in ("auto", dtype):
        why = "it is the dtype of the convolution's inputs, which are the model's."
        yield "mamba_cache_dtype", f"'auto' or {dtype!r}", repr(cache.mamba_cache_dtype), why
    if cache.mamba_ssm_cache_dtype not in ("auto", "float32"):
        why = "the state sums over the whole sequence, and keeps too little in half precision."
        yield "mamba_ssm_cache_dtype", "'auto' or 'float32'", repr(cache.mamba_ssm_cache_dtype), why
    if model.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        yield "dtype", "'float32', 'bfloat16' or 'float16'", repr(dtype), "the pages hold no other."


__all__ = ["DEFAULT_MAX_MODEL_LEN", "LARGEST_MAX_MODEL_LEN", "expect_servable_model", "expect_supported"]
