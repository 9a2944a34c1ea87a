"""Writes ``orbax_0_5_9_*.tar.gz`` with the Orbax of the time when RecurrentGemma was released.

Run it in an environment of its own, Python 3.10 with orbax-checkpoint 0.5.9, jax and jaxlib 0.4.26, numpy 1.26,
ml_dtypes 0.4.0 and tensorstore 0.1.59:

    python make_old_orbax.py

The values are whole numbers that :func:`values` gives for an entry's place and shape, so the tests need no other copy.
"""

import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
# One recurrent and one attention block: vocabulary 32, width 8, MLP 12, recurrence 16, 2 heads.
SHAPES: dict[str, list[int]] = json.loads((HERE / "old_orbax_shapes.json").read_text())
FORMS = {
    # name: (dtype, whether there is a `params` at the top, whether all arrays share one OCDBT store)
    "orbax_0_5_9_ocdbt": ("bfloat16", True, True),
    "orbax_0_5_9_zarr": ("float32", False, False),
}


def values(index: int, shape: list[int]) -> np.ndarray:
    """The values of the entry at place ``index``; every dtype holds them exactly."""
    return ((np.arange(int(np.prod(shape))) + 7 * index) % 101 - 50).reshape(shape).astype(np.float32)


def main() -> None:
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    for name, (dtype, nested, ocdbt) in FORMS.items():
        tree: dict = {}
        for index, (path, shape) in enumerate(SHAPES.items()):
            *parents, last = path.split("/")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = jnp.asarray(values(index, shape), dtype)
        with tempfile.TemporaryDirectory() as directory:
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
            ocp.Checkpointer(handler).save(Path(directory) / name, {"params": tree} if nested else tree)
            with tarfile.open(HERE / f"{name}.tar.gz", "w:gz") as archive:
                archive.add(Path(directory) / name, name)


if __name__ == "__main__":
    main()
