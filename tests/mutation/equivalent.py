"""Mutants that no test on a CPU can notice, by target: each reason, and the names of its mutants."""

_SIZE = "a block's size: time and memory change, results by rounding at most"
_ROUTE = "another route, of another speed, to the same numbers"
_PROMOTED = "torch widens this operand of a product or a sum as the other one is"
_CUDA = "runs on CUDA devices alone"

EQUIVALENT: dict[str, dict[str, tuple[str, ...]]] = {
    "inputs": {
        "what is wrong is found at the same place": (
            "_boundaries_from_lengths: torch.cat((grows[:1] & first, grows[1:-1], grows[+1:] & last)),",
        ),
    },
    "cache": {
        "the fields come in one order": ('save: "config": json.dumps(fields, ),',),
        "overwritten in the next lines": ("clone: copied = Progress(None)",),
    },
    "causal_conv1d": {
        _PROMOTED: ("causal_conv1d_forward: y = x.to(None) * weight[:, -1]",),
        _ROUTE: (
            "causal_conv1d_varlen_: run = _causal_conv1d_varlen_ if (needs_registered_op()) and False else _update_",
        ),
    },
    "cross_entropy": {
        _SIZE: ("module: _WORDS = 1 << 15", "module: _CPU_ELEMENTS = 2 << 21"),
        _CUDA: ("linear_cross_entropy_forward: loss = torch.zeros((), dtype=dtype, )",),
        "tokens without a label are masked as well": ("linear_cross_entropy_forward: counted = None",),
        "autograd takes more gradients than there are inputs, where they are None": (
            "_backward: return *gradients, *(None,) * 6",
        ),
    },
    "gated_activation": {
        _SIZE: ("module: _BLOCK_ELEMENTS = 1 << 19",),
        _ROUTE: (
            "gated_activation: needs_gradient = torch.is_grad_enabled() or (gate.requires_grad or x.requires_grad)",
        ),
        "every backend but the reference is blocked": (
            'gated_activation: default = "BLOCKED" if blocked else "reference"',
            'gated_activation: default = "XXblockedXX" if blocked else "reference"',
        ),
        "the lists have one length": (
            "backward: for grad_block, gate_block, x_block, out_gate, out_x in zip(*blocks, strict=False):",
            "backward: for grad_block, gate_block, x_block, out_gate, out_x in zip(*blocks, ):",
        ),
    },
    "linear": {
        _SIZE: ("module: _BLOCK_ELEMENTS = 1 >> 24", "module: _BLOCK_ELEMENTS = 2 << 24"),
        _ROUTE: (
            "module: _BLOCKED_ELEMENTS = 1 << 18",
            "_is_slow_on_cpu: return dtype != torch.float16 and not torch.cpu._is_amx_fp16_supported()",
        ),
        _PROMOTED: (
            "linear_row_reduced: y = (weight.to(None) * x.reshape(1, -1).to(dtype)).sum(dim=1)",
            "linear_row_reduced: y = y + bias.to(None)",
        ),
    },
    "linear_scan": {
        _SIZE: (
            "module: _BLOCK_BYTES = 3 << 20",
            "module: _BLOCK_BYTES = 2 >> 20",
            "module: _BLOCK_BYTES = 2 << 21",
            "block_length: return max(32, min(1024, steps // 32 * 33))",
            "block_length: return max(32, min(1025, steps // 32 * 32))",
            "block_length: return max(33, min(1024, steps // 32 * 32))",
            "scan_block_: chunk = 33 if steps > 256 else 16",
        ),
    },
    "local_attention": {
        _ROUTE: (
            "local_attention_blocked: end = length if length <= window + 2 else max(end, (window + 1) // rows * rows)",
        ),
    },
    "rg_lru": {
        "the column too many is not read": ("rg_lru_backward: a_after = a[:, :2].clone()",),
    },
    "rms_norm": {
        _SIZE: (
            'backward: rows = max(1, _BLOCK_ELEMENTS // width) if x.device.type == "cpu" else max(2, x.numel() // '
            "width)",
            'backward: rows = max(1, _BLOCK_ELEMENTS // width) if (x.device.type == "cpu") and False else max(1, '
            "x.numel() // width)",
        ),
        _ROUTE: ("rms_norm: if torch.is_grad_enabled() or (x.requires_grad or weight.requires_grad):",),
        "the last of two dimensions": ("backward: mean = product.mul_(scale).mean(dim=+1, keepdim=True)",),
    },
    "shared": {
        _ROUTE: (
            "one_token_each: return torch.equal(cu_seqlens, torch.arange(tokens - 1, dtype=cu_seqlens.dtype))",
            "one_token_each: return torch.equal(cu_seqlens, torch.arange(tokens + 2, dtype=cu_seqlens.dtype))",
        ),
        _CUDA: (
            'choose_kernel_backend: default = "XXtritonXX" if takes and x.device.type == "cuda" and _TRITON_INSTALLED '
            "else torch_backend",
        ),
    },
}


def equivalent_mutants(target: str) -> set[str]:
    """The names of a target's."""
    return {name for names in EQUIVALENT.get(target, {}).values() for name in names}
