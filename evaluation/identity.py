"""What a score depends on besides the request: the key under which scores are kept for a run that goes on."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

# What a checkpoint directory is made of; a README there changes nothing.
_SUFFIXES = {".bin", ".jinja", ".json", ".model", ".pt", ".safetensors"}
_PACKAGES = ("recurrent-gemma", "torch", "transformers", "tokenizers", "lm-eval", "datasets")
_BLOCK = 1 << 22


def checkpoint_digest(directory: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's files, weights included.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix not in _SUFFIXES or not path.is_file():
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Versions and hardware that figures may depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def request_key(parts: dict[str, Any]) -> str:
    """A name for scores that depend on ``parts``: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


__all__ = ["checkpoint_digest", "environment", "request_key"]
