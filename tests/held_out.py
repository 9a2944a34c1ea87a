"""The text that the demo model was not trained on, and what a model makes of it."""

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from recurrent_gemma import demo_path


def held_out_chapters() -> list[Tensor]:
    """Ids (1, L) of each held-out chapter, from BOS to EOS, shorter ones first."""
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    texts = (demo_path() / "heldout.txt").read_text(encoding="utf-8").split("<bos>")[1:]
    chapters = [torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]]) for text in texts]
    return sorted(chapters, key=lambda ids: ids.shape[1])


@torch.inference_mode()
def token_losses(model: PreTrainedModel, chapters: list[Tensor]) -> Tensor:
    """Negative log-likelihood of every token but BOS, fp64, each chapter read in one pass from its start."""
    losses = []
    for ids in chapters:
        logits = model(ids, use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="none"))
    return torch.cat(losses)


def perplexity(model: PreTrainedModel, chapters: list[Tensor]) -> float:
    """exp of the mean of :func:`token_losses`."""
    return token_losses(model, chapters).mean().exp().item()
