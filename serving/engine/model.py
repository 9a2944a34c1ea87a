"""The model as vLLM runs it: packed tokens of many sequences in, hidden states and logits out."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from recurrent_gemma.modeling.layers import RecurrentGemmaRMSNorm, RecurrentGemmaScaledEmbedding, rotary_angles
from recurrent_gemma.serving.engine.cpu_build import mend_cpu_runner
from recurrent_gemma.serving.engine.layers import ResidualBlock
from recurrent_gemma.serving.engine.state import state_copies, state_dtypes, state_shapes

# From the names of checkpoints to those of the layers here, which multiply once by what is stacked.
STACKED = WeightsMapper(
    orig_to_new_stacked={
        ".q_proj": (".qkv_proj", "q"),
        ".k_proj": (".qkv_proj", "k"),
        ".v_proj": (".qkv_proj", "v"),
        ".gate_proj": (".gate_up_proj", 0),
        ".up_proj": (".gate_up_proj", 1),
        ".linear_y": (".linear_in", 0),
        ".linear_x": (".linear_in", 1),
    }
)


@support_torch_compile
class RecurrentGemmaModel(nn.Module):
    """Embeddings, residual blocks and final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.embed_tokens",
        )
        with torch.device("meta"):
            scaled = RecurrentGemmaScaledEmbedding(1, config.hidden_size, config.embeddings_scale_by_sqrt_dim)
        self.embed_scale = scaled.embed_scale
        self.layers = nn.ModuleList(
            ResidualBlock(config, vllm_config, f"{prefix}.layers.{index}", index)
            for index in range(config.num_hidden_layers)
        )
        self.final_norm = RecurrentGemmaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Ids (T,) to scaled embeddings (T, D)."""
        embedded = self.embed_tokens(input_ids)
        return embedded if self.embed_scale == 1.0 else embedded * self.embed_scale

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (T, D) of packed tokens.

        Args:
            input_ids: (T,).
            positions: (T,) int64, each token's place in its sequence.
            intermediate_tensors: Of pipeline parallelism, which is refused at start.
            inputs_embeds: (T, D) instead of ids; not scaled, as ``embed_input_ids`` gives scaled ones.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        hidden_states = inputs_embeds
        # From positions, not from a table: a table would set a longest sequence, and hold angles in half precision.
        cos, sin = (angles[0, 0, :, None] for angles in rotary_angles(positions[None], self.config, torch.float32))
        for layer in self.layers:
            hidden_states = layer(hidden_states, cos, sin)
        return self.final_norm(hidden_states)


class RecurrentGemmaForCausalLM(nn.Module, HasInnerState, IsHybrid):
    """The language model; vLLM finds it under the name that checkpoints have in ``architectures``."""

    hf_to_vllm_mapper = STACKED
    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
        "linear_in": ["linear_y", "linear_x"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        if current_platform.is_cpu():
            mend_cpu_runner()
        self.config = config = vllm_config.model_config.hf_config
        self.model = RecurrentGemmaModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        # vLLM says false where the file has a head of its own, whatever config.json says.
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Ids (T,) to scaled embeddings (T, D)."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (T, D) of packed tokens; arguments as in :meth:`RecurrentGemmaModel.forward`."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits (T, vocab_size) of hidden states (T, D), capped in fp32; None on ranks that vLLM gathers nothing on.

        vLLM's own cap would round in the model's dtype.
        """
        logits = self.logits_processor(self.lm_head, hidden_states)
        cap = self.config.final_logit_softcapping
        return logits if logits is None or cap is None else torch.tanh(logits.float() / cap) * cap

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take a checkpoint's weights, and give the names of the parameters that have theirs.

        Raises:
            ValueError: A weight has no parameter here.
        """
        return AutoWeightsLoader(self).load_weights(weights, mapper=STACKED)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a recurrent layer keeps of a sequence."""
        return state_shapes(vllm_config.model_config.hf_config, vllm_config.parallel_config.tensor_parallel_size)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """Dtypes in the same order."""
        return state_dtypes(vllm_config)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[MambaStateCopyFunc, ...]:
        """How vLLM copies them from page to page, in the same order."""
        return state_copies()


__all__ = ["STACKED", "RecurrentGemmaForCausalLM"]
