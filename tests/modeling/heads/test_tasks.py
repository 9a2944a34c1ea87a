"""Heads for classification and question answering: pads never matter, losses are the definitions', Auto classes."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

import recurrent_gemma
from recurrent_gemma.modeling import (
    RecurrentGemmaCache,
    RecurrentGemmaForQuestionAnswering,
    RecurrentGemmaForSequenceClassification,
    RecurrentGemmaForTokenClassification,
)
from tests.modeling.models import WINDOW, make_nondegenerate, tiny_config, tiny_model
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    assert_close_by_max,
)

HEADS = {
    "sequence": (RecurrentGemmaForSequenceClassification, AutoModelForSequenceClassification),
    "token": (RecurrentGemmaForTokenClassification, AutoModelForTokenClassification),
    "question": (RecurrentGemmaForQuestionAnswering, AutoModelForQuestionAnswering),
}
LENGTHS = (1, 4, 2 * WINDOW + 3)
PAD = 0  # the config's


def build(task, **fields):
    model = HEADS[task][0](tiny_config(num_labels=3, **fields))
    make_nondegenerate(model)
    return model.eval()


def draw_rows():
    return [torch.randint(3, 97, (n,)) for n in LENGTHS]


def pad(rows, side, ids_of_pads=PAD):
    """Ids and mask (B, L) of rows with pads left, right or both."""
    width = max(map(len, rows)) + 3
    ids, mask = torch.full((len(rows), width), ids_of_pads), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        begin = {"left": width - len(row), "right": 0, "both": 2}[side]
        ids[index, begin : begin + len(row)], mask[index, begin : begin + len(row)] = row, 1
    return ids, mask


def targets(task, mask, rows):
    """Labels of a padded batch, as keyword arguments, and of each row alone."""
    first = mask.argmax(dim=1)
    if task == "sequence":
        labels = torch.arange(len(rows)) % 3
        return {"labels": labels}, [{"labels": label[None]} for label in labels]
    if task == "token":
        labels = torch.full(mask.shape, 1)  # those of pads do not count
        alone = [torch.randint(0, 3, (1, len(row))) for row in rows]
        for index, row in enumerate(rows):
            labels[index, first[index] : first[index] + len(row)] = alone[index][0]
        return {"labels": labels}, [{"labels": label} for label in alone]
    ends = torch.tensor([len(row) - 1 for row in rows])
    batch = {"start_positions": first + ends // 2, "end_positions": first + ends}
    alone = [{"start_positions": (e // 2)[None], "end_positions": e[None]} for e in ends]
    return batch, alone


def values(outputs, mask=None):
    """What a head gives for tokens, a row for each sequence."""
    if "start_logits" in outputs:
        logits = torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)
    else:
        logits = outputs.logits
    return (
        list(logits) if mask is None or logits.ndim == 2 else [row[m != 0] for row, m in zip(logits, mask, strict=True)]
    )


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("task", HEADS)
def test_pads_never_matter(task, side):
    model, rows = build(task), draw_rows()
    ids, mask = pad(rows, side)
    batch, alone = targets(task, mask, rows)
    model.zero_grad()
    total, weights = 0.0, [len(row) / sum(LENGTHS) if task == "token" else 1 / len(rows) for row in rows]
    solo = []
    for row, target, weight in zip(rows, alone, weights, strict=True):
        outputs = model(row[None], **target)
        (outputs.loss * weight).backward()
        total += outputs.loss.detach() * weight
        solo.append(values(outputs)[0])
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    for options in ({"attention_mask": mask}, {}):  # without a mask, ids of pads show what is one
        model.zero_grad()
        outputs = model(ids, **options, **batch)
        outputs.loss.backward()
        for actual, wanted in zip(values(outputs, mask), solo, strict=True):
            assert_close(actual, wanted, ROWS_EQUAL_SOLO_LOGITS, f"{task} {side}")
        assert_close(outputs.loss, total, ROWS_EQUAL_SOLO_LOGITS, "loss")
        for name, parameter in model.named_parameters():
            if name == "qa_outputs.bias":
                continue  # shifts all scores alike, so that its gradient is 0 but for roundings
            assert_close_by_max(parameter.grad, expected[name], ROWS_EQUAL_SOLO_GRADIENTS, name)
    # A mask says it all: pads may have any id, and tokens that of pads.
    other, _ = pad(rows, side, ids_of_pads=5)
    for actual, wanted in zip(values(model(other, attention_mask=mask), mask), solo, strict=True):
        assert_close(actual, wanted, ROWS_EQUAL_SOLO_LOGITS, f"{task} {side}")


@pytest.mark.parametrize("task", HEADS)
def test_without_pad_id_every_column_is_a_token(task):
    model, ids = build(task, pad_token_id=None), torch.zeros(2, 5, dtype=torch.long)
    expected = values(model(ids, attention_mask=torch.ones_like(ids)))
    embeds = model.model.embed_tokens(ids)
    for actual in (values(model(ids)), values(model(inputs_embeds=embeds))):
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_scores_of_pads_are_out_of_reach():
    model, rows = build("question"), draw_rows()
    ids, mask = pad(rows, "both")
    outputs = model(ids, attention_mask=mask)
    for logits in (outputs.start_logits, outputs.end_logits):
        assert torch.all(logits.softmax(-1)[mask == 0] == 0)
        assert torch.all(mask.gather(1, logits.argmax(-1, keepdim=True)) == 1)


@pytest.mark.parametrize("task", ["sequence", "token"])
def test_a_sequence_in_pieces_is_classified_as_in_one(task):
    model, ids = build(task), torch.randint(3, 97, (2, 20))
    ids[0, 8:11] = PAD
    expected = values(model(ids))
    for options in (lambda end: {}, lambda end: {"attention_mask": (ids[:, :end] != PAD).long()}):
        cache, pieces = RecurrentGemmaCache(model.config), []
        for begin, end in ((0, 9), (9, 10), (10, 20)):
            if task == "sequence" and end == 10:
                continue
            begin = 9 if task == "sequence" and end == 20 else begin
            pieces.append(torch.stack(values(model(ids[:, begin:end], past_key_values=cache, **options(end)))))
        actual = pieces[-1] if task == "sequence" else torch.cat(pieces, dim=1)
        valid = torch.ones(2, dtype=torch.bool) if task == "sequence" else ids != PAD
        assert_close(actual[valid], torch.stack(expected)[valid], SPLIT_EQUALS_WHOLE_LOGITS, task)


@pytest.mark.parametrize(
    ("fields", "labels", "definition"),
    [
        ({"num_labels": 1}, torch.randn(4), lambda z, y: F.mse_loss(z.squeeze(1), y)),
        ({"num_labels": 3, "problem_type": "regression"}, torch.randn(4, 3), F.mse_loss),
        ({"num_labels": 3}, torch.tensor([0, 2, 1, 1]), F.cross_entropy),
        ({"num_labels": 3}, torch.rand(4, 3).round(), F.binary_cross_entropy_with_logits),
    ],
    ids=["regression", "regressions", "one of three", "several of three"],
)
def test_losses_of_sequences_and_their_parts(fields, labels, definition):
    model = RecurrentGemmaForSequenceClassification(tiny_config(**fields)).eval()
    ids = torch.randint(3, 97, (4, 9))
    outputs = model(ids, labels=labels)
    assert torch.equal(outputs.loss, definition(outputs.logits, labels))
    # As Trainer accumulates gradients over micro-batches of different sizes.
    parts = [model(ids[rows], labels=labels[rows], num_items_in_batch=labels.numel()).loss for rows in ([0], [1, 2, 3])]
    assert_close(sum(parts), outputs.loss, ROWS_EQUAL_SOLO_LOGITS, "parts")


@pytest.mark.parametrize("task", HEADS)
def test_auto_classes_load_what_was_saved_and_what_a_language_model_left(task, tmp_path):
    model_class, auto_class = HEADS[task]
    model = build(task)
    model.save_pretrained(tmp_path / "task")
    loaded = auto_class.from_pretrained(tmp_path / "task")
    assert type(loaded) is model_class
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )

    language_model = tiny_model()
    language_model.save_pretrained(tmp_path / "language")
    started = auto_class.from_pretrained(tmp_path / "language", num_labels=5)
    assert type(started) is model_class
    for name, parameter in language_model.model.named_parameters():
        assert torch.equal(started.model.get_parameter(name), parameter)
    # And back: a backbone that was trained for a task goes on as a language model with tied embeddings.
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "language")
    assert torch.equal(back.lm_head.weight, language_model.lm_head.weight)


def test_pipelines_run_on_the_heads(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(recurrent_gemma.demo_path())
    for task, name in (("sequence", "text-classification"), ("token", "token-classification")):
        model = HEADS[task][1].from_pretrained(recurrent_gemma.demo_path(), num_labels=3, dtype=torch.float32)
        run = pipeline(name, model=model, tokenizer=tokenizer)
        texts = ["In the beginning God created", "And"]
        together, alone = run(texts, batch_size=2), [run(text) for text in texts]
        for batch, single in zip(together, alone, strict=True):
            batch, single = (x if isinstance(x, list) else [x] for x in (batch, single))
            assert len(batch) == len(single) > 0
            for a, b in zip(batch, single, strict=True):
                assert abs(a["score"] - b["score"]) < ROWS_EQUAL_SOLO_LOGITS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", HEADS)
def test_without_any_label_the_loss_is_zero_and_always_fp32(task, dtype):
    model, ids = build(task).to(dtype), torch.randint(3, 97, (2, 5))
    none, some = {
        "sequence": ({"labels": torch.full((2,), -100)}, {"labels": torch.tensor([0, 2])}),
        "token": ({"labels": torch.full((2, 5), -100)}, {"labels": torch.ones(2, 5).long()}),
        "question": (
            {"start_positions": torch.tensor([-1, 5]), "end_positions": torch.tensor([9, -3])},
            {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([[4], [2]])},
        ),
    }[task]
    for options in ({}, {"num_items_in_batch": 0}, {"num_items_in_batch": torch.tensor(3)}):
        model.zero_grad()
        loss = model(ids, **none, **options).loss
        loss.backward()
        assert loss.item() == 0.0 and loss.dtype == torch.float32
        assert all(torch.all(p.grad == 0) for p in model.parameters() if p.grad is not None)
    loss = model(ids, **some).loss
    assert loss.dtype == torch.float32 and loss > 0
    # A mean over labels, as a part of one over more of them.
    count = 10 if task == "token" else 2
    assert_close(model(ids, **some, num_items_in_batch=2 * count).loss, loss / 2, ROWS_EQUAL_SOLO_LOGITS, "loss")


@pytest.mark.parametrize(
    ("task", "fields", "labels", "error", "message"),
    [
        ("sequence", {}, torch.zeros(3).long(), ValueError, r"labels: expected shape \(2,\), got \(3,\)"),
        (
            "sequence",
            {},
            torch.tensor([0, 3]),
            ValueError,
            r"labels: expected 0 to 2 \(num_labels - 1\).*got 3 at \(1,\)",
        ),
        ("sequence", {"problem_type": "regression"}, torch.zeros(2), ValueError, r"expected shape \(2, 3\) for"),
        ("sequence", {"problem_type": "regression"}, torch.zeros(2, 3).long(), TypeError, "labels: expected floats"),
        ("sequence", {"problem_type": "single_label_classification"}, torch.zeros(2), TypeError, "expected integers"),
        ("token", {}, torch.zeros(2, 4).long(), ValueError, r"labels: expected shape \(2, 5\), got \(2, 4\)"),
        ("token", {}, torch.full((2, 5), 7), ValueError, r"labels: expected 0 to 2.*got 7 at \(0, 0\)"),
    ],
)
def test_labels_that_do_not_fit_are_named_before_the_model_runs(task, fields, labels, error, message):
    model = build(task, **fields)
    cache = RecurrentGemmaCache(model.config)
    with pytest.raises(error, match=message):
        model(torch.randint(3, 97, (2, 5)), labels=labels, past_key_values=cache)
    assert cache.get_seq_length() == 0


def test_an_answer_cannot_be_a_pad():
    ids, mask = pad(draw_rows(), "left")
    at_pads = torch.zeros(len(LENGTHS)).long()
    with pytest.raises(ValueError, match=r"start_positions: expected columns of tokens, not of pads, got 0 at \(0,\)"):
        build("question")(ids, attention_mask=mask, start_positions=at_pads, end_positions=at_pads)


def test_wrong_input_is_named():
    ids = torch.randint(3, 97, (2, 5))
    mask = torch.ones_like(ids)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"attention_mask: expected a token in every row, got 0 at \(1,\)"):
        build("sequence")(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="expected both or neither, got start_positions alone"):
        build("question")(ids, start_positions=torch.zeros(2).long())
    with pytest.raises(TypeError, match="forward: expected arguments that RecurrentGemma knows"):
        build("sequence")(ids, unknown=1)


@pytest.mark.parametrize("task", HEADS)
def test_a_loss_function_of_ones_own_gets_logits_and_labels(task):
    model = build(task)
    ids, mask = pad(draw_rows(), "right")
    labels, _ = targets(task, mask, draw_rows())
    seen = []
    model.loss_function = lambda *given, **named: seen.append((given, named)) or torch.tensor(7.0)
    output = model(ids, attention_mask=mask, **labels)
    assert output.loss == 7.0 and len(seen) == 1
    ((given, named),) = seen
    tensors = [value for value in (*given, *named.values()) if isinstance(value, torch.Tensor)]
    logits = [output.start_logits, output.end_logits] if task == "question" else [output.logits]
    if task == "token":
        labels["labels"] = labels["labels"].masked_fill(mask == 0, -100)
    for expected in (*logits, *labels.values()):
        assert any(tensor.shape == expected.shape and torch.equal(tensor, expected) for tensor in tensors)
