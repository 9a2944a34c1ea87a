"""What is read: a checkpoint with its tokenizer, a long text, and keys that its tokenizer knows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

import recurrent_gemma
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

# What separates the chapters of a held-out text: as paragraphs are, so that nothing tells the model of an end.
BREAK = "\n\n"

# Names that are one token each for the demo model, and what it is told and asked about them. It has seen no numbers.
DEMO_PASSKEY: dict[str, Any] = {
    "keys": """
        Aaron Abraham Babylon Bath Bingley Catherine Christ Crawford Darcy David Edmund Edward Egypt Elinor Elizabeth
        Elton Emma Fairfax Fanny Harriet Henry Isabella Israel Jacob Jane Jerusalem Jesus John Jordan Joseph Joshua
        Judah Knightley London Marianne Mary Moab Moses Norris Pharaoh Saul Solomon Thomas Weston William Willoughby
    """.split(),
    "needle": "Behold, the name of the king is {key}. I say unto you, the name of the king is {key}.",
    "question": "What is the name of the king? The name of the king is",
}


@dataclass(frozen=True)
class Subject:
    """A model, and what it reads.

    Attributes:
        name: What the model is, for the report.
        model: In eval mode.
        tokenizer: Its own.
        text: What the text is, for the report.
        text_ids: (N,) int64 ids of the text.
        documents: (N,) int64 number of the document that each token belongs to.
        passkey: Keyword arguments of ``passkey`` beside the grid.
        begins_with_bos: Whether texts begin with BOS. The demo model was trained on windows cut anywhere.
    """

    name: str
    model: RecurrentGemmaForCausalLM
    tokenizer: Any
    text: str
    text_ids: Tensor
    documents: Tensor
    passkey: dict[str, Any]
    begins_with_bos: bool


def load(directory: Path | None, text: Path | None, *, device: str, dtype: str) -> Subject:
    """The checkpoint and the text at these places; None: the demo model, and the chapters it was not trained on.

    Raises:
        OSError: There is no such checkpoint or text.
        ValueError: The checkpoint is incomplete.
    """
    is_demo = directory is None
    directory = recurrent_gemma.demo_path() if directory is None else directory
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = RecurrentGemmaForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype), local_files_only=True)
    if text is None:
        chapters = (recurrent_gemma.demo_path() / "heldout.txt").read_text(encoding="utf-8").split("<bos>")[1:]
        name = "the chapters held out from the demo model's training"
    else:
        chapters, name = [text.read_text(encoding="utf-8")], text.name
    ids = [tokenizer(chapter.strip() + BREAK, add_special_tokens=False).input_ids for chapter in chapters]
    return Subject(
        name="the embedded demo model" if is_demo else directory.name,
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        text=name,
        text_ids=torch.tensor([token for chapter in ids for token in chapter]),
        documents=torch.tensor([number for number, chapter in enumerate(ids) for _ in chapter]),
        passkey=DEMO_PASSKEY if is_demo else {},
        begins_with_bos=not is_demo,
    )
