"""The recipe for Google's releases runs to the letter, on a small release in place of the one on Kaggle."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma.conversion_scripts.checkpoints import open_checkpoint
from tests.release import OPEN_FIELDS, OPEN_OPTIONS, VARIANT, jax_release
from tests.support import ROOT, require, warm_interpreter

SCRIPT = ROOT / "examples" / "convert_release.sh"

# What runs for `recurrent-gemma`. A small model is no preset's: what the preset says is said in its place.
COMMAND = f"""
import sys
from recurrent_gemma.cli.app import run
arguments = sys.argv[1:]
if "--preset" in arguments:
    at = arguments.index("--preset")
    assert arguments[at + 1] == "2b"
    arguments[at : at + 2] = {list(OPEN_OPTIONS)}
sys.exit(run(arguments))
"""
# In place of the download. kagglehub's own logs to stdout as well.
KAGGLEHUB = """\
def model_download(handle):
    assert handle == "google/recurrentgemma/flax/2b-it", handle
    print("Downloading to somewhere")
    return {release!r}
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jax_release(tmp_path_factory.mktemp("kaggle") / "1")


def _run(*arguments: str, release: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    modules, commands = cwd / "modules", cwd / "commands"
    for directory in (modules, commands):
        directory.mkdir(exist_ok=True)
    (modules / "kagglehub.py").write_text(KAGGLEHUB.format(release=str(release)))
    command = shlex.join([*warm_interpreter(), "-c", COMMAND])
    (commands / "recurrent-gemma").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (commands / "recurrent-gemma").chmod(0o755)
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(modules), str(ROOT)]),
        },
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )


def test_from_kaggle_and_back(release: Path, tmp_path: Path):
    done = _run(VARIANT, release=release, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = f"recurrentgemma-{VARIANT}"
    order = [f"Plan of {release / VARIANT}", f"Converted {release / VARIANT}", "The planets of the solar system are",
             f"Converted {name} -> {name}-flax", f"Converted {name} -> {name}.pt"]  # fmt: skip
    found = [" ".join(done.stdout.split()).find(text) for text in order]
    assert found == sorted(found) and found[0] >= 0

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
    assert {field: getattr(model.config, field) for field in OPEN_FIELDS} == OPEN_FIELDS
    pieces = require("sentencepiece").SentencePieceProcessor(model_file=str(release / "tokenizer.model"))
    assert tokenizer("the planets").input_ids == [pieces.bos_id(), *pieces.encode("the planets")]

    published, back = open_checkpoint(release / VARIANT), open_checkpoint(tmp_path / f"{name}-flax")
    assert back.tensors == published.tensors
    assert all(torch.equal(back.read(entry), published.read(entry)) for entry in published.tensors)
    assert len(open_checkpoint(tmp_path / f"{name}.pt").tensors) == len(published.tensors)


def test_a_release_that_is_there_already_is_not_downloaded(release: Path, tmp_path: Path):
    # The directory to write is there, which the first command finds once it has read the release.
    (tmp_path / f"recurrentgemma-{VARIANT}").mkdir()
    done = _run(VARIANT, str(release), release=Path("nowhere"), cwd=tmp_path)
    assert done.returncode == 7
    assert "exists" in done.stderr


def test_the_help_is_the_scripts_own_first_lines(tmp_path: Path):
    comment = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#")]
    for option in ("--help", "-h"):
        done = _run(option, release=tmp_path, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        shown = done.stdout.splitlines()
        assert shown[0].startswith("Google's release of RecurrentGemma") and len(shown) >= 8
        assert shown == [line.removeprefix("#").removeprefix(" ") for line in comment[1 : len(shown) + 1]]


def test_a_variant_is_needed(tmp_path: Path):
    done = _run(release=tmp_path, cwd=tmp_path)
    assert done.returncode != 0
    assert "which release? 2b, 2b-it, 9b or 9b-it" in done.stderr
