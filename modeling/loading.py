"""What ``from_pretrained`` checks around Transformers' loading: nothing is filled in at random, nothing is left out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

_INDEX = "model.safetensors.index.json"


def expect_config(folder: Path) -> None:
    """Raise OSError if ``folder`` is a directory without a config: a model of default size would be made for it."""
    if folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise OSError(f"{folder}: expected a config.json, found none.")


@contextmanager
def naming_broken_files(source: str, folder: Path) -> Iterator[None]:
    """Give errors of weight files their names and remedies, which safetensors and Transformers leave out.

    Args:
        source: What the user asked for.
        folder: Where it is, if it is local.

    Raises:
        OSError: A weight file is truncated or is none, or there are pickled weights only.
    """
    try:
        yield
    except SafetensorError as error:
        broken = ", ".join(filter(None, map(_defect, sorted(folder.glob("*.safetensors"))))) or str(error)
        raise OSError(
            f"{source}: expected complete weight files, got {broken}; copy or download them again."
        ) from error
    except json.JSONDecodeError as error:
        raise OSError(f"{folder / _INDEX}: expected JSON, got a file that breaks off or is none ({error}).") from error
    except KeyError as error:
        if error.args != ("weight_map",):
            raise
        raise OSError(f"{folder / _INDEX}: expected an entry weight_map, which names each weight's file.") from error
    except OSError as error:
        if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
            raise OSError(
                f"{source}: expected safetensors weights, found pickled ones, which can run code when loaded; pass "
                "use_safetensors=False if you trust their source."
            ) from error
        raise


def expect_complete(model: PreTrainedModel, info: dict[str, Any], source: str, tolerate_shapes: bool) -> None:
    """Raise ValueError unless a checkpoint held exactly the weights of ``model``; the message names all that differ.

    Args:
        model: The loaded model.
        info: Transformers' loading info.
        source: What the user asked for.
        tolerate_shapes: Whether misshapen weights were asked to be ignored.
    """
    # A checkpoint of another task lacks this task's head. The language model's own head is no such head.
    required = "" if model.base_model is model else (f"{model.base_model_prefix}.", "lm_head.")
    missing = [name for name in info["missing_keys"] if name.startswith(required)]
    # A model without one does not use the head of a language model.
    unused = "lm_head." if model.get_output_embeddings() is None else ()
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(unused)]
    if model.config.tie_word_embeddings:
        # PEFT ties an adapter of single tokens as the embeddings are tied, and saves it once.
        missing = [name for name in missing if not name.startswith("lm_head.token_adapter.")]
    # Transformers unties weights that differ.
    tied = (model._tied_weights_keys or {}).keys() if model.config.tie_word_embeddings else set()
    untied = tied - model.all_tied_weights_keys.keys()
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "misshapen": [] if tolerate_shapes else sorted(_describe_mismatch(m) for m in info["mismatched_keys"]),
        "other than the embeddings although tie_word_embeddings is true": sorted(untied),
        "unreadable": sorted(map(str, info.get("error_msgs") or [])),
    }
    found = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if found:
        raise ValueError(
            f"{source}: expected exactly the weights of {type(model).__name__} for its config.json, got {found}. Is "
            "the checkpoint complete, and is the config its own?"
        )


def _describe_mismatch(mismatch: Any) -> str:
    if isinstance(mismatch, (tuple, list)) and len(mismatch) == 3:
        name, actual, expected = mismatch
        return f"{name} (expected {tuple(expected)}, got {tuple(actual)})"
    return str(mismatch)


def _defect(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path} ({error})"
