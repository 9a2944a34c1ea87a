"""What a sequence remembers: the cache, its layers and their states, rollback, and files."""

from recurrent_gemma.modeling.cache.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.cache.file import SessionFileError, SessionInfo, read_session_info
from recurrent_gemma.modeling.cache.states import AttentionState, LayerState, RecurrentState, RingState
from recurrent_gemma.modeling.cache.storage import StateSignature, state_signature
from recurrent_gemma.modeling.cache.trail import AttentionTrail, LayerTrail, RecurrentTrail

__all__ = [
    "AttentionState",
    "AttentionTrail",
    "LayerState",
    "LayerTrail",
    "RecurrentGemmaCache",
    "RecurrentState",
    "RecurrentTrail",
    "RingState",
    "SessionFileError",
    "SessionInfo",
    "StateSignature",
    "read_session_info",
    "state_signature",
]
