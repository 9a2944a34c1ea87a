"""vLLM's server over HTTP, driven by OpenAI's client: an answer is what Transformers gives to that prompt alone."""

import concurrent.futures
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.serving.server import Server, running_server
from recurrent_gemma import RecurrentGemmaTokenizer, demo_path
from tests.serving.engines import expected_logprobs, reference, text
from tests.support import require
from tests.tolerances import SERVED_LOGPROBS, assert_close

openai = require("openai", "serve")

# Log-probabilities are compared, so the model is served in fp32; nothing else is asked for.
OPTIONS = ("--dtype", "float32")
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "HF_HUB_OFFLINE": "1"}
CHAT = [
    {"role": "user", "content": "Who art thou?"},
    {"role": "assistant", "content": "I am he."},
    {"role": "user", "content": "And whence comest thou?"},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(demo_path(), tmp_path_factory.mktemp("server"), options=OPTIONS, environment=ENVIRONMENT) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url, api_key="none", timeout=600, max_retries=0) as made:
        yield made


@functools.cache
def tokenizer() -> RecurrentGemmaTokenizer:
    return RecurrentGemmaTokenizer.from_pretrained(demo_path())


def answer(ids: list[int], tokens: int) -> str:
    """What Transformers' generate() says to these tokens alone, greedily."""
    made = reference().generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
    return tokenizer().decode(made[0, len(ids) :], skip_special_tokens=True)


def ask(client: Any, server: Server, prompt: Any, tokens: int, **options: Any) -> Any:
    return client.completions.create(
        model=server.model, prompt=prompt, max_tokens=tokens, **{"temperature": 0.0, **options}
    )


def test_it_names_its_model(client: Any, server: Server):
    assert [model.id for model in client.models.list()] == [server.model]


@pytest.mark.parametrize("length", [1, 60, 300])
def test_a_completion(client: Any, server: Server, length: int):
    ids = text(length)
    assert ask(client, server, ids, 24).choices[0].text == answer(ids, 24)


def test_text_is_tokenized_with_one_bos(client: Any, server: Server):
    made = ask(client, server, "In the beginning", 12)
    ids = tokenizer()("In the beginning").input_ids
    assert made.usage.prompt_tokens == len(ids) and ids.count(tokenizer().bos_token_id) == 1
    assert made.choices[0].text == answer(ids, 12)


def test_log_probabilities(client: Any, server: Server):
    ids = text(200)
    options = {"logprobs": 3, "echo": True, "extra_body": {"return_tokens_as_token_ids": True}}
    found = ask(client, server, ids, 40, **options).choices[0].logprobs
    tokens = [int(token.removeprefix("token_id:")) for token in found.tokens]
    assert tokens[:200] == ids and len(tokens) > 200
    right = expected_logprobs(tokens)
    expected = [right[place - 1, token] for place, token in enumerate(tokens) if place]
    assert found.token_logprobs[0] is None
    assert_close(torch.tensor(found.token_logprobs[1:]), torch.stack(expected), SERVED_LOGPROBS, "log-probabilities")


def test_a_chat_goes_through_the_template(client: Any, server: Server):
    made = client.chat.completions.create(model=server.model, messages=CHAT, max_tokens=24, temperature=0.0)
    ids = tokenizer().apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert made.usage.prompt_tokens == len(ids)
    assert made.choices[0].message.content == answer(ids, 24)


def test_a_stream_says_the_same_piece_by_piece(client: Any, server: Server):
    ids = text(90)
    pieces = [part.choices[0].text for part in ask(client, server, ids, 24, stream=True)]
    assert len(pieces) > 10 and "".join(pieces) == answer(ids, 24)
    chat = client.chat.completions.create(
        model=server.model, messages=CHAT, max_tokens=24, temperature=0.0, stream=True
    )
    pieces = [part.choices[0].delta.content or "" for part in chat]
    prompt = tokenizer().apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert len(pieces) > 5 and "".join(pieces) == answer(prompt, 24)


def test_an_answer_ends_at_a_stop_string(client: Any, server: Server):
    whole = answer(text(60), 24)
    stop = whole[len(whole) // 2 :][:4]
    made = ask(client, server, text(60), 24, stop=[stop]).choices[0]
    assert made.finish_reason == "stop" and made.text == whole.split(stop)[0]


def test_several_samples_of_one_prompt(client: Any, server: Server):
    made = ask(client, server, text(140), 16, n=4, temperature=1.0, seed=3)
    assert len({choice.text for choice in made.choices}) > 1
    again = ask(client, server, text(140), 16, n=4, temperature=1.0, seed=3)
    assert [choice.text for choice in again.choices] == [choice.text for choice in made.choices]


def test_32_clients_at_once_with_ragged_prompts(client: Any, server: Server):
    prompts = [text(1 + 37 * number % 330, start=11 * number) for number in range(32)]
    tokens = [4 + 5 * number % 23 for number in range(32)]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        made = list(pool.map(lambda ids, count: ask(client, server, ids, count), prompts, tokens))
    found = [each.choices[0].text for each in made]
    assert found == [answer(ids, count) for ids, count in zip(prompts, tokens, strict=True)]


def test_a_cancelled_request_is_dropped_and_leaves_nothing(client: Any, server: Server):
    stream = ask(client, server, text(150), 4000, stream=True, extra_body={"ignore_eos": True})
    for _ in range(3):
        next(stream)
    assert server.metrics()["vllm:num_requests_running"] == 1
    stream.close()
    # Other requests make the engine go on, and show that it still answers rightly.
    for number in range(20):
        ids = text(80, start=500 + number)
        assert ask(client, server, ids, 4).choices[0].text == answer(ids, 4)
        if server.metrics()["vllm:num_requests_running"] == 0:
            break
    assert server.metrics()["vllm:num_requests_running"] == 0


def test_a_shared_beginning_is_found_again(client: Any, server: Server):
    beginning = text(200, start=900)
    hits = [server.metrics()["vllm:prefix_cache_hits_total"]]
    for number in range(3):
        ids = [*beginning, *text(20, start=40 * number)[1:]]
        assert ask(client, server, ids, 8).choices[0].text == answer(ids, 8)
        hits.append(server.metrics()["vllm:prefix_cache_hits_total"])
    assert hits[-1] - hits[1] >= 2 * 128


def test_what_cannot_be_done_is_refused_and_the_server_lives(client: Any, server: Server):
    for options in ({"prompt": []}, {"max_tokens": -1}, {"model": "another"}):
        request = {"model": server.model, "prompt": "In the beginning", "max_tokens": 4, **options}
        with pytest.raises(openai.APIStatusError) as refused:
            client.completions.create(**request)
        assert 400 <= refused.value.status_code < 500
    with pytest.raises(openai.BadRequestError, match=r"longer than|maximum"):
        ask(client, server, text(60) * 200, 4)
    assert ask(client, server, text(60), 8).choices[0].text == answer(text(60), 8)


def test_a_server_started_again_says_the_same(tmp_path: Path):
    for _ in range(2):
        with (
            running_server(demo_path(), tmp_path, options=OPTIONS, environment=ENVIRONMENT) as up,
            openai.OpenAI(base_url=up.url, api_key="none", timeout=600) as asking,
        ):
            assert ask(asking, up, text(140), 12).choices[0].text == answer(text(140), 12)


def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="speculative_config: expected None"),
        running_server(
            demo_path(), tmp_path, options=['--speculative-config={"method": "ngram", "num_speculative_tokens": 2}']
        ),
    ):
        pass
