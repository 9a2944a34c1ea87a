"""What Transformers' pipeline mixin calls for each task; its own modules of these are not in its distribution.

Each compares what the pipeline says with what the model and the tokenizer say.
"""

from typing import Any

import torch
from transformers import FeatureExtractionPipeline, Pipeline, TextGenerationPipeline

PROMPTS = ["In the beginning", "The", "It was a dark night, and"]


class TextGeneration:
    """Pipeline and checks of ``text-generation``."""

    def get_test_pipeline(self, model: Any, tokenizer: Any, dtype: str) -> tuple[Pipeline, list[str]]:
        """The pipeline, and inputs for it."""
        model = model.to(getattr(torch, dtype))
        return TextGenerationPipeline(model, tokenizer=tokenizer, max_new_tokens=8, do_sample=False), PROMPTS

    def run_pipeline_test(self, pipeline: Any, examples: list[str]) -> None:
        """Compare texts, alone and in a padded batch, with those of ``generate``."""
        expected = []
        for text in examples:
            inputs = pipeline.tokenizer(text, return_tensors="pt")
            ids = pipeline.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1] :]
            expected.append(text + pipeline.tokenizer.decode(ids, skip_special_tokens=True))
        assert [pipeline(text)[0]["generated_text"] for text in examples] == expected
        assert [out[0]["generated_text"] for out in pipeline(examples, batch_size=3)] == expected
        assert pipeline(examples[0], return_full_text=False)[0]["generated_text"] == expected[0][len(examples[0]) :]


class FeatureExtraction:
    """Pipeline and checks of ``feature-extraction``."""

    def get_test_pipeline(self, model: Any, tokenizer: Any, dtype: str) -> tuple[Pipeline, list[str]]:
        """The pipeline, and inputs for it."""
        return FeatureExtractionPipeline(model.to(getattr(torch, dtype)), tokenizer=tokenizer), PROMPTS

    def run_pipeline_test(self, pipeline: Any, examples: list[str]) -> None:
        """Compare features with the model's last hidden states."""
        for text in examples:
            with torch.no_grad():
                expected = pipeline.model(**pipeline.tokenizer(text, return_tensors="pt")).last_hidden_state
            assert torch.equal(pipeline(text, return_tensors=True), expected)
