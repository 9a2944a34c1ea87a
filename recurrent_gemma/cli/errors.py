"""What the command line reports: one line on stderr, and an exit code for each kind of failure."""

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import typer

_MAX_LENGTH = 400

# What the help of every command ends with.
EPILOG = """\b
Exit codes:
  0    success
  1    unexpected error; --debug before the command shows the traceback. convert --verify: the logits differ
  2    wrong usage or option value
  3    a checkpoint directory, one of its files, or a session file does not exist
  4    the checkpoint is of another architecture
  5    the checkpoint is broken: truncated, invalid JSON, missing weights
  6    the session file is broken, another model's, or cannot be written
  7    the target of a conversion exists, or cannot be written
  126  exec: the command cannot be executed
  127  exec: the command does not exist
`exec` ends with the exit code of its command otherwise."""


class ExitCode(IntEnum):
    """Exit codes, as documented in ``--help``."""

    UNEXPECTED = 1
    USAGE = 2
    NOT_FOUND = 3
    WRONG_ARCHITECTURE = 4
    BROKEN = 5
    SESSION = 6
    TARGET = 7
    CANNOT_EXECUTE = 126
    NO_SUCH_COMMAND = 127


class CommandError(Exception):
    """A failure that the user can act on.

    Args:
        message: What is wrong, where, and the remedy.
        exit_code: The code that the program ends with.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def reported_as(exit_code: ExitCode, subject: str) -> Iterator[None]:
    """Turn every exception of the block into a :class:`CommandError` about ``subject``."""
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(f"{subject}: {one_line(str(error)) or type(error).__name__}", exit_code) from error


def exit_code(error: Exception) -> int:
    """Code that the program ends with after ``error``."""
    return error.exit_code if isinstance(error, (CommandError, typer.TyperException)) else ExitCode.UNEXPECTED


def describe(error: Exception) -> str:
    """``error`` on one line of readable length; the traceback has the rest."""
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, typer.TyperException):
        return one_line(error.format_message())
    return f"{type(error).__name__}: {one_line(str(error))}"


def one_line(text: str) -> str:
    """``text`` without line breaks, cut to a readable length."""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]} [...]"


__all__ = ["EPILOG", "CommandError", "ExitCode", "describe", "exit_code", "one_line", "reported_as"]
