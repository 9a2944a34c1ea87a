"""Measure what the parity tests hold bars to, beside Transformers' own class, and write it into docs/evidence.md.

    python -m tests.parity.measure

The judge is the stored results of DeepMind's JAX code, so this needs no JAX. Figures go to
``docs/data/exactness.json``, from which the page's table is made.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import DynamicCache
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig as InTreeConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaForCausalLM as InTreeForCausalLM

from benchmarks.pages import markdown_table, renew
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.parity import goldens, ours
from tests.parity.cases import CASES, PROMPT_LENGTH, Case, to_torch
from tests.support import ROOT
from tests.tolerances import max_difference, relative_to_max

PAGE = ROOT / "docs" / "evidence.md"
RESULTS = ROOT / "docs" / "data" / "exactness.json"
PREFIX = "exactness/"
OURS, JAX, IN_TREE, IN_TREE_WIDER = "ours", "DeepMind's JAX in bf16", "in-tree", "in-tree, window + 1"

Figures = dict[str, float]


def measure(case: Case) -> dict[str, Figures]:
    """The largest differences from DeepMind's JAX code, by implementation and quantity; and JAX's own in bf16."""
    found = {OURS: _ours(case), JAX: {"bf16": _of_bf16(case, goldens.load(case)["logits/bf16"])}}
    if case.config.embeddings_scale_by_sqrt_dim and case.config.logits_soft_cap:
        found[IN_TREE] = _in_tree(case, wider=0)
        found[IN_TREE_WIDER] = _in_tree(case, wider=1)
    return found


def _ours(case: Case) -> Figures:
    tokens, model = ours.tokens_of(case), ours.build(case)
    pieces = [PROMPT_LENGTH] + [1] * (case.length - PROMPT_LENGTH)
    _, gradients = ours.gradients(ours.build(case), tokens)
    return {
        **_of_logits(
            case,
            prefill=ours.run(model, tokens),
            decode=ours.run_in_pieces(model, tokens, pieces),
            packed=ours.run(model, tokens, position_ids=torch.from_numpy(case.packed_positions())),
        ),
        "gradients": _of_gradients(case, gradients),
        "bf16": _of_bf16(case, ours.run(ours.build(case, torch.bfloat16), tokens)),
    }


def _in_tree(case: Case, *, wider: int) -> Figures:
    tokens, build = ours.tokens_of(case), _in_tree_builder(case, wider)
    with torch.no_grad():
        prefill = build()(input_ids=tokens, use_cache=False).logits
        packed = torch.from_numpy(case.packed_positions())
        packed = build()(input_ids=tokens, position_ids=packed, use_cache=False).logits
        bf16 = build().to(torch.bfloat16)(input_ids=tokens, use_cache=False).logits
        model = build()
        cache = {CACHE_NAME: DynamicCache(config=model.config)}
        columns = [tokens[:, :PROMPT_LENGTH], *tokens[:, PROMPT_LENGTH:].split(1, dim=1)]
        decode = torch.cat([model(input_ids=part, use_cache=True, **cache).logits for part in columns], dim=1)
    model = build()
    logits = model(input_ids=tokens, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        **_of_logits(case, prefill=prefill, decode=decode, packed=packed),
        "gradients": _of_gradients(case, gradients),
        "bf16": _of_bf16(case, bf16),
    }


def _in_tree_builder(case: Case, wider: int) -> Callable[[], Any]:
    fields = case.config.to_dict()
    fields["attention_window_size"] += wider
    # Without an id for pads the embedding of id 0 learns as in JAX.
    fields["pad_token_id"] = None
    weights = to_torch(case.weights())

    def build() -> Any:
        model = InTreeForCausalLM(InTreeConfig.from_dict(fields))
        model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, strict=True)
        return model.eval()

    return build


def _of_logits(case: Case, **logits: Tensor) -> Figures:
    return {name: max_difference(found, goldens.load(case)[f"logits/{name}"]) for name, found in logits.items()}


def _of_gradients(case: Case, gradients: dict[str, Tensor]) -> float:
    return max(relative_to_max(gradients[name], theirs) for name, theirs in goldens.gradients(case).items())


def _of_bf16(case: Case, logits: Tensor) -> float:
    return max_difference(logits, goldens.load(case)["logits/rounded_weights"])


def renewed(page: str, results: dict[str, Any]) -> str:
    """``page`` with its table of this prefix filled from the results."""
    return renew(page, lambda name: _table(results) if name == f"{PREFIX}jax" else None)


def _table(results: dict[str, Any]) -> str:
    quantities = {
        "prefill": "one pass",
        "decode": "token by token",
        "packed": "documents in one row",
        "gradients": "gradients",
        "bf16": "bf16",
    }
    rows = []
    for case, by_who in results["cases"].items():
        for who, figures in by_who.items():
            cells = [f"{figures[name]:.1e}" if name in figures else "" for name in quantities]
            rows.append([f"`{case}`", who, *cells])
    return markdown_table(["model", "", *quantities.values()], rows)


def main() -> None:
    """Measure every case, write the figures and renew the page."""
    results = {
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **goldens.manifest()["versions"],
        },
        "machine": platform.machine(),
        "cases": {str(case): measure(case) for case in CASES},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    page = Path(PAGE)
    page.write_text(renewed(page.read_text(), results))
    print(_table(results))


if __name__ == "__main__":
    main()
