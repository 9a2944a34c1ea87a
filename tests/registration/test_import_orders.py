"""Both import orders, and the way back, each in a fresh process: what was imported before must not matter."""

import pickle
from pathlib import Path

import pytest

import recurrent_gemma
from tests.support import run_python

ORDERS = {
    "this package first": "",
    "transformers first": "import transformers as held",
    "Auto classes first": """
import transformers as held
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
assert AutoConfig.for_model("recurrent_gemma").__module__.startswith("transformers.models.")
""",
    "Transformers' classes first": """
import transformers as held
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM as before
from transformers.models.recurrent_gemma import RecurrentGemmaForCausalLM as in_tree
import transformers
# The import of a model replaces the module object; the one held first must be rebound too.
assert transformers is not held and vars(held)["RecurrentGemmaForCausalLM"] is before is in_tree
""",
}

SNAPSHOT = """
import gc, sys, types

def snapshot():
    # Registries by module and name, and the family's names by transformers module object. Imports nothing.
    found = {}
    for module in ("configuration_auto", "modeling_auto", "tokenization_auto"):
        for name, value in vars(sys.modules.get(f"transformers.models.auto.{module}", types)).items():
            if hasattr(value, "_extra_content"):
                found[name] = dict(value._extra_content)
            elif name.startswith("REGISTERED_"):
                found[name] = dict(value)
    for module in gc.get_objects():
        if issubclass(type(module), types.ModuleType) and module.__name__ == "transformers":
            found[id(module)] = {n: v for n, v in vars(module).items() if n.startswith("RecurrentGemma")}
    return found

before_import = snapshot()
"""

CHECK = """
import recurrent_gemma
recurrent_gemma.assert_active()
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from transformers import RecurrentGemmaModel, RecurrentGemmaPreTrainedModel
from transformers.models.recurrent_gemma import RecurrentGemmaForCausalLM as in_tree

directory = sys.argv[1]
ours = recurrent_gemma.RecurrentGemmaForCausalLM
assert RecurrentGemmaForCausalLM is ours and RecurrentGemmaModel is recurrent_gemma.RecurrentGemmaModel
assert RecurrentGemmaConfig is recurrent_gemma.RecurrentGemmaConfig
assert RecurrentGemmaPreTrainedModel is recurrent_gemma.RecurrentGemmaPreTrainedModel
assert in_tree.__module__.startswith("transformers.models.")
for module in (transformers, globals().get("held", transformers)):
    assert module.RecurrentGemmaForCausalLM is ours
    assert type(module.AutoModelForCausalLM.from_pretrained(directory)) is ours
assert type(AutoConfig.from_pretrained(directory)) is RecurrentGemmaConfig
assert type(AutoModel.from_pretrained(directory)) is RecurrentGemmaModel
assert type(AutoTokenizer.from_pretrained(directory)) is recurrent_gemma.RecurrentGemmaTokenizer
assert type(pipeline("text-generation", model=directory).model) is ours
assert "before" not in globals() or before is in_tree  # a name that was imported earlier keeps its class

recurrent_gemma.unregister()
after = snapshot()
for place, entries in before_import.items():
    assert after[place] == entries, (place, entries, after[place])
for place in after.keys() - before_import.keys():  # modules that Transformers has loaded since
    for entry in (*after[place], *after[place].values()):
        assert not getattr(entry, "__module__", "").startswith("recurrent_gemma"), (place, entry)
for module in (transformers, globals().get("held", transformers)):
    assert module.RecurrentGemmaForCausalLM is in_tree
assert type(AutoConfig.from_pretrained(directory)).__module__.startswith("transformers.models.")
try:
    recurrent_gemma.assert_active()
except RuntimeError:
    print("restored")
"""


@pytest.mark.parametrize("order", ORDERS)
def test_any_import_order_registers_and_unregisters(order: str, checkpoint: Path, tmp_path: Path):
    done = run_python("-c", ORDERS[order] + SNAPSHOT + CHECK, str(checkpoint), cwd=tmp_path)
    assert done.stdout == "restored\n"


def test_an_unpickled_object_brings_the_registration_along(tmp_path: Path):
    # Data loaders and launchers start fresh interpreters and send objects there.
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(recurrent_gemma.RecurrentGemmaConfig()))
    code = """
import pickle
with open("config.pickle", "rb") as file:
    config = pickle.load(file)
from transformers import AutoConfig
print(type(config) is type(AutoConfig.for_model("recurrent_gemma")))
"""
    assert run_python("-c", code, cwd=tmp_path).stdout == "True\n"
