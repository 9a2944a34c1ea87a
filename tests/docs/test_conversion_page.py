"""docs/conversion.md holds true: its commands and its code run, on a small release in place of Google's."""

import re
import shlex
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM

from recurrent_gemma.cli import app
from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.conversion_scripts.architecture import OPEN_FIELDS as FIELDS
from tests.release import OPEN_FIELDS, OPEN_OPTIONS, VARIANT, jax_release, torch_release
from tests.support import ROOT, code_blocks, run_warm
from tests.tolerances import LOGITS_VS_JAX, ROWS_EQUAL_SOLO_LOGITS

PAGE = (ROOT / "docs" / "conversion.md").read_text()
CONVERT_IN_PYTHON, IN_JAX, IN_TORCH = code_blocks(PAGE, "python")
LINES = [shlex.split(line, comments=True) for block in code_blocks(PAGE, "bash") for line in block.splitlines()]
# Longer than the window, and below the small release's vocabulary.
IDS = [[2, *range(100, 130)]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which every command of the page has been run."""
    parent = tmp_path_factory.mktemp("page")
    directory = jax_release(parent / "jax")
    shutil.copy(torch_release(parent / "torch") / f"{VARIANT}.pt", directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for program, *arguments in LINES:
            assert program == "recurrent-gemma"
            assert app.run(_of_the_small_release(arguments)) == 0, arguments
            target = Path(arguments[2])
            assert target.exists() != ("--dry-run" in arguments)
    return directory


def _of_the_small_release(arguments: list[str]) -> list[str]:
    if "--preset" not in arguments:
        return arguments
    at = arguments.index("--preset")
    assert arguments[at + 1] == "2b"
    return [*arguments[:at], *OPEN_OPTIONS, *arguments[at + 2 :]]


def _logits(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def _run(code: str, directory: Path) -> None:
    """Run code of the page, with what a preset would say of the small release."""
    options = ", ".join(f"{name}={value!r}" for name, value in OPEN_FIELDS.items())
    code, count = re.subn(r'\bpreset=(preset\b|"2b")', options, code)
    assert count == 1
    run_warm("-c", code, cwd=directory)


def test_the_commands_run(directory: Path):
    assert len(LINES) >= 8
    bf16, fp32 = _logits(directory / "model"), _logits(directory / "model-float32")
    assert torch.equal(bf16, fp32)
    made, of_jax = (torch.load(directory / name, weights_only=True) for name in ("for-torch.pt", "from-jax.pt"))
    assert made.keys() == of_jax.keys()
    assert all(torch.equal(made[name], of_jax[name]) for name in made)
    assert (directory / "model-shim" / "recurrent_gemma_shim.py").is_file()


def test_conversion_in_python(directory: Path):
    _run(CONVERT_IN_PYTHON, directory)


def test_loaded_in_deepminds_jax_code(directory: Path, tmp_path: Path):
    compare = f"""
import jax, numpy
assert logits.shape[:2] == tokens.shape
params = jax.tree.map(lambda x: x.astype("float32"), params)
tokens = jnp.array({IDS})
logits, _ = griffin.apply({{"params": params}}, tokens, jnp.arange(tokens.shape[1])[None])
numpy.save({str(tmp_path / "logits.npy")!r}, logits)
try:
    recurrentgemma.load_parameters(str(Path("for-jax").absolute()), "single_device")
except ValueError as error:
    assert "pytree" in str(error), error
else:
    raise AssertionError("load_parameters works: the page says that it does not")
"""
    _run(IN_JAX + compare, directory)
    logits = torch.from_numpy(numpy.load(tmp_path / "logits.npy"))
    torch.testing.assert_close(logits, _logits(directory / "model"), atol=LOGITS_VS_JAX, rtol=0)


def test_loaded_in_deepminds_torch_code(directory: Path, tmp_path: Path):
    compare = f"""
griffin = recurrentgemma.Griffin(config, device="cpu", dtype=torch.float32)
griffin.load_state_dict(params)
tokens = torch.tensor({IDS})
with torch.no_grad():
    logits, _ = griffin(tokens, torch.arange(tokens.shape[1])[None])
torch.save(logits, {str(tmp_path / "logits.pt")!r})
"""
    _run(IN_TORCH + compare, directory)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, _logits(directory / "model"), atol=LOGITS_VS_JAX, rtol=0)


def test_in_transformers_own_class(directory: Path, tmp_path: Path):
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRotaryEmbedding as Rotary
window = {OPEN_FIELDS["attention_window_size"]}
for name, size in (("as_it_is", window), ("one_more", window + 1)):
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32, attention_window_size=size)
    with torch.no_grad():
        torch.save(model(torch.tensor({IDS}), use_cache=False).logits, f"{tmp_path}/{{name}}.pt")
config = model.config
frequencies, _ = Rotary.compute_default_rope_parameters(config)
assert len(frequencies) == config.head_dim // 4, "this release rotates whole heads"
assert "recurrent_gemma" not in sys.modules
"""
    run_warm("-c", code, cwd=directory)
    ours = _logits(directory / "model")
    as_it_is, one_more = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("as_it_is", "one_more"))
    torch.testing.assert_close(one_more, ours, atol=ROWS_EQUAL_SOLO_LOGITS, rtol=0)
    assert (as_it_is - ours).abs().max() > 100 * ROWS_EQUAL_SOLO_LOGITS


def test_every_option_exists(capsys: pytest.CaptureFixture[str]):
    assert app.run(["convert", "--help"]) == 0
    shown = capsys.readouterr().out
    mentioned = set(re.findall(r"--[a-z][a-z0-9-]+", PAGE))
    assert len(mentioned) >= 10
    assert [option for option in sorted(mentioned) if option not in shown] == []


def test_fields_that_no_shape_says():
    rows = re.findall(r"^\| `(\w+)` \| `--[^|]* \| (\S+) \|$", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(FIELDS)
    for preset in ("recurrentgemma-2b", "recurrentgemma-9b"):
        values = (PRESETS[preset][name] for name, _ in rows)
        assert [f"{value:g}" if not isinstance(value, bool) else str(value).lower() for value in values] == [
            value for _, value in rows
        ]


def test_figures():
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b")
    assert f"takes {config.vocab_size * config.hidden_size * 2 / 1e9:.2f} GB in bfloat16" in PAGE
    assert f"{config.attention_window_size + 1} for\nthe published models" in PAGE
