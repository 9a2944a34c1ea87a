"""The target is complete or what was there before: refusals, failures on the way, and processes that are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from recurrent_gemma.conversion_scripts import convert
from recurrent_gemma.conversion_scripts.architecture import architecture_of_config
from recurrent_gemma.conversion_scripts.checkpoints import open_checkpoint
from tests.conversion_scripts.checkpoints import small_config
from tests.support import require, run_warm, warm_interpreter

CONFIG = small_config("recurrentgemma-2b")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two Transformers directories of other weights."""
    folder = tmp_path_factory.mktemp("targets")
    for seed in (0, 1):
        torch.manual_seed(seed)
        RecurrentGemmaForCausalLM(CONFIG).save_pretrained(folder / str(seed))
    return folder / "0", folder / "1"


def _content(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def _same(path: Path, other: Path) -> bool:
    a, b = _content(path), _content(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_exists_is_not_touched_unless_asked(models: tuple[Path, Path], tmp_path: Path):
    first, second = models
    for name in ("copy", "weights.pt"):
        path = tmp_path / name
        to = "torch" if name.endswith(".pt") else "hf"
        convert(first, path, to=to)
        before = _content(path)
        with pytest.raises(FileExistsError, match="pass overwrite"):
            convert(second, path, to=to)
        assert all(torch.equal(value, before[name]) for name, value in _content(path).items())
        convert(second, path, to=to, overwrite=True)
        convert(second, tmp_path / f"expected-{name}", to=to)
        assert _same(path, tmp_path / f"expected-{name}")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_target_may_change_its_kind(models: tuple[Path, Path], tmp_path: Path):
    require("orbax.checkpoint")
    convert(models[0], tmp_path / "a", to="hf")
    convert(models[1], tmp_path / "a", to="flax", overwrite=True)
    assert open_checkpoint(tmp_path / "a").kind == "flax"
    assert not (tmp_path / "a" / "config.json").exists()


def test_overwrite_replaces_checkpoints_alone(models: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    for name, kind in (("config.json", "hf"), ("checkpoint", "flax"), ("manifest.ocdbt", "hf")):
        with pytest.raises(FileExistsError, match=r"nothing else beside it, got .*thesis\.txt"):
            convert(models[0], tmp_path / "home", to="hf", overwrite=True)
        (tmp_path / "home" / name).write_text("{}")
        with pytest.raises(FileExistsError, match=r"nothing else beside it, got .*thesis\.txt"):
            convert(models[0], tmp_path / "home", to=kind, overwrite=True)
        assert (tmp_path / "home" / "thesis.txt").read_text() == "years"
    (tmp_path / "link").symlink_to(models[1])
    with pytest.raises(FileExistsError, match="something else"):
        convert(models[0], tmp_path / "link", to="hf", overwrite=True)
    (tmp_path / "empty").mkdir()
    convert(models[0], tmp_path / "empty", to="hf", overwrite=True)
    assert _same(tmp_path / "empty", models[0])


def test_source_and_target_are_apart(models: tuple[Path, Path], tmp_path: Path):
    source = tmp_path / "a" / "source"
    shutil.copytree(models[0], source)
    (tmp_path / "link").symlink_to(source)
    for path in (source, source / "inside", tmp_path / "a", tmp_path / "link", tmp_path / "a" / ".." / "a" / "source"):
        with pytest.raises(ValueError, match="apart from the source"):
            convert(source, path, to="hf", overwrite=True)
    assert _same(source, models[0])
    with pytest.raises(FileNotFoundError, match="make it first"):
        convert(source, tmp_path / "no" / "where", to="hf")


def test_disk_space_is_checked_first(models: tuple[Path, Path], tmp_path: Path):
    """A checkpoint that is larger than the disk, most of it a hole in its file."""
    source = tmp_path / "source"
    source.mkdir()
    rows = shutil.disk_usage(tmp_path).total // (4 * CONFIG.hidden_size)
    config = RecurrentGemmaConfig(**{**CONFIG.to_dict(), "vocab_size": rows})
    config.save_pretrained(source)
    header, offset = {}, 0
    for name, shape in architecture_of_config(config).tensors("hf").items():
        end = offset + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with (source / "model.safetensors").open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + offset)
    with pytest.raises(OSError, match=r"expected [\d,]+ free bytes, got [\d,]+; make room"):
        convert(source, tmp_path / "target.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("kind", ["hf", "torch"])
def test_a_target_that_comes_to_be_meanwhile_is_not_touched(kind: str, models: tuple[Path, Path], tmp_path: Path):
    path = tmp_path / ("weights.pt" if kind == "torch" else "weights")

    def appears(phase: str, *_: object) -> None:
        if phase == "write" and not path.exists():
            path.write_text("mine")

    with pytest.raises(FileExistsError):
        convert(models[0], path, to=kind, on_progress=appears)
    assert path.read_text() == "mine"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes are limited by POSIX")
@pytest.mark.parametrize("kind", ["hf", "torch"])
def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(kind: str, models: tuple[Path, Path], tmp_path: Path):
    """As the system has it: no file may grow beyond 50 kB."""
    target = tmp_path / ("weights.pt" if kind == "torch" else "weights")
    code = """
import resource, signal, sys
from recurrent_gemma.conversion_scripts import convert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    convert(*sys.argv[1:3], to=sys.argv[3])
except OSError as error:
    print("refused", error)
"""
    done = run_warm("-c", code, str(models[0]), str(target), kind, cwd=tmp_path)
    assert done.stdout.startswith("refused ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_refused_first(models: tuple[Path, Path], tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written to"):
        convert(models[0], tmp_path / "a", to="hf", dry_run=True)


@pytest.mark.parametrize("kind", ["hf", "flax", "torch"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_on_the_way_leaves_what_was_there(
    kind: str, exists: bool, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if kind == "flax":
        require("orbax.checkpoint")
    path = tmp_path / ("weights.pt" if kind == "torch" else "weights")
    if exists:
        convert(models[0], path, to=kind)
        shutil.copytree(path, tmp_path.parent / f"{tmp_path.name}-before") if path.is_dir() else None
    before = _content(path) if exists else None

    def fails(phase: str, name: str, nbytes: int, total: int) -> None:
        if phase == "write" and "final_norm" in name:
            raise RuntimeError("no more")

    with pytest.raises(Exception, match="no more"):
        convert(models[1], path, to=kind, overwrite=True, on_progress=fails)
    assert [item.name for item in tmp_path.iterdir()] == ([path.name] if exists else [])
    if before is not None:
        after = _content(path)
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_dry_run_reads_no_values_and_writes_nothing(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from recurrent_gemma.conversion_scripts.checkpoints import TransformersCheckpoint

    monkeypatch.setattr(TransformersCheckpoint, "read", None)
    result = convert(models[0], tmp_path / "a", to="hf", dry_run=True, max_shard_size="20KB", dtype="bfloat16")
    assert not result.written and list(tmp_path.iterdir()) == []
    plan = result.plan
    assert sum(len(names) for names in plan.shards.values()) == len(plan.tensors)
    assert plan.parameters == sum(p.numel() for p in RecurrentGemmaForCausalLM(CONFIG).parameters())
    assert (plan.nbytes, plan.source_dtype, plan.dtype) == (2 * plan.parameters, "float32", "bfloat16")


def test_progress_counts_every_byte_once(models: tuple[Path, Path], tmp_path: Path):
    seen: dict[str, list] = {"check": [], "write": []}
    result = convert(models[0], tmp_path / "a.pt", on_progress=lambda phase, *rest: seen[phase].append(rest))
    for calls in seen.values():
        assert {total for _, _, total in calls} == {sum(nbytes for _, nbytes, _ in calls)} == {result.plan.nbytes}
    assert [name for name, *_ in seen["write"]] == list(result.plan.tensors)
    assert len(seen["check"]) == len(_content(models[0]))


_NURSERY = """
import os, signal, sys, time
from recurrent_gemma.conversion_scripts import convert
source, target, to = sys.argv[1:]
if to == "flax":
    import orbax.checkpoint
shard = "20KB" if to == "hf" else None
def slowly(*_):
    time.sleep(0.002)
for line in sys.stdin:
    child = os.fork()
    if not child:
        convert(source, target, to=to, overwrite=True, max_shard_size=shard, on_progress=slowly)
        os._exit(0)
    if line != "wait\\n":
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("kind", ["hf", "flax", "torch"])
def test_a_killed_process_leaves_no_target_that_loads(kind: str, models: tuple[Path, Path], tmp_path: Path):
    """Killed at moments from the first check to after the end; the target is the former one, the new one, or absent."""
    if kind == "flax":
        require("orbax.checkpoint")
    suffix = ".pt" if kind == "torch" else ""
    for name, model in (("former", models[0]), ("new", models[1])):
        convert(model, tmp_path / f"{name}{suffix}", to=kind)
    path = tmp_path / f"target{suffix}"
    outcomes, draw = set(), random.Random(0)
    with _nursery(models[1], path, kind) as nursery:
        # How long a whole run takes here; the first one is slower than those after it.
        for _ in range(2):
            started = time.monotonic()
            _run(nursery)
            duration = time.monotonic() - started
        for attempt in range(8):
            _remove(path)
            exists = attempt % 2 == 1
            if exists:
                _copy(tmp_path / f"former{suffix}", path)
            _run(nursery, kill_after=draw.uniform(0, 1.1 * duration))
            if path.exists():
                new = _same(path, tmp_path / f"new{suffix}")
                assert new or (exists and _same(path, tmp_path / f"former{suffix}"))
                outcomes.add("new" if new else "former")
            else:
                assert not exists or list(tmp_path.glob(f".{path.name}.*.replaced"))
                outcomes.add("absent")
    assert {"absent", "former"} <= outcomes
    # A later run says what the killed ones have left.
    _remove(path)
    notes = convert(models[1], path, to=kind, dry_run=True).plan.notes
    assert any("interrupted" in note for note in notes)


def _nursery(source: Path, path: Path, kind: str) -> subprocess.Popen[str]:
    """A process that has imported everything and forks one conversion for every line it reads."""
    return subprocess.Popen(
        [*warm_interpreter(), "-c", _NURSERY, str(source), str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=path.parent,
    )


def _run(nursery: subprocess.Popen[str], *, kill_after: float | None = None) -> None:
    assert nursery.stdin is not None and nursery.stdout is not None
    nursery.stdin.write("wait\n" if kill_after is None else f"{kill_after}\n")
    nursery.stdin.flush()
    status = int(nursery.stdout.readline())
    assert status in ((0,) if kill_after is None else (0, signal.SIGKILL))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _copy(source: Path, path: Path) -> None:
    shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)
