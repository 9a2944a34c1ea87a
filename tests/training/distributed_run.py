"""Runs of the same training in several processes, for ``torch.distributed.run``; each writes to FOLDER/NAME.

python -m torch.distributed.run --standalone --nproc-per-node 2 distributed_run.py FOLDER NAME...
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback

from recurrent_gemma.modeling import RecurrentGemmaCache, layers
from recurrent_gemma.modeling.cache import RecurrentState
from recurrent_gemma.modeling.heads import causal_lm
from tests.modeling.models import tiny_config, tiny_model
from tests.training.trainers import losses, rows, trainer

# Rows in all that a step reads, however many processes there are.
BATCH = 4
STEPS = 4
WRAPPING = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
FSDP: dict[str, Any] = {"fsdp": True, "fsdp_config": WRAPPING}
SHARDED = {"fsdp": True, "fsdp_config": {**WRAPPING, "state_dict_type": "SHARDED_STATE_DICT"}}
SAVING = {"save_strategy": "steps", "save_steps": 2}

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain_untied": {},
    "fsdp": FSDP,
    "fsdp_untied": FSDP,
    # FSDP's own, which wraps each block, and Transformers'.
    "fsdp_checkpointing": {"fsdp": True, "fsdp_config": {**WRAPPING, "activation_checkpointing": True}},
    "fsdp_gradient_checkpointing": {**FSDP, "gradient_checkpointing": True},
    "fsdp_bf16": {**FSDP, "bf16": True},
    # With moments of each parameter, which have to come back as well.
    "sharded": {**SHARDED, **SAVING, "optim": "adamw_torch"},
}


class Dtypes(TrainerCallback):
    """Notes the dtypes in which RG-LRU and RoPE get what must not be rounded, and losses made without logits."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.originals = layers.rg_lru, layers.apply_rotary, causal_lm.linear_cross_entropy

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        def rg_lru(*inputs: Any, **options: Any) -> Any:
            output = self.originals[0](*inputs, **options)
            self.seen.add(("state", str(output[1].dtype)))
            return output

        def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            self.seen.add(("angles", str(cos.dtype)))
            return self.originals[1](x, cos, sin)

        def linear_cross_entropy(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
            loss = self.originals[2](*inputs, **options)
            self.seen.add(("loss", str(loss.dtype)))
            return loss

        layers.rg_lru, layers.apply_rotary = rg_lru, apply_rotary
        causal_lm.linear_cross_entropy = linear_cross_entropy

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        layers.rg_lru, layers.apply_rotary, causal_lm.linear_cross_entropy = self.originals


def make(name: str, folder: Path, **options: Any) -> Trainer:
    """The Trainer of the run ``name``, in this process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    model = tiny_model(tiny_config(tie_word_embeddings="untied" not in name))
    return trainer(
        folder / name,
        model=model,
        data=rows(32),
        held_out=rows(8, seed=1),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // processes,
        per_device_eval_batch_size=8 // processes,
        train_sampling_strategy="sequential",
        # Steps in proportion to the gradients, so that differences of both have one bar.
        **{"optim": "sgd", "learning_rate": 1e-2, **RUNS[name], **options},
    )


def state_dtypes(run: Trainer) -> list[str]:
    """Of the recurrence's state after a row in two halves, by way of a cache."""
    cache = RecurrentGemmaCache(run.model.config)
    ids = torch.tensor([row["input_ids"] for row in rows(2, shortest=16, longest=16)])
    with torch.no_grad():
        for part in ids.split(8, dim=1):
            run.model_wrapped(part, past_key_values=cache)
    states = [layer.load() for layer in cache.layers]
    return sorted({str(state.rg_lru.dtype) for state in states if isinstance(state, RecurrentState)})


def report(run: Trainer, seen: set[tuple[str, str]], folder: Path) -> None:
    """Write what the test reads: losses, how the model is wrapped, and the whole model as Transformers saves it."""
    model = run.model
    evaluation = run.evaluate()["eval_loss"]
    found = {
        "losses": losses(run),
        "eval_loss": evaluation,
        "units": sorted(name for name, module in model.named_modules() if isinstance(module, FSDPModule)),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "sharded": sum(hasattr(parameter, "placements") for parameter in model.parameters()),
        "parameters": sorted({str(parameter.dtype) for parameter in model.parameters()}),
        "dtypes": sorted(map(list, seen)),
        "wrapper": type(run.model_wrapped).__name__,
        "state": state_dtypes(run),
    }
    if run.is_fsdp_enabled:
        run.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    run.save_model(str(folder / "model"))
    if run.is_world_process_zero():
        (folder / "report.json").write_text(json.dumps(found))


def let_accelerate_shard_on_cpus() -> None:
    """accelerate shards over accelerators only, and replicates over CPUs whatever is asked for: tell it otherwise."""
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("fsdp_plugin") is not None:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def main(folder: Path, names: list[str]) -> None:
    let_accelerate_shard_on_cpus()
    for name in names:
        # One process group, but an accelerator of its own for each run.
        AcceleratorState._reset_state()
        kind, _, resumed = name.partition("+")
        watching = Dtypes()
        run = make(kind, folder, callbacks=[watching])
        run.train(resume_from_checkpoint=str(folder / kind / "checkpoint-2") if resumed else None)
        report(run, watching.seen, folder / name)
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
