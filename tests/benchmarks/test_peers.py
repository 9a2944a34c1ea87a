"""The contestants: of our shapes, on our weights where they can be, and timed only when their numbers are right."""

import pytest
import torch

from benchmarks.agreement import CHECK_WINDOW
from benchmarks.field import build_field
from benchmarks.models import SIZES, build_ours, random_ids
from benchmarks.peers import PEERS, TransformersModel, UnavailableError, deepmind_weights
from benchmarks.peers.checks import check_own_weights, check_same_weights
from benchmarks.peers.transformers_model import tensor_bytes
from tests.support import require

SIZE = SIZES["tiny"]
OTHERS = [name for name, peer in PEERS.items() if not peer.same_weights and not name.startswith("ours-")]


@pytest.fixture
def ours() -> TransformersModel:
    return TransformersModel(build_ours(SIZE, window=CHECK_WINDOW))


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_have_our_shapes(name: str, ours: TransformersModel):
    model = PEERS[name].build(SIZE, ours).model
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (32, 3, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 1)
    mlp = next(weight for key, weight in model.named_parameters() if key.endswith(("up_proj.weight", "w1.weight")))
    assert mlp.shape == (SIZE.mlp_width, SIZE.hidden_size)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert 0 < check_own_weights(PEERS[name].build(SIZE, ours), SIZE, "cpu") < 1e-4


def test_gemma_3_has_a_global_layer_at_any_depth(ours: TransformersModel):
    assert PEERS["gemma-3"].build(SIZE, ours).model.config.layer_types == ["sliding_attention"] * 2 + ["full_attention"]
    twelve = PEERS["gemma-3"].build(SIZES["256x12"], ours).model.config.layer_types
    assert [i for i, kind in enumerate(twelve) if kind == "full_attention"] == [5, 11]


def test_deepminds_torch_code_computes_what_ours_does(ours: TransformersModel):
    require("recurrentgemma.torch.griffin")
    theirs = PEERS["deepmind-torch"].build(SIZE, ours)
    assert theirs.parameters == ours.parameters
    assert 0 < check_same_weights("deepmind-torch", theirs, ours, SIZE, "cpu") < 1e-5
    with torch.no_grad():
        ours.model.model.layers[1].mlp_block.up_proj.bias.add_(0.01)
    with pytest.raises(ValueError, match="deepmind-torch: expected logits and loss to differ from ours by at most"):
        check_same_weights("deepmind-torch", theirs, ours, SIZE, "cpu")


@pytest.mark.usefixtures("in_tree_is_exact")
def test_in_tree_is_trained_with_our_optimizer(ours: TransformersModel):
    in_tree = PEERS["in-tree"].build(SIZE, ours)
    assert in_tree.optimizer is ours.optimizer
    assert all(a is b for a, b in zip(in_tree.model.parameters(), ours.model.parameters(), strict=True))


def test_a_cache_that_forgets_leaves_its_model_out(ours: TransformersModel, monkeypatch: pytest.MonkeyPatch):
    gemma = PEERS["gemma"].build(SIZE, ours)
    whole = gemma.logits(random_ids(SIZE, 61))
    monkeypatch.setattr(gemma, "decoded_logits", lambda ids, prompt: whole + 0.1)
    with pytest.raises(UnavailableError, match="cached decoding differs from its own single pass"):
        check_own_weights(gemma, SIZE, "cpu")
    monkeypatch.setattr(gemma, "logits", lambda ids: whole * float("nan"))
    with pytest.raises(UnavailableError, match="not finite"):
        check_own_weights(gemma, SIZE, "cpu")


@pytest.mark.usefixtures("in_tree_is_exact")
def test_who_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise ImportError("no module named recurrentgemma")

    monkeypatch.setattr(deepmind_weights, "import_deepmind", missing)
    peers = ("deepmind-jax", "deepmind-torch", "ours-compiled")
    found = build_field("prefill", SIZE, peers=peers, device="cpu", dtype="float32")
    assert list(found.contestants) == ["ours"]
    assert list(found.left_out) == list(peers)
    assert "no module named recurrentgemma" in found.left_out["deepmind-torch"]


@pytest.mark.usefixtures("in_tree_is_exact")
def test_who_does_not_fit_into_memory_is_named(monkeypatch: pytest.MonkeyPatch):
    class Memory:
        available = 10_000

    monkeypatch.setattr("benchmarks.field.psutil.virtual_memory", Memory)
    found = build_field("train", SIZE, peers=("gemma",), device="cpu", dtype="float32")
    assert "weights need 0.0 GB of memory" in found.left_out["gemma"]


@pytest.mark.usefixtures("in_tree_is_exact")
def test_a_large_size_is_checked_on_a_stand_in(monkeypatch: pytest.MonkeyPatch):
    depths = []

    def check(pair):
        depths.append(pair.size.num_hidden_layers)
        return agreement(pair)

    from benchmarks import field
    from benchmarks.models import Size

    agreement = field.check_agreement
    monkeypatch.setattr(field, "check_agreement", check)
    size = Size(32, 6, 4, attention_window_size=16, vocab_size=64, checked_layers=3)
    found = build_field("decode", size, peers=("gemma",), device="cpu", dtype="bfloat16")
    assert depths == [3]
    assert {contestant.model.config.num_hidden_layers for contestant in found.contestants.values()} == {6}
    assert {contestant.model.dtype for contestant in found.contestants.values()} == {torch.bfloat16}


def test_bytes_of_a_cache_are_whole_storages_once():
    tensor = torch.zeros(100)
    assert tensor_bytes({"a": [tensor, tensor[:2]], "b": (torch.zeros(3, dtype=torch.int64), "text", None)}) == 424


@pytest.mark.usefixtures("in_tree_is_exact")
@pytest.mark.parametrize("name", ["ours", "in-tree", *OTHERS])
def test_decoding_goes_on_from_the_prompt_every_time(name: str, ours: TransformersModel, monkeypatch):
    contestant = ours if name == "ours" else PEERS[name].build(SIZE, ours)
    texts = []
    generate = contestant.model.generate

    def kept(*args, **options):
        texts.append(generate(*args, **options))
        return texts[-1]

    monkeypatch.setattr(contestant.model, "generate", kept)
    prompt = random_ids(SIZE, 40)
    decoding = contestant.decoding(prompt, 5)
    before = decoding.state_bytes
    assert decoding.seconds_per_token() > 0 and decoding.seconds_per_token() > 0
    assert torch.equal(*texts)
    assert tensor_bytes([decoding._cache, decoding._kept]) == before
    texts.append(contestant.model.generate(prompt, max_new_tokens=6, do_sample=False))
    assert torch.equal(texts[0], texts[-1])


@pytest.mark.usefixtures("in_tree_is_exact")
def test_states_that_in_trees_modules_keep_are_counted(ours: TransformersModel):
    ids = random_ids(SIZE, 40)
    decodings = [contestant.decoding(ids, 2) for contestant in (ours, PEERS["in-tree"].build(SIZE, ours))]
    # Two recurrent layers, fp32 states of 32 channels and at least three columns of the convolution.
    assert tensor_bytes(decodings[1]._kept) + tensor_bytes(decodings[1]._cache) >= 2 * 32 * 4 * 4
    assert decodings[1].state_bytes >= decodings[0].state_bytes / 2
