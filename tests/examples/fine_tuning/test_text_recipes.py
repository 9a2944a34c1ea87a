"""The recipes that train on plain text run in a short form, and what they write loads."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma import demo_path
from tests.support import ROOT, require

FOLDER = ROOT / "examples" / "fine_tuning"
SHORT = {
    "packed": ["--max-length", "96", "--batch-size", "2"],
    "long_documents": ["--lanes", "2", "--window-length", "48"],
}


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Documents unlike what the model has read, so that a few steps show."""
    paths = [tmp_path / f"{name}.txt" for name in ("license", "style")]
    for path, source in zip(paths, ("LICENSE", "CONTRIBUTING.md"), strict=True):
        path.write_text((ROOT / source).read_text(encoding="utf-8")[:2000], encoding="utf-8")
    return [str(path) for path in paths]


@pytest.mark.parametrize("name", SHORT)
def test_a_recipe_lowers_the_held_out_loss_and_writes_what_it_says(
    name: str, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require("matplotlib")
    output = tmp_path / "output"
    importlib.import_module(name).main([*SHORT[name], "--steps", "6", "--output", str(output), "--text", *texts])
    printed = capsys.readouterr().out
    log = json.loads((output / "log.json").read_text())
    held_out = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert held_out[-1] < held_out[0] and sum("loss" in entry for entry in log) == 6
    assert f"{held_out[0]:.4f} before, {held_out[-1]:.4f} after 6 steps" in printed
    assert (output / "loss.svg").read_text().startswith("<?xml")
    model = AutoModelForCausalLM.from_pretrained(output)
    ids = AutoTokenizer.from_pretrained(output)("In the beginning", return_tensors="pt").input_ids
    assert (
        model.config.use_cache and model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] == ids.shape[1] + 2
    )
    assert json.loads((output / "config.json").read_text())["use_cache"]
    assert AutoTokenizer.from_pretrained(output).padding_side == "left"
    before = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)


def test_options_that_save_memory(texts: list[str], tmp_path: Path) -> None:
    require("matplotlib")
    savers = ["--bf16", "--gradient-checkpointing", "--optim", "adafactor", "--gradient-accumulation-steps", "2"]
    options = ["--steps", "1", "--output", str(tmp_path / "output"), "--text", *texts]
    main = importlib.import_module("long_documents").main
    plain, saving = (main([*SHORT["long_documents"], *extra, *options]) for extra in ([], savers))
    # The same model before the first step; bfloat16 rounds logits of about 10 to 0.03.
    assert abs(plain[0] - saving[0]) < 0.1 and saving[1] < saving[0] + 0.1


def test_the_end_of_each_document_is_held_out_and_nothing_else() -> None:
    import plain_text
    import recipe

    training, held_out = plain_text.split_documents(None)
    for document, begin, end in zip(recipe.documents(), training, held_out, strict=True):
        assert document.startswith(begin) and document.endswith(end)
        assert 0 <= len(document) - len(begin) - len(end) <= 2  # a space, or none of the two
        assert 0.79 < len(begin) / len(document) <= 0.8


def test_a_text_without_spaces_is_cut_anywhere_and_an_empty_one_is_named(tmp_path: Path) -> None:
    import plain_text

    path = tmp_path / "text.txt"
    path.write_text("\u592a\u521d\u6709\u9053\u9053\u8207\u795e\u540c\u5728\u9053", encoding="utf-8")
    training, held_out = plain_text.split_documents([path])
    assert (len(training[0]), len(held_out[0])) == (8, 2) and training[0] + held_out[0] == path.read_text("utf-8")
    for text in ("", "   ", "a"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"--text: .*got {len(text)} characters in .*text\.txt.*leave it out"):
            plain_text.split_documents([path])
