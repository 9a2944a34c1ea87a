"""The small model and the inputs that Transformers' tests are run with."""

from typing import Any

import torch

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM, RecurrentGemmaModel


class RecurrentGemmaModelTester:
    """What Transformers' mixins ask a model's tests for: sizes, classes, a config and inputs.

    One pattern of the published models; the window is shorter than the sequence, and rows are padded on either side.

    Args:
        **overrides: Config fields that differ.
    """

    config_class = RecurrentGemmaConfig
    base_model_class = RecurrentGemmaModel
    causal_lm_class = RecurrentGemmaForCausalLM
    is_training = True
    batch_size = 3
    seq_length = 9
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 3
    num_attention_heads = 4

    def __init__(self, **overrides: Any) -> None:
        self._overrides = overrides

    def labels_of_task(self, model_class: type) -> dict[str, torch.Tensor]:
        """Labels for the heads of tasks; none for the others."""
        rows, columns = torch.zeros(self.batch_size).long(), torch.zeros(self.batch_size, self.seq_length).long()
        return {
            "RecurrentGemmaForQuestionAnswering": {"start_positions": rows + 3, "end_positions": rows + 4},
            "RecurrentGemmaForSequenceClassification": {"labels": rows},
            "RecurrentGemmaForTokenClassification": {"labels": columns},
        }.get(model_class.__name__, {})

    def get_config(self) -> RecurrentGemmaConfig:
        """A new config of the model."""
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        fields = {name: getattr(self, name) for name in sizes}
        others = {"intermediate_size": 96, "num_key_value_heads": 1, "lru_width": 48, "attention_window_size": 4}
        return RecurrentGemmaConfig(**{**fields, **others, **self._overrides})

    def prepare_config_and_inputs_for_common(self) -> tuple[RecurrentGemmaConfig, dict[str, Any]]:
        """A new config, and arguments of ``forward``."""
        input_ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[1, :2] = 0
        attention_mask[2, -3:] = 0
        return self.get_config(), {"input_ids": input_ids, "attention_mask": attention_mask}
