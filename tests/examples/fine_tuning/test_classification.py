"""The recipe of classification, in short: its data is balanced and held out, and training beats chance."""

import json
import sys

import pytest
from transformers import AutoModelForSequenceClassification

from tests.support import ROOT, require

sys.path.insert(0, str(ROOT / "examples" / "fine_tuning"))
import classification
import recipe


def test_data_is_balanced_and_held_out_by_chapters():
    training, held_out = classification.make_data(words=8, count=40)
    for data, count in ((training, 40), (held_out, 10)):
        assert [label for _, label in data] == [0] * count + [1] * count
        assert {len(text.split()) for text, _ in data} == {8}
        assert len({text for text, _ in data}) == 2 * count
    assert classification.make_data(words=8, count=40) == (training, held_out)

    def chapters(data):
        plain = [" ".join(document.lower().split()) for document in recipe.documents()]
        return {index for text, _ in data for index, document in enumerate(plain) if text in document}

    assert chapters(training)
    assert not chapters(training) & chapters(held_out)


def test_training_lifts_the_accuracy_over_chance(tmp_path, capsys):
    require("matplotlib")
    options = ["--steps", "24", "--excerpts", "160", "--words", "6", "--learning-rate", "1e-3"]
    result = classification.main(["--output", str(tmp_path), *options])
    # Of 80 held-out excerpts; by chance more than 0.7 are right in one case of 10,000.
    assert result["after"] > 0.7
    assert result["after"] > result["before"] + 0.1
    assert "held-out accuracy" in capsys.readouterr().out
    assert any("eval_accuracy" in entry for entry in json.loads((tmp_path / "log.json").read_text()))
    assert (tmp_path / "loss.svg").exists()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert model.config.id2label == {0: "austen", 1: "bible"} and model.config.use_cache


@pytest.mark.parametrize("count", [3, 7])
def test_excerpts_are_spread_evenly(count):
    documents = ["A b C d e f", "g h i j k l m"]
    pieces = ["a b", "c d", "e f", "g h", "i j", "k l"]
    chosen = classification.excerpts(documents, 2, count)
    assert chosen == (pieces[::2] if count == 3 else pieces)
