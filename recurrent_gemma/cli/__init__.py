"""Command line ``recurrent-gemma``: generate text, describe a checkpoint, run programs with the registration."""

from recurrent_gemma.cli.app import main

__all__ = ["main"]
