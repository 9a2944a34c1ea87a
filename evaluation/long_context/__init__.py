"""Long context: loss against position, what each part of the model contributes to it, and a passkey to be found."""

from recurrent_gemma.evaluation.long_context.ablations import attention_off, with_window
from recurrent_gemma.evaluation.long_context.bootstrap import BlockBootstrap, Interval
from recurrent_gemma.evaluation.long_context.passkey import PasskeyCell, passkey
from recurrent_gemma.evaluation.long_context.perplexity import PositionBin, log_spaced_bins, perplexity_by_position
from recurrent_gemma.evaluation.long_context.reading import Excerpts, excerpts, token_losses

__all__ = [
    "BlockBootstrap",
    "Excerpts",
    "Interval",
    "PasskeyCell",
    "PositionBin",
    "attention_off",
    "excerpts",
    "log_spaced_bins",
    "passkey",
    "perplexity_by_position",
    "token_losses",
    "with_window",
]
