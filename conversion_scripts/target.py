"""Where a conversion writes: checked before, built beside it, and put in its place when complete.

Targets are absolute paths here, without ``..``.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from recurrent_gemma.configuration.remote_code import SHIM_FILE
from recurrent_gemma.conversion_scripts.checkpoints.base import sync
from recurrent_gemma.conversion_scripts.checkpoints.orbax import is_orbax
from recurrent_gemma.conversion_scripts.checkpoints.torch_file import SUFFIXES
from recurrent_gemma.conversion_scripts.checkpoints.transformers_directory import (
    COMPANIONS,
    CONFIG,
    is_transformers,
    is_weight_file,
)

# Room for what is beside the weights: metadata, config, tokenizer.
_SPARE_BYTES = 64 * 2**20
# What an Orbax directory of parameters consists of, by the versions that write it.
_IN_FLAX = (
    "_METADATA", "_CHECKPOINT_METADATA", "_sharding", "checkpoint", "commit_success.txt", "manifest.ocdbt", "d",
    "ocdbt.process_*", "array_metadatas", "params.*", "blocks.*", "embedder.*", "final_norm.*",
)  # fmt: skip
_UNFINISHED = ".partial"
_REPLACED = ".replaced"


def check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a target that must not be written.

    Raises:
        FileExistsError: It exists, and is not to be overwritten or is no checkpoint.
        FileNotFoundError: Its parent directory does not exist.
        PermissionError: Its parent directory cannot be written to.
        ValueError: Source and target contain each other.
    """
    source = source.resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory; make it first.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{target.parent}: cannot be written to.")
    resolved = target.resolve()
    if resolved == source or source in resolved.parents or resolved in source.parents:
        raise ValueError(f"target: expected a path apart from the source {source}, got {target}.")
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(f"{target}: exists; pass overwrite (--overwrite) to replace it.")
    if target.is_symlink() or not (target.is_dir() or target.suffix in SUFFIXES):
        raise FileExistsError(f"{target}: expected a checkpoint to overwrite, got something else; remove it yourself.")
    if foreign := _foreign(target):
        raise FileExistsError(
            f"{target}: expected a checkpoint to overwrite, and nothing else beside it, got {', '.join(foreign[:10])}; "
            "remove it yourself."
        )


def _foreign(target: Path) -> list[str]:
    """What is in a directory that no conversion and no ``save_pretrained`` writes."""
    if not target.is_dir():
        return []
    names = sorted(path.name for path in target.iterdir())
    if is_transformers(target):
        known = {CONFIG, SHIM_FILE, *COMPANIONS}
        return [name for name in names if name not in known and not is_weight_file(name)]
    patterns = _IN_FLAX if is_orbax(target) else ()
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)]


def check_space(target: Path, nbytes: int) -> int:
    """The bytes that are free where ``target`` is to be.

    Raises:
        OSError: They are too few for ``nbytes`` of weights. What is overwritten stays until the end.
    """
    free = shutil.disk_usage(target.parent).free
    if free < nbytes + _SPARE_BYTES:
        raise OSError(
            f"{target.parent}: expected {nbytes + _SPARE_BYTES:,} free bytes, got {free:,}; make room, or "
            "write to another disk."
        )
    return free


def leftovers(target: Path) -> list[Path]:
    """What conversions to ``target`` that were killed have left beside it."""
    prefix = f".{target.name}."
    return sorted(
        path
        for path in target.parent.iterdir()
        if path.name.startswith(prefix) and path.suffix in (_UNFINISHED, _REPLACED)
    )


@contextlib.contextmanager
def replacing(target: Path, source: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write to; it becomes ``target`` at the end of the block, and is removed where that raises.

    The path is inside a hidden directory beside ``target``. A process that is killed leaves that directory, and
    ``target`` as it was; where it is killed between the two renames that replace a directory, the former one is beside
    it as ``.NAME.*.replaced``.

    Raises:
        As :func:`check_target`, at the end of the block.
    """
    parent = target.parent
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_UNFINISHED, dir=parent))
    try:
        yield work / target.name
        for item in (*(work / target.name).rglob("*"), work / target.name):
            sync(item)
        # Something may have come to be there meanwhile.
        check_target(target, source, overwrite=overwrite)
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
