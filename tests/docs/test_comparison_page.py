"""docs/comparison.md holds true: every cell has its source or test, and what it says was run is run again.

Other projects change: what is said of Transformers' own class and of DeepMind's code is run where the versions that the
page names are installed.
"""

import importlib.metadata
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig as InTreeConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaForCausalLM as InTreeForCausalLM

from recurrent_gemma import RecurrentGemmaCache
from recurrent_gemma.configuration import RecurrentGemmaConfig
from tests.docs.sources import PINNED, definitions, missing_tests, tables, used_labels
from tests.modeling.models import WINDOW, tiny_config, tiny_model
from tests.support import ROOT, require

PAGE = (ROOT / "docs" / "comparison.md").read_text()
PROJECTS = ["ours", "in-tree", "DeepMind, JAX", "DeepMind, torch", "mlx-lm", "candle", "NeMo", "TensorRT-LLM"]
FEATURES = [table for table in tables(PAGE) if table[1][0] == "ours"]
# Right is right to rounding; wrong is not a matter of rounding.
RIGHT, WRONG = 1e-4, 0.05


def test_every_project_has_a_row_in_every_table():
    assert len(FEATURES) == 5
    for head, *rows in FEATURES:
        assert [row[0] for row in rows] == PROJECTS
        assert {len(row) for row in rows} == {len(head)}


def test_every_cell_has_its_source_or_says_that_there_is_none():
    for _, ours, *others in FEATURES:
        assert [cell for cell in ours[1:] if "[`test_" not in cell] == []
        for project, *cells in others:
            unfounded = [cell for cell in cells if not re.search(r"\]\[|\]\(|not found|not checked", cell)]
            assert unfounded == [], project


def test_tests_that_are_named_exist():
    assert missing_tests(PAGE) == []


def test_sources_are_defined_used_and_pinned():
    sources = definitions(PAGE)
    assert used_labels(PAGE) == sources.keys()
    assert {label: link for label, link in sources.items() if not PINNED.fullmatch(link)} == {}


def test_sizes_of_the_published_models():
    two, nine = (RecurrentGemmaConfig.from_preset(f"recurrentgemma-{size}") for size in ("2b", "9b"))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    width, layers, heads = ([f"{getattr(config, name):,}" for config in (two, nine)] for name in names)
    said = "width {} or {}, {} or {} layers, {} or {} heads".format(*width, *layers, *heads)
    assert f"2B and 9B differ in sizes alone: {said}" in " ".join(PAGE.split())
    sizes = {"hidden_size", "lru_width", "intermediate_size", *names, "block_types"}
    same = two.to_dict().keys() - sizes
    assert {name for name in same if two.to_dict()[name] != nine.to_dict()[name]} <= {"head_dim"}


def test_the_release_is_the_one_that_is_named():
    assert f"at version {importlib.metadata.version('recurrent-gemma')}." in PAGE


def test_decoding_of_small_models_beside_deepminds_jitted_step():
    # Of the README's table, which its own test holds to the results.
    readme = (ROOT / "README.md").read_text()
    cells = next(row for table in tables(readme) for row in table if row[0] == "`decode-256x12`")
    ours, compiled, _, jax = (float(cell.removesuffix(" ms")) for cell in cells[1:5])
    assert compiled < jax < ours


@pytest.fixture(scope="module")
def in_tree() -> Any:
    version = importlib.metadata.version("transformers")
    if f"| {version}, as installed |" not in PAGE:
        pytest.skip(f"the page speaks of another release of Transformers than {version}")
    ours = tiny_model(tiny_config(lru_width=32))
    model = InTreeForCausalLM(InTreeConfig(**ours.config.to_dict()))
    model.load_state_dict(ours.state_dict())
    return model.eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 97, (1, 2 * WINDOW))


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max())


def fresh_cache(model: Any) -> DynamicCache:
    # As its forward does for a cache of its own.
    model._setup_cache(model.config, 1, torch.device("cpu"), torch.float32)
    return DynamicCache(config=model.config)


@torch.no_grad()
def test_in_tree_attends_one_key_less(in_tree: Any, ids: Tensor):
    logits = in_tree(ids, use_cache=False).logits
    assert difference(logits, tiny_model(tiny_config(lru_width=32))(ids).logits) > WRONG
    narrower = tiny_config(lru_width=32, attention_window_size=WINDOW - 1)
    assert difference(logits, tiny_model(narrower)(ids).logits) < RIGHT


@torch.no_grad()
def test_in_tree_pads(in_tree: Any, ids: Tensor):
    whole, pads = in_tree(ids, use_cache=False).logits, torch.zeros(1, 5, dtype=torch.long)
    ones = torch.ones_like(ids)
    mask = torch.cat((pads, ones), dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    left = in_tree(torch.cat((pads, ids), dim=1), attention_mask=mask, position_ids=positions, use_cache=False).logits
    assert difference(left[:, 5:], whole) > WRONG
    right = in_tree(torch.cat((ids, pads), dim=1), attention_mask=torch.cat((ones, pads), dim=1), use_cache=False)
    assert difference(right.logits[:, :-5], whole) < RIGHT


@torch.no_grad()
def test_in_tree_documents_in_a_row(in_tree: Any, ids: Tensor):
    positions = torch.arange(WINDOW).repeat(2)[None]
    packed = in_tree(ids, position_ids=positions, use_cache=False).logits
    assert difference(packed[:, WINDOW:], in_tree(ids[:, WINDOW:], use_cache=False).logits) > WRONG


@torch.no_grad()
def test_in_tree_goes_on_by_one_token_but_not_by_several(in_tree: Any, ids: Tensor):
    whole = in_tree(ids, use_cache=False).logits
    for step, at_once in ((1, True), (WINDOW, False)):
        cache = fresh_cache(in_tree)
        pieces = [in_tree(piece, cache=cache, use_cache=True).logits for piece in (ids[:, :WINDOW],)]
        for start in range(WINDOW, 2 * WINDOW, step):
            pieces.append(in_tree(ids[:, start : start + step], cache=cache, use_cache=True).logits)
        found = difference(torch.cat(pieces, dim=1), whole)
        assert found < RIGHT if at_once else found > WRONG


@torch.no_grad()
def test_in_tree_texts_in_turn(in_tree: Any, ids: Tensor):
    whole, other = in_tree(ids, use_cache=False).logits, ids.flip(1)
    first, second = fresh_cache(in_tree), fresh_cache(in_tree)
    in_tree(ids[:, :-1], cache=first, use_cache=True)
    in_tree(other[:, :-1], cache=second, use_cache=True)
    assert difference(in_tree(ids[:, -1:], cache=first, use_cache=True).logits[:, 0], whole[:, -1]) > WRONG


def test_in_tree_beams_and_drafts(in_tree: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch):
    # Flat distributions, in which beams change places.
    monkeypatch.setattr(in_tree.config, "logits_soft_cap", 2.0)
    options = {"num_beams": 4, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    options |= {"return_dict_in_generate": True, "output_scores": True, "attention_mask": torch.ones_like(ids)}
    cached, uncached = (in_tree.generate(ids, use_cache=use, **options).sequences_scores for use in (True, False))
    assert difference(cached, uncached) > 1e-3
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        in_tree.generate(ids, prompt_lookup_num_tokens=3, max_new_tokens=4, attention_mask=torch.ones_like(ids))


@torch.no_grad()
def test_in_tree_batch_of_unequal_prompts(in_tree: Any, ids: Tensor):
    mask = torch.cat((torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)), dim=1)
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    padded = in_tree.generate(torch.cat((mask[:, :5], ids), dim=1), attention_mask=mask, **options).logits[0]
    alone = in_tree.generate(ids, attention_mask=torch.ones_like(ids), **options).logits[0]
    assert difference(padded, alone) > WRONG


# JAX compiles for every length. Its packed rows, and single tokens after a prompt, are in tests/parity as well.
@pytest.fixture(scope="module", params=[pytest.param("jax", marks=pytest.mark.slow), "torch"])
def deepmind(request: pytest.FixtureRequest) -> Any:
    """DeepMind's model with random weights, as a function of ids, positions and a cache, on torch's tensors."""
    require("recurrentgemma")
    version = importlib.metadata.version("recurrentgemma")
    if f"| {version} of PyPI `recurrentgemma`" not in PAGE:
        pytest.skip(f"the page speaks of another release of recurrentgemma than {version}")
    from benchmarks.peers.deepmind_weights import deepmind_config

    ours = tiny_model()
    config = deepmind_config(ours.config)
    if request.param == "torch":
        from recurrentgemma.torch import Griffin

        from benchmarks.peers.deepmind_weights import deepmind_weights

        model = Griffin(config, dtype=torch.float32, gradient_checkpointing=False)
        model.load_state_dict(dict(deepmind_weights(ours, "torch")))
        return torch.no_grad()(lambda ids, positions, cache=None: model.eval()(ids, positions, cache))

    jax = require("jax")
    from tests.parity.jax_model import Griffin, flax_params, griffin_config

    names = {name: weight for name, weight in ours.state_dict().items() if not name.startswith("lm_head")}
    params = flax_params({name: weight.numpy() for name, weight in names.items()})
    griffin = Griffin(griffin_config(ours.config))

    def run(ids: Tensor, positions: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        given = (jax.numpy.asarray(tensor.numpy(), "int32") for tensor in (ids, positions))
        logits, cache = griffin.apply({"params": params}, *given, cache)
        return torch.tensor(jax.device_get(logits)), cache

    return run


def test_deepminds_pads_documents_and_pieces(deepmind: Any, ids: Tensor):
    positions = torch.arange(2 * WINDOW)[None]
    whole, _ = deepmind(ids, positions)
    with torch.no_grad():
        assert difference(whole, tiny_model()(ids).logits) < RIGHT

    pads = torch.zeros(1, 5, dtype=torch.long)
    left, cache = deepmind(torch.cat((pads, ids[:, :-1]), dim=1), torch.cat((pads - 1, positions[:, :-1]), dim=1))
    assert difference(left[:, 5:], whole[:, :-1]) < RIGHT
    last, _ = deepmind(ids[:, -1:], positions[:, -1:], cache)
    assert difference(last, whole[:, -1:]) < RIGHT

    packed, _ = deepmind(ids, positions % WINDOW)
    assert difference(packed[:, WINDOW:], deepmind(ids[:, WINDOW:], positions[:, :WINDOW])[0]) < RIGHT

    _, cache = deepmind(ids[:, :WINDOW], positions[:, :WINDOW])
    with pytest.raises(AssertionError):
        deepmind(ids[:, WINDOW:], positions[:, WINDOW:], cache)


@torch.no_grad()
def test_ours_does_what_the_rows_say(ids: Tensor):
    # In one place what the named tests show in many ways: the same checks as of the others, with the opposite result.
    model, pads = tiny_model(), torch.zeros(1, 5, dtype=torch.long)
    whole, ones = model(ids).logits, torch.ones_like(ids)
    left = model(torch.cat((pads, ids), dim=1), attention_mask=torch.cat((pads, ones), dim=1)).logits
    assert difference(left[:, 5:], whole) < RIGHT
    packed = model(ids, position_ids=torch.arange(WINDOW).repeat(2)[None]).logits
    assert difference(packed[:, WINDOW:], model(ids[:, WINDOW:]).logits) < RIGHT
    first, second = RecurrentGemmaCache(model.config), RecurrentGemmaCache(model.config)
    model(ids[:, :WINDOW], past_key_values=first)
    model(ids.flip(1), past_key_values=second)
    assert difference(model(ids[:, WINDOW:], past_key_values=first).logits, whole[:, WINDOW:]) < RIGHT
