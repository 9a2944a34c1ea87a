"""What every implementation that is measured can do, whoever wrote it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

Work = Callable[[], object]


class UnavailableError(Exception):
    """A contestant cannot take part, for the reason that the message gives. The report names it."""


class Decoding(ABC):
    """A prompt that was read once, after which tokens are decoded as often as wanted, each time from the same state.

    Attributes:
        state_bytes: What the implementation keeps of the prompt.
    """

    state_bytes: int

    @abstractmethod
    def seconds_per_token(self) -> float:
        """Decode once more: the mean over the tokens, the first one (which sets things up) not counted."""


class Contestant(ABC):
    """One implementation of a model with its weights, on one device, in one dtype.

    Attributes:
        parameters: Number of parameters, tied ones once.
        note: What a reader has to know to compare its figures, if anything.
    """

    parameters: int
    note: str = ""

    @abstractmethod
    def logits(self, ids: Tensor) -> Tensor:
        """(L, V) fp32 on the CPU: logits of ids (1, L) in one pass."""

    @abstractmethod
    def decoded_logits(self, ids: Tensor, prompt: int) -> Tensor:
        """(L, V) fp32 on the CPU: the same of reading ``prompt`` tokens, and the others one by one through a cache."""

    @abstractmethod
    def loss(self, ids: Tensor) -> float:
        """Mean next-token cross entropy of ids (1, L), as the training step has it."""

    @abstractmethod
    def prefill(self, ids: Tensor) -> Work:
        """Work that reads ids (1, L) into a new cache and computes the logits of the last token."""

    @abstractmethod
    def training_step(self, ids: Tensor) -> Work:
        """Work that does one step of AdamW on ids (1, L): forward, loss at every token, backward, update."""

    @abstractmethod
    def decoding(self, prompt: Tensor, tokens: int) -> Decoding:
        """Greedy decoding of ``tokens`` tokens (and a first one that is not counted) after a prompt (1, L)."""

    @abstractmethod
    def to(self, dtype: str) -> None:
        """Go on in another dtype, ``"float32"`` or ``"bfloat16"``."""
