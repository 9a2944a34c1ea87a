"""This package's model, the same one compiled, and Transformers' own class on the same parameters."""

from benchmarks.models import Size, in_tree_on
from benchmarks.peers.contestant import Contestant
from benchmarks.peers.transformers_model import CompiledDecoding, TransformersModel


def build_in_tree_peer(size: Size, ours: TransformersModel) -> Contestant:
    """Transformers' class, on our parameters and trained with our optimizer."""
    return TransformersModel(in_tree_on(ours.model, size), trained_with=ours)


def build_compiled_peer(size: Size, ours: TransformersModel) -> Contestant:
    """Our very model, decoding with a compiled step."""
    return CompiledDecoding(ours.model, trained_with=ours)
