"""``recurrent-gemma exec``: runs a program in which, and in whose children, Transformers uses this package."""

import os
import sys
from typing import NoReturn

from recurrent_gemma.cli.errors import CommandError, ExitCode
from recurrent_gemma.launch import environment


def execute(command: list[str]) -> NoReturn:
    """Become ``command``: its exit code, its signals and its terminal are then its own.

    Raises:
        CommandError: The command does not exist or cannot be executed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], command, environment())
    except FileNotFoundError as error:
        raise CommandError(f"exec: {command[0]}: command not found", ExitCode.NO_SUCH_COMMAND) from error
    except OSError as error:
        raise CommandError(f"exec: {command[0]}: {error.strerror}", ExitCode.CANNOT_EXECUTE) from error


__all__ = ["execute"]
