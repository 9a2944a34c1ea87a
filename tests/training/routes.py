"""What losses, gradients and metrics of batches are compared with: every document read by itself."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.tolerances import ROWS_EQUAL_SOLO_GRADIENTS, ROWS_EQUAL_SOLO_LOGITS, assert_close, assert_close_by_max

VOCABULARY = 97  # of ``tests.modeling.models.tiny_config()``


class Results(NamedTuple):
    """What training and evaluation get from a set of labels."""

    loss: Tensor  # mean over labels
    gradients: dict[str, Tensor]
    labels: int  # how many
    accuracy: Tensor  # share of labels that are the likeliest token


def draw_documents(*lengths: int) -> list[dict[str, Any]]:
    """Documents of random ids (global generator), some of whose tokens are not to be learned, as tokenizers give."""
    documents = []
    for length in lengths:
        ids = torch.randint(0, VOCABULARY, (length,))
        documents.append({"input_ids": ids.tolist(), "labels": ids.where(torch.rand(length) < 0.8, -100).tolist()})
    return documents


def results_of(model: torch.nn.Module, batches: Iterable[Mapping[str, Any]]) -> Results:
    """Loss, gradients and accuracy over all labels of the batches; ``model`` is left without gradients."""
    batches = list(batches)
    shifted = [shifted_labels(batch) for batch in batches]
    count = sum(int((labels != -100).sum()) for labels in shifted)
    model.zero_grad()
    loss, hits = torch.zeros(()), torch.zeros(())
    for batch, labels in zip(batches, shifted, strict=True):
        outputs = model(**batch, num_items_in_batch=count, skip_logits=False)
        loss = loss + outputs.loss
        hits += ((outputs.logits.argmax(-1) == labels) & (labels != -100)).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Results(loss.detach(), gradients, count, hits / count)


def shifted_labels(batch: Mapping[str, Any]) -> Tensor:
    """(B, L) the label of the token after each column."""
    if "shift_labels" in batch:
        return batch["shift_labels"]
    return torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)


def separately(documents: Iterable[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """A batch of one row for each document, without positions, masks or boundaries."""
    return [
        {key: torch.tensor([list(document.get(key, document["input_ids"]))]) for key in ("input_ids", "labels")}
        for document in documents
    ]


def assert_same_results(actual: Results, expected: Results) -> None:
    """Assert that two routes agree on everything there is to learn and to report."""
    assert actual.labels == expected.labels
    assert_close(actual.loss, expected.loss, ROWS_EQUAL_SOLO_LOGITS, "loss")
    assert actual.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert_close_by_max(actual.gradients[name], gradient, ROWS_EQUAL_SOLO_GRADIENTS, name)
    assert torch.equal(actual.accuracy, expected.accuracy)
