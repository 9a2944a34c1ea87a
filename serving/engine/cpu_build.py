"""What the runner of vLLM's CPU build, 0.32, gets wrong for models with states: put right once, where a model is made.

- **Blocks.** A new block's memory may have held states, whose bits may be NaN as keys and values. vLLM's CPU kernel
  multiplies what lies after a sequence's last token by 0, and 0 times NaN is NaN. vLLM therefore clears new blocks, but
  on CPU those of layers without a window alone.
- **Seeds.** A request with a seed draws from a generator of its own. At the end of each chunk of its prompt but the
  last vLLM samples as well, and takes back what that drew by the generator's offset. Generators on CPU have none: the
  engine would end with an error. With prefix caching, every prompt of more than a block of tokens is read in chunks.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.kv_cache_interface import SlidingWindowSpec

_originals: dict[str, Callable[..., Any]] = {}


def mend_cpu_runner() -> None:
    """Put it right. Calling it again changes nothing."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if _originals:
        return
    for method in (_zero_block_ids, _sample, _bookkeeping_sync):
        _originals[method.__name__] = getattr(CPUModelRunner, method.__name__)
        setattr(CPUModelRunner, method.__name__, method)


def _zero_block_ids(self: Any, block_ids: list[int]) -> None:
    _originals["_zero_block_ids"](self, block_ids)
    layers = self.compilation_config.static_forward_context
    for group in self.kv_cache_config.kv_cache_groups:
        if isinstance(group.kv_cache_spec, SlidingWindowSpec):
            for name in group.layer_names:
                layers[name].kv_cache[block_ids] = 0


def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
    generators = _generators_within_prompts(self)
    states = [generator.get_state() for generator in generators.values()]
    output = _originals["_sample"](self, *args, **kwargs)
    for generator, state in zip(generators.values(), states, strict=True):
        generator.set_state(state)
    return output


def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
    # Nothing is left to take back.
    generators = _generators_within_prompts(self)
    for place in generators:
        del self.input_batch.generators[place]
    try:
        return _originals["_bookkeeping_sync"](self, *args, **kwargs)
    finally:
        self.input_batch.generators.update(generators)


def _generators_within_prompts(runner: Any) -> dict[int, torch.Generator]:
    """By their places in the batch, those of requests whose prompts have not been read to the end."""
    batch = runner.input_batch
    is_within = runner.discard_request_mask.np[: batch.num_reqs]
    return {place: generator for place, generator in batch.generators.items() if is_within[place]}


__all__ = ["mend_cpu_runner"]
