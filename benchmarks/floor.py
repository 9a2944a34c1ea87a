"""What no implementation of the model can go below: its own matrix products, and reading its weights once."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import clock
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layers import RecurrentGemmaAttention, RecurrentGemmaRglru

# Queries that share one set of keys: enough for full speed, few enough that their scores stay in cache.
_ATTENTION_ROWS = 128


class MatrixProducts:
    """The matrix products of one forward pass over ``length`` tokens of one row, and nothing else.

    They are the products of every linear layer and of the gates with the model's own weights, attention's two inside
    the window, and the logits. Inputs are contiguous and outputs go to memory that exists, so no allocation, bias or
    copy is counted. Products of one shape share their buffers.

    Args:
        model: Its weights are used, not copied.
        length: Tokens.
        logits: Tokens whose logits are computed.

    Attributes:
        flops: Multiplications and additions of one call.
    """

    def __init__(self, model: RecurrentGemmaForCausalLM, length: int, logits: int) -> None:
        self.flops = 0
        self._place = {"device": model.device, "dtype": model.dtype}
        self._products: list[Callable[[], Tensor]] = []
        self._inputs: dict[tuple[int, ...], Tensor] = {}
        self._outputs: dict[tuple[int, ...], Tensor] = {}
        for module in model.model.layers.modules():
            if isinstance(module, nn.Linear):
                self._add_linear(module, length)
            elif isinstance(module, RecurrentGemmaRglru):
                for weight in (module.input_gate_weight, module.recurrent_gate_weight):
                    heads, width, _ = weight.shape
                    self._add(torch.bmm, self._input(heads, length, width), weight.detach())
            elif isinstance(module, RecurrentGemmaAttention):
                self._add_attention(model, length)
        self._add_linear(model.lm_head, logits)

    def __call__(self) -> None:
        """Compute every product once."""
        for product in self._products:
            product()

    def _add_linear(self, linear: nn.Linear, rows: int) -> None:
        self._add(torch.mm, self._input(rows, linear.in_features), linear.weight.detach().t())

    def _add_attention(self, model: RecurrentGemmaForCausalLM, length: int) -> None:
        config = model.config
        groups, width = config.num_key_value_heads, config.head_dim
        heads = config.num_attention_heads // groups
        for begin in range(0, length, _ATTENTION_ROWS):
            rows = min(length - begin, _ATTENTION_ROWS)
            # As many keys for all as the queries see on average: the window's multiplications in dense products.
            seen = sum(min(t, config.attention_window_size) + 1 for t in range(begin, begin + rows))
            keys = round(seen / rows)
            # Query heads that share a key head are rows of one product.
            query, key, value = ((heads * rows, width), (width, keys), (keys, width))
            scores = self._add(torch.bmm, self._input(groups, *query), self._input(groups, *key))
            self._add(torch.bmm, scores, self._input(groups, *value))

    def _add(self, multiply: Callable[..., Tensor], left: Tensor, right: Tensor) -> Tensor:
        shape = (*left.shape[:-1], right.shape[-1])
        if shape not in self._outputs:
            self._outputs[shape] = torch.empty(shape, **self._place)
        output = self._outputs[shape]
        self._products.append(partial(multiply, left, right, out=output))
        self.flops += 2 * output.numel() * left.shape[-1]
        return output

    def _input(self, *shape: int) -> Tensor:
        if shape not in self._inputs:
            self._inputs[shape] = torch.randn(shape, **self._place)
        return self._inputs[shape]


class WeightRead:
    """Reading the model's parameters once, as fast as torch can: what a decoded token cannot go below.

    One contiguous buffer of as many bytes stands for them, so that it is served by the level of memory that the weights
    would be.

    Args:
        model: Only its number of parameters, their dtype and their device are used.
        attempts: Reads of each kind, of which the fastest counts.

    Attributes:
        bytes: Size of the buffer.
    """

    def __init__(self, model: RecurrentGemmaForCausalLM, *, attempts: int = 5) -> None:
        columns = 1024
        place = {"device": model.device, "dtype": model.dtype}
        rows = -(-sum(parameter.numel() for parameter in model.parameters()) // columns)
        self._matrix, self._vector = torch.ones(rows, columns, **place), torch.ones(columns, **place)
        self._attempts = attempts
        self.bytes = self._matrix.nbytes

    def __call__(self) -> float:
        """Seconds of the fastest read."""
        return min(_seconds(read) for read in (self._multiply, self._add) for _ in range(self._attempts))

    def _multiply(self) -> None:
        torch.mv(self._matrix, self._vector)

    def _add(self) -> None:
        self._matrix.sum()


def _seconds(work: Callable[[], None]) -> float:
    return clock(work)()
