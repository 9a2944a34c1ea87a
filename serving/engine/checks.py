"""What vLLM asks of this family before an engine starts: whether it can, and what it leaves open."""

from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.serving.limits import (
    DEFAULT_MAX_MODEL_LEN,
    LARGEST_MAX_MODEL_LEN,
    expect_servable_model,
    expect_supported,
)

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

# Of vLLM's loggers, which alone are shown.
logger = init_logger("vllm.recurrent_gemma")

# Tokens of a block of keys on CPU, the least its kernels take. vLLM's default there is 128, and no shorter prefix is
# found again.
_CPU_BLOCK_SIZE = 32


class RecurrentGemmaChecks(VerifyAndUpdateConfig):
    """Checks of :mod:`recurrent_gemma.serving.limits`, and defaults where the user names nothing."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        """Refuse what is not served, and choose a longest sequence where none is given.

        A state of constant size sets none, so the config names none, and vLLM would take 2,048. Any length may be asked
        for. Angles are made of positions in fp32 as the model itself does, so that positions are told apart up to 2^24.

        Raises:
            ValueError: The checkpoint cannot be served.
        """
        expect_servable_model(model_config)
        if model_config.original_max_model_len in (None, -1):
            asks_for_most = model_config.original_max_model_len == -1
            model_config.max_model_len = LARGEST_MAX_MODEL_LEN if asks_for_most else DEFAULT_MAX_MODEL_LEN
            logger.info(
                "max_model_len is %d: the state is of constant size, and any other may be given.",
                model_config.max_model_len,
            )

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        """Refuse options that are not supported, and choose short blocks on CPU.

        Raises:
            ValueError: An option is not supported.
        """
        expect_supported(vllm_config)
        cache = vllm_config.cache_config
        if current_platform.is_cpu() and not cache.user_specified_block_size:
            cache.block_size = _CPU_BLOCK_SIZE
            # Or the platform's default overrides it.
            cache.user_specified_block_size = True


class TransformersBackendChecks(VerifyAndUpdateConfig):
    """Checks of vLLM's wrapper around models of Transformers, which would run this family's without its states."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        """Refuse this family, and nothing else.

        Raises:
            ValueError: The model is of this family.
        """
        if isinstance(model_config.hf_config, RecurrentGemmaConfig):
            raise ValueError(
                "model_impl: expected 'auto' or 'vllm', got 'transformers', which keeps no states between the batches "
                "of a sequence; leave model_impl out."
            )


__all__ = ["RecurrentGemmaChecks", "TransformersBackendChecks"]
