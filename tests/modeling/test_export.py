"""One decode step, exported as a program that holds no state, decodes as the model does."""

import pytest
import torch

from recurrent_gemma.modeling.export import RecurrentGemmaDecodeStep
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close


@pytest.mark.parametrize("name", ["shipped pattern", "all recurrent", "all attention", "one attention layer"])
def test_an_exported_step_decodes_as_the_model_does(name):
    model, ids = tiny_model(tiny_config(**CONFIGS[name])), torch.randint(3, 97, (2, 3 * WINDOW))
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    step = RecurrentGemmaDecodeStep(model)
    state = step.initial_state(2)
    program = torch.export.export(step, (ids[:, :1], state)).module()
    pieces = []
    for t in range(ids.shape[1]):
        given = {key: tensor.clone() for key, tensor in state.items()}
        logits, new_state = program(ids[:, t : t + 1], state)
        assert all(torch.equal(state[key], tensor) for key, tensor in given.items())
        assert {key: (v.shape, v.dtype) for key, v in state.items()} == {
            key: (v.shape, v.dtype) for key, v in new_state.items()
        }
        pieces.append(logits)
        state = new_state
    assert_close(torch.stack(pieces, dim=1), expected, SPLIT_EQUALS_WHOLE_LOGITS, name)


def test_the_states_dtype_is_the_models():
    state = RecurrentGemmaDecodeStep(tiny_model().to(torch.bfloat16)).initial_state(1)
    assert state["layers.0.conv"].dtype == state["layers.2.key"].dtype == torch.bfloat16
    assert state["layers.0.rg_lru"].dtype == torch.float32
