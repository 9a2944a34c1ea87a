"""The models that are measured: this package's and Transformers' own, on the very same parameters."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.initialization import no_init_weights
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig as InTreeConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
    RecurrentGemmaForCausalLM as InTreeForCausalLM,
)

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

Model = RecurrentGemmaForCausalLM | InTreeForCausalLM

# Ids below it have a meaning to generate() or, in-tree, an embedding without gradient.
FIRST_ORDINARY_ID = 4


@dataclass(frozen=True)
class Size:
    """A shape of model; the rest is as published: one key/value head, an MLP of three widths, tied embeddings.

    Attributes:
        intermediate_ratio: The config's field intermediate_size over the width, twice that of the MLP's true width.
            6 in published models, 3 in the defaults of Transformers' config.
        checked_layers: Layers of the stand-in, with random weights of its own, on which implementations have to agree,
            where two models of this size in fp32 would not fit an ordinary machine; None: they agree on the very
            weights that are timed.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    attention_window_size: int
    vocab_size: int
    intermediate_ratio: int = 6
    checked_layers: int | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        """The true width of the MLP."""
        return self.intermediate_ratio * self.hidden_size // 2

    @property
    def checked(self) -> "Size":
        """The size at which implementations have to agree."""
        return self if self.checked_layers is None else replace(self, num_hidden_layers=self.checked_layers)

    def config_fields(self, window: int) -> dict[str, Any]:
        """Fields of the config, for either implementation, with W = ``window``."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_ratio * self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 1,
            "attention_window_size": window,
            "vocab_size": self.vocab_size,
            # Nothing ends a generation before its length.
            "eos_token_id": None,
        }


SIZES = {
    "512x6": Size(512, 6, num_attention_heads=8, attention_window_size=2048, vocab_size=4096),
    "512x6-default": Size(
        512, 6, num_attention_heads=8, attention_window_size=2048, vocab_size=4096, intermediate_ratio=3
    ),
    "2560x3": Size(2560, 3, num_attention_heads=10, attention_window_size=2048, vocab_size=4096),
    "2560x6-256k": Size(2560, 6, num_attention_heads=10, attention_window_size=2048, vocab_size=256_000),
    "256x12": Size(256, 12, num_attention_heads=4, attention_window_size=2048, vocab_size=4096),
    "512x6-256k": Size(512, 6, num_attention_heads=8, attention_window_size=2048, vocab_size=256_000),
    "2048x12": Size(2048, 12, num_attention_heads=8, attention_window_size=2048, vocab_size=65_536),
    "2b": Size(2560, 26, num_attention_heads=10, attention_window_size=2048, vocab_size=256_000, checked_layers=3),
    "demo": Size(256, 6, num_attention_heads=4, attention_window_size=128, vocab_size=2500),
    "tiny": Size(32, 3, num_attention_heads=4, attention_window_size=16, vocab_size=64),
}


@dataclass(frozen=True)
class Pair:
    """Both implementations of one model; every parameter of one is the same object as the other's."""

    size: Size
    ours: RecurrentGemmaForCausalLM
    in_tree: InTreeForCausalLM

    def to(self, **place: Any) -> "Pair":
        """The pair with its parameters, still shared, on another ``device`` or in another ``dtype``."""
        self.ours.to(**place)
        share_parameters(self.ours, self.in_tree.to(**place))
        return self


def build_ours(size: Size, *, window: int | None = None, seed: int = 0) -> RecurrentGemmaForCausalLM:
    """This package's model in fp32 with random weights, ready for inference.

    Args:
        size: The shape.
        window: W; None means the size's own.
        seed: Of the weights. The caller's random state is left alone.
    """
    window = size.attention_window_size if window is None else window
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**size.config_fields(window))).eval()


def build_in_tree(size: Size, *, window: int | None = None, seed: int = 0) -> InTreeForCausalLM:
    """Transformers' model that computes what ``build_ours`` does, with that one's weights."""
    return in_tree_on(build_ours(size, window=window, seed=seed), size)


def build_pair(size: Size, *, window: int | None = None, share_with: Pair | None = None) -> Pair:
    """Both implementations on the same parameters, computing the same function.

    In-tree is configured with W + 1: a query of its attends W keys, itself included, where the source's attends itself
    and the W keys before it. Old releases of Transformers (5.16 is one) also rotate whole heads, where the source
    rotates half of each; no setting makes those agree.

    Args:
        size: The shape.
        window: W; None means the size's own.
        share_with: A pair of the same size whose parameters these models use too; None makes random ones.
    """
    ours = build_ours(size, window=window)
    if share_with is not None:
        share_parameters(share_with.ours, ours)
    return Pair(size, ours, in_tree_on(ours, size))


def random_ids(size: Size, length: int, *, seed: int = 1, device: torch.device | str = "cpu") -> torch.Tensor:
    """(1, length) int64: ordinary token ids, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_ORDINARY_ID, size.vocab_size, (1, length), generator=generator).to(device)


def in_tree_on(ours: RecurrentGemmaForCausalLM, size: Size) -> InTreeForCausalLM:
    """Transformers' model that computes what ``ours`` does, on the very same parameters."""
    with no_init_weights():
        fields = size.config_fields(ours.config.attention_window_size + 1)
        in_tree = InTreeForCausalLM(InTreeConfig(**fields)).eval()
    share_parameters(ours, in_tree)
    return in_tree


def share_parameters(source: Model, model: Model) -> None:
    """Give ``model`` the very parameters of ``source``, of the same shapes."""
    model.load_state_dict(source.state_dict(keep_vars=True), assign=True)
