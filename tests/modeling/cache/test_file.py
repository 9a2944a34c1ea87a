"""A state in a file: it goes on bit for bit in another process, and a file that is not what it says is refused."""

import json
import os
import signal
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.cache import SessionFileError, file, read_session_info
from recurrent_gemma.modeling.cache.file import FORMAT, config_fields, write_atomically
from tests.modeling.models import CONFIGS, tiny_config, tiny_model
from tests.support import run_warm, warm_interpreter
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close

every_config = pytest.mark.parametrize("name", list(CONFIGS))


def draw_ids(*shape):
    return torch.randint(3, 97, shape)


@torch.no_grad()
def read(model, ids, cache):
    return model(ids, past_key_values=cache).logits


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def saved(model, tmp_path):
    """A state of two rows of 20 columns in a file, and its ids."""
    ids, cache = draw_ids(2, 20), RecurrentGemmaCache(model.config)
    read(model, ids, cache)
    cache.save(tmp_path / "state", ids)
    return tmp_path / "state", cache, ids


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("length", [2, 30])
def test_it_goes_on_bit_for_bit(name, dtype, static, length, tmp_path):
    model, path = tiny_model(tiny_config(**CONFIGS[name])).to(dtype), tmp_path / "state"
    ids, more, cache = draw_ids(2, length), draw_ids(2, 5), RecurrentGemmaCache(model.config, static=static)
    read(model, ids, cache)
    cache.save(path)
    loaded = RecurrentGemmaCache.load(path, model.config)
    assert loaded.columns == length and torch.equal(loaded.last_ids[:, -2:], ids[:, -2:]) and not loaded.static
    for name_, tensor in cache.tensors().items():
        assert torch.equal(loaded.tensors()[name_], tensor) and loaded.tensors()[name_].dtype == tensor.dtype
    as_static = RecurrentGemmaCache.load(path, model.config, static=True)
    expected = read(model, more, cache)
    if not static:
        assert torch.equal(read(model, more, loaded), expected)
    if dtype == torch.float32:
        assert_close(read(model, more, as_static), expected, SPLIT_EQUALS_WHOLE_LOGITS, "static")


def test_a_state_that_went_back_can_be_saved(model, tmp_path):
    """What is cut out of a trail may have strides of its own, even one row of one element."""
    ids, cache = draw_ids(1, 12), RecurrentGemmaCache(model.config)
    cache.activate_past_recording()
    read(model, ids, cache)
    cache.crop(-3)
    cache.save(tmp_path / "state", ids)
    loaded = RecurrentGemmaCache.load(tmp_path / "state", model.config)
    assert loaded.columns == 9 and loaded.next_position.tolist() == [9]
    assert torch.equal(read(model, ids[:, 9:], loaded), read(model, ids[:, 9:], cache))


def test_an_empty_state_can_be_saved(model, tmp_path):
    for static in (False, True):
        RecurrentGemmaCache(model.config, static=static).save(tmp_path / "state")
        loaded = RecurrentGemmaCache.load(tmp_path / "state", model.config)
        assert loaded.columns == 0 and loaded.batch_size == -1
        info = read_session_info(tmp_path / "state")
        assert (info.rows, info.columns, info.dtype, info.token_ids) == (0, 0, None, None)


def test_it_says_what_it_is(model, saved):
    path, cache, ids = saved
    info = read_session_info(path)
    assert (info.format_version, info.rows, info.columns, info.dtype) == (1, 2, 20, "float32")
    assert info.config == config_fields(model.config) and torch.equal(info.token_ids, ids)
    assert info.nbytes == path.stat().st_size and info.path == path
    cache.save(path)
    assert read_session_info(path).token_ids is None


@pytest.mark.parametrize("preset", ["recurrentgemma-2b", "recurrentgemma-9b"])
def test_its_size_is_that_of_the_state(preset, tmp_path):
    config = RecurrentGemmaConfig(**PRESETS[preset])
    state = state_bytes(config, dtype=torch.bfloat16)
    cache = RecurrentGemmaCache(config, static=True, batch_size=1, dtype=torch.bfloat16)
    cache.advance(5000, torch.tensor([5000]))
    cache.save(tmp_path / "state")
    overhead = (tmp_path / "state").stat().st_size - state.total
    assert 0 < overhead < 20_000


OTHER_CONFIGS = (
    {"vocab_size": 98},
    {"hidden_size": 64},
    {"attention_window_size": 8},
    {"lru_width": 64},
    {"block_types": ["recurrent"]},
    {"num_hidden_layers": 6},
    {"logits_soft_cap": None},
    {"rope_theta": 5000.0},
)


@pytest.mark.parametrize("fields", OTHER_CONFIGS, ids=str)
def test_a_state_of_another_model_is_refused(saved, fields):
    path, *_ = saved
    with pytest.raises(SessionFileError, match=r"expected a state of this model \(.+\), got one of another model"):
        RecurrentGemmaCache.load(path, tiny_config(**fields))


def test_a_truncated_file_is_refused_at_every_length(model, saved):
    path, *_ = saved
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        for call in (read_session_info, lambda p: RecurrentGemmaCache.load(p, model.config)):
            with pytest.raises(SessionFileError, match="expected a complete session file"):
                call(path)


def test_every_flipped_bit_is_noticed(model, saved):
    path, *_ = saved
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, header, 7), *range(header, len(content), max(1, (len(content) - header) // 200))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(bytes(changed))
        with pytest.raises(SessionFileError):
            RecurrentGemmaCache.load(path, model.config)


def test_files_of_other_kinds_and_versions_are_refused(model, tmp_path):
    path = tmp_path / "file"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(SessionFileError, match=r"expected a session file .* got format None"):
        RecurrentGemmaCache.load(path, model.config)
    save_file({"x": torch.zeros(2)}, path, {"format": FORMAT, "format_version": "2"})
    with pytest.raises(SessionFileError, match="expected format version 1, got '2'; a newer release"):
        read_session_info(path)
    save_file({"x": torch.zeros(2)}, path, {"format": FORMAT, "format_version": "1", "columns": "3"})
    with pytest.raises(SessionFileError, match=r"got none for \['config', 'sha256'\]"):
        read_session_info(path)
    with pytest.raises(FileNotFoundError):
        RecurrentGemmaCache.load(tmp_path / "none", model.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.conv"), "got none for"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown ones"),
        (lambda t: t.update({"layers.0.rg_lru": torch.zeros(2, 47)}), "layers.0.rg_lru: expected"),
        (lambda t: t.update({"layers.0.rg_lru": torch.zeros(2, 48).bfloat16()}), "layers.0.rg_lru: expected"),
        (lambda t: t.update({"layers.2.key": torch.zeros(2, 1, 3, 8)}), "layers.2.key: expected"),
        (lambda t: t.update({"layers.2.value": torch.zeros(2, 7, 8)}), "layers.2.value: expected"),
        (lambda t: t.update(next_position=torch.tensor([-1, 3])), "next_position: expected 0 to 20"),
        (lambda t: t.update(next_position=torch.tensor([21, 3])), "next_position: expected 0 to 20"),
        (lambda t: t.update(next_position=torch.zeros(2)), "next_position: expected a"),
        (lambda t: t.update(last_ids=torch.zeros(3, 8, dtype=torch.long)), "last_ids: expected"),
    ],
)
def test_content_that_is_no_state_is_refused_although_its_checksum_is_right(model, saved, change, message):
    path, cache, _ = saved
    tensors = dict(cache.tensors())
    change(tensors)
    file.save(path, config_fields(model.config), tensors, 20, None)
    with pytest.raises(SessionFileError, match=message):
        RecurrentGemmaCache.load(path, model.config)


def test_token_ids_must_be_those_of_the_columns(saved):
    path, cache, ids = saved
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"token_ids: expected .* \(2, 20\).* got \(2, 19\)"):
        cache.save(path, ids[:, 1:])
    with pytest.raises(TypeError, match="token_ids: expected an integer tensor"):
        cache.save(path, ids.float())
    assert path.read_bytes() == before


def test_another_process_goes_on_without_reading_the_history(model, saved, tmp_path):
    path, cache, _ = saved
    model.save_pretrained(tmp_path / "model")
    more = draw_ids(2, 4)
    expected = read(model, more, cache)
    program = f"""
import torch
from recurrent_gemma import RecurrentGemmaCache, RecurrentGemmaForCausalLM
model = RecurrentGemmaForCausalLM.from_pretrained({str(tmp_path / "model")!r})
cache = RecurrentGemmaCache.load({str(path)!r}, model.config)
with torch.no_grad():
    logits = model(torch.tensor({more.tolist()}), past_key_values=cache).logits
torch.save(logits, {str(tmp_path / "logits.pt")!r})
"""
    run_warm("-c", program, cwd=tmp_path)
    logits = torch.load(tmp_path / "logits.pt")
    assert_close(logits, expected, SPLIT_EQUALS_WHOLE_LOGITS, "another process")


_WRITER = """
import itertools, os, sys
import torch
from recurrent_gemma.modeling.cache.file import save
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()  # a process of its own, without another import of torch
    if child:
        os.waitpid(child, 0)
        os.write(1, b"ended\\n")
        continue
    os.write(1, f"{os.getpid()}\\n".encode())
    tensors = {f"part {i}": torch.zeros(1 << 16) for i in range(4)}
    for number in itertools.count(int(line)):
        for tensor in tensors.values():
            tensor.fill_(number)
        save(sys.argv[1], {}, tensors, number, None)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
def test_a_killed_process_leaves_a_whole_file(tmp_path):
    """SIGKILL at random moments of saving over and over: the file is always one that was saved as a whole."""
    path, seen = tmp_path / "state", set()
    command = [*warm_interpreter(), "-c", _WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        for attempt, delay in enumerate(torch.rand(40).mul(0.1).tolist()):
            process.stdin.write(f"{1000 * attempt + 1}\n")
            process.stdin.flush()
            writer = int(process.stdout.readline())
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=delay)
            os.kill(writer, signal.SIGKILL)
            assert process.stdout.readline() == "ended\n"
            if path.exists():
                columns = read_session_info(path).columns
                assert {tensor.unique().item() for tensor in load_file(path).values()} == {float(columns)}
                seen.add(columns)
        process.stdin.close()
    assert len(seen) > 10


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def fail(_):
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "state", b"new")


def test_config_fields_are_json(model):
    assert json.loads(json.dumps(config_fields(model.config))) == config_fields(model.config)


def test_a_fork_continues_one_prompt_in_several_ways(model):
    ids, cache = draw_ids(1, 20), RecurrentGemmaCache(model.config)
    read(model, ids, cache)
    forked, more = cache.fork(3), draw_ids(3, 4)
    logits = read(model, more, forked)
    assert cache.columns == 20 and cache.batch_size == 1 and forked.batch_size == 3
    for row in range(3):
        solo = read(model, more[row : row + 1], cache.clone())
        assert_close(logits[row : row + 1], solo, SPLIT_EQUALS_WHOLE_LOGITS, f"row {row}")
    with pytest.raises(ValueError, match="copies: expected at least 1, got 0"):
        cache.fork(0)
