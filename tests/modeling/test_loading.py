"""Loading is all or nothing: what a checkpoint lacks or has too much is named, and what loads is what was saved."""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM, RecurrentGemmaModel
from tests.modeling.models import tiny_config, tiny_model

IDS = torch.arange(1, 25)[None]
WEIGHTS = "model.safetensors"
NORM, QUERY, BIAS = (
    "model.final_norm.weight",
    "model.layers.2.temporal_block.q_proj.weight",
    "model.layers.0.mlp_block.up_proj.bias",
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    """The tied model's directory, not to be changed."""
    path = tmp_path_factory.mktemp("original")
    model.save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(original, tmp_path):
    """A copy of it that a test may break."""
    return shutil.copytree(original, tmp_path / "checkpoint")


@pytest.fixture
def untied(tmp_path):
    """Directory of a model whose output projection is its own."""
    tiny_model(tiny_config(tie_word_embeddings=False)).save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


@pytest.fixture
def sharded(model, tmp_path):
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20kB")
    return tmp_path / "sharded"


def change_weights(checkpoint, changes: dict) -> None:
    """Replace weights by name; None removes one."""
    weights = {**load_file(checkpoint / WEIGHTS), **changes}
    save_file({name: w for name, w in weights.items() if w is not None}, checkpoint / WEIGHTS, {"format": "pt"})


def change_config(checkpoint, **fields) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def assert_refused(checkpoint, *parts: str, cls=RecurrentGemmaForCausalLM, error=ValueError, **options) -> None:
    """Loading raises a message with ``parts`` in this order."""
    with pytest.raises(error, match=".*".join(map(re.escape, parts))):
        cls.from_pretrained(checkpoint, **options)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


# --- What does not load -----------------------------------------------------------------------------------------------


def test_missing_weights_are_named(checkpoint):
    change_weights(checkpoint, {NORM: None, QUERY: None})
    assert_refused(checkpoint, str(checkpoint), "RecurrentGemmaForCausalLM", f"missing: {NORM}, {QUERY}.")


def test_unexpected_weights_are_named(checkpoint):
    change_weights(checkpoint, {"model.layers.9.extra": torch.zeros(2), "other": torch.zeros(1)})
    assert_refused(checkpoint, "unexpected: model.layers.9.extra, other.")


def test_misshapen_weights_are_named_with_both_shapes(checkpoint):
    change_weights(checkpoint, {NORM: torch.zeros(33), QUERY: torch.zeros(3, 32)})
    expected = f"misshapen: {NORM} (expected (32,), got (33,)), {QUERY} (expected (32, 32), got (3, 32))."
    assert_refused(checkpoint, expected)


def test_all_that_is_wrong_is_named_at_once(checkpoint):
    change_weights(checkpoint, {BIAS: None, NORM: torch.zeros(33), "other": torch.zeros(1)})
    assert_refused(checkpoint, f"missing: {BIAS}; unexpected: other; misshapen: {NORM}")


def test_missing_head_of_an_untied_model(untied):
    change_weights(untied, {"lm_head.weight": None})
    assert_refused(untied, "missing: lm_head.weight.")


def test_head_that_contradicts_tied_embeddings(checkpoint):
    change_weights(checkpoint, {"lm_head.weight": torch.zeros(97, 32)})
    assert_refused(checkpoint, "other than the embeddings although tie_word_embeddings is true: lm_head.weight.")
    change_config(checkpoint, tie_word_embeddings=False)
    assert not RecurrentGemmaForCausalLM.from_pretrained(checkpoint).lm_head.weight.any()


def test_backbone_of_an_untied_model_has_no_head(untied):
    RecurrentGemmaModel.from_pretrained(untied).save_pretrained(untied / "backbone")
    assert_refused(untied / "backbone", "missing: lm_head.weight.")


def test_backbone_misses_nothing_either(checkpoint):
    change_weights(checkpoint, {NORM: None, "other": torch.zeros(1)})
    assert_refused(
        checkpoint, "RecurrentGemmaModel", "missing: final_norm.weight; unexpected: other.", cls=RecurrentGemmaModel
    )


@pytest.mark.parametrize("content", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text" * 99])
def test_broken_file_is_named(checkpoint, content):
    (checkpoint / WEIGHTS).write_bytes(content((checkpoint / WEIGHTS).read_bytes()))
    assert_refused(checkpoint, "expected complete weight files, got", str(checkpoint / WEIGHTS), error=OSError)


def test_broken_shard_is_named(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    shards[3].write_bytes(shards[3].read_bytes()[:-1])
    assert_refused(sharded, f"expected complete weight files, got {shards[3]} (", error=OSError)


def test_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[3]
    shard.unlink()
    assert_refused(sharded, str(shard), error=OSError)


def test_broken_index_is_named(sharded):
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text()[:100])
    assert_refused(sharded, f"{index}: expected JSON", error=OSError)
    index.write_text("{}")
    assert_refused(sharded, f"{index}: expected an entry weight_map", error=OSError)


def test_weight_that_a_shard_lacks(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shard = sharded / index["weight_map"][NORM]
    save_file({name: w for name, w in load_file(shard).items() if name != NORM}, shard, {"format": "pt"})
    assert_refused(sharded, f"missing: {NORM}.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 6}, "missing: model.layers.5.channel_pre_norm.weight"),
        ({"num_hidden_layers": 4}, "unexpected: model.layers.4.channel_pre_norm.weight"),
        ({"block_types": ["recurrent"]}, "missing: model.layers.2.temporal_block.conv_1d.bias"),
        ({"lru_width": 32}, "misshapen: model.layers.0.temporal_block.conv_1d.bias (expected (32,), got (48,))"),
        ({"vocab_size": 96}, "misshapen: model.embed_tokens.weight (expected (96, 32), got (97, 32))"),
        ({"attention_bias": True}, "missing: model.layers.2.temporal_block.k_proj.bias"),
        ({"model_type": "gemma"}, "model_type: expected 'recurrent_gemma'"),
        ({"hidden_size": 33}, "hidden_size: expected a multiple of num_attention_heads (4), got 33"),
    ],
)
def test_config_of_another_model(checkpoint, fields, message):
    change_config(checkpoint, **fields)
    assert_refused(checkpoint, message)


def test_directory_without_config(checkpoint):
    (checkpoint / "config.json").unlink()
    for cls in (RecurrentGemmaForCausalLM, RecurrentGemmaModel):
        assert_refused(checkpoint, f"{checkpoint}: expected a config.json", cls=cls, error=OSError)


def test_directory_without_weights(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    assert_refused(checkpoint, WEIGHTS, str(checkpoint), error=OSError)


def test_directory_that_is_none(tmp_path):
    assert_refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), error=OSError)


def test_pickled_weights_need_an_opt_in(checkpoint, model):
    torch.save(load_file(checkpoint / WEIGHTS), checkpoint / "pytorch_model.bin")
    (checkpoint / WEIGHTS).unlink()
    for choice in ({}, {"use_safetensors": None}, {"use_safetensors": True}):
        message = "expected safetensors weights, found pickled ones"
        assert_refused(checkpoint, message, "pass use_safetensors=False", error=OSError, **choice)
    loaded = RecurrentGemmaForCausalLM.from_pretrained(checkpoint, use_safetensors=False)
    assert torch.equal(logits(loaded), logits(model))


def test_pickles_of_a_trainer_are_no_weights(checkpoint):
    (checkpoint / WEIGHTS).rename(checkpoint / "training_args.bin")
    assert_refused(checkpoint, f"no file named {WEIGHTS}", error=OSError)


def test_state_dict_is_checked_as_well(model):
    state = {name: w for name, w in model.state_dict().items() if name != NORM}
    assert_refused(None, "state_dict: ", f"missing: {NORM}.", config=model.config, state_dict=state)


def test_unknown_argument(original):
    assert_refused(original, "unexpected keyword argument 'window'", error=TypeError, window=3)


@pytest.mark.parametrize("defect", ["missing", "broken"])
def test_failed_load_leaves_nothing_behind(checkpoint, model, defect):
    if defect == "missing":
        change_weights(checkpoint, {NORM: None})
    else:
        (checkpoint / WEIGHTS).write_bytes(b"")
    files = {path: path.read_bytes() for path in checkpoint.iterdir()}
    state = torch.get_rng_state()
    assert_refused(checkpoint, str(checkpoint), error=(OSError, ValueError), dtype=torch.bfloat16)
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == files
    assert torch.get_default_dtype() == torch.float32
    assert torch.empty(1).device.type == "cpu"
    # Initialization works, and the same, with none of Transformers' switches left on.
    torch.set_rng_state(state)
    again = RecurrentGemmaForCausalLM(model.config).state_dict()
    torch.set_rng_state(state)
    assert all(torch.equal(w, again[n]) for n, w in RecurrentGemmaForCausalLM(model.config).state_dict().items())
    assert again["model.layers.0.temporal_block.linear_x.weight"].any()


# --- What loads -------------------------------------------------------------------------------------------------------


def test_saved_model_loads_to_the_bit(original, sharded, model):
    for path in (original, sharded):
        loaded, info = RecurrentGemmaForCausalLM.from_pretrained(path, output_loading_info=True)
        assert not any(info.values())
        assert not loaded.training
        assert torch.equal(logits(loaded), logits(model))


def test_info_is_only_handed_back_when_asked_for(original):
    assert isinstance(RecurrentGemmaForCausalLM.from_pretrained(original), RecurrentGemmaForCausalLM)


def test_subfolder(checkpoint, model):
    loaded = RecurrentGemmaForCausalLM.from_pretrained(checkpoint.parent, subfolder=checkpoint.name)
    assert torch.equal(logits(loaded), logits(model))


def test_tied_head_may_be_stored_or_not(checkpoint, model):
    with safe_open(checkpoint / WEIGHTS, framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118, the file is no mapping
        assert file.metadata() == {"format": "pt"}
    change_weights(checkpoint, {"lm_head.weight": model.lm_head.weight.detach().clone()})
    loaded = RecurrentGemmaForCausalLM.from_pretrained(checkpoint)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


def test_backbone_from_a_language_model(original, untied, model):
    for path, expected in ((original, model), (untied, RecurrentGemmaForCausalLM.from_pretrained(untied))):
        backbone = RecurrentGemmaModel.from_pretrained(path)
        expected = expected.model.state_dict()
        assert {n: torch.equal(w, expected[n]) for n, w in backbone.state_dict().items()} == dict.fromkeys(
            expected, True
        )


def test_language_model_from_a_backbone(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    loaded = RecurrentGemmaForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", torch.float16, torch.float64])
def test_dtype_on_request(original, model, dtype):
    loaded = RecurrentGemmaForCausalLM.from_pretrained(original, dtype=dtype)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert (loaded.dtype, loaded.config.dtype) == (dtype, dtype)
    expected = model.state_dict()
    assert all(torch.equal(w, expected[name].to(dtype)) for name, w in loaded.state_dict().items())


def test_dtype_of_the_file(model, tmp_path):
    half = tiny_model().to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {w.dtype for w in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    for cls in (RecurrentGemmaForCausalLM, AutoModelForCausalLM):
        for options in ({}, {"dtype": "auto"}):
            loaded = cls.from_pretrained(tmp_path, **options)
            assert loaded.dtype == torch.bfloat16
            assert torch.equal(logits(loaded), logits(half))


@pytest.mark.parametrize("make", [RecurrentGemmaForCausalLM._from_config, AutoModelForCausalLM.from_config])
def test_from_config(make):
    model = make(tiny_config(), dtype=torch.bfloat16)
    assert type(model) is RecurrentGemmaForCausalLM
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(logits(model)).all()


def test_overrides_of_fields_without_weights(original, model):
    loaded = RecurrentGemmaForCausalLM.from_pretrained(original, attention_window_size=3, attn_implementation="eager")
    assert loaded.config.sliding_window == 4
    assert (logits(loaded) - logits(model)).abs().max() > 0.01


def test_misshapen_weights_may_be_ignored(checkpoint):
    change_weights(checkpoint, {NORM: torch.ones(33)})
    loaded, info = RecurrentGemmaForCausalLM.from_pretrained(
        checkpoint, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert [name for name, *_ in info["mismatched_keys"]] == [NORM]
    assert not loaded.model.final_norm.weight.any()
    change_weights(checkpoint, {QUERY: None})
    assert_refused(checkpoint, f"missing: {QUERY}.", ignore_mismatched_sizes=True)
