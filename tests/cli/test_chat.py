"""``chat``: what the model reads is the chat template of all that was said, every token once, in any number of runs."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import recurrent_gemma
from recurrent_gemma.cli import app, chat
from recurrent_gemma.cli.errors import ExitCode
from recurrent_gemma.modeling.cache import read_session_info
from tests.support import ROOT, run_python

USER = ["Hello there", "Who are you?", "ok", "next one", "more", "and more"]
OPTIONS = ["--greedy", "--max-new-tokens", "25"]


@pytest.fixture(scope="module")
def tokenizer(chat_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_checkpoint)


def _chat(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, lines: list[str], *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return app.run(["chat", "--model", str(checkpoint), *OPTIONS, *arguments])


def _history(answers: list[str]) -> list[dict[str, str]]:
    """The conversation up to the turn that the last of the answers answers."""
    messages = []
    for question, answer in zip(USER, answers, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages[:-1]


def _template(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids


def _answers_by_reading_everything_again(checkpoint: Path, tokenizer: Any) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    answers: list[str] = []
    for _ in USER:
        ids = torch.tensor([_template(tokenizer, _history([*answers, ""]))])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=25,
            eos_token_id=tokenizer.convert_tokens_to_ids("<end_of_turn>"),
            pad_token_id=0,
        )
        answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("turns_a_run", [6, 2, 1])
def test_it_reads_the_template_of_the_whole_conversation_and_every_token_once(
    turns_a_run: int,
    chat_checkpoint: Path,
    tokenizer: Any,
    fed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    expected = _answers_by_reading_everything_again(chat_checkpoint, tokenizer)
    ends_itself = [len(answer) < 25 for answer in expected]
    assert any(ends_itself) and not all(ends_itself)
    fed.clear()
    file = tmp_path / "session"
    for first in range(0, len(USER), turns_a_run):
        turns = USER[first : first + turns_a_run]
        assert _chat(monkeypatch, chat_checkpoint, turns, "--session", str(file)) == 0
    answers = capsys.readouterr().out.splitlines()
    assert answers == expected
    prompt = _template(tokenizer, _history(answers))
    assert fed[: len(prompt)] == prompt
    info = read_session_info(file)
    assert info.token_ids is not None
    assert info.token_ids[0].tolist() == prompt + tokenizer(answers[-1], add_special_tokens=False).input_ids
    assert fed == info.token_ids[0, : info.columns].tolist()
    assert info.columns >= info.token_ids.shape[1] - 1


def test_a_new_process_goes_on_as_if_there_had_been_one(chat_checkpoint: Path, tmp_path: Path):
    def process(turns: list[str], name: str) -> str:
        command = [sys.executable, "-m", "recurrent_gemma", "chat", "--model", str(chat_checkpoint), *OPTIONS]
        done = subprocess.run(
            [*command, "--session", name],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            input="\n".join(turns),  # the last line has no end
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    whole = process(USER[:4], "whole")
    assert whole.count("\n") == 4
    assert process(USER[:2], "parts") + process(USER[2:4], "parts") == whole
    whole_ids, parts_ids = (read_session_info(tmp_path / name).token_ids for name in ("whole", "parts"))
    assert whole_ids is not None and parts_ids is not None and torch.equal(whole_ids, parts_ids)


def test_empty_lines_are_no_turns_and_exit_ends(
    chat_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert _chat(monkeypatch, chat_checkpoint, USER[:2]) == 0
    expected = capsys.readouterr()
    assert expected.err == ""
    lines = ["", f"  {USER[0]} ", "   ", USER[1], "/exit", USER[2]]
    assert _chat(monkeypatch, chat_checkpoint, lines) == 0
    assert capsys.readouterr() == expected
    assert _chat(monkeypatch, chat_checkpoint, []) == _chat(monkeypatch, chat_checkpoint, ["/exit"], "--stats") == 0
    assert capsys.readouterr() == ("", "")


def test_an_answer_that_is_stopped_is_part_of_the_conversation(
    chat_checkpoint: Path,
    tokenizer: Any,
    fed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write, pieces = chat.write_out, []

    def interrupting(text: str) -> None:
        write(text)
        pieces.append(text)
        if len(pieces) == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chat, "write_out", interrupting)
    before = signal.getsignal(signal.SIGINT)
    assert _chat(monkeypatch, chat_checkpoint, USER[:2], "--session", str(tmp_path / "session")) == 0
    assert signal.getsignal(signal.SIGINT) is before
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2
    # Transformers asks for reasons to stop before or after it hands a token on, depending on its release.
    assert 5 <= len(answers[0]) <= 6
    prompt = _template(tokenizer, _history(answers))
    assert fed[: len(prompt)] == prompt


def test_a_second_interrupt_ends_the_program_and_leaves_the_file(
    chat_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "session"
    assert _chat(monkeypatch, chat_checkpoint, USER[:1], "--session", str(file)) == 0
    saved = file.read_bytes()

    def interrupting(text: str) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            # Before 3.11 Python takes note of a signal when it next looks, as it does in a loop; two are one till then.
            for _ in range(1000):
                pass

    monkeypatch.setattr(chat, "write_out", interrupting)
    assert _chat(monkeypatch, chat_checkpoint, USER[1:], "--session", str(file)) == 128 + signal.SIGINT
    assert file.read_bytes() == saved
    assert list(tmp_path.iterdir()) == [file]


def test_ctrl_c_in_a_process_of_its_own(chat_checkpoint: Path, tokenizer: Any, tmp_path: Path):
    command = [sys.executable, "-m", "recurrent_gemma", "chat", "--model", str(chat_checkpoint), "--session", "file"]
    with subprocess.Popen(
        [*command, "--greedy", "--max-new-tokens", "1000000"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"Hello there\n")
        process.stdin.flush()
        beginning = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        answer = (beginning + process.stdout.read()).decode()
        assert process.stderr.read() == b""
        assert process.wait(timeout=600) == 0
    info = read_session_info(tmp_path / "file")
    assert info.token_ids is not None
    expected = _template(tokenizer, _history([""])) + tokenizer(answer[:-1], add_special_tokens=False).input_ids
    assert info.token_ids[0].tolist() == expected


def test_the_prompt_is_for_terminals(chat_checkpoint: Path, tmp_path: Path):
    pty = pytest.importorskip("pty", reason="terminals are made here as on POSIX")
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "recurrent_gemma", "chat", "--model", str(chat_checkpoint), *OPTIONS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
        stdin=inner,
        stdout=inner,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(inner)
        shown = b""
        while not shown.endswith(b"> "):
            shown += os.read(outer, 1)
        assert shown == b"> "
        os.write(outer, b"/exit\n")
        assert process.stderr and process.stderr.read() == b""
        assert process.wait(timeout=600) == 0
    os.close(outer)


def test_the_models_own_tokens_that_end_a_text_are_not_kept(
    chat_checkpoint: Path,
    tokenizer: Any,
    fed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert _chat(monkeypatch, chat_checkpoint, USER[:1]) == 0
    letter = capsys.readouterr().out[5]
    end = tokenizer.convert_tokens_to_ids(letter)
    monkeypatch.setattr(chat, "eos_ids", lambda model: [end])
    fed.clear()
    assert _chat(monkeypatch, chat_checkpoint, USER[:2]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.index(letter) == len(first) - 1 <= 5
    prompt = _template(tokenizer, _history([first[:-1], second]))
    assert fed[: len(prompt)] == prompt


def test_the_demo_model_says_once_that_it_is_none_for_chat(tmp_path: Path):
    command = ["chat", "--greedy", "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "recurrent_gemma", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="Hello\nAnd you?\n",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0
    assert done.stderr == "This model is not tuned for chat: it only continues the text.\n"
    assert done.stdout.strip()


def test_stats(chat_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert _chat(monkeypatch, chat_checkpoint, USER) == 0
    plain = capsys.readouterr()
    assert _chat(monkeypatch, chat_checkpoint, USER, "--stats") == 0
    captured = capsys.readouterr()
    assert captured.out == plain.out
    (line,) = captured.err.splitlines()
    # 2 layers of 32 fp32 values and of 3 x 32; 1 layer of 8 positions of one head of 8, keys and values.
    assert line.startswith("tokens read: ") and line.endswith(", state: 1,536 bytes")


def _fails(capsys: pytest.CaptureFixture[str], returned: int, code: ExitCode, message: str) -> None:
    assert returned == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("recurrent-gemma: error: ") and message in line


TEMPLATES = {
    "none": (None, "chat_template is not set"),
    "without turns": ("{{ messages[-1]['content'] }}", "special token behind an answer"),
    "that changes what was said": (
        "{% for m in messages %}{{ m['content'][:8 // messages | length] }}<end_of_turn>{% endfor %}"
        "{{ messages | length }}",
        "special token behind an answer",
    ),
    "that fails": ("{{ raise_exception('not today') }}", "not today"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_a_state_cannot_go_on_with(name: str, chat_checkpoint: Path, tmp_path: Path):
    template, message = TEMPLATES[name]
    tokenizer = AutoTokenizer.from_pretrained(chat_checkpoint)
    tokenizer.chat_template = template
    with pytest.raises(chat.CommandError, match=message) as error:
        chat.ChatTurns(tokenizer, tmp_path)
    assert error.value.exit_code == ExitCode.BROKEN


def test_a_tokenizer_that_knows_no_turns(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    _fails(capsys, _chat(monkeypatch, checkpoint, USER), ExitCode.BROKEN, "needs the tokenizer of a model for chat")


def test_the_published_template_and_pieces():
    # The demo's tokenizer has the pieces of the published ones for turns.
    directory = recurrent_gemma.demo_path()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    turns = chat.ChatTurns(tokenizer, directory)
    assert turns.end_id == tokenizer.convert_tokens_to_ids("<end_of_turn>")
    answer = tokenizer("Words, and more of them.", add_special_tokens=False).input_ids
    messages = [
        {"role": "user", "content": " naïve\n\nlines "},
        {"role": "assistant", "content": tokenizer.decode(answer)},
        {"role": "user", "content": "日本?"},
    ]
    joined = [*turns.first(messages[0]["content"]), *answer, *turns.later(messages[2]["content"])]
    assert joined == _template(tokenizer, messages)
    assert joined.count(tokenizer.bos_token_id) == 1


def test_help_is_there(tmp_path: Path):
    assert "/exit" in run_python("-m", "recurrent_gemma", "chat", "--help", cwd=tmp_path).stdout
