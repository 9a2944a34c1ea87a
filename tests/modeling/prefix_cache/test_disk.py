"""Snapshots in files come back bit for bit, later too; a broken, foreign or missing file never gives an answer."""

import logging
import os
import time

import pytest
import torch

from recurrent_gemma.modeling import PrefixCache
from tests.modeling.models import tiny_config, tiny_model
from tests.modeling.prefix_cache.trees import check
from tests.support import run_python

# A snapshot and its window, and no second one.
ONE = 3_900
LARGE = 10**8
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 8}


def draw(n: int) -> torch.Tensor:
    return torch.randint(3, 97, (1, n))


def files(directory) -> list:
    return sorted(directory.iterdir())


def cold(model, ids):
    return model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)


@pytest.mark.parametrize("fields", [{}, {"block_types": ["recurrent"]}, {"block_types": ["attention"]}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_snapshot_comes_back_from_its_file_bit_by_bit(tmp_path, fields, dtype):
    model = tiny_model(tiny_config(**fields)).to(dtype)
    ids = draw(30)
    first = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    expected = first.prefill(model, ids)
    first.flush()
    assert len(files(tmp_path)) == 1 and first.statistics.disk_nbytes == files(tmp_path)[0].stat().st_size
    second = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    longer = torch.cat((ids, draw(4)), dim=1)
    assert second.nbytes == 0
    actual = second.prefill(model, ids)
    assert (actual.columns, int(actual.next_position)) == (30, 30)
    for ours, theirs in zip(actual.layers, expected.layers, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours.load(), theirs.load(), strict=True))
    # It is back in memory.
    assert second.match(longer) == 30 and second.nbytes == first.nbytes
    second.prefill(model, longer)
    assert (second.statistics.disk_hits, second.statistics.hits) == (1, 2)
    check(second)


def test_what_leaves_memory_is_found_again(tmp_path):
    model = tiny_model()
    prefixes = PrefixCache(model.config, max_bytes=ONE, directory=tmp_path, max_disk_bytes=LARGE)
    prompts = [draw(20) for _ in range(4)]
    for _ in range(3):
        for prompt in prompts:
            assert torch.equal(prefixes.generate(model, prompt, **GREEDY), cold(model, prompt))
            check(prefixes)
    statistics = prefixes.statistics
    assert statistics.disk_hits >= 7 and statistics.tokens_reused >= 7 * 19
    assert statistics.disk_nbytes == sum(path.stat().st_size for path in files(tmp_path))


def test_a_later_process_goes_on(tmp_path):
    model = tiny_model()
    ids = draw(30)
    prefixes = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path / "files", max_disk_bytes=LARGE)
    prefixes.prefill(model, ids)
    prefixes.flush()
    more = torch.cat((ids, draw(5)), dim=1)
    torch.save(more, tmp_path / "ids.pt")
    code = f"""
import torch
from recurrent_gemma import PrefixCache
from tests.modeling.models import tiny_model
model = tiny_model()
prefixes = PrefixCache(model.config, max_bytes=10**8, directory="files", max_disk_bytes=10**8)
ids = torch.load("ids.pt")
assert prefixes.match(ids) == 30
print(prefixes.generate(model, ids, **{GREEDY!r}).tolist())
assert prefixes.statistics.disk_hits == 1
"""
    assert run_python("-c", code, cwd=tmp_path).stdout.strip() == str(cold(model, more).tolist())


def test_files_stay_within_their_bound_and_the_one_used_longest_ago_goes(tmp_path):
    model = tiny_model()
    probe = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path / "probe", max_disk_bytes=LARGE)
    probe.prefill(model, draw(20))
    probe.flush()
    size = probe.statistics.disk_nbytes
    bounds = {"directory": tmp_path / "files", "max_disk_bytes": 3 * size}
    prefixes = PrefixCache(model.config, max_bytes=LARGE, **bounds)
    prompts = [draw(20) for _ in range(5)]
    for prompt in prompts[:3]:
        prefixes.prefill(model, prompt)
    prefixes.flush()
    fresh = PrefixCache(model.config, max_bytes=LARGE, **bounds)
    fresh.prefill(model, prompts[0])
    for prompt in prompts[3:]:
        fresh.prefill(model, prompt)
    fresh.flush()
    found = PrefixCache(model.config, max_bytes=LARGE, **bounds)
    assert [found.match(prompt) for prompt in prompts] == [20, 0, 0, 20, 20]
    smaller = PrefixCache(model.config, max_bytes=LARGE, **{**bounds, "max_disk_bytes": size})
    assert len(files(tmp_path / "files")) == 1 and smaller.statistics.disk_nbytes == size
    smaller.clear()
    assert files(tmp_path / "files") == []


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("harm", [_flip, _truncate])
@pytest.mark.parametrize("when", ["before opening", "after opening"])
def test_a_broken_file_is_deleted_with_a_warning_and_answers_stay_right(tmp_path, caplog, harm, when):
    model = tiny_model()
    ids = draw(30)
    first = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    first.prefill(model, ids[:, :-1])
    first.flush()
    (path,) = files(tmp_path)
    if when == "before opening":
        harm(path)
    prefixes = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    if when == "after opening":
        harm(path)
    with caplog.at_level(logging.WARNING, logger="recurrent_gemma"):
        assert torch.equal(prefixes.generate(model, ids, **GREEDY), cold(model, ids))
    assert not path.exists() and prefixes.statistics.disk_hits == 0
    if harm is _flip or when == "after opening":
        assert f"deleted {path}, which cannot be read" in caplog.text


def test_a_file_under_anothers_name_is_never_taken_for_it(tmp_path, caplog):
    model, ids, other = tiny_model(), draw(30), draw(30)
    bounds = {"max_bytes": LARGE, "directory": tmp_path, "max_disk_bytes": LARGE}
    first = PrefixCache(model.config, **bounds)
    first.prefill(model, ids[:, :-1])
    first.flush()
    (path,) = files(tmp_path)
    first.prefill(model, other[:, :-1])
    first.flush()
    (second,) = set(files(tmp_path)) - {path}
    path.write_bytes(second.read_bytes())
    prefixes = PrefixCache(model.config, **bounds)
    assert torch.equal(prefixes.generate(model, ids, **GREEDY), cold(model, ids))
    assert f"deleted {path}" in caplog.text and prefixes.statistics.hits == 0
    assert torch.equal(prefixes.generate(model, other, **GREEDY), cold(model, other))
    assert prefixes.statistics.disk_hits == 1


def test_a_file_that_has_gone_is_forgotten(tmp_path):
    model = tiny_model()
    ids = draw(30)
    first = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    first.prefill(model, ids)
    first.flush()
    prefixes = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    files(tmp_path)[0].unlink()
    assert prefixes.prefill(model, ids).columns == 30
    assert prefixes.statistics.disk_hits == prefixes.statistics.disk_nbytes == 0


def test_another_models_directory_raises_and_is_left_alone(tmp_path):
    model = tiny_model()
    first = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    first.prefill(model, draw(30))
    first.flush()
    other = tiny_config(attention_window_size=9)
    with pytest.raises(ValueError, match=r"directory: expected files of this model \(attention_window_size = 9\), got"):
        PrefixCache(other, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    assert len(files(tmp_path)) == 1


def test_states_in_another_dtype_are_not_found(tmp_path):
    model, ids = tiny_model(), draw(30)
    first = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    first.prefill(model, ids)
    first.flush()
    second = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    second.prefill(tiny_model().to(torch.bfloat16), ids)
    assert second.statistics.hits == 0


def test_other_files_are_left_alone_and_abandoned_ones_removed(tmp_path):
    for name in ("model.safetensors", "prefix-1.safetensors", "notes.txt"):
        (tmp_path / name).write_text("not ours")
    old, new = (tmp_path / f".prefix-{c * 64}.safetensors.12.tmp" for c in "ab")
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    prefixes = PrefixCache(tiny_config(), max_bytes=LARGE, directory=tmp_path, max_disk_bytes=LARGE)
    prefixes.clear()
    names = sorted(path.name for path in files(tmp_path))
    assert names == sorted(["model.safetensors", "prefix-1.safetensors", "notes.txt", new.name])


def test_a_snapshot_larger_than_the_bound_is_not_written(tmp_path):
    model = tiny_model()
    prefixes = PrefixCache(model.config, max_bytes=LARGE, directory=tmp_path, max_disk_bytes=100)
    prefixes.prefill(model, draw(9))
    prefixes.flush()
    assert files(tmp_path) == []
