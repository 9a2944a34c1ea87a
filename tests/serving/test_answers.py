"""An engine's log-probabilities are Transformers', whoever else is in the batch and however a prompt is cut up."""

from collections.abc import Iterator

import pytest

from tests.serving.engines import BLOCK, WINDOW, Engine, check, recorded, running, text

# More tokens than requests, so that a prompt's first or last chunk may be one token.
BUDGET = 64


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def chunking() -> Iterator[Engine]:
    with running(max_num_batched_tokens=BUDGET) as made:
        yield made


def test_a_single_prompt(engine: Engine):
    assert check(engine.generate([text(50)])) > 3 * 50


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, BLOCK - 1, BLOCK, BLOCK + 1])
def test_short_prompts(engine: Engine, length: int):
    check(engine.generate([text(length)]))


@pytest.mark.parametrize("length", [127, 128, 129, 130, 131, 4 * WINDOW + 5])
def test_around_the_edges_of_the_window(engine: Engine, length: int):
    assert length < WINDOW or check(engine.generate([text(length)])) > 3 * length
    # The edge is passed while answering.
    check(engine.generate([text(length - 4)], prompt_logprobs=None))


def test_an_answer_of_several_windows(engine: Engine):
    (output,) = engine.generate([text(10)], max_tokens=3 * WINDOW)
    assert check([output]) > 3 * 3 * WINDOW


def test_ragged_prompts_and_answers_in_one_batch(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    lengths = [1, 150, 7, 129, 64, 2, 300, 33]
    with recorded(monkeypatch) as batches:
        for index, length in enumerate(lengths):
            engine.add(str(index), text(length, start=50 * index), max_tokens=4 + 3 * index)
            engine.step()
        outputs = engine.finish()
    assert len(outputs) == len(lengths)
    check(list(outputs.values()))
    mixed = [rows for rows in batches if len({row.tokens == 1 and row.has_initial for row in rows}) == 2]
    assert mixed


def test_prompts_in_chunks(chunking: Engine, monkeypatch: pytest.MonkeyPatch):
    with recorded(monkeypatch) as batches:
        check(chunking.generate([text(500)]))
    assert max(row.tokens for rows in batches for row in rows) == BUDGET
    assert any(row.tokens == BUDGET and row.has_initial for rows in batches for row in rows)


def test_a_first_chunk_of_one_token(chunking: Engine, monkeypatch: pytest.MonkeyPatch):
    with recorded(monkeypatch) as batches:
        chunking.add("first", text(BUDGET - 1))
        chunking.add("second", text(40, start=300))
        outputs = chunking.finish()
    assert [row.tokens for row in batches[0]] == [BUDGET - 1, 1] and not batches[0][1].has_initial
    check(list(outputs.values()))


def test_a_last_chunk_of_one_token(chunking: Engine, monkeypatch: pytest.MonkeyPatch):
    with recorded(monkeypatch) as batches:
        check(chunking.generate([text(2 * BUDGET + 1)], max_tokens=1))
    assert [rows[0].tokens for rows in batches if rows[0].slot == batches[0][0].slot] == [BUDGET, BUDGET, 1]
    assert batches[-1][0].has_initial


def test_chunks_beside_answers(chunking: Engine):
    for index, length in enumerate([5, 200, 129, 70]):
        chunking.add(str(index), text(length, start=100 * index), max_tokens=40)
        chunking.step()
    check(list(chunking.finish().values()))


def test_several_answers_to_one_prompt(engine: Engine):
    (output,) = engine.generate([text(140)], n=3, temperature=1.0, seed=1, max_tokens=20)
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3
    check([output])


def test_all_log_probabilities(engine: Engine):
    (output,) = engine.generate([text(131)], logprobs=-1, prompt_logprobs=None, max_tokens=3)
    assert check([output]) == 3 * 2500


def test_stop_strings(engine: Engine):
    (free,) = engine.generate([text(60)], max_tokens=30)
    words = free.outputs[0].text.split()
    (output,) = engine.generate([text(60)], max_tokens=30, stop=[words[3]])
    assert output.outputs[0].finish_reason == "stop" and output.outputs[0].stop_reason == words[3]
    assert free.outputs[0].text.startswith(output.outputs[0].text) and words[3] not in output.outputs[0].text
    check([output])


def test_prompts_of_text(engine: Engine):
    (output,) = engine.llm.generate(["Once upon a time"], use_tqdm=False)
    assert output.prompt_token_ids[0] == 2 and output.prompt_token_ids.count(2) == 1
