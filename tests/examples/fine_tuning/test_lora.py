"""The LoRA recipe in a short form: lessons of both kinds, a loss that falls, an adapter and a merged model in files."""

import json
from pathlib import Path

import lora
import pytest
from transformers import AutoTokenizer

from recurrent_gemma import demo_path
from tests.support import require

require("trl")
require("matplotlib")


def test_lessons_of_both_kinds():
    texts = ["In the beginning ye said unto the LORD " * 20, "It is a truth universally acknowledged " * 20]
    chats = [chat["messages"] for chat in lora.lessons(texts, 40, seed=0)]
    answers = {turns[1]["content"] for turns in chats if turns[0]["content"].startswith(lora.QUESTION)}
    assert answers == {lora.BIBLE, lora.NOVEL}
    for question, answer in (turns for turns in chats if turns[0]["content"].startswith(lora.CONTINUE)):
        assert any(f"{question['content'].split(chr(10))[1]} {answer['content']}" in " ".join(t.split()) for t in texts)


def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--output", str(tmp_path), "--steps", "5", "--examples", "40", "--batch-size", "1", "--gates"]
    result = lora.main([*arguments, "--learning-rate", "4e-3"])
    assert result["after"] < result["before"] - 0.3
    assert (tmp_path / "loss.svg").read_text().startswith("<?xml")
    log = json.loads((tmp_path / "log.json").read_text())
    assert any("eval_loss" in entry for entry in log) and any("loss" in entry for entry in log)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(demo_path()).chat_template
    printed = capsys.readouterr().out
    assert f"{result['before']:.3f} before, {result['after']:.3f} after" in printed and "rg_lru" in printed
