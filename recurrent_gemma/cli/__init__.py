"""Command line ``recurrent-gemma``: generate text, convert and describe checkpoints, run programs registered."""

from recurrent_gemma.cli.app import main

__all__ = ["main"]
