"""The module that a checkpoint can bring along for programs that load it with ``trust_remote_code=True``.

A ``config.json`` (and a ``tokenizer_config.json``) whose ``auto_map`` names classes of a module in the same directory
has Transformers import that module. Ours holds no model code: it imports this package, or says how to install it.

Source of the protocol: ``dynamic_module_utils.py`` and the Auto classes of Transformers.
"""

import os
from pathlib import Path
from typing import Any

_MODULE = "recurrent_gemma_shim"
SHIM_FILE = f"{_MODULE}.py"
MODEL_AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.RecurrentGemmaConfig",
    "AutoModel": f"{_MODULE}.RecurrentGemmaModel",
    "AutoModelForCausalLM": f"{_MODULE}.RecurrentGemmaForCausalLM",
}
# The first place is that of a tokenizer in Python, which there is none of.
TOKENIZER_AUTO_MAP = {"AutoTokenizer": [None, f"{_MODULE}.RecurrentGemmaTokenizer"]}

_SOURCE = '''\
"""Has programs that load this checkpoint with trust_remote_code=True use the package recurrent-gemma.

https://arxiv.org/abs/2402.19427 describes the model; this file holds no code of it.
"""

try:
    import recurrent_gemma
except ModuleNotFoundError as error:
    if error.name != "recurrent_gemma":
        raise
    raise ImportError(
        "This checkpoint is loaded with trust_remote_code=True, which takes its classes from the package "
        "recurrent-gemma, and that is not installed: pip install recurrent-gemma"
    ) from error


def _stand_in(cls):
    # Transformers marks the class that it finds here as one whose source is saved along. The mark stays on this
    # subclass: what is loaded is of the package's own class.
    loaders = {name: getattr(cls, name) for name in ("from_pretrained", "_from_config") if hasattr(cls, name)}
    return type(cls.__name__, (cls,), {"__module__": __name__, "__doc__": cls.__doc__, **loaders})


RecurrentGemmaConfig = _stand_in(recurrent_gemma.RecurrentGemmaConfig)
RecurrentGemmaModel = _stand_in(recurrent_gemma.RecurrentGemmaModel)
RecurrentGemmaForCausalLM = _stand_in(recurrent_gemma.RecurrentGemmaForCausalLM)
RecurrentGemmaTokenizer = _stand_in(recurrent_gemma.RecurrentGemmaTokenizer)
'''


def names_shim(auto_map: Any) -> bool:
    """Whether an ``auto_map`` leads to the module in the same directory, rather than to nothing or to other code."""
    if not isinstance(auto_map, dict):
        return False
    values = [value if isinstance(value, (list, tuple)) else [value] for value in auto_map.values()]
    return any(isinstance(name, str) and name.startswith(f"{_MODULE}.") for names in values for name in names)


def write_shim(directory: str | os.PathLike) -> Path:
    """Write the module to ``directory``, which exists, and return its path."""
    path = Path(directory) / SHIM_FILE
    path.write_text(_SOURCE, encoding="utf-8")
    return path


__all__ = ["MODEL_AUTO_MAP", "SHIM_FILE", "TOKENIZER_AUTO_MAP", "names_shim", "write_shim"]
