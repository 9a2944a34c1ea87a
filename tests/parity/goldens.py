"""The stored results of DeepMind's JAX code: where they lie, how they are read and how their integrity is checked.

One safetensors file per case of ``cases.py``, in fp32 unless said otherwise, for the positions 0, 1, 2, ... :

* ``logits/prefill`` (B, L, V), one pass; ``logits/decode``, a prompt and then token by token with the cache;
  ``logits/packed``, one pass over the documents of ``Case.packed_positions()``; ``logits/bf16`` in bf16 with weights
  rounded to bf16, and ``logits/rounded_weights`` in fp32 with the same rounded weights;
* ``hidden_states/fp32`` and ``hidden_states/bf16`` (layers + 1, B, L, D): embeddings and the output of each block;
* ``loss``: mean cross entropy of the next token; ``gradients/NAME``: its gradient for every parameter.
"""

import functools
import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.parity.cases import Case

FOLDER = Path(__file__).parent / "goldens_data"
MANIFEST = FOLDER / "manifest.json"


@functools.cache
def load(case: Case) -> dict[str, Tensor]:
    """The stored results of one case. Do not change them in place: they are shared."""
    return load_file(FOLDER / f"{case.name}.safetensors")


def gradients(case: Case) -> dict[str, Tensor]:
    """The stored gradients by checkpoint name."""
    return {name.removeprefix("gradients/"): t for name, t in load(case).items() if name.startswith("gradients/")}


def manifest() -> dict:
    """Versions and hashes, as ``make_goldens.py`` wrote them."""
    return json.loads(MANIFEST.read_text())


def hash_of_file(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_of_inputs(case: Case) -> str:
    """SHA-256 of a case's weights, tokens and packed positions."""
    digest = hashlib.sha256()
    for name, weight in case.weights().items():
        digest.update(name.encode() + weight.astype("<f4").tobytes())
    digest.update(case.tokens().astype("<i8").tobytes())
    digest.update(case.packed_positions().astype("<i8").tobytes())
    return digest.hexdigest()
