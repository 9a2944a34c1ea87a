"""Conversations served at once are those held one after the other; the script runs."""

from pathlib import Path

import pytest
import serve_conversations
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma import demo_path
from tests.support import ROOT, run_warm


def test_conversations_at_once_are_those_of_one_pass_over_each(capsys: pytest.CaptureFixture[str]) -> None:
    served = serve_conversations.main(["--max-new-tokens", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(map(len, serve_conversations.CONVERSATIONS))
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    model = AutoModelForCausalLM.from_pretrained(demo_path(), dtype="auto")
    for turns, text in zip(serve_conversations.CONVERSATIONS, served, strict=True):
        ids = torch.empty(1, 0, dtype=torch.long)
        for turn in turns:
            new = tokenizer(turn, return_tensors="pt", add_special_tokens=not ids.numel()).input_ids
            ids = torch.cat((ids, new), dim=1)
            options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "eos_token_id": None}
            ids = model.generate(ids, **options, do_sample=False, pad_token_id=0)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text


def test_a_failure_reaches_the_caller_and_no_reader_waits() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    model = AutoModelForCausalLM.from_pretrained(demo_path(), dtype="auto")
    conversation = serve_conversations.Conversation(model, tokenizer)
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(conversation.answer("In the", max_new_tokens=0))


def test_the_script_runs(tmp_path: Path) -> None:
    script = ROOT / "examples" / "serve_conversations.py"
    done = run_warm("-W", "error", str(script), "--max-new-tokens", "3", cwd=tmp_path)
    assert done.stdout.count("->") == sum(map(len, serve_conversations.CONVERSATIONS))
