"""The floor counts the model's matrix products: all of them, and no more."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import MatrixProducts, WeightRead
from benchmarks.models import SIZES, build_ours, random_ids
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.ops.local_attention.reference import visible_keys

SIZE = SIZES["tiny"]


def _model(**fields) -> RecurrentGemmaForCausalLM:
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**SIZE.config_fields(window=16) | fields)).eval()


def _counted(work) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("logits", [1, 50])
def test_a_recurrent_models_forward_has_exactly_these_products(logits: int):
    model = _model(block_types=["recurrent"], lru_width=48)
    ids = random_ids(SIZE, 50)
    forward = _counted(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=logits))
    assert MatrixProducts(model, 50, logits).flops == forward


@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize("length", [1, 16, 17, 300])
def test_attention_multiplies_inside_the_window_only(length: int, key_heads: int):
    model = _model(block_types=["attention"], num_hidden_layers=1, num_key_value_heads=key_heads)
    products = MatrixProducts(model, length, logits=length)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    attention = products.flops - sum(2 * length * linear.weight.numel() for linear in linears)
    pairs = int(visible_keys(16, 1, length, 0, None, None, None, torch.device("cpu")).sum())
    # Every pair takes head_dim multiplications and additions in each of two products, for every head. Keys are rounded
    # to whole ones, by half a key for each query at most: less than a window that is one off.
    per_pair = 2 * 2 * model.config.hidden_size
    assert attention == pytest.approx(per_pair * pairs, rel=0, abs=per_pair * length / 2)


def test_a_call_computes_what_it_claims():
    products = MatrixProducts(_model(), 200, logits=1)
    assert _counted(products) == products.flops


def test_products_use_the_models_own_weights():
    model = build_ours(SIZE)
    down = model.model.layers[0].mlp_block.down_proj
    products = MatrixProducts(model, 8, logits=1)
    used = {argument.data_ptr() for product in products._products for argument in product.args}
    assert {down.weight.data_ptr(), model.lm_head.weight.data_ptr()} <= used


def test_weight_read_covers_every_parameter_once():
    model = build_ours(SIZE)
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    read = WeightRead(model, attempts=1)
    # Rounded up to a whole row.
    assert parameters <= read.bytes < parameters + 4 * 1024
    assert read() > 0
