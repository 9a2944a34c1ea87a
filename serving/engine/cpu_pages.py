"""Keys and values of a new block on CPU begin as zeros, as they do on GPU.

A block's memory may have held states before, whose bits may be NaN as keys and values. vLLM's CPU kernel multiplies
what lies after a sequence's last token by 0, and 0 times NaN is NaN. vLLM therefore clears new blocks; but on CPU, in
0.32, those of layers without a window alone.
"""

from typing import Any

from vllm.v1.kv_cache_interface import SlidingWindowSpec


def clear_new_blocks_of_windows() -> None:
    """Have vLLM's runner on CPU clear new blocks of layers with a window too. Calling it again changes nothing."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if CPUModelRunner._zero_block_ids is _zero_block_ids:
        return
    _originals.append(CPUModelRunner._zero_block_ids)
    CPUModelRunner._zero_block_ids = _zero_block_ids


_originals: list[Any] = []


def _zero_block_ids(self: Any, block_ids: list[int]) -> None:
    for original in _originals:
        original(self, block_ids)
    layers = self.compilation_config.static_forward_context
    for group in self.kv_cache_config.kv_cache_groups:
        if isinstance(group.kv_cache_spec, SlidingWindowSpec):
            for name in group.layer_names:
                layers[name].kv_cache[block_ids] = 0


__all__ = ["clear_new_blocks_of_windows"]
