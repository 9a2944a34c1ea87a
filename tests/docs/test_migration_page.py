"""docs/migration.md holds true: each row of its table is run on Transformers' own class and on this package's.

Where Transformers' class is said to be wrong, what it computes is held against itself: one sequence alone, read at
once and without a cache, which needs none of what is wrong. That leaves aside its window and, in the oldest release,
its RoPE.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig as InTreeConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaForCausalLM as InTreeForCausalLM
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRotaryEmbedding as InTreeRotary

from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.modeling.models import tiny_config, tiny_model
from tests.support import ROOT, code_blocks, run_python
from tests.tolerances import ROWS_EQUAL_SOLO_LOGITS, assert_close

PAGE = (ROOT / "docs" / "migration.md").read_text()
# Of logits between -30 and 30, the least that is called a wrong result here.
WRONG = 0.1
NO_END = {"eos_token_id": None, "pad_token_id": 0, "do_sample": False}


@pytest.fixture
def models() -> tuple[RecurrentGemmaForCausalLM, InTreeForCausalLM]:
    return pair()


def pair(**fields: Any) -> tuple[RecurrentGemmaForCausalLM, InTreeForCausalLM]:
    """Our model and Transformers' with the same weights, its window one larger so that it sees the same keys."""
    ours = tiny_model(tiny_config(**fields))
    in_tree = InTreeForCausalLM(InTreeConfig(**{**ours.config.to_dict(), "attention_window_size": 8}))
    in_tree.load_state_dict(ours.state_dict())
    assert ours.config.attention_window_size == 7
    return ours, in_tree.eval()


def draw_ids(length: int) -> Tensor:
    return torch.randint(3, 97, (1, length))


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor | None, **options: Any) -> Tensor:
    return model(ids, **{"use_cache": False, **options}).logits


def cache_of(model: nn.Module) -> Any:
    return RecurrentGemmaCache(model.config) if is_ours(model) else DynamicCache(config=model.config)


def is_ours(model: nn.Module) -> bool:
    return isinstance(model, RecurrentGemmaForCausalLM)


def assert_only_ours_agrees(actual: dict[bool, Tensor], expected: dict[bool, Tensor]) -> None:
    """Ours computes what it should, Transformers' class does not."""
    assert_close(actual[True], expected[True], ROWS_EQUAL_SOLO_LOGITS, "ours")
    assert (actual[False] - expected[False]).abs().max() > WRONG


def test_rope_of_the_oldest_releases(models):
    ours, in_tree = models
    frequencies, _ = InTreeRotary.compute_default_rope_parameters(in_tree.config)
    ids = draw_ids(30)
    difference = (logits_of(ours, ids) - logits_of(in_tree, ids)).abs().max()
    if tuple(map(int, transformers.__version__.split(".")[:2])) <= (5, 16):
        assert len(frequencies) == ours.config.head_dim // 2 and difference > WRONG
    else:
        assert len(frequencies) == ours.config.rotary_dim // 2 and difference < ROWS_EQUAL_SOLO_LOGITS


def test_two_sequences_in_turns(models):
    expected, actual = {}, {}
    for model in models:
        talks, caches = (draw_ids(24), draw_ids(24)), (cache_of(model), cache_of(model))
        pieces: tuple[list, list] = ([], [])
        for begin, end in ((0, 12), *((i, i + 1) for i in range(12, 24))):
            for ids, cache, piece in zip(talks, caches, pieces, strict=True):
                piece.append(logits_of(model, ids[:, begin:end], use_cache=True, **{CACHE_NAME: cache}))
        actual[is_ours(model)] = torch.cat([torch.cat(piece, dim=1) for piece in pieces])
        expected[is_ours(model)] = torch.cat([logits_of(model, ids) for ids in talks])
    assert_only_ours_agrees(actual, expected)


def test_a_text_in_chunks(models):
    ids, expected, actual = draw_ids(30), {}, {}
    for model in models:
        cache = cache_of(model)
        pieces = [
            logits_of(model, ids[:, span], use_cache=True, **{CACHE_NAME: cache}) for span in (slice(20), slice(20, 30))
        ]
        actual[is_ours(model)], expected[is_ours(model)] = torch.cat(pieces, dim=1), logits_of(model, ids)
    assert_only_ours_agrees(actual, expected)


def test_pads_on_the_left(models):
    row, expected, actual = draw_ids(12), {}, {}
    ids, mask = (torch.cat((torch.zeros(1, 5).long(), x), dim=1) for x in (row, torch.ones_like(row)))
    for model in models:
        actual[is_ours(model)] = logits_of(model, ids, attention_mask=mask)[:, 5:]
        expected[is_ours(model)] = logits_of(model, row)
    assert_only_ours_agrees(actual, expected)
    # generate() passes positions that count tokens.
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    actual = {is_ours(m): logits_of(m, ids, attention_mask=mask, position_ids=positions)[:, 5:] for m in models}
    assert_only_ours_agrees(actual, expected)


def packed() -> tuple[list[Tensor], Tensor, Tensor]:
    documents = [draw_ids(9), draw_ids(11)]
    return documents, torch.cat(documents, dim=1), torch.cat([torch.arange(9), torch.arange(11)])[None]


def test_packed_rows(models):
    documents, ids, positions = packed()
    actual = {is_ours(model): logits_of(model, ids, position_ids=positions) for model in models}
    alone = {is_ours(m): torch.cat([logits_of(m, document) for document in documents], dim=1) for m in models}
    assert_only_ours_agrees(actual, alone)


def test_the_loss_of_packed_rows(models):
    documents, ids, positions = packed()
    for model in models:
        losses = [model(document, labels=document, use_cache=False).loss.detach() for document in documents]
        mean = (8 * losses[0] + 10 * losses[1]) / 18
        difference = (model(ids, labels=ids, position_ids=positions, use_cache=False).loss.detach() - mean).abs()
        assert difference < 1e-5 if is_ours(model) else difference > 0.01


def test_beams():
    ids, expected, actual, models = torch.randint(3, 97, (8, 12)), {}, {}, pair()
    for model in models:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.08)  # so that several next tokens are likely
        for found, use_cache in ((actual, True), (expected, False)):
            options = {"num_beams": 4, "max_new_tokens": 12, "use_cache": use_cache, **NO_END}
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), output_scores=True, return_dict_in_generate=True, **options
            )
            found[is_ours(model)] = made.sequences_scores
    assert_close(actual[True], expected[True], ROWS_EQUAL_SOLO_LOGITS, "scores of our beams")
    assert (actual[False] - expected[False]).abs().max() > 0.01


def test_the_cache_comes_back(models):
    ids = draw_ids(12)
    ours, in_tree = (model(ids, use_cache=True) for model in models)
    assert isinstance(ours[CACHE_NAME], RecurrentGemmaCache)
    assert list(in_tree.keys()) == ["logits"]
    assert CACHE_NAME not in models[0].train()(ids)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 6}])
def test_drafts_and_prompts_in_chunks(models, options):
    ids = draw_ids(20)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, **NO_END, **options}
    ours, in_tree = models
    plain = ours.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, **NO_END)
    assert torch.equal(ours.generate(ids, **options), plain)
    with pytest.raises((ValueError, AttributeError), match=r"stateful models|has no attribute"):
        in_tree.generate(ids, **options)


def test_models_of_the_paper():
    assert tiny_config(logits_soft_cap=None).logits_soft_cap is None
    with pytest.raises(Exception, match="logits_soft_cap"):
        InTreeConfig(logits_soft_cap=None)
    ids = draw_ids(12)
    unscaled, in_tree = pair(embeddings_scale_by_sqrt_dim=False)
    assert (logits_of(unscaled, ids) - logits_of(in_tree, ids)).abs().max() > 1
    hawk, in_tree = pair(block_types=["recurrent"], num_hidden_layers=2)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, **NO_END}
    assert hawk.generate(ids, **options).shape == (1, 15)
    with pytest.raises(ValueError, match=r"get_seq_length|'attention' is not in list"):
        in_tree.generate(ids, **options)


def kept_on_modules(model: nn.Module) -> list[Tensor]:
    """Tensors that modules hold beside parameters and buffers."""
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]


def test_what_a_training_step_leaves_behind(models):
    ids = draw_ids(12)
    ours, in_tree = (model.train() for model in models)
    for model in (ours, in_tree):
        model(ids, labels=ids, use_cache=False).loss.backward()
    assert kept_on_modules(ours) == []
    assert any(tensor.grad_fn is not None for tensor in kept_on_modules(in_tree))


def operations(loss: Tensor) -> int:
    """Nodes of the graph of gradients."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


def test_operations_of_a_training_step():
    counts = {}
    for model in pair(block_types=["recurrent"], num_hidden_layers=2):
        rows = map(draw_ids, (40, 80))
        counts[is_ours(model)] = [operations(model(ids, labels=ids, use_cache=False).loss) for ids in rows]
    assert counts[True][0] == counts[True][1]
    assert counts[False][1] - counts[False][0] >= 2 * 40


def test_a_missing_weight(models, tmp_path: Path):
    ours, _ = models
    ours.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp_block.up_proj.weight"
    saved = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = InTreeForCausalLM.from_pretrained(tmp_path)
    assert not torch.allclose(loaded.get_parameter(name), saved)
    with pytest.raises(ValueError, match=re.escape(name)):
        RecurrentGemmaForCausalLM.from_pretrained(tmp_path)


def test_what_is_taken_in_silence(models):
    ours, in_tree = models
    ids = draw_ids(12)
    for options, error in (({"position_ids": torch.arange(5, 17)[None]}, ValueError), ({"window": 3}, TypeError)):
        assert logits_of(in_tree, ids, **options).isfinite().all()
        with pytest.raises(error, match=r"position_ids: expected every valid token|forward: expected arguments"):
            logits_of(ours, ids, **options)
    cache = DynamicCache(config=in_tree.config)
    assert logits_of(in_tree, ids, use_cache=True, **{CACHE_NAME: cache}).isfinite().all()
    with pytest.raises(TypeError, match="past_key_values: expected a RecurrentGemmaCache, got DynamicCache"):
        logits_of(ours, ids, **{CACHE_NAME: DynamicCache(config=in_tree.config)})


def test_embeddings_given_directly():
    # Without attention, whose RoPE differs in the oldest release.
    ours, in_tree = pair(block_types=["recurrent"], num_hidden_layers=2)
    embeds = torch.randn(1, 9, 32)
    theirs = logits_of(in_tree, None, inputs_embeds=embeds)
    scale = ours.model.embed_tokens.embed_scale
    assert_close(logits_of(ours, None, inputs_embeds=embeds * scale), theirs, ROWS_EQUAL_SOLO_LOGITS, "scaled")
    assert (logits_of(ours, None, inputs_embeds=embeds) - theirs).abs().max() > WRONG


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_closer_to_fp32_than_in_transformers_class(models, dtype):
    ids, errors = torch.randint(3, 97, (4, 60)), {}
    for model in models:
        half = model.to(dtype)
        found = logits_of(half, ids).float()
        errors[is_ours(model)] = (found - logits_of(half.float(), ids)).square().mean().sqrt()
    assert errors[True] < errors[False] / 2


def test_what_was_right(models):
    row = draw_ids(12)
    ids, mask = (torch.cat((x, torch.zeros(1, 5).long()), dim=1) for x in (row, torch.ones_like(row)))
    for model in models:
        padded = logits_of(model, ids, attention_mask=mask)[:, :12]
        assert_close(padded, logits_of(model, row), ROWS_EQUAL_SOLO_LOGITS, "pads on the right")
        options = {"attention_mask": torch.ones_like(row), "max_new_tokens": 20, **NO_END}
        found = [
            model.generate(row, **options, use_cache=use_cache, cache_implementation=implementation)
            for use_cache, implementation in ((False, None), (True, None), (True, "static"))
        ]
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_weights_of_a_new_model():
    fields = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 1000}
    config = tiny_config(**fields, lru_width=256)
    stds = {}
    for model in (RecurrentGemmaForCausalLM(config), InTreeForCausalLM(InTreeConfig(**config.to_dict()))):
        state = model.state_dict()
        names = ("embed_tokens.weight", "layers.0.temporal_block.rg_lru.input_gate_weight")
        stds[is_ours(model)] = [state[f"model.{name}"].std().item() for name in names]
    # By DeepMind's code, variances are 1 / D for embeddings and 1 / R for the gates.
    assert stds[True] == pytest.approx([256**-0.5, 256**-0.5], rel=0.03)
    assert stds[False] == pytest.approx([(0.01 / 4) ** 0.5, (0.01 / 64) ** 0.5], rel=0.03)


def test_the_numbers_of_transformers_class():
    config = tiny_config(attention_window_size=7)
    if len(InTreeRotary.compute_default_rope_parameters(InTreeConfig(**config.to_dict()))[0]) != config.rotary_dim // 2:
        pytest.skip("this Transformers release computes RoPE's frequencies for whole heads")
    in_tree = InTreeForCausalLM(InTreeConfig(**config.to_dict()))
    in_tree.load_state_dict(tiny_model(config).state_dict())
    ours = tiny_model(tiny_config(attention_window_size=6))
    ids = draw_ids(40)
    assert_close(logits_of(ours, ids), logits_of(in_tree.eval(), ids), ROWS_EQUAL_SOLO_LOGITS, "window less 1")


def test_the_examples_run(tmp_path: Path):
    code = code_blocks(PAGE, "python")
    assert len(code) == 3
    run_python("-c", "\n".join(code), cwd=tmp_path)


def test_every_row_names_a_test_of_here_or_elsewhere():
    rows = re.findall(r"^\| (?!what|---).*\| \[`(test_\w+)`\]\((\S+)\) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) >= 18
    here = {name for name, path in rows if path.endswith("tests/docs/test_migration_page.py")}
    own = {name for name in globals() if name.startswith("test_")}
    about_the_page = {"test_the_examples_run", "test_every_row_names_a_test_of_here_or_elsewhere"}
    assert own - here - about_the_page == {
        "test_half_precision_is_closer_to_fp32_than_in_transformers_class",
        "test_the_numbers_of_transformers_class",
        "test_what_was_right",
    }
