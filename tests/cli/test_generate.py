"""``generate`` prints what ``pipeline`` returns, as it comes, and nothing else."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline, set_seed

import recurrent_gemma
from recurrent_gemma.cli import app, generate
from tests.support import ROOT, run_python

PROMPT = "In the beginning, a "


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert app.run(["generate", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def _piped(checkpoint: Path, seed: int, dtype: str | None = None, **settings) -> str:
    made = pipeline("text-generation", model=str(checkpoint), **({} if dtype is None else {"dtype": dtype}))
    set_seed(seed)
    (output,) = made(PROMPT, **settings)
    return output["generated_text"] + "\n"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--max-new-tokens", "30"], {"max_new_tokens": 30}),
        (
            ["--max-new-tokens", "30", "--temperature", "1.3", "--top-p", "0.9", "--top-k", "7"],
            {"max_new_tokens": 30, "do_sample": True, "temperature": 1.3, "top_p": 0.9, "top_k": 7},
        ),
        (["--max-new-tokens", "30", "--top-k", "0"], {"max_new_tokens": 30, "top_k": 0}),
        (["--max-new-tokens", "30", "--greedy"], {"max_new_tokens": 30, "do_sample": False}),
        (["--max-new-tokens", "30", "--dtype", "bfloat16"], {"max_new_tokens": 30, "dtype": "bfloat16"}),
        (["--max-new-tokens", "30", "--device", "cpu"], {"max_new_tokens": 30}),
    ],
)
def test_text_is_that_of_the_pipeline(
    options: list[str], settings: dict, seed: int, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    expected = _piped(checkpoint, seed, **settings)
    printed, _ = _run(capsys, PROMPT, "--model", str(checkpoint), "--seed", str(seed), *options)
    assert printed == expected
    assert printed.startswith(PROMPT) and len(printed) > len(PROMPT) + 5


def test_the_checkpoints_dtype_and_settings_are_the_default(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).to(torch.bfloat16)
    model.generation_config.update(do_sample=True, temperature=1.7, top_k=5, max_new_tokens=25)
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    model.save_pretrained(tmp_path)
    expected = _piped(tmp_path, seed=0)
    capsys.readouterr()
    assert _run(capsys, PROMPT, "--model", str(tmp_path), "--seed", "0")[0] == expected
    assert expected == _piped(
        tmp_path, 0, dtype="bfloat16", do_sample=True, temperature=1.7, top_k=5, max_new_tokens=25
    )
    assert expected != _piped(checkpoint, seed=0)


def test_options_and_seeds_change_the_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    base = [PROMPT, "--model", str(checkpoint), "--max-new-tokens", "30"]
    variants = (
        "--seed 0",
        "--seed 1",
        "--greedy",
        "--seed 0 --temperature 2",
        "--seed 0 --top-p 0.3",
        "--seed 0 --top-k 2",
    )
    texts = {_run(capsys, *base, *variant.split())[0] for variant in variants}
    assert len(texts) == len(variants)


def test_without_a_seed_the_one_drawn_is_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    base = [PROMPT, "--model", str(checkpoint), "--max-new-tokens", "30"]
    first, note = _run(capsys, *base)
    again, other_note = _run(capsys, *base)
    assert note.startswith("seed: ") and note != other_note and first != again
    assert _run(capsys, *base, "--seed", note.split()[1]) == (first, "")


def test_the_embedded_model_is_the_default(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    expected = _run(capsys, PROMPT, "--model", str(checkpoint), "--seed", "0", "--max-new-tokens", "9")
    assert recurrent_gemma.demo_path() == ROOT / "recurrent_gemma" / "demo"
    monkeypatch.setattr(recurrent_gemma, "demo_path", lambda: checkpoint)
    assert _run(capsys, PROMPT, "--seed", "0", "--max-new-tokens", "9") == expected


def test_text_is_printed_before_the_next_token_is_computed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    write, forward = generate.write_out, recurrent_gemma.RecurrentGemmaForCausalLM.forward

    def recorded_write(text: str) -> None:
        events.append("text")
        write(text)

    def recorded_forward(*args, **kwargs):
        events.append("forward")
        return forward(*args, **kwargs)

    monkeypatch.setattr(generate, "write_out", recorded_write)
    monkeypatch.setattr(recurrent_gemma.RecurrentGemmaForCausalLM, "forward", recorded_forward)
    _run(capsys, PROMPT, "--model", str(checkpoint), "--max-new-tokens", "40", "--seed", "1")
    assert events[:2] == ["text", "forward"]
    middle = events[events.index("forward") : len(events) - events[::-1].index("forward")]
    assert middle.count("text") > 5
    assert all(after == "forward" for before, after in itertools.pairwise(middle) if before == "text")


def test_stdout_holds_the_text_only_and_stderr_nothing(checkpoint: Path, tmp_path: Path):
    options = ["--model", str(checkpoint), "--seed", "3", "--max-new-tokens", "20"]
    done = run_python("-m", "recurrent_gemma", "generate", PROMPT, *options, cwd=tmp_path)
    assert done.stdout == _piped(checkpoint, 3, max_new_tokens=20)
    assert done.stderr == ""


def test_ends_quietly_when_its_reader_goes(checkpoint: Path, tmp_path: Path):
    command = [sys.executable, "-m", "recurrent_gemma", "generate", PROMPT, "--model", str(checkpoint)]
    with subprocess.Popen(
        [*command, "--max-new-tokens", "1000000", "--seed", "0", "--temperature", "3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.read(2) == b"In"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=600) == -signal.SIGPIPE


def test_quiet_restores_the_libraries_verbosity():
    import transformers

    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    with generate.quiet():
        assert not transformers.logging.is_progress_bar_enabled()
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_devices_that_exist_are_accepted(name: str):
    generate.check_device(name)


@pytest.mark.parametrize("name", ["meta", "nope", "cuda:99", "", "cpu:x"])
def test_devices_that_do_not_exist_are_refused(name: str):
    if name.startswith("cuda") and torch.cuda.device_count() > 99:
        pytest.skip("this machine has a hundred GPUs")
    with pytest.raises(ValueError, match="expected a device of this machine"):
        generate.check_device(name)
