"""Several conversations at once on one model, each with a state of its own and its answers streamed.

Modules hold parameters only, so threads share a model as they are; what a conversation remembers is in its cache. A
turn reads its own tokens alone, however long the conversation is.

    python examples/serve_conversations.py --model DIR
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

import recurrent_gemma

CONVERSATIONS = [
    ["In the beginning", " And on the second day", " At last"],
    ["It is a truth universally acknowledged,", " But Elizabeth", " So he"],
    ["And it came to pass, that", " Then said the king,", " And they"],
    ["She was very glad", " The next morning", " My dear sir,"],
]


class Conversation:
    """A text that the caller and the model write in turns.

    Args:
        model, tokenizer: May serve any number of conversations at once.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.cache = recurrent_gemma.RecurrentGemmaCache(model.config)
        self.ids = torch.empty(1, 0, dtype=torch.long)

    def answer(self, text: str, **settings: Any) -> Iterator[str]:
        """Go on with ``text``, and yield what the model goes on with as it comes.

        Args:
            text: The caller's turn.
            **settings: As for ``generate``.
        """
        # The tokenizer's BOS stands at the beginning only.
        new = self.tokenizer(text, return_tensors="pt", add_special_tokens=not self.ids.numel()).input_ids
        self.ids = torch.cat((self.ids, new), dim=1)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(self._generate, streamer, settings)
            yield from streamer
            done.result()  # raises what the thread raised

    def _generate(self, streamer: TextIteratorStreamer, settings: dict[str, Any]) -> None:
        try:
            # All ids are passed; those that the cache has seen are not read again.
            ids = self.ids.to(self.model.device)
            options = {"attention_mask": torch.ones_like(ids), "past_key_values": self.cache, "streamer": streamer}
            self.ids = self.model.generate(ids, **options, **settings).cpu()
        except BaseException:
            streamer.end()  # or the reader would wait forever
            raise


def hold(number: int, conversation: Conversation, turns: list[str], **settings: Any) -> str:
    """Hold a conversation, print each turn when it is complete, and return the whole text."""
    whole = ""
    for turn in turns:
        answer = "".join(conversation.answer(turn, **settings))
        print(f"[{number}] {turn!r} -> {answer!r}", flush=True)
        whole += turn + answer
    return whole


def main(arguments: list[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=recurrent_gemma.demo_path(), help="checkpoint directory")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    options = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    settings = {"max_new_tokens": options.max_new_tokens, "do_sample": False, "eos_token_id": None}
    with ThreadPoolExecutor(len(CONVERSATIONS)) as threads:
        running = [
            threads.submit(hold, number, Conversation(model, tokenizer), turns, **settings)
            for number, turns in enumerate(CONVERSATIONS)
        ]
        for done in as_completed(running):
            done.result()
    return [done.result() for done in running]


if __name__ == "__main__":
    main()
