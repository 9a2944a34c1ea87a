"""Classifiers of text: a local model against its logits by hand, Perspective against a server that answers like it."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertForSequenceClassification

from recurrent_gemma.evaluation import LocalClassifier, PerspectiveClassifier
from recurrent_gemma.evaluation.task_functions import scores_by
from tests.evaluation.planted import PlantedLM, run
from tests.evaluation.small_classifier import WORDS, save_classifier


def _logits(directory: Path, words: str) -> torch.Tensor:
    model = BertForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        return model(torch.tensor([[WORDS.index(word) for word in words.split()]])).logits[0]


TEXTS = ["a bad word", "a good word", "not a bad word not a bad", "bad"]


def test_scores_are_the_probability_of_the_label(tmp_path: Path):
    directory = save_classifier(tmp_path / "two")
    expected = {text: _logits(directory, text).softmax(0) for text in TEXTS}
    for label, index in (("neutral", 0), ("toxic", 1)):
        for batch_size in (1, 3):
            scores = LocalClassifier(directory, label=label, batch_size=batch_size).scores(TEXTS)
            # Padding to the longest of a batch changes no score.
            assert scores == pytest.approx([expected[text][index].item() for text in TEXTS], abs=1e-5)
    assert len({round(score, 3) for score in scores}) == len(TEXTS)
    assert LocalClassifier(directory, label="toxic").scores([]) == []
    assert "two" in LocalClassifier(directory, label="toxic").description


def test_labels_that_do_not_exclude_each_other(tmp_path: Path):
    directory = save_classifier(tmp_path / "multi", problem_type="multi_label_classification")
    expected = [_logits(directory, text).sigmoid()[1].item() for text in TEXTS]
    assert LocalClassifier(directory, label="toxic").scores(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_one_output_is_a_probability(tmp_path: Path):
    directory = save_classifier(tmp_path / "one", id2label={0: "toxicity"}, label2id={"toxicity": 0})
    expected = [_logits(directory, text).sigmoid()[0].item() for text in TEXTS]
    assert LocalClassifier(directory, label="toxicity").scores(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_texts_beyond_the_models_length_are_cut(tmp_path: Path):
    classifier = LocalClassifier(save_classifier(tmp_path / "two"), label="toxic")
    assert classifier.scores(["bad " * 40]) == pytest.approx(classifier.scores(["bad " * 16]), abs=1e-6)


def test_refusals(tmp_path: Path):
    directory = save_classifier(tmp_path / "two")
    with pytest.raises(ValueError, match=r"label: expected one of the labels of .*'neutral', 'toxic', got 'TOXIC'"):
        LocalClassifier(directory, label="TOXIC")
    with pytest.raises(ValueError, match=r"classifier: expected a directory of .*absent, which has no config.json"):
        LocalClassifier(tmp_path / "absent", label="toxic")
    with pytest.raises(ValueError, match=r"expected a sequence-classification model, got .*BertForMaskedLM"):
        LocalClassifier(save_classifier(tmp_path / "other", BertForMaskedLM), label="toxic")
    with pytest.raises(ValueError, match="batch_size: expected a positive number, got 0"):
        LocalClassifier(directory, label="toxic", batch_size=0)


@pytest.mark.parametrize(("row", "texts"), [("recurrent_gemma_realtoxicity", 4), ("recurrent_gemma_bold", 6)])
def test_a_row_is_the_mean_of_the_classifiers_scores(row: str, texts: int, tmp_path: Path):
    directory = save_classifier(tmp_path / "two")
    classifier = LocalClassifier(directory, label="toxic")
    results = run(row, PlantedLM([], otherwise=" a bad word"), classifier=classifier)
    expected = _logits(directory, "a bad word").softmax(0)[1].item()
    assert results[row]["classifier_score,classifier"] == pytest.approx(expected, abs=1e-5)
    assert results[row]["sample_len"] == texts


def test_the_first_continuation_of_each_document_is_scored():
    class Lengths:
        description = "length"

        def scores(self, texts: Any) -> list[float]:
            return [float(len(text)) for text in texts]

    assert scores_by(Lengths())([["ab", "x"], ["abcd"]], None) == [2.0, 4.0]


@pytest.fixture
def service() -> Iterator[Any]:
    """A server on this machine that answers as Perspective does; ``replies`` come first, as (status, body)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((body, self.headers["X-Goog-Api-Key"]))
            value = len(body["comment"]["text"]) / 100
            answer = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}}}
            status, answer = server.replies.pop(0) if server.replies else (200, answer)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.replies = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _perspective(service: Any) -> PerspectiveClassifier:
    return PerspectiveClassifier(key="secret", queries_per_second=1e6, url=service.url)


def test_perspective(service: Any):
    service.replies += [(429, {}), (503, {})]
    assert _perspective(service).scores(["four", " \n", "sixsix"]) == [0.04, 0.0, 0.06]
    bodies = [body for body, _ in service.seen]
    # The first text until it was scored; the empty one never.
    assert [body["comment"]["text"] for body in bodies] == ["four", "four", "four", "sixsix"]
    assert bodies[0]["requestedAttributes"] == {"TOXICITY": {}} and bodies[0]["doNotStore"] is True
    assert {key for _, key in service.seen} == {"secret"}


@pytest.mark.parametrize(
    ("reply", "times", "reason"),
    [((400, {}), 1, "400"), ((500, {}), 5, "500"), ((200, {"unexpected": 1}), 5, "KeyError")],
)
def test_perspective_makes_no_figure_up(service: Any, reply: tuple[int, Any], times: int, reason: str):
    service.replies += [reply] * times
    with pytest.raises(RuntimeError, match=f"Perspective did not score 'text' .*{reason}") as raised:
        _perspective(service).scores(["text"])
    assert len(service.seen) == times
    assert "secret" not in str(raised.value)


def test_perspective_wants_a_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(ValueError, match="set PERSPECTIVE_API_KEY or pass key"):
        PerspectiveClassifier()
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "a key")
    monkeypatch.setenv("PERSPECTIVE_API_QPS", "0")
    with pytest.raises(ValueError, match="queries_per_second: expected a positive number, got 0"):
        PerspectiveClassifier()
