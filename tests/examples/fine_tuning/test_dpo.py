"""The DPO recipe in a short form: its pairs differ in order alone, and training moves the preference."""

import json
from pathlib import Path

import dpo

from tests.support import require

require("trl")
require("matplotlib")


def test_pairs_differ_in_the_order_of_the_same_words():
    rows = dpo.pairs([" ".join(map(str, range(100)))], 20, seed=0)
    for row in rows:
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        assert chosen != rejected and sorted(chosen) == sorted(rejected)
        words = [int(word) for word in (row["prompt"] + row["chosen"]).split()]
        assert words == list(range(words[0], words[0] + dpo.PROMPT_WORDS + dpo.END_WORDS))


def test_a_short_run(tmp_path: Path):
    arguments = ["--output", str(tmp_path), "--steps", "5", "--examples", "40", "--batch-size", "4"]
    measures = dpo.main([*arguments, "--learning-rate", "2e-3"])
    before, after = zip(*(measures[name] for name in ("loss", "rewards/margins")), strict=True)
    assert after[0] < before[0] and after[1] > before[1] + 0.02
    assert measures["rewards/accuracies"][1] > 0.5
    assert (tmp_path / "loss.svg").exists() and (tmp_path / "adapter" / "adapter_config.json").exists()
    assert "eval_rewards/accuracies" in json.loads((tmp_path / "log.json").read_text())[0]
