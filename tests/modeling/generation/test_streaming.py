"""Transformers' streamers with the checkpoint inside the package: the text of ``generate``, token by token."""

import queue
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, TextStreamer
from transformers.generation import BaseStreamer

import recurrent_gemma

PROMPT = "In the beginning"
OPTIONS = {"do_sample": False, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(recurrent_gemma.demo_path(), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(recurrent_gemma.demo_path())


@pytest.fixture(scope="module")
def inputs(tokenizer):
    return tokenizer(PROMPT, return_tensors="pt")


@pytest.fixture(scope="module")
def text(model, tokenizer, inputs):
    new = model.generate(**inputs, **OPTIONS)[0, inputs.input_ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def test_printed_text_is_that_of_generate(model, tokenizer, inputs, text, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**inputs, streamer=streamer, **OPTIONS)
    assert capsys.readouterr().out == text + "\n"
    assert len(text.split()) > 5


def test_pieces_of_a_thread_are_that_text(model, tokenizer, inputs, text):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **OPTIONS, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 5


def test_a_stream_that_nobody_fills_times_out(tokenizer):
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(tokenizer, timeout=0.001))


def test_a_token_is_handed_on_before_the_next_one_is_computed(model, inputs, monkeypatch):
    events, forward = [], model.model.forward

    def counting(*args, **kwargs):
        events.append("forward")
        return forward(*args, **kwargs)

    class Recorder(BaseStreamer):
        def put(self, value):
            events.append(tuple(value.shape))

        def end(self):
            events.append("end")

    monkeypatch.setattr(model.model, "forward", counting)
    model.generate(**inputs, streamer=Recorder(), do_sample=False, max_new_tokens=5, eos_token_id=None)
    assert events == [tuple(inputs.input_ids.shape), *["forward", (1,)] * 5, "end"]


def test_two_streams_at_once_do_not_mix(model, tokenizer, inputs, text):
    other = tokenizer("She looked at", return_tensors="pt")
    expected = tokenizer.decode(
        model.generate(**other, **OPTIONS)[0, other.input_ids.shape[1] :], skip_special_tokens=True
    )
    streamers, threads = [], []
    for prompt in (inputs, other):
        streamers.append(TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True))
        arguments = {**prompt, **OPTIONS, "streamer": streamers[-1]}
        threads.append(threading.Thread(target=model.generate, kwargs=arguments))
        threads[-1].start()
    texts = ["".join(streamer) for streamer in streamers]
    for thread in threads:
        thread.join()
    assert texts == [text, expected]
