"""Models spread over devices by accelerate: the same numbers, and each layer's state where the layer computes.

``meta`` stands for a second device where only places matter: tensors go there and cannot come back.
"""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.hooks import remove_hook_from_module

from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from tests.modeling.models import tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close

CPU = torch.device("cpu")
META = torch.device("meta")

MAPS = {
    "one device": "cpu",
    "automatic": "auto",
    "some layers on disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.layers.3": "cpu",
        "model.layers.4": "disk",
        "model.final_norm": "cpu",
        "lm_head": "cpu",
    },
    "all layers on disk": {
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.final_norm": "disk",
        "lm_head": "cpu",
    },
    "tied embeddings on disk": {
        "model.embed_tokens": "disk",
        "model.layers": "cpu",
        "model.final_norm": "cpu",
        "lm_head": "disk",
    },
    "everything on disk": {"": "disk"},
}

HELPERS = {
    "cpu_offload": lambda model, folder: cpu_offload(model, execution_device=CPU),
    "disk_offload": lambda model, folder: disk_offload(model, folder, execution_device=CPU),
    "dispatch_model": lambda model, folder: dispatch_model(
        model, MAPS["some layers on disk"], main_device="cpu", offload_dir=folder, force_hooks=True
    ),
}

# Some releases of generate() mind that offloaded embeddings are elsewhere between their uses.
may_warn_about_embeddings = pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    return path


@pytest.fixture
def inputs():
    ids = torch.randint(97, (2, 26))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


def state_devices(cache: RecurrentGemmaCache) -> list[set[torch.device]]:
    """Devices of each layer's state."""
    return [{tensor.device for tensor in layer.load()} for layer in cache.layers]


@torch.no_grad()
def assert_behaves_like(spread, model, inputs) -> None:
    """Logits, a cached continuation and generated tokens equal those of the model in one place."""
    ids, mask = inputs
    expected = model(ids, attention_mask=mask).logits
    whole = spread(ids, attention_mask=mask)
    assert_close(whole.logits, expected, SPLIT_EQUALS_WHOLE_LOGITS, "logits")

    cache = RecurrentGemmaCache(spread.config)
    first = spread(ids[:, :11], attention_mask=mask[:, :11], past_key_values=cache).logits
    rest = spread(ids[:, 11:], attention_mask=mask, past_key_values=cache).logits
    assert_close(torch.cat((first, rest), dim=1), expected, SPLIT_EQUALS_WHOLE_LOGITS, "logits by way of a cache")
    assert state_devices(cache) == state_devices(whole.past_key_values) == [{CPU}] * 5

    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(spread.generate(ids, **options), model.generate(ids, **options))


@may_warn_about_embeddings
@pytest.mark.parametrize("name", MAPS)
def test_device_map(name, model, checkpoint, inputs, tmp_path):
    spread = RecurrentGemmaForCausalLM.from_pretrained(checkpoint, device_map=MAPS[name], offload_folder=tmp_path)
    # Offloaded weights are on the meta device between their uses.
    offloaded = any(parameter.device == META for parameter in spread.parameters())
    assert offloaded is ("disk" in name)
    assert_behaves_like(spread, model, inputs)


@may_warn_about_embeddings
@pytest.mark.parametrize("name", HELPERS)
def test_accelerate_helpers(name, model, inputs, tmp_path):
    spread = tiny_model()
    HELPERS[name](spread, tmp_path)
    assert any(parameter.device == META for parameter in spread.parameters())
    assert_behaves_like(spread, model, inputs)


@pytest.mark.parametrize("kilobytes", [90, 120, 150])
def test_no_layer_is_split_over_devices(model, kilobytes):
    memory = {"cpu": kilobytes * 1024, "disk": 2**30}
    placed = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=list(model._no_split_modules))
    assert set(placed.values()) == {"cpu", "disk"}
    assert [name for name in placed if name.startswith("model.layers.") and name.count(".") > 2] == []


@torch.no_grad()
@pytest.mark.parametrize("on_cpu", [1, 2, 3, 4])
def test_state_lies_on_the_device_of_its_layer(on_cpu, model, inputs):
    ids, mask = inputs
    device_map = {"model.embed_tokens": "cpu", "model.final_norm": "meta", "lm_head": "meta"}
    device_map |= {f"model.layers.{index}": "cpu" if index < on_cpu else "meta" for index in range(5)}
    spread = tiny_model(tiny_config(tie_word_embeddings=False))
    spread.model.load_state_dict(model.model.state_dict())
    dispatch_model(spread, device_map, main_device="cpu", force_hooks=True)
    # It would bring the logits back to the inputs' device.
    remove_hook_from_module(spread)

    cache, plain = RecurrentGemmaCache(spread.config), RecurrentGemmaCache(model.config)
    for past, new in ((0, 11), (11, 12), (12, 26)):
        options = {"attention_mask": mask[:, :new]}
        output = spread(ids[:, past:new], past_key_values=cache, **options)
        model(ids[:, past:new], past_key_values=plain, **options)
        assert output.logits.device == META
        assert output.logits.shape == (2, new - past, 97)
        assert state_devices(cache) == [{CPU}] * on_cpu + [{META}] * (5 - on_cpu)
    for ours, theirs in zip(cache.layers, plain.layers, strict=True):
        assert [t.shape for t in ours.load()] == [t.shape for t in theirs.load()]
    for ours, theirs in zip(cache.layers[:on_cpu], plain.layers, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(ours.load(), theirs.load(), strict=True))
    assert torch.equal(cache.next_position, plain.next_position)


@torch.no_grad()
def test_model_without_weights_gives_shapes():
    with init_empty_weights():
        model = RecurrentGemmaForCausalLM(tiny_config())
    assert {parameter.device for parameter in model.parameters()} == {META}
    cache = RecurrentGemmaCache(model.config)
    for length in (10, 1):
        ids = torch.zeros(2, length, dtype=torch.long, device=META)
        assert model(ids, past_key_values=cache).logits.shape == (2, length, 97)
    assert state_devices(cache) == [{META}] * 5
