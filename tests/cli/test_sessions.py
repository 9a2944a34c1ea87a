"""``generate --session`` and ``session info``: a text in parts is the text in one go; bad files stay as they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma import RecurrentGemmaCache, RecurrentGemmaConfig
from recurrent_gemma.cli import app, generate
from recurrent_gemma.cli.errors import ExitCode
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling.cache import read_session_info
from tests.modeling.models import tiny_config, tiny_model
from tests.support import run_warm

GREEDY = ["--greedy", "--max-new-tokens", "20"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session"


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert app.run(["generate", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def _continued(checkpoint: Path, ids: list[int], tokens: int = 20) -> list[int]:
    """``ids`` and what follows, from a model that reads all of them at once."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompt = torch.tensor([ids])
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "max_new_tokens": tokens}
    return model.generate(prompt, **options)[0].tolist()


def test_parts_are_the_text_in_one_go_and_every_token_is_read_once(
    checkpoint: Path, tokenizer: Any, file: Path, fed: list[int], capsys: pytest.CaptureFixture[str]
):
    first = _continued(checkpoint, tokenizer("In the").input_ids)
    more = tokenizer(" and then the", add_special_tokens=False).input_ids
    second = _continued(checkpoint, first + more)
    third = _continued(checkpoint, second)
    fed.clear()
    capsys.readouterr()
    base = ["--model", str(checkpoint), "--session", str(file), *GREEDY]
    printed = [_run(capsys, *prompt, *base)[0] for prompt in (["In the"], [" and then the"], [], [""])]
    text = tokenizer.decode(_continued(checkpoint, third)[1:])
    assert "".join(part[:-1] for part in printed) == text
    assert printed[0].startswith("In the") and printed[1].startswith(" and then the")
    info = read_session_info(file)
    assert info.token_ids is not None
    ids = info.token_ids[0].tolist()
    assert ids[: len(third)] == third and len(ids) == len(third) + 20
    assert info.columns == len(ids) - 1
    assert fed[: info.columns] == ids[:-1]


def test_a_new_process_goes_on(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = ["--model", str(checkpoint), *GREEDY]
    expected = [_run(capsys, *prompt, *base, "--session", str(tmp_path / "one"))[0] for prompt in (["In the"], [])]
    command = ["-m", "recurrent_gemma", "generate"]
    done = [run_warm(*command, *prompt, *base, "--session", "other", cwd=tmp_path) for prompt in (["In the"], [])]
    assert [process.stdout for process in done] == expected
    assert [process.stderr for process in done] == ["", ""]


def test_the_first_text_is_that_without_a_session(checkpoint: Path, file: Path, capsys: pytest.CaptureFixture[str]):
    # Sampled with the pipeline's defaults, where neither an option nor the checkpoint says anything.
    base = ["In the", "--model", str(checkpoint), "--seed", "3"]
    assert _run(capsys, *base, "--session", str(file)) == _run(capsys, *base)
    info = read_session_info(file)
    assert info.token_ids is not None and info.token_ids.shape[1] > 256
    file.unlink()
    narrow = [*base, "--top-k", "3", "--temperature", "0.5", "--max-new-tokens", "9"]
    assert _run(capsys, *narrow, "--session", str(file)) == _run(capsys, *narrow)


def test_penalties_see_the_whole_text(
    checkpoint: Path, tokenizer: Any, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
):
    directory = shutil.copytree(checkpoint, tmp_path / "copy")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.save_pretrained(directory)
    capsys.readouterr()
    base = ["--model", str(directory), "--session", str(file), "--greedy", "--max-new-tokens"]
    parts = [_run(capsys, *prompt, *base, "10")[0][:-1] for prompt in (["In the"], [])]
    file.unlink()
    assert "".join(parts) == _run(capsys, "In the", *base, "20")[0][:-1]


def test_a_text_that_ended_goes_on_with_a_prompt_only(
    checkpoint: Path,
    tokenizer: Any,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    base = ["--model", str(checkpoint), "--session", str(file), *GREEDY]
    whole = _continued(checkpoint, tokenizer("In the").input_ids)
    end = whole[-5]
    monkeypatch.setattr(generate, "eos_ids", lambda model: [end])
    capsys.readouterr()
    _run(capsys, "In the", *base)
    info = read_session_info(file)
    assert info.token_ids is not None
    ids = info.token_ids[0].tolist()
    assert ids == whole[: whole.index(end, 3)] and info.columns == len(ids)
    saved = file.read_bytes()
    for prompt in ([], [""]):
        _fails(capsys, ExitCode.USAGE, "its text has ended; give a PROMPT", "generate", *prompt, *base)
    assert file.read_bytes() == saved
    monkeypatch.setattr(generate, "eos_ids", lambda model: [])
    _run(capsys, " the", *base)
    more = tokenizer(" the", add_special_tokens=False).input_ids
    info = read_session_info(file)
    assert info.token_ids is not None
    assert info.token_ids[0].tolist() == _continued(checkpoint, ids + more)


def test_stats_add_a_line_on_stderr(checkpoint: Path, file: Path, capsys: pytest.CaptureFixture[str]):
    base = ["In the", "--model", str(checkpoint), "--seed", "0", "--max-new-tokens", "30"]
    plain, _ = _run(capsys, *base)
    config = RecurrentGemmaConfig.from_pretrained(checkpoint)
    # The window of 8 is full: nothing grows from here on.
    size = f"{state_bytes(config).total:,}"
    for arguments in ([], ["--session", str(file)]):
        printed, shown = _run(capsys, *base, *arguments, "--stats")
        assert printed == plain
        assert shown.startswith("tokens read: 3, generated: 30, tokens/s: ")
        assert shown.endswith(f", state: {size} bytes\n")
    _, shown = _run(capsys, *base, "--session", str(file), "--stats")
    # One token that was not read before, and the prompt's without BOS.
    assert shown.startswith("tokens read: 3, generated: 30, ") and shown.endswith(f", state: {size} bytes\n")
    _, shown = _run(capsys, *base[:-1], "1", "--stats")
    assert "generated: 1, tokens/s: -, " in shown


def _table(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert app.run(["session", "info", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in captured.out.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_info(checkpoint: Path, tokenizer: Any, file: Path, capsys: pytest.CaptureFixture[str]):
    config = RecurrentGemmaConfig.from_pretrained(checkpoint)
    ids = tokenizer("In the beginning\na word,\n\n").input_ids
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    cache = RecurrentGemmaCache(config)
    with torch.no_grad():
        model(torch.tensor([ids[:-2]]), past_key_values=cache)
    cache.save(file, torch.tensor([ids]))
    capsys.readouterr()
    shown = _table(capsys, str(file))
    assert shown == {
        "format version": "1",
        "layers": "3: 2 recurrent, 1 attention",
        "width": "32; recurrence 32, MLP 32",
        "window": "8 positions before each token",
        "vocabulary": f"{config.vocab_size}",
        "dtype": "float32",
        "rows": "1",
        "tokens seen": f"{len(ids) - 2}",
        "tokens kept": f"{len(ids)}, 2 yet to read",
        "state": f"{state_bytes(config).total:,} bytes (1.5 kB)",
        "file": shown["file"],
    }
    assert shown["file"].startswith(f"{file.stat().st_size:,} bytes")
    assert _table(capsys, str(file), "--model", str(checkpoint)) == shown | {"last line": "a word,"}
    cache.save(file)
    shown = _table(capsys, str(file), "--model", str(checkpoint))
    assert shown["tokens kept"] == "none" and "last line" not in shown
    RecurrentGemmaCache(config).save(file)
    shown = _table(capsys, str(file))
    assert (shown["tokens seen"], shown["state"], shown["dtype"]) == ("0", "0 bytes (0 bytes)", "nothing read yet")


def _fails(capsys: pytest.CaptureFixture[str], code: ExitCode, message: str, *arguments: str) -> None:
    assert app.run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("recurrent-gemma: error: ") and message in line


def _state(config: RecurrentGemmaConfig, rows: int = 1, dtype: torch.dtype = torch.float32) -> RecurrentGemmaCache:
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    cache = RecurrentGemmaCache(config)
    with torch.no_grad():
        model(torch.full((rows, 3), 5), past_key_values=cache)
    return cache


def _damaged(config: RecurrentGemmaConfig, file: Path) -> None:
    _state(config).save(file, torch.full((1, 3), 5))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _other_model(config: RecurrentGemmaConfig, file: Path) -> None:
    other = RecurrentGemmaConfig(**{**config.to_dict(), "attention_window_size": 9})
    _state(other).save(file, torch.full((1, 3), 5))


# Name: (how the file is made, what the message names).
BAD: dict[str, tuple[Any, str]] = {
    "no session": (lambda config, file: file.write_text("In the beginning"), "expected a complete session file"),
    "empty": (lambda config, file: file.touch(), "expected a complete session file"),
    "a directory": (lambda config, file: file.mkdir(), "session: the session cannot be read"),
    "altered": (_damaged, "checksum"),
    "another model's": (_other_model, "attention_window_size = 8), got one of another model"),
    "two rows": (
        lambda config, file: _state(config, rows=2).save(file, torch.full((2, 3), 5)),
        "expected a session of one text, got 2 rows",
    ),
    "no tokens": (lambda config, file: _state(config).save(file), "expected a session with its tokens"),
    "another dtype": (
        lambda config, file: _state(config, dtype=torch.bfloat16).save(file, torch.full((1, 4), 5)),
        "expected a state in float32, as the model runs, got bfloat16; run with --dtype bfloat16",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_go_on(
    name: str, chat_checkpoint: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    make, message = BAD[name]
    make(RecurrentGemmaConfig.from_pretrained(chat_checkpoint), file)
    before = None if file.is_dir() else file.read_bytes()
    capsys.readouterr()
    for command in (["generate", " a"], ["chat"]):
        arguments = [*command, "--model", str(chat_checkpoint), "--session", str(file), *GREEDY]
        _fails(capsys, ExitCode.SESSION, message, *arguments)
    assert before is None or file.read_bytes() == before
    if name in ("no session", "empty", "altered", "a directory"):
        _fails(capsys, ExitCode.SESSION, message, "session", "info", str(file))
    if name == "another model's":
        _fails(capsys, ExitCode.SESSION, message, "session", "info", str(file), "--model", str(chat_checkpoint))


def test_files_that_do_not_exist(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = ["--model", str(checkpoint), "--session"]
    _fails(capsys, ExitCode.USAGE, "Missing argument 'PROMPT'", "generate", *base, str(tmp_path / "session"))
    nowhere = tmp_path / "nowhere" / "session"
    for command in (["generate", "a"], ["chat"]):
        _fails(capsys, ExitCode.NOT_FOUND, f"{nowhere}: no such directory", *command, *base, str(nowhere))
    _fails(capsys, ExitCode.NOT_FOUND, f"{nowhere}: no such session file", "session", "info", str(nowhere))
    _fails(capsys, ExitCode.USAGE, "Missing argument 'FILE'", "session", "info")
    _fails(capsys, ExitCode.USAGE, "--greedy: does not go with --top-k", "chat", "--greedy", "--top-k", "3")


def test_a_file_that_cannot_be_written_is_an_error(
    checkpoint: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecurrentGemmaCache, "save", fail)
    arguments = ["generate", "In the", "--model", str(checkpoint), "--session", str(file), *GREEDY]
    assert app.run(arguments) == ExitCode.SESSION
    captured = capsys.readouterr()
    assert captured.out.startswith("In the")
    assert captured.err.endswith(f"{file}: the session cannot be saved: [Errno 28] No space left on device\n")


def test_info_of_a_model_without_attention_has_no_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tiny_config(block_types=("recurrent",))
    model, cache = tiny_model(config), RecurrentGemmaCache(config)
    with torch.no_grad():
        model(torch.tensor([[2, 5, 7]]), past_key_values=cache)
    cache.save(tmp_path / "state")
    assert app.run(["session", "info", str(tmp_path / "state")]) == 0
    shown = capsys.readouterr().out
    assert "tokens seen" in shown and "window" not in shown
