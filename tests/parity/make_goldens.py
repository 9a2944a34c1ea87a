"""Write the golden results of DeepMind's JAX code that the parity tests compare with.

    python -m tests.parity.make_goldens

Needs JAX and PyPI ``recurrentgemma``; takes a few minutes on two CPU cores. Weights and tokens are not stored, since
``cases.py`` makes them again to the bit. ``manifest.json`` holds the versions used, the SHA-256 of every file and that
of every case's inputs. On another machine XLA may round differently: the values then agree to rounding, the hashes do
not.
"""

import json
import platform
from importlib.metadata import version

import numpy as np
import torch
from safetensors.torch import save_file

from tests.parity.cases import CASES, PROMPT_LENGTH, Case
from tests.parity.goldens import FOLDER, MANIFEST, hash_of_file, hash_of_inputs
from tests.parity.jax_model import JaxModel


def make(case: Case) -> dict[str, torch.Tensor]:
    """Everything that is compared for one case; see ``goldens.py`` for the names."""
    weights, tokens, positions = case.weights(), case.tokens(), case.positions()
    fp32, bf16 = JaxModel(case.config, weights), JaxModel(case.config, weights, bf16=True)
    rounded = {name: torch.from_numpy(w).bfloat16().float().numpy() for name, w in weights.items()}
    loss, gradients = fp32.gradients(tokens, positions)
    results = {
        "logits/prefill": fp32.logits(tokens, positions),
        "logits/decode": fp32.decode(tokens, PROMPT_LENGTH),
        "logits/packed": fp32.logits(tokens, case.packed_positions()),
        "logits/rounded_weights": JaxModel(case.config, rounded).logits(tokens, positions),
        "hidden_states/fp32": fp32.hidden_states(tokens, positions),
        "loss": np.float32(loss),
        **{f"gradients/{name}": gradient for name, gradient in gradients.items()},
    }
    results_bf16 = {
        "logits/bf16": bf16.logits(tokens, positions),
        "hidden_states/bf16": bf16.hidden_states(tokens, positions),
    }
    return {name: torch.tensor(np.array(array, order="C")) for name, array in results.items()} | {
        name: torch.tensor(array).bfloat16() for name, array in results_bf16.items()
    }


def main() -> None:
    """Write one safetensors file per case, and the manifest."""
    FOLDER.mkdir(exist_ok=True)
    manifest = {
        "versions": {name: version(name) for name in ("recurrentgemma", "jax", "jaxlib", "flax", "numpy")},
        "machine": platform.machine(),
        "files": {},
        "inputs": {},
    }
    for case in CASES:
        path = FOLDER / f"{case.name}.safetensors"
        save_file(make(case), path)
        path.chmod(0o644)
        manifest["files"][path.name] = hash_of_file(path)
        manifest["inputs"][case.name] = hash_of_inputs(case)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    MANIFEST.write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
