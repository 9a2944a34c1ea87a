"""Contestants: this package, the other implementations of the model, and other models of its size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.models import Size
from benchmarks.peers.contestant import Contestant, Decoding, UnavailableError
from benchmarks.peers.deepmind_jax import build_deepmind_jax
from benchmarks.peers.deepmind_torch import build_deepmind_torch
from benchmarks.peers.gemma import build_gemma, build_gemma_3
from benchmarks.peers.hybrid import build_lfm2
from benchmarks.peers.own import build_compiled_peer, build_in_tree_peer
from benchmarks.peers.quantized import build_quantized_peer
from benchmarks.peers.transformers_model import TransformersModel

__all__ = ["DEFAULT_PEERS", "PEERS", "Contestant", "Decoding", "Peer", "TransformersModel", "UnavailableError"]


@dataclass(frozen=True)
class Peer:
    """How a contestant beside ours is made.

    Attributes:
        title: Its name in tables and pictures.
        build: Makes it at a size, in fp32, beside ours, whose weights and device it takes as far as it can.
        same_weights: Whether it computes what ours computes; else it is another architecture of the same shapes.
        cases: What it can be measured at.
    """

    title: str
    build: Callable[[Size, TransformersModel], Contestant]
    same_weights: bool = True
    cases: tuple[str, ...] = ("prefill", "train", "decode")


PEERS = {
    "ours-compiled": Peer("ours, compiled", build_compiled_peer, cases=("decode",)),
    # Other numbers than ours, on purpose.
    "ours-int8": Peer("ours, int8", partial(build_quantized_peer, "int8"), same_weights=False, cases=("decode",)),
    "ours-int4": Peer("ours, int4", partial(build_quantized_peer, "int4"), same_weights=False, cases=("decode",)),
    "in-tree": Peer("in-tree", build_in_tree_peer),
    "deepmind-torch": Peer("DeepMind, torch", build_deepmind_torch),
    "deepmind-jax": Peer("DeepMind, JAX", build_deepmind_jax),
    "gemma": Peer("Gemma", build_gemma, same_weights=False),
    "gemma-3": Peer("Gemma 3", build_gemma_3, same_weights=False),
    "lfm2": Peer("LFM2", build_lfm2, same_weights=False),
}
# Measured by a single case unless it is told otherwise.
DEFAULT_PEERS = ("in-tree",)
