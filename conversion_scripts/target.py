"""Where a conversion writes: checked before, built beside it, and put in its place when complete."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recurrent_gemma.conversion_scripts.checkpoints.base import sync
from recurrent_gemma.conversion_scripts.checkpoints.orbax import is_orbax
from recurrent_gemma.conversion_scripts.checkpoints.torch_file import SUFFIXES
from recurrent_gemma.conversion_scripts.checkpoints.transformers_directory import is_transformers

# Room for what is beside the weights: metadata, config, tokenizer.
_SPARE_BYTES = 64 * 2**20
_UNFINISHED = ".partial"
_REPLACED = ".replaced"


def check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a target that must not be written.

    Raises:
        FileExistsError: It exists, and is not to be overwritten or is no checkpoint.
        FileNotFoundError: Its parent directory does not exist.
        ValueError: Source and target contain each other.
    """
    target, source = target.absolute(), source.resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory; make it first.")
    resolved = target.resolve()
    if resolved == source or source in resolved.parents or resolved in source.parents:
        raise ValueError(f"target: expected a path apart from the source {source}, got {target}.")
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(f"{target}: exists; pass overwrite (--overwrite) to replace it.")
    is_checkpoint = target.suffix in SUFFIXES if target.is_file() else is_orbax(target) or is_transformers(target)
    empty = target.is_dir() and not any(target.iterdir())
    if target.is_symlink() or not (is_checkpoint or empty):
        raise FileExistsError(f"{target}: expected a checkpoint to overwrite, got something else; remove it yourself.")


def check_space(target: Path, nbytes: int) -> int:
    """The bytes that are free where ``target`` is to be.

    Raises:
        OSError: They are too few for ``nbytes`` of weights. What is overwritten stays until the end.
    """
    free = shutil.disk_usage(target.absolute().parent).free
    if free < nbytes + _SPARE_BYTES:
        raise OSError(
            f"{target.absolute().parent}: expected {nbytes + _SPARE_BYTES:,} free bytes, got {free:,}; make room, or "
            "write to another disk."
        )
    return free


def leftovers(target: Path) -> list[Path]:
    """What conversions to ``target`` that were killed have left beside it."""
    prefix = f".{target.name}."
    return sorted(
        path
        for path in target.absolute().parent.iterdir()
        if path.name.startswith(prefix) and path.suffix in (_UNFINISHED, _REPLACED)
    )


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to; it becomes ``target`` at the end of the block, and is removed where that raises.

    The path is inside a hidden directory beside ``target``. A process that is killed leaves that directory, and
    ``target`` as it was; where it is killed between the two renames that replace a directory, the former one is beside
    it as ``.NAME.*.replaced``.
    """
    target = target.absolute()
    parent = target.parent
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_UNFINISHED, dir=parent))
    try:
        yield work / target.name
        if target.is_dir():
            replaced = work.with_suffix(_REPLACED)
            target.rename(replaced)
            try:
                (work / target.name).rename(target)
            except BaseException:
                replaced.rename(target)
                raise
            sync(parent)
            shutil.rmtree(replaced)
        else:
            (work / target.name).replace(target)
            sync(parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
