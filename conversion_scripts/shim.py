"""Has a converted directory name this package's classes to programs that load it with ``trust_remote_code=True``."""

import json
from pathlib import Path

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.remote_code import MODEL_AUTO_MAP, TOKENIZER_AUTO_MAP, names_shim


def add_shim(config: RecurrentGemmaConfig) -> None:
    """Have ``config`` name the shim, which its ``save_pretrained`` then writes beside it."""
    config.auto_map = dict(MODEL_AUTO_MAP)


def has_shim(config: RecurrentGemmaConfig) -> bool:
    """Whether ``config`` names the shim."""
    return names_shim(getattr(config, "auto_map", None))


def add_shim_to_tokenizer(directory: Path) -> None:
    """Have the tokenizer that is saved in ``directory``, if there is one, name the shim as well."""
    file = directory / "tokenizer_config.json"
    if file.is_file():
        fields = json.loads(file.read_bytes()) | {"auto_map": TOKENIZER_AUTO_MAP}
        # As Transformers writes it.
        text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
