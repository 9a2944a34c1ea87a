"""The language model's loss: without logits as with them, and of the same tokens however they are padded and packed."""

import pytest
import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.heads import causal_lm
from recurrent_gemma.modeling.heads.causal_lm import RecurrentGemmaLossOutput
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    assert_close,
    assert_close_by_max,
    backward_tolerance,
)

TOKENS = 3 * WINDOW + 2


def draw_ids(*shape):
    return torch.randint(3, 97, shape)


def loss_and_gradients(model, *arguments, **options):
    model.zero_grad()
    outputs = model(*arguments, **options)
    outputs.loss.backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal_gradients(actual, expected, tolerance=ROWS_EQUAL_SOLO_GRADIENTS):
    for name, gradient in expected.items():
        assert_close_by_max(actual[name], gradient, tolerance, name)


@pytest.mark.parametrize("name", ["shipped pattern", "no scale, no cap, biases"])
def test_loss_without_logits_is_the_loss_with_them(name):
    model, ids = tiny_model(tiny_config(**CONFIGS[name])).train(), draw_ids(2, TOKENS)
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    with_logits, expected = loss_and_gradients(model, ids, labels=labels)
    without, actual = loss_and_gradients(model, ids, labels=labels, skip_logits=True)
    assert isinstance(with_logits, CausalLMOutputWithPast) and isinstance(without, RecurrentGemmaLossOutput)
    assert without.loss.dtype == torch.float32
    assert_close(without.loss, with_logits.loss, ROWS_EQUAL_SOLO_LOGITS, "loss")
    assert_equal_gradients(actual, expected, backward_tolerance(torch.float32, TOKENS * 97))


def test_logits_are_left_out_only_where_a_trainer_asks_for_the_loss_alone():
    model, ids = tiny_model(), draw_ids(1, 9)
    for training, options, left_out in (
        (True, {"labels": ids, "num_items_in_batch": 8}, True),
        (True, {"shift_labels": ids, "num_items_in_batch": torch.tensor(8)}, True),
        (True, {"labels": ids}, False),
        (True, {}, False),
        (True, {"labels": ids, "num_items_in_batch": 8, "skip_logits": False}, False),
        (False, {"labels": ids, "num_items_in_batch": 8}, False),
        (False, {"labels": ids, "skip_logits": True}, True),
    ):
        outputs = model.train(training)(ids, **options)
        assert ("logits" not in outputs) == left_out
        assert hasattr(outputs, "logits") != left_out
    with pytest.raises(AttributeError, match=r"logits: not computed.*pass skip_logits=False"):
        outputs.logits  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'logit'"):
        outputs.logit  # noqa: B018
    # As accelerate rebuilds outputs in mixed precision, and as a tuple.
    rebuilt = convert_outputs_to_fp32(lambda: outputs)()
    assert isinstance(rebuilt, RecurrentGemmaLossOutput) and torch.equal(rebuilt["loss"], outputs.loss)
    assert torch.equal(model(ids, labels=ids, skip_logits=True, use_cache=False, return_dict=False)[0], outputs.loss)
    with pytest.raises(ValueError, match="skip_logits: expected labels"):
        model(ids, skip_logits=True)


def test_a_head_that_is_more_than_its_weight_is_called():
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, None

        def forward(self, x):
            return self.base(x) + x.sum(-1, keepdim=True).sin()

    model, ids = tiny_model().train(), draw_ids(2, 11)
    plain = model(ids, labels=ids, skip_logits=True).loss
    handle = model.lm_head.register_forward_hook(lambda module, args, output: output.sin())
    hooked = model(ids, labels=ids, skip_logits=True).loss
    assert torch.equal(hooked, model(ids, labels=ids).loss) and not torch.equal(hooked, plain)
    handle.remove()
    model.lm_head = Adapted(model.lm_head)
    adapted = model(ids, labels=ids, skip_logits=True).loss
    assert torch.equal(adapted, model(ids, labels=ids).loss)
    assert not torch.equal(adapted, plain)


def test_a_loss_of_the_callers_own_gets_logits_and_is_used():
    model, ids = tiny_model().train(), draw_ids(2, 11)
    seen = {}

    def own(logits, labels, shift_labels, **options):
        seen.update(options, shape=logits.shape, labels=labels, shifted=shift_labels)
        return logits.square().mean()

    model.loss_function = own
    outputs = model(ids, labels=ids, num_items_in_batch=7)
    assert torch.equal(outputs.loss, model(ids).logits.square().mean())
    assert seen["shape"] == (2, 11, 97) and seen["num_items_in_batch"] == 7 and seen["vocab_size"] == 97
    assert torch.equal(seen["labels"], ids) and torch.equal(seen["shifted"][:, :-1], ids[:, 1:])


@pytest.mark.parametrize("skip_logits", [False, True])
def test_pads_do_not_matter_to_the_loss(skip_logits):
    model, ids = tiny_model().train(), draw_ids(1, TOKENS)
    _, expected = solo = loss_and_gradients(model, ids, labels=ids, skip_logits=skip_logits)
    middle = torch.cat((torch.arange(5), torch.full((3,), -1), torch.arange(5, TOKENS)))
    for columns in (
        torch.cat((torch.full((4,), -1), torch.arange(TOKENS))),
        torch.cat((torch.arange(TOKENS), torch.full((4,), -1))),
        middle,
    ):
        valid = (columns >= 0)[None]
        padded = torch.where(valid, ids[:, columns.clamp(min=0)], 0)
        labels = padded.masked_fill(~valid, -100)
        outputs, gradients = loss_and_gradients(
            model, padded, attention_mask=valid.long(), labels=labels, skip_logits=skip_logits
        )
        assert_close(outputs.loss, solo[0].loss, ROWS_EQUAL_SOLO_LOGITS, f"{columns.tolist()}")
        assert_equal_gradients(gradients, expected)


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("boundaries", ["position_ids", "cu_seq_lens_q", "seq_idx"])
def test_labels_do_not_cross_from_document_to_document(boundaries, skip_logits):
    model, lengths = tiny_model().train(), (1, TOKENS, 2, 5, WINDOW + 1, 1)
    documents = [draw_ids(1, n) for n in lengths]
    total, gradients = 0.0, {}
    for document in documents:
        # A document of one token has no label that counts.
        outputs, parts = loss_and_gradients(
            model, document, labels=document, num_items_in_batch=1, skip_logits=skip_logits
        )
        total += outputs.loss.detach()
        gradients = {name: part + gradients.get(name, 0.0) for name, part in parts.items()}
    row = torch.cat(documents, dim=1)
    options = {
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0),
        "seq_idx": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None],
    }
    count = sum(lengths) - len(lengths)
    outputs, packed = loss_and_gradients(
        model, row, labels=row, skip_logits=skip_logits, **{boundaries: options[boundaries]}
    )
    assert_close(outputs.loss, total / count, ROWS_EQUAL_SOLO_LOGITS, "loss")
    assert_equal_gradients(packed, {name: part / count for name, part in gradients.items()})


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("boundaries", ["position_ids", "cu_seq_lens_q", "seq_idx"])
def test_labels_do_not_cross_where_a_document_begins_or_ends_with_pads(boundaries, side):
    model, lengths = tiny_model().train(), (4, 9, 1, 6)
    before, after = (side != "right") * 2, (side != "left") * 3
    documents = [draw_ids(1, n) for n in lengths]
    count = sum(lengths) - len(lengths)
    expected = sum(model(document, labels=document, num_items_in_batch=count).loss for document in documents)
    spans = [before + n + after for n in lengths]
    columns = [torch.nn.functional.pad(torch.arange(n), (before, after), value=-1) for n in lengths]
    row = torch.cat([torch.nn.functional.pad(document, (before, after), value=5) for document in documents], dim=1)
    options = {
        "position_ids": torch.cat(columns)[None].clamp(min=0),
        "cu_seq_lens_q": torch.tensor([0, *spans]).cumsum(0),
        "seq_idx": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(spans))[None],
    }
    # Labels of pads do not count either.
    mask = (torch.cat(columns)[None] >= 0).long()
    loss = model(row, labels=row, attention_mask=mask, **{boundaries: options[boundaries]}).loss
    assert_close(loss, expected, ROWS_EQUAL_SOLO_LOGITS, f"{boundaries} {side}")


def test_labels_that_are_counted_and_left_out_are_warned_of(caplog):
    model, ids = tiny_model().train(), draw_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    labels = ids.masked_fill(mask == 0, -100)
    causal_lm.log_uncounted.cache_clear()
    model(ids, labels=labels.masked_fill(torch.arange(9) == 3, -100), attention_mask=mask, num_items_in_batch=12)
    model(ids, labels=labels, attention_mask=mask)
    assert not caplog.records
    for _ in range(2):
        model(ids, labels=labels, attention_mask=mask, num_items_in_batch=13)
    assert [record.message[:60] for record in caplog.records] == [
        "labels: expected -100 at pads and at first tokens of document"[:60]
    ]


def test_labels_of_a_continuation_go_on_with_the_cache():
    model, ids = tiny_model(), draw_ids(2, TOKENS)
    positions = torch.cat((torch.arange(12), torch.arange(TOKENS - 12)))[
        None
    ]  # another document inside the second part
    whole = model(ids, labels=ids, position_ids=positions, num_items_in_batch=1).loss
    cache = RecurrentGemmaCache(model.config)
    # The label at the cut is that of the first part's last column.
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)[:, :8]
    first = model(
        ids[:, :8], shift_labels=shifted, position_ids=positions[:, :8], past_key_values=cache, num_items_in_batch=1
    )
    rest = model(
        ids[:, 8:], labels=ids[:, 8:], position_ids=positions[:, 8:], past_key_values=cache, num_items_in_batch=1
    )
    assert_close(first.loss + rest.loss, whole, 100 * ROWS_EQUAL_SOLO_LOGITS, "sum of losses of 44 tokens")


def test_parts_of_a_batch_add_up_to_it():
    model, ids = tiny_model().train(), draw_ids(4, TOKENS)
    labels = ids.masked_fill(torch.rand(ids.shape) < torch.tensor([0.0, 0.3, 0.9, 1.0])[:, None], -100)
    count = (labels[:, 1:] != -100).sum()
    whole, expected = loss_and_gradients(model, ids, labels=labels)
    model.zero_grad()
    total = 0.0
    for row, label in zip(ids, labels, strict=True):
        loss = model(row[None], labels=label[None], num_items_in_batch=count).loss
        loss.backward()
        total += loss.detach()
    assert_close(total, whole.loss, ROWS_EQUAL_SOLO_LOGITS, "loss")
    assert_equal_gradients({name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.parametrize("skip_logits", [False, True])
@pytest.mark.parametrize("num_items_in_batch", [None, 0, torch.tensor(0)])
def test_without_any_label_the_loss_is_zero_and_so_are_its_gradients(num_items_in_batch, skip_logits):
    model, ids = tiny_model().train(), draw_ids(2, 9)
    outputs, gradients = loss_and_gradients(
        model, ids, labels=torch.full_like(ids, -100), num_items_in_batch=num_items_in_batch, skip_logits=skip_logits
    )
    assert outputs.loss.item() == 0.0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients.values())


def test_bf16_loss_is_computed_in_fp32():
    model, ids = tiny_model().bfloat16().train(), draw_ids(2, TOKENS)
    with_logits, expected = loss_and_gradients(model, ids, labels=ids)
    without, actual = loss_and_gradients(model, ids, labels=ids, skip_logits=True)
    assert without.loss.dtype == with_logits.loss.dtype == torch.float32
    # The same bf16 products, each soft-capped and added up in fp32.
    assert_close(without.loss, with_logits.loss, ROWS_EQUAL_SOLO_LOGITS, "loss")
    assert_equal_gradients(actual, expected, backward_tolerance(torch.bfloat16, TOKENS))


def test_loss_without_logits_compiles_without_a_graph_break():
    model, ids = tiny_model().train(), draw_ids(2, TOKENS)
    _, expected = loss_and_gradients(model, ids, labels=ids, num_items_in_batch=7)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    compiled(ids, labels=ids, num_items_in_batch=7).loss.backward()
    assert_equal_gradients({name: p.grad for name, p in model.named_parameters()}, expected)
