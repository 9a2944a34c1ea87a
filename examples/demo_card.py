"""The model card of the demo checkpoint, rendered from its evaluation."""

from typing import Any

_CARD = """\
---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [recurrent_gemma, griffin]
---

# RecurrentGemma demo

A RecurrentGemma of {parameters:,} parameters that writes English in the voices of the King James Bible and of Jane
Austen. It exists so that the package can be tried without a download; it knows nothing and should inform nobody.

```python
import recurrent_gemma
from transformers import pipeline

writer = pipeline("text-generation", model=str(recurrent_gemma.demo_path()))
print(writer("In the beginning", max_new_tokens=100)[0]["generated_text"])
```

## Architecture

Six blocks (recurrent, recurrent, attention, twice), width 256, MLP width 768, four query heads and one key/value head,
attention window 128, vocabulary {vocab_size:,}. Weights in bfloat16.

## Data and licence

The King James Version from the Debian package `bible-kjv-text`, and Jane Austen's six novels from `r-cran-janeaustenr`
(the data of the R package `janeaustenr`, MIT). Both texts are in the public domain. {training_documents:,} chapters,
{training_tokens:,} tokens. The middle one of every fifty chapters is held out: {heldout_documents} chapters,
{heldout_tokens:,} tokens, shipped as `heldout.txt`. Weights, tokenizer and card: Apache-2.0.

## Training

`python examples/train_demo.py`: Transformers' Trainer, AdamW, {steps:,} steps of {batch_size} windows of {window}
tokens ({tokens_seen:,} tokens, {epochs:.1f} passes), peak learning rate {learning_rate:g}, warm-up and cosine decay,
weight decay 0.1, gradients clipped at 1.0, seed {seed}; {minutes:g} minutes on {threads} CPU threads.

## Evaluation

Perplexity per token on the held-out chapters. The baselines are interpolated Kneser-Ney models of the same tokens,
trained on the same text.

| model | perplexity |
|---|---|
| unigram | {unigram:.1f} |
| trigram | {trigram:.1f} |
| 5-gram | {fivegram:.1f} |
| **this model** (weights in bfloat16, computed in fp32) | **{heldout_perplexity:.2f}** |

That is {heldout_bits_per_character:.3f} bits a character. Of the runs of eight words in thirty samples of 200 tokens,
{copied_8gram_share:.1%} occur in the training text; of those in the held-out chapters, {heldout_8gram_share:.1%} do.

## Samples

Drawn with the shipped generation config (temperature 0.8, top-p 0.95), seed 0, not selected.

{samples}

## Limits

It repeats the prejudices of 1611 and 1811, invents names and facts, and loses the thread after a few sentences.
The chat template is there because the tokenizer class brings it; the model was never trained on chats.
"""


def render(results: dict[str, Any]) -> str:
    """The card's text for what ``train_demo.py evaluate`` measured."""
    training = results["training"]
    samples = "\n\n".join("> " + text.strip().replace("\n", "\n> ") for text in results["samples"])
    return _CARD.format(
        **{key: value for key, value in results.items() if key not in ("training", "samples")},
        **training,
        **results["baseline_perplexity"],
        epochs=training["tokens_seen"] / results["training_tokens"],
        samples=samples,
    )
