"""A directory with the shim leads programs that trust its code, and import Transformers only, to this package."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma import demo_path
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.remote_code import names_shim
from recurrent_gemma.conversion_scripts import convert
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.tokenization import RecurrentGemmaTokenizer
from tests.support import run_warm

TEXT = "In the beginning God created the heaven and the earth."
MODULE = "recurrent_gemma_shim.py"

# What each process begins with. No prompt can be answered: stdin is closed.
START = """
import logging, sys, torch, transformers
for name in ("torchao", "torch.utils._pytree"):  # what Transformers' import of torchao logs is not ours
    logging.getLogger(name).setLevel(logging.ERROR)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers import dynamic_module_utils
directory, *_, dynamic_module_utils.HF_MODULES_CACHE = sys.argv[1:]
trusted = {"trust_remote_code": True}

def tokenizer_of(directory, **options):
    return AutoTokenizer.from_pretrained(directory, **options)

def model_of(directory, auto=AutoModelForCausalLM, **options):
    return auto.from_pretrained(directory, dtype=torch.float32, **options)

def is_ours(*objects):
    return all(type(x).__module__.startswith("recurrent_gemma.") and type(x)._auto_class is None for x in objects)

assert "recurrent_gemma" not in sys.modules
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    convert(demo_path(), target, to="hf", trust_remote_code_shim=True)
    return target


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return _logits(demo_path())


def _logits(directory: Path, **options: object) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(directory, **options)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)
    assert type(model) is RecurrentGemmaForCausalLM
    assert type(tokenizer) is RecurrentGemmaTokenizer
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits


def _run(code: str, *arguments: Path, tmp_path: Path, quiet: bool = True) -> subprocess.CompletedProcess[str]:
    """A process after START that keeps its copies below ``tmp_path``; ``quiet``: it must not warn."""
    arguments = (*arguments, tmp_path / "modules")
    done = run_warm("-W", "error", "-c", START + code, *map(str, arguments), cwd=tmp_path)
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and "it/s]" not in line]
    assert not quiet or lines == []
    return done


def _save_logits(tmp_path: Path) -> str:
    return f"""
with torch.no_grad():
    torch.save(model(**tokenizer({TEXT!r}, return_tensors="pt")).logits, {str(tmp_path / "logits.pt")!r})
"""


def test_the_directory_names_the_shim(directory: Path):
    config = json.loads((directory / "config.json").read_text())
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert config["auto_map"].keys() == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert tokenizer["auto_map"].keys() == {"AutoTokenizer"}
    assert (directory / MODULE).is_file()
    without = json.loads((demo_path() / "tokenizer_config.json").read_text())
    assert tokenizer == without | {"auto_map": tokenizer["auto_map"]}


# The first of the two imports the package, which registers it: the second then finds its classes there.
ORDERS = {
    "tokenizer first": "tokenizer = tokenizer_of(directory, **trusted)\nmodel = model_of(directory, **trusted)",
    "model first": "model = model_of(directory, **trusted)\ntokenizer = tokenizer_of(directory, **trusted)",
}


@pytest.mark.parametrize("order", ORDERS)
def test_trusted_without_import_and_saved_again(order: str, directory: Path, logits: torch.Tensor, tmp_path: Path):
    saved = tmp_path / "saved"
    code = ORDERS[order] + "\nassert is_ours(model, model.config, tokenizer)\n" + _save_logits(tmp_path)
    _run(code + "model.save_pretrained(sys.argv[2])\ntokenizer.save_pretrained(sys.argv[2])", directory, saved,
         tmp_path=tmp_path)  # fmt: skip
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)
    (tmp_path / "logits.pt").unlink()

    _run(code, saved, tmp_path=tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)
    assert torch.equal(_logits(saved), logits)
    assert (saved / MODULE).read_bytes() == (directory / MODULE).read_bytes()


def test_every_auto_class_trusted(directory: Path, tmp_path: Path):
    code = """
config = AutoConfig.from_pretrained(directory, **trusted)
assert is_ours(config, model_of(directory, AutoModel, **trusted), AutoModelForCausalLM.from_config(config, **trusted))
assert type(AutoModel.from_config(config, **trusted)).__name__ == "RecurrentGemmaModel"
"""
    _run(code, directory, tmp_path=tmp_path)


def test_a_pipeline_trusted(directory: Path, tmp_path: Path):
    code = """
generator = pipeline("text-generation", model=directory, trust_remote_code=True)
assert is_ours(generator.model, generator.tokenizer)
assert generator("In the beginning", max_new_tokens=5)[0]["generated_text"].startswith("In the beginning")
"""
    # Some releases of Transformers warn of max_new_tokens here.
    _run(code, directory, tmp_path=tmp_path, quiet=False)


def test_trusted_where_the_package_is_not_registered(directory: Path, logits: torch.Tensor, tmp_path: Path):
    code = """
import recurrent_gemma
recurrent_gemma.unregister()
tokenizer, model = tokenizer_of(directory, **trusted), model_of(directory, **trusted)
assert is_ours(model, model.config, tokenizer)
assert AutoModelForCausalLM.from_config(model.config, **trusted).generate is not None
"""
    _run(code + _save_logits(tmp_path), directory, tmp_path=tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)


def test_not_trusted_and_imported_is_this_package(directory: Path, logits: torch.Tensor, tmp_path: Path):
    assert torch.equal(_logits(directory), logits)
    code = """
import recurrent_gemma
tokenizer, model = tokenizer_of(directory), model_of(directory)
assert is_ours(model, model.config, tokenizer)
assert not any(name.startswith("transformers_modules") for name in sys.modules)
"""
    _run(code, directory, tmp_path=tmp_path)


def test_not_trusted_and_not_imported_is_transformers(directory: Path, tmp_path: Path):
    code = """
tokenizer, model = tokenizer_of(directory), model_of(directory)
assert type(model) is transformers.RecurrentGemmaForCausalLM
assert type(model).__module__.startswith("transformers.")
assert type(tokenizer).__module__.startswith("transformers.")
assert not any(name.startswith(("recurrent_gemma", "transformers_modules")) for name in sys.modules)
"""
    _run(code, directory, tmp_path=tmp_path)


@pytest.mark.parametrize("load", ["tokenizer_of", "model_of", "AutoConfig.from_pretrained"])
def test_a_missing_package_is_named(load: str, directory: Path, tmp_path: Path):
    code = f"""
sys.modules["recurrent_gemma"] = None
try:
    {load}(directory, **trusted)
except ImportError as error:
    print(error)
"""
    assert "not installed: pip install recurrent-gemma" in _run(code, directory, tmp_path=tmp_path).stdout


def test_an_error_inside_the_package_is_not_called_a_missing_package(directory: Path, tmp_path: Path):
    code = """
sys.modules["recurrent_gemma.modeling"] = None
try:
    model_of(directory, **trusted)
except ImportError as error:
    assert error.name == "recurrent_gemma.modeling", error
    print("not hidden")
"""
    assert _run(code, directory, tmp_path=tmp_path).stdout == "not hidden\n"


def test_other_models_are_not_marked(directory: Path, tmp_path: Path):
    code = """
tokenizer, model = tokenizer_of(directory, **trusted), model_of(directory, **trusted)
import recurrent_gemma
directory = recurrent_gemma.demo_path()
model_of(directory, **trusted).save_pretrained(sys.argv[2])
tokenizer_of(directory, **trusted).save_pretrained(sys.argv[2])
recurrent_gemma.RecurrentGemmaForCausalLM(model_of(directory).config).save_pretrained(sys.argv[3])
"""
    targets = tmp_path / "loaded", tmp_path / "made"
    _run(code, directory, *targets, tmp_path=tmp_path)
    for target in targets:
        assert list(target.glob("*.py")) == []
        assert "auto_map" not in (target / "config.json").read_text()
    assert "auto_map" not in (targets[0] / "tokenizer_config.json").read_text()


def test_a_conversion_keeps_the_shim_of_its_source_and_writes_none_by_itself(directory: Path, tmp_path: Path):
    convert(directory, tmp_path / "kept", to="hf")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == sorted(p.name for p in directory.iterdir())
    convert(demo_path(), tmp_path / "plain", to="hf")
    assert not (tmp_path / "plain" / MODULE).exists()
    assert "auto_map" not in (tmp_path / "plain" / "config.json").read_text()


def test_a_tokenizer_or_a_config_saved_alone_brings_the_shim_along(directory: Path, tmp_path: Path):
    written = RecurrentGemmaTokenizer.from_pretrained(directory).save_pretrained(tmp_path / "tokenizer")
    assert str(tmp_path / "tokenizer" / MODULE) in written
    RecurrentGemmaConfig.from_pretrained(directory).save_pretrained(tmp_path / "config")
    for name in ("tokenizer", "config"):
        assert (tmp_path / name / MODULE).read_bytes() == (directory / MODULE).read_bytes()


def test_without_a_tokenizer(tmp_path: Path):
    config = RecurrentGemmaConfig(
        num_hidden_layers=3, hidden_size=16, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32,
    )  # fmt: skip
    RecurrentGemmaForCausalLM(config).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "target", to="hf", trust_remote_code_shim=True)
    assert (tmp_path / "target" / MODULE).is_file()
    assert not (tmp_path / "target" / "tokenizer_config.json").exists()


@pytest.mark.parametrize(("kind", "name"), [("flax", "target"), ("torch", "target.pt")])
def test_only_for_transformers_directories(kind: str, name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"trust_remote_code_shim: expected False for the kind {kind}"):
        convert(demo_path(), tmp_path / name, to=kind, trust_remote_code_shim=True)


def test_which_maps_name_the_shim():
    assert names_shim({"AutoConfig": "recurrent_gemma_shim.RecurrentGemmaConfig"})
    assert names_shim({"AutoTokenizer": [None, "recurrent_gemma_shim.RecurrentGemmaTokenizer"]})
    assert not names_shim({"AutoConfig": "someone/model--recurrent_gemma_shim.RecurrentGemmaConfig"})
    assert not names_shim({"AutoConfig": "modeling_griffin.GriffinConfig", "AutoTokenizer": [None, None]})
    assert not names_shim(None)
