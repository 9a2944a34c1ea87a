"""Windows in lanes hold every token and every label once, and read in order they equal their documents."""

import itertools

import pytest
import torch
from transformers import default_data_collator

from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.training import cut_into_windows
from recurrent_gemma.training.windows import expect_windows
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.support import require
from tests.training.routes import Results, assert_same_results, draw_documents, results_of, separately

LENGTHS = (30, 1, 2, 17, 44, 3, 25)
MAPS = {
    "shorter than the window": {"lanes": 2, "window_length": WINDOW - 2},
    "longer than the window": {"lanes": 2, "window_length": 2 * WINDOW + 3},
    "one lane, one token at a time": {"lanes": 1, "window_length": 1},
    "one window": {"lanes": 1, "window_length": sum(LENGTHS)},
    "whole documents": {"lanes": 3, "window_length": 8, "keep_documents": True},
    "cuts at ends of documents": {"lanes": 5, "window_length": 5},
}


def batches_of(rows, lanes):
    keep = ("input_ids", "position_ids", "shift_labels")
    rows = [{key: row[key] for key in keep} for row in rows]
    return [default_data_collator(rows[i : i + lanes]) for i in range(0, len(rows), lanes)]


def pieces_of(documents, lanes, window_length):
    """The documents, cut where a lane of equal length ends."""
    size = -(-sum(len(d["input_ids"]) for d in documents) // (lanes * window_length)) * window_length
    pieces, begin = [], 0
    for document in documents:
        end = begin + len(document["input_ids"])
        cuts = sorted({begin, end, *(c for c in range(0, end, size) if c > begin)})
        pieces += [{k: v[a - begin : b - begin] for k, v in document.items()} for a, b in itertools.pairwise(cuts)]
        begin = end
    return pieces


def in_windows(model, batches):
    """Results of windows one after the other with the gradient through the state."""
    cache = RecurrentGemmaCache(model.config)
    return results_of(model, [{**batch, "past_key_values": cache} for batch in batches])


@pytest.mark.parametrize(
    ("what", "name"),
    [*((what, "shipped pattern") for what in MAPS), ("shorter than the window", "wide recurrence, two key heads")],
)
def test_windows_one_after_the_other_equal_the_documents(what, name):
    model, documents, options = tiny_model(tiny_config(**CONFIGS[name])).train(), draw_documents(*LENGTHS), MAPS[what]
    documents = documents[:3] if options["window_length"] == 1 else documents  # 33 steps are enough
    batches = batches_of(cut_into_windows(documents, **options), options["lanes"])
    assert {batch["input_ids"].shape for batch in batches} == {(options["lanes"], options["window_length"])}
    lanes = (options["lanes"], options["window_length"])
    pieces = documents if options.get("keep_documents") else pieces_of(documents, *lanes)
    assert_same_results(in_windows(model, batches), results_of(model, separately(pieces)))


CUTS = [(0, 50), (0, 49, 50), (0, 1, 2, 50), (0, WINDOW, 3 * WINDOW, 50), (0, 3, 4, 20, 33, 50)]


@pytest.mark.parametrize(
    ("cuts", "starts"), [*((cuts, (3, 33, 34)) for cuts in CUTS), (CUTS[-1], ()), (CUTS[-1], (20,))]
)
def test_uneven_windows_give_the_loss_and_the_gradients_of_one(cuts, starts):
    model = tiny_model().train()
    ids = torch.randint(0, 97, (2, 50))
    positions = torch.arange(50).repeat(2, 1)
    for start in starts:  # in the first row only
        positions[0, start:] = torch.arange(50 - start)
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    labels[:, :-1][positions[:, 1:] == 0] = -100
    whole = {"input_ids": ids, "position_ids": positions, "shift_labels": labels}
    windows = [{key: value[:, a:b] for key, value in whole.items()} for a, b in itertools.pairwise(cuts)]
    assert_same_results(in_windows(model, windows), results_of(model, [whole]))


@pytest.mark.parametrize("window", [WINDOW - 2, 2 * WINDOW + 1])
def test_detach_cuts_the_gradient_and_nothing_else(window):
    model, documents = tiny_model().train(), draw_documents(30, 13)
    batches = batches_of(cut_into_windows(documents, lanes=1, window_length=window), 1)
    count = sum(int((batch["shift_labels"] != -100).sum()) for batch in batches)

    def truncated(run_before):
        """Gradients of each window, given the state that ``run_before`` makes of the windows before it."""
        model.zero_grad()
        loss, hits = torch.zeros(()), torch.zeros(())
        for index, batch in enumerate(batches):
            outputs = model(**batch, past_key_values=run_before(index), num_items_in_batch=count, skip_logits=False)
            outputs.loss.backward()
            loss += outputs.loss.detach()
            hits += ((outputs.logits.argmax(-1) == batch["shift_labels"]) & (batch["shift_labels"] != -100)).sum()
        return Results(loss, {n: p.grad.clone() for n, p in model.named_parameters()}, count, hits / count)

    def anew_without_gradient(index):
        cache = RecurrentGemmaCache(model.config)
        with torch.no_grad():
            for batch in batches[:index]:
                model(**batch, past_key_values=cache)
        return cache

    carried = RecurrentGemmaCache(model.config)
    actual = truncated(lambda index: carried.detach())
    assert_same_results(actual, truncated(anew_without_gradient))
    through = in_windows(model, batches)
    with pytest.raises(AssertionError, match=r"max\|difference\| / max\|expected\|"):  # losses agree, gradients do not
        assert_same_results(actual, through)


def test_without_the_state_the_numbers_are_others():
    model, documents = tiny_model().train(), draw_documents(60)
    batches = batches_of(cut_into_windows(documents, lanes=1, window_length=20), 1)
    expected = in_windows(model, batches)
    alone = [{**batch, "position_ids": torch.arange(20)[None]} for batch in batches]
    with pytest.raises(AssertionError, match="loss"):
        assert_same_results(results_of(model, alone), expected)


def test_windows_that_do_not_go_on_raise():
    model = tiny_model()
    first, second, third = batches_of(cut_into_windows(draw_documents(60), lanes=1, window_length=20), 1)
    cache = RecurrentGemmaCache(model.config)
    model(**first, past_key_values=cache)
    with pytest.raises(ValueError, match="position_ids"):
        model(**third, past_key_values=cache)
    model(**second, past_key_values=cache)


def test_what_the_map_makes():
    documents = [{"input_ids": [1, 2, 3, 4, 5, 6, 7]}, {"input_ids": [8, 9], "assistant_masks": [1, 0]}]
    rows = cut_into_windows(documents, lanes=2, window_length=3)
    assert [list(row.values()) for row in rows] == [
        [[1, 2, 3], [0, 1, 2], [2, 3, 4], 0, 0],
        [[7, 8, 9], [0, 0, 1], [-100, -100, -100], 0, 1],
        [[4, 5, 6], [3, 4, 5], [5, 6, -100], 1, 0],
        [[0, 0, 0], [0, 1, 2], [-100, -100, -100], 1, 1],
    ]
    assert list(rows[0]) == ["input_ids", "position_ids", "shift_labels", "window", "lane"]
    rows = cut_into_windows(documents, lanes=2, window_length=5, keep_documents=True, pad_token_id=10)
    assert [row["input_ids"] for row in rows] == [[1, 2, 3, 4, 5], [8, 9, 10, 10, 10], [6, 7, 10, 10, 10], [10] * 5]
    assert [row["shift_labels"][-1] for row in rows] == [6, -100, -100, -100]
    assert expect_windows(rows, "rows", 2) == 2


def test_a_dataset_becomes_a_dataset_with_the_rows_of_a_list():
    datasets = require("datasets")
    documents = draw_documents(*LENGTHS)
    rows = cut_into_windows(datasets.Dataset.from_list(documents), lanes=3, window_length=8)
    assert isinstance(rows, datasets.Dataset)
    assert rows.to_list() == cut_into_windows(documents, lanes=3, window_length=8)
    for kind in (rows, rows.with_format("torch")):
        assert expect_windows(kind, "train_dataset", 3) == len(rows) // 3
    with pytest.raises(ValueError, match="train_dataset: expected all rows in the order"):
        expect_windows(rows.shuffle(seed=0), "train_dataset", 3)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "lanes: expected at least 1, got 0", {"lanes": 0, "window_length": 4}),
        (TypeError, "window_length: expected an int, got str", {"lanes": 1, "window_length": "4"}),
        (ValueError, "lanes: expected text for each of the 4, got 10 tokens in 2 documents, which fill 2; take fewer",
         {"lanes": 4, "window_length": 5}),
        (ValueError, "which fill 2", {"lanes": 3, "window_length": 1, "keep_documents": True}),
        (ValueError, r"documents\[0\].input_ids: expected bos_token_id = 3", {"lanes": 1, "window_length": 4,
                                                                             "bos_token_id": 3}),
    ],
)  # fmt: skip
def test_options_that_are_refused(error, message, options):
    documents = [{"input_ids": [1, 2, 3, 4, 5]}, {"input_ids": [3, 4, 5, 6, 7]}]
    with pytest.raises(error, match=message):
        cut_into_windows(documents, **options)


def test_rows_that_are_no_windows_are_refused():
    rows = cut_into_windows(draw_documents(40), lanes=2, window_length=5)
    for wrong, message in (
        ([], "train_dataset: expected rows with 'window'"),
        ([{"input_ids": [1]}], "make them with cut_into_windows"),
        (rows[::-1], "expected all rows in the order"),
        (rows[:-1], "expected all rows in the order"),
        (rows[2:], "expected all rows in the order"),
        ([*rows, *rows], "expected all rows in the order"),
        (cut_into_windows(draw_documents(40), lanes=4, window_length=5), r"as the batch has rows \(2\), got 4; set"),
    ):
        with pytest.raises(ValueError, match=message):
            expect_windows(wrong, "train_dataset", 2)
    with pytest.raises(TypeError, match="train_dataset: expected a datasets"):
        expect_windows(iter(rows), "train_dataset", 2)
