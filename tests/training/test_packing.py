"""Packed rows train and score as their documents do by themselves, whoever packed them."""

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithFlattening

from recurrent_gemma.training import PackingCollator, pack_documents
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.support import require
from tests.tolerances import ROWS_EQUAL_SOLO_LOGITS, assert_close, max_difference
from tests.training.routes import assert_same_results, draw_documents, results_of, separately

# One token alone, fewer than the convolution's taps, beyond one and three windows of attention.
LENGTHS = (1, 2, 3, 5, WINDOW + 1, 1, 3 * WINDOW + 2, 4, 12)


def build(name="shipped pattern"):
    return tiny_model(tiny_config(**CONFIGS[name])).train()


@pytest.mark.parametrize("name", ["shipped pattern", "wide recurrence, two key heads", "no scale, no cap, biases"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_with_pads_equal_separate_documents(name, side):
    model, documents = build(name), draw_documents(*LENGTHS)
    rows = pack_documents(documents, max_length=28)
    assert len({len(row["input_ids"]) for row in rows}) > 1  # so that there are pads
    batch = PackingCollator(padding_side=side, pad_token_id=5)(rows)
    assert batch["attention_mask"].sum() == sum(LENGTHS)
    assert_same_results(results_of(model, [batch]), results_of(model, separately(documents)))


@pytest.mark.parametrize(
    "options", [{}, {"pad_to_multiple_of": 32}, {"pad_to_multiple_of": 32, "padding_side": "left"}]
)
@pytest.mark.parametrize("lengths", [False, True])
def test_documents_joined_by_the_collator_equal_separate_documents(options, lengths):
    model, documents = build(), draw_documents(*LENGTHS)
    batch = PackingCollator(**options, return_flash_attn_kwargs=lengths)(documents)
    assert batch["input_ids"].shape == (1, 64 if options else sum(LENGTHS))
    assert ("attention_mask" in batch) == bool(options) and ("cu_seq_lens_q" in batch) == lengths
    expected = results_of(model, separately(documents))
    assert_same_results(results_of(model, [batch]), expected)
    rows = pack_documents(documents, max_length=28)
    joined = PackingCollator(**options, return_flash_attn_kwargs=lengths, padding_free=True)(rows)
    assert joined["input_ids"].shape == batch["input_ids"].shape
    assert_same_results(results_of(model, [joined]), expected)
    apart = PackingCollator(**options, padding_free=False)(documents)
    assert apart["input_ids"].shape[0] == len(documents)
    assert_same_results(results_of(model, [apart]), expected)


def test_each_token_after_a_boundary_has_the_logits_of_its_document_alone():
    model, documents = build().eval(), draw_documents(*LENGTHS)
    (row,) = pack_documents(documents, max_length=sum(LENGTHS))
    with torch.no_grad():
        packed = model(**PackingCollator()([row])).logits[0]
        solo = torch.cat([model(**batch).logits[0] for batch in separately(documents)])
    starts = torch.tensor(row["position_ids"]) == 0
    taps = model.config.conv1d_width
    for offset in range(taps):  # the first ones see a history that is not there
        columns = [
            i + offset for i in starts.nonzero().flatten().tolist() if row["position_ids"][i:][offset:][:1] == [offset]
        ]
        assert_close(packed[columns], solo[columns], ROWS_EQUAL_SOLO_LOGITS, f"token {offset}")
    assert_close(packed, solo, ROWS_EQUAL_SOLO_LOGITS, "all")


def test_without_positions_the_numbers_are_others():
    model, documents = build(), draw_documents(*LENGTHS)
    batch = PackingCollator()(documents)
    expected = results_of(model, separately(documents))
    del batch["position_ids"]
    actual = results_of(model, [batch])
    assert max_difference(actual.loss, expected.loss) > 100 * ROWS_EQUAL_SOLO_LOGITS
    with pytest.raises(AssertionError):
        assert_same_results(actual, expected)


def test_labels_do_not_cross_a_boundary():
    documents = [{"input_ids": [1, 2, 3]}, {"input_ids": [4]}, {"input_ids": [5, 6]}]
    expected = [-100, 2, 3, -100, -100, 6]
    (row,) = pack_documents(documents, max_length=6)
    assert row == {"input_ids": [1, 2, 3, 4, 5, 6], "labels": expected, "position_ids": [0, 1, 2, 0, 0, 1]}
    for features in (documents, [row], [{**row, "labels": row["input_ids"]}], [{**row, "labels": None}]):
        assert PackingCollator()(features)["labels"].tolist() == [expected]


@pytest.mark.parametrize("options", [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}])
@pytest.mark.parametrize("from_tensors", [False, True])
def test_transformers_own_collator_gives_the_same_numbers(options, from_tensors):
    model, documents = build(), draw_documents(*LENGTHS)
    if from_tensors:
        documents = [{key: torch.tensor(values) for key, values in document.items()} for document in documents]
    batch = DataCollatorWithFlattening(**options)(documents)
    expected = results_of(model, separately(documents))
    assert_same_results(results_of(model, [batch]), expected)
    ours = PackingCollator(return_flash_attn_kwargs="return_flash_attn_kwargs" in options)(documents)
    assert ours.keys() | {"seq_idx"} == batch.keys() | {"seq_idx"}
    for key in ours:
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(batch[key]))
        assert type(ours[key]) is type(batch[key]) and getattr(ours[key], "dtype", 0) == getattr(batch[key], "dtype", 0)


@pytest.mark.parametrize("strategy", [None, "bfd", "bfd_split"])
def test_what_trl_packs_gives_the_same_numbers(strategy):
    trl, datasets = require("trl"), require("datasets")
    collator = require("trl.trainer.sft_trainer").DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    model, documents = build(), draw_documents(*LENGTHS)
    pieces = documents
    if strategy is None:
        rows = documents
    else:
        rows = list(trl.pack_dataset(datasets.Dataset.from_list(documents), seq_length=12, strategy=strategy))
        ends = range(0, max(LENGTHS), 12) if strategy == "bfd_split" else (0,)
        pieces = [{k: v[i : i + 12] for k, v in d.items()} for d in documents for i in ends if d["input_ids"][i:]]
    batch = dict(collator(rows))
    assert {"position_ids", "cu_seq_lens_q", "seq_idx"} <= batch.keys()
    expected = results_of(model, separately(pieces))
    assert_same_results(results_of(model, [batch]), expected)
    assert_same_results(results_of(model, [PackingCollator()(pack_documents(pieces, max_length=24))]), expected)
    if strategy is not None:
        assert len(pack_documents(pieces, max_length=12)) == len(rows)


def test_positions_that_contradict_the_lengths_raise():
    model = build()
    batch = PackingCollator(return_flash_attn_kwargs=True)(draw_documents(3, 4))
    for wrong in ({"position_ids": torch.arange(7)[None]}, {"cu_seq_lens_q": torch.tensor([0, 4, 7])}):
        with pytest.raises(ValueError, match="cu_seq_lens"):
            model(**{**batch, **wrong})


def test_rows_are_the_same_every_time_whole_and_as_full_as_they_get():
    documents = draw_documents(*torch.randint(1, 40, (300,)).tolist())
    rows = pack_documents(documents, max_length=40)
    assert rows == pack_documents(tuple(documents), max_length=40)
    found = []
    for row in rows:
        assert len(row["input_ids"]) <= 40
        starts = np.flatnonzero(np.array(row["position_ids"]) == 0)
        found += [part.tolist() for part in np.split(np.array(row["input_ids"]), starts[1:])]
    assert sorted(found) == sorted(document["input_ids"] for document in documents)
    filled: list[int] = []  # by the definition: the longest first, each to the fullest row with room for it
    for length in sorted(map(len, found), reverse=True):
        fitting = [i for i in range(len(filled)) if filled[i] + length <= 40]
        if fitting:
            filled[max(fitting, key=filled.__getitem__)] += length
        else:
            filled.append(length)
    assert sorted(filled) == sorted(len(row["input_ids"]) for row in rows)
    assert len(pack_documents(documents, max_length=40, group_size=10)) > len(rows)


def test_documents_longer_than_a_row():
    documents = [{"input_ids": list(range(1, 12)), "labels": [9] * 11}, {"input_ids": [1, 2]}]
    with pytest.raises(ValueError, match=r'documents\[0\].input_ids: expected at most max_length = 5 .* 11;.*"split"'):
        pack_documents(documents, max_length=5)
    first, *_ = pack_documents(documents, max_length=5, overlong="truncate")
    assert first == {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 9, 9, 9, 9], "position_ids": [0, 1, 2, 3, 4]}
    rows = pack_documents(documents, max_length=6, overlong="split")
    assert [row["input_ids"] for row in rows] == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11], [1, 2]]
    assert rows[1]["labels"] == [-100, 9, 9, 9, 9] and rows[1]["position_ids"] == [0, 1, 2, 3, 4]


def test_masks_become_labels_and_pads_are_taken_out():
    document = {"input_ids": [0, 0, 7, 8, 9, 3], "attention_mask": [0, 0, 1, 1, 1, 1]}
    for mask in ({"assistant_masks": [0, 0, 1, 0, 1, 1]}, {"completion_mask": [False, False, True, False, True, True]}):
        (row,) = pack_documents([{**document, **mask}], max_length=9)
        assert row == {"input_ids": [7, 8, 9, 3], "labels": [-100, -100, 9, 3], "position_ids": [0, 1, 2, 3]}
        labels = [-100] * 5 + [3]
        (row,) = pack_documents([{**document, **mask, "labels": labels}], max_length=9)
        assert row["labels"] == [-100, -100, -100, 3]
        assert PackingCollator()([{**document, **mask}])["labels"].tolist() == [[-100, -100, 9, 3]]
    assert document["input_ids"] == [0, 0, 7, 8, 9, 3]
    padded = {"input_ids": [4, 5, 0], "position_ids": [0, 0, 0], "attention_mask": [1, 1, 0]}
    assert PackingCollator()([padded])["input_ids"].tolist() == [[4, 5]]


@pytest.mark.parametrize("format_", [None, "torch"])
def test_a_dataset_becomes_a_dataset_with_the_rows_of_a_list(format_, tmp_path):
    datasets = require("datasets")
    documents = draw_documents(*LENGTHS)
    dataset = datasets.Dataset.from_list([{**document, "text": "left out"} for document in documents])
    packed = pack_documents(dataset.with_format(format_), max_length=28, group_size=5, load_from_cache_file=False)
    assert isinstance(packed, datasets.Dataset)
    assert packed.with_format(None).to_list() == pack_documents(documents, max_length=28, group_size=5)
    with pytest.raises(ValueError, match=r"documents\[6\]"):
        pack_documents(dataset, max_length=20, group_size=5)
    with pytest.raises(TypeError, match="DatasetDict"):
        pack_documents(datasets.DatasetDict(train=dataset), max_length=28)


IDS = [1, 2, 3]
REFUSED = {
    "no tokens": (ValueError, r"documents\[1\].input_ids: expected at least one token", {"input_ids": []}),
    "pads alone": (ValueError, "pads alone", {"input_ids": IDS, "attention_mask": [0, 0, 0]}),
    "no ids": (ValueError, r"expected input_ids, got \['text'\]", {"text": "untokenized"}),
    "no dict": (TypeError, "expected a dict with input_ids, got list", IDS),
    "text as ids": (TypeError, "expected integers", {"input_ids": "abc"}),
    "floats": (TypeError, "expected integers, got float64", {"input_ids": [1.0, 2.0]}),
    "none inside": (TypeError, "expected integers", {"input_ids": [1, None]}),
    "a number": (TypeError, "expected a list of integers", {"input_ids": 3}),
    "lists in a list": (ValueError, "expected one document, a flat list", {"input_ids": [[1, 2], [3, 4]]}),
    "ragged lists": (TypeError, "expected a list of integers", {"input_ids": [[1, 2], [3]]}),
    "negative ids": (ValueError, "expected ids from 0 on, got -100", {"input_ids": [1, -100]}),
    "fewer labels": (ValueError, r"labels: expected as many values as input_ids \(3\), got 2",
                     {"input_ids": IDS, "labels": [1, 2]}),
    "other labels": (ValueError, "labels: expected ids, or -100 .* got -1", {"input_ids": IDS, "labels": [1, -1, 2]}),
    "other mask": (ValueError, "attention_mask: expected 0 or 1, got 2",
                   {"input_ids": IDS, "attention_mask": [1, 2, 1]}),
    "short mask": (ValueError, "assistant_masks: expected as many", {"input_ids": IDS, "assistant_masks": [1]}),
    "TRL's rows": (ValueError, "seq_lengths: expected documents that are not packed", {"input_ids": IDS,
                                                                                      "seq_lengths": [1, 2]}),
    "second BOS": (ValueError, "bos_token_id = 2 where a document begins only, got it at place 1", {"input_ids": IDS}),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_documents_that_are_refused(what):
    error, message, document = REFUSED[what]
    with pytest.raises(error, match=message):
        pack_documents([{"input_ids": [1]}, document], max_length=8, bos_token_id=2)
    if isinstance(document, dict):
        with pytest.raises(error, match=message.replace("documents", "(documents|features)")):
            PackingCollator(bos_token_id=2)([{"input_ids": [1]}, document])


REFUSED_ROWS = {
    "packed and not": ("expected packed rows, or documents, and no mixture, got position_ids in 1 of 2 examples",
                       [{"input_ids": IDS, "position_ids": [0, 1, 2]}, {"input_ids": IDS}]),
    "nothing": ("got position_ids in 0 of 0", []),
    "positions of other length": (r"position_ids: expected as many values as input_ids \(3\), got 2",
                                  [{"input_ids": IDS, "position_ids": [0, 1]}]),
    "positions that jump": ("position_ids: .* got 2 at 1", [{"input_ids": IDS, "position_ids": [0, 2, 3]}]),
    "positions that go on": ("position_ids: .* got 5 at 0", [{"input_ids": IDS, "position_ids": [5, 6, 7]}]),
    "second BOS": ("bos_token_id = 3 where a document begins", [{"input_ids": IDS, "position_ids": [0, 0, 1]}]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED_ROWS)
def test_rows_that_are_refused(what):
    message, features = REFUSED_ROWS[what]
    with pytest.raises(ValueError, match=message):
        PackingCollator(bos_token_id=3)(features)


def test_packed_rows_are_not_packed_again():
    with pytest.raises(ValueError, match=r"position_ids: expected documents that are not packed"):
        pack_documents(pack_documents([{"input_ids": IDS}], max_length=4), max_length=8)


def test_lengths_of_several_rows_are_refused():
    rows = [{"input_ids": IDS, "position_ids": [0, 1, 2]}] * 2
    with pytest.raises(ValueError, match="expected a batch of one row, got 2; set padding_free=True"):
        PackingCollator(return_flash_attn_kwargs=True)(rows)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "max_length: expected at least 1, got 0", {"max_length": 0}),
        (TypeError, "max_length: expected an int, got float", {"max_length": 8.0}),
        (TypeError, "max_length: expected an int, got bool", {"max_length": True}),
        (ValueError, "group_size: expected at least 1, got 0", {"max_length": 8, "group_size": 0}),
        (ValueError, "overlong: expected one of .* got 'wrap'", {"max_length": 8, "overlong": "wrap"}),
        (TypeError, r"expected \['num_proc'\] with a datasets.Dataset only", {"max_length": 8, "num_proc": 2}),
    ],
)
def test_options_of_the_map_that_are_refused(error, message, options):
    with pytest.raises(error, match=message):
        pack_documents([{"input_ids": IDS}], **options)


def test_other_options_that_are_refused():
    with pytest.raises(TypeError, match=r"documents: expected a datasets\.Dataset"):
        pack_documents({"input_ids": [IDS]}, max_length=8)
    with pytest.raises(ValueError, match="padding_side"):
        PackingCollator(padding_side="middle")
    with pytest.raises(ValueError, match="pad_to_multiple_of: expected at least 1"):
        PackingCollator(pad_to_multiple_of=0)
