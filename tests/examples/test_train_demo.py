"""The script that makes the demo checkpoint, in pieces: each equals its definition on small inputs; a run resumes."""

import json
import math
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import demo_corpus
import numpy as np
import pytest
import torch
import train_demo
from demo_baselines import KneserNey, copied_share
from demo_tokenizer import BYTE_TOKENS, PIECES, SPECIAL_TOKENS, train_tokenizer
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import Split
from transformers import GemmaTokenizer

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.tokenization import RecurrentGemmaTokenizer

TEXTS = ["In the beginning was the word, and the word was with them.\n\nAnd 1776 more words: the end."] * 4


def lzw(text: bytes) -> bytes:
    """A ``compress`` stream of literals only, in 9-bit codes from the lowest bit on, without its magic bytes."""
    bits = "".join(format(byte, "09b")[::-1] for byte in text)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))


def test_bible_file_is_decompressed_window_by_window() -> None:
    windows = [b"Ge1:1 In the beginning", b" God created.\n", b"Ge1:2 And"]
    streams = [lzw(window) for window in windows]
    first = 92 + 4 * len(streams)
    offsets = [first + sum(map(len, streams[:i])) for i in range(len(streams))]
    header = b"EC02Compressed Data File".ljust(80, b"\0") + struct.pack(">iii", 0, 65536, len(streams))
    data = header + struct.pack(f">{len(streams)}i", *offsets) + b"".join(streams)
    assert demo_corpus.read_bible(data) == b"".join(windows).decode()


def serialized(lines: list[str], kind: int = 16) -> bytes:
    """A character vector as R serializes it, the way a lazy-load database stores it."""
    strings = b"".join(struct.pack(">ii", 0x40009, len(s.encode())) + s.encode() for s in lines)
    value = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8" + struct.pack(">ii", kind, len(lines))
    return struct.pack(">i", len(value + strings)) + zlib.compress(value + strings)


def test_austen_file_holds_one_vector_of_lines_a_novel() -> None:
    data = serialized(["EMMA", "", "£20,000"]) + serialized(["Persuasion"])
    assert demo_corpus.read_austen(data) == ["EMMA\n\n£20,000", "Persuasion"]
    with pytest.raises(ValueError, match=r"character vectors.*got type 13"):
        demo_corpus.read_austen(serialized(["1"], kind=13))


def test_bible_chapters_lose_their_verse_numbers() -> None:
    text = "Holy Bible.  Textfile 930105.\nGe1:1 In the beginning.\nGe1:2 And  the earth.\nGe2:1 Thus.\n1Jo2:1 My.\n"
    assert list(demo_corpus.bible_chapters(text)) == ["In the beginning. And the earth.", "Thus.", "My."]


def test_austen_chapters_are_paragraphs_of_prose() -> None:
    novel = (
        'A TITLE\n\nby Somebody\n\nVOLUME I\n\n\nCHAPTER I\n\n\nShe was _very_\nglad.  "Oh!"\n\n'
        "    * * * * *\n\n[An editor's note.]\n\nSo were they.\n\nVOLUME II\n\nChapter 2\n\nThe rest.\n\n"
        "*Vide a letter.\n\nTHE END\n\nA NOTE ON THE TEXT\n\nIt was printed."
    )
    assert list(demo_corpus.austen_chapters(novel)) == ['She was very glad. "Oh!"\n\nSo were they.', "The rest."]


def test_held_out_documents_are_two_percent_and_not_trained_on() -> None:
    documents = [str(i) for i in range(1000)]
    training, held_out = demo_corpus.split(documents)
    assert held_out == [str(i) for i in range(25, 1000, 50)]
    assert sorted(training + held_out, key=int) == documents


def test_corpus_files_hold_documents_behind_bos(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("<bos>one\n\ntwo<bos>three", encoding="utf-8")
    assert train_demo.read_documents(tmp_path / "train.txt") == ["one\n\ntwo", "three"]


def test_fetch_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"bible-kjv-text.*bible\.data"):
        demo_corpus.fetch(tmp_path, [tmp_path / "empty"])


def test_tokenizer_has_gemmas_layout_and_the_size_asked_for(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 320)
    names = tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS) + 256)))
    assert len(tokenizer) <= 320
    assert names == SPECIAL_TOKENS + BYTE_TOKENS
    assert names[:4] == ["<pad>", "<eos>", "<bos>", "<unk>"]
    assert tokenizer.tokenize(" the word 17") == ["▁the", "▁word", "▁", "1", "7"]
    for text in (*TEXTS, "\tna\u00efve \U0001f600\n"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    tokenizer.save_pretrained(tmp_path)
    assert GemmaTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    with pytest.raises(ValueError, match="vocab_size: expected at least"):
        train_tokenizer(TEXTS, 260)


def test_pieces_are_those_of_a_tokenizer_that_splits_words_first() -> None:
    tokenizer = train_tokenizer(TEXTS, 320)
    splitting = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    splitting.pre_tokenizer = Split(PIECES, behavior="isolated")
    for text in (*TEXTS, "the  end\n\n \n1776word word1776: «the»; and-the.The\tend  "):
        assert splitting.encode(text).ids == tokenizer(text).input_ids


def test_kneser_ney_by_hand() -> None:
    documents = [[0, 1, 2], [0, 1, 1]]
    # Tokens 1, 2, 1, 1 with discount 1: p(1) = (3 - 1) / 4 + 2/4 * 1/3, p(2) = 0 + 2/4 * 1/3.
    unigram = KneserNey(1, 3, documents)
    assert unigram.perplexity([[0, 1, 2]]) == pytest.approx((2 / 3 * 1 / 6) ** -0.5)
    # Bigrams 01 twice, 12 and 11 once: discount 2 / (2 + 2 * 1). 1 follows two tokens and 2 one: discount 1 / (1 + 2).
    bigram = KneserNey(2, 3, documents)
    assert bigram.probability((2,), 1) == pytest.approx(17 / 27)
    assert bigram.probability((0,), 1) == pytest.approx((2 - 0.5) / 2 + 0.5 * 1 / 2 * 17 / 27)
    assert bigram.perplexity([[0, 1, 2]]) == pytest.approx((98 / 108 * 43 / 108) ** -0.5)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_is_a_distribution(order: int) -> None:
    random = np.random.default_rng(0)
    documents = [[0, *random.integers(1, 8, 40).tolist()] for _ in range(5)]
    model = KneserNey(order, 9, documents)
    for context in ([0] * 3, documents[0][5:8], [8, 8, 8], [1, 8, 2]):
        probabilities = [model.probability(tuple(context), token) for token in range(9)]
        assert min(probabilities) > 0
        assert sum(probabilities) == pytest.approx(1.0)


def test_copied_share_counts_runs_of_words() -> None:
    training = ["One two three, four five six seven eight nine."]
    assert copied_share(["one two THREE four; five six seven eight"], training) == 1.0
    assert copied_share(["two three four five six seven eight nine ten"], training) == 0.5
    assert copied_share(["too short"], training) == 0.0


def test_windows_restart_positions_at_bos_and_never_ask_for_it() -> None:
    stream = np.array([2, 7, 8, 1, 2, 9, 9, 9, 9, 1, 2], dtype=np.uint16)
    windows = train_demo.TokenWindows(stream, bos_token_id=2, length=5)
    assert len(windows) == 2
    assert windows[0]["position_ids"].tolist() == [0, 1, 2, 3, 0]
    assert windows[0]["labels"].tolist() == [-100, 7, 8, 1, -100]
    assert windows[1]["position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert windows[1]["input_ids"].tolist() == windows[1]["labels"].tolist() == [9, 9, 9, 9, 1]


def test_schedule_ends_with_the_budget_that_is_spent_first() -> None:
    progress = train_demo.Progress(warmup_steps=2)
    assert [progress(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    control = SimpleNamespace(should_training_stop=False, should_save=False)
    budget = train_demo.Budget(progress, max_steps=10, time_limit_min=None)
    budget.on_train_begin(None, None, None)
    budget.on_step_end(None, SimpleNamespace(global_step=5), control)
    assert progress(5) == pytest.approx(0.5)
    assert not control.should_training_stop
    budget.on_step_end(None, SimpleNamespace(global_step=10), control)
    assert progress(10) == pytest.approx(0.0)
    assert control.should_training_stop
    resumed = train_demo.Progress(warmup_steps=2)
    resumed.elapsed_s = 60.0
    budget = train_demo.Budget(resumed, max_steps=10, time_limit_min=1.0)
    budget.on_train_begin(None, None, None)
    budget.on_step_end(None, SimpleNamespace(global_step=1), control)
    assert resumed(1) == pytest.approx(0.0)


def test_weight_decay_spares_biases_norms_and_the_recurrence() -> None:
    tokenizer = train_tokenizer(TEXTS, 320)
    model = RecurrentGemmaForCausalLM(train_demo.demo_config(tokenizer))
    decayed, spared = train_demo.parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared_names = {names[id(parameter)].rsplit(".", 2)[-1] for parameter in spared["params"]}
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    assert {"bias", "recurrent_param", "input_gate_bias", "recurrent_gate_bias", "weight"} == spared_names
    assert all("norm" in names[id(p)] for p in spared["params"] if names[id(p)].endswith("weight"))


def test_training_stops_resumes_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_demo, "VOCAB_SIZE", 320)
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.txt").write_text("".join(f"<bos>{text}" for text in TEXTS * 8), encoding="utf-8")
    train_demo.make_tokenizer(tmp_path)
    options = {"time_limit": None, "batch_size": 1, "learning_rate": 1e-3, "warmup_steps": 1, "bf16": False}
    train_demo.train(tmp_path, options | {"max_steps": 2, "save_steps": 1})
    train_demo.train(tmp_path, options | {"max_steps": 3, "save_steps": 5})
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert json.loads((tmp_path / "model" / "training.json").read_text())["tokens_seen"] == 3 * 256
    train_demo.export(tmp_path, tmp_path / "demo")
    model = RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "demo", dtype="auto")
    tokenizer = RecurrentGemmaTokenizer.from_pretrained(tmp_path / "demo")
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache
    assert "is_local" not in json.loads((tmp_path / "demo" / "tokenizer_config.json").read_text())
    documents = train_demo.encode(tokenizer, train_demo.read_documents(tmp_path / "demo" / "heldout.txt"))
    assert 1 < train_demo.perplexity(model.float(), documents[:1]) < math.exp(10)
