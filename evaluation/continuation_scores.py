"""Log-likelihoods of continuations, from states that are forked where contexts part."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recurrent_gemma.evaluation.context_tree import Node, context_tree, walk
from recurrent_gemma.modeling import RecurrentGemmaCache

# Tokens of one pass, of all rows together, and its rows where the batch size is "auto".
TOKENS_ON_CPU = 8192
TOKENS_ON_ACCELERATOR = 65_536
MAX_ROWS = 64
# Logits of one pass in fp32: 2,048 tokens with 256,000 pieces.
LOGIT_BYTES = 2**31


class Score(NamedTuple):
    """A continuation's score.

    Attributes:
        request: Its place among the requests.
        log_likelihood: Sum over its tokens, natural logarithm.
        is_greedy: Whether every token is the likeliest one.
    """

    request: int
    log_likelihood: float
    is_greedy: bool


def rows_per_pass(length: int, device: torch.device, max_rows: int | None = None) -> int:
    """Rows of ``length`` tokens that one pass takes where the batch size is "auto".

    The states are of constant size and small beside the activations, so tokens are what counts.

    Args:
        length: Tokens of the longest row.
        device: Where the model is.
        max_rows: Rows at most; None: 64.
    """
    return max(1, min(max_rows or MAX_ROWS, _tokens_per_pass(device) // max(1, length)))


def _tokens_per_pass(device: torch.device) -> int:
    return TOKENS_ON_CPU if device.type == "cpu" else TOKENS_ON_ACCELERATOR


class ContinuationScorer:
    """Scores many continuations with one model, and reads each shared context once.

    Args:
        model: A causal language model of this family, in eval mode.
        batch_size: Rows of a pass at most; ``"auto"``: as many as :func:`rows_per_pass` says, and half as many from
            there on when an accelerator is out of memory.
        max_rows: Rows at most with ``"auto"``.
    """

    def __init__(self, model: Any, *, batch_size: int | str = "auto", max_rows: int | None = None) -> None:
        self.model, self.batch_size, self.max_rows = model, batch_size, max_rows or MAX_ROWS
        self.tokens_read = 0
        self._config = model.config

    def scores(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], known: Collection[int] = ()
    ) -> Iterator[Score]:
        """The score of each request, as it becomes known; the order is the tree's.

        Args:
            requests: Tokens of a context and of its continuation, each at least one.
            known: Places of requests whose scores nobody waits for. What is read only for them is not read, and what
                is read is read in the same company as without them, so that all other scores are the same bits.

        Raises:
            ValueError: A context or a continuation is empty.
        """
        nodes = context_tree(requests)
        running = _RunningScores([len(continuation) for _, continuation in requests], known)
        yield from self._below(None, [(0, node) for node in nodes], running)

    def _below(
        self, cache: RecurrentGemmaCache | None, nodes: list[tuple[int, Node]], running: "_RunningScores"
    ) -> Iterator[Score]:
        """Read ``nodes``, each from the state in its row of ``cache``, and all that is below them."""
        # The longest first: whatever does not fit into memory is known at once. Equal lengths keep the tree's order.
        waiting = sorted(nodes, key=lambda pair: -len(pair[1]))
        while waiting:
            count = self._rows(len(waiting[0][1]))
            chunk, waiting = waiting[:count], waiting[count:]
            if not any(running.awaits(node) for _, node in chunk):
                continue
            try:
                read = self._read(cache, chunk, running)
            except torch.OutOfMemoryError:
                if self.batch_size != "auto" or len(chunk) == 1:
                    raise
                self.max_rows, waiting = len(chunk) // 2, chunk + waiting
                continue
            for _, node in chunk:
                yield from running.finished(node)
            inner = [(row, child) for row, (_, node) in enumerate(chunk) for child in node.children]
            if inner:
                yield from self._below(read, inner, running)

    def _rows(self, length: int) -> int:
        if self.batch_size == "auto":
            return rows_per_pass(length, self.model.device, self.max_rows)
        return int(self.batch_size)

    @torch.no_grad()
    def _read(
        self, cache: RecurrentGemmaCache | None, chunk: list[tuple[int, Node]], running: "_RunningScores"
    ) -> RecurrentGemmaCache:
        """The state after the nodes of ``chunk``, one row each; their targets' scores go to ``running``."""
        device, nodes = self.model.device, [node for _, node in chunk]
        length = max(map(len, nodes))
        ids = np.zeros((len(nodes), length), dtype=np.int64)
        mask = np.zeros((len(nodes), length), dtype=np.int64)
        for row, node in enumerate(nodes):
            ids[row, length - len(node) :], mask[row, length - len(node) :] = node.tokens, 1
        padded = not mask.all()
        state = _rows_of(cache, [row for row, _ in chunk], self._config)
        past = torch.ones(len(nodes), state.columns, dtype=torch.long)
        ids_BL = torch.from_numpy(ids).to(device)
        mask_BL = torch.cat((past, torch.from_numpy(mask)), dim=1).to(device) if padded else None
        cells, found = _Cells(nodes, length), []
        for begin, end, here in cells.passes(self._tokens_per_row(len(nodes)), self._scored_per_row(len(nodes))):
            columns = np.unique(cells.columns[here])
            output = self.model(
                input_ids=ids_BL[:, begin:end],
                attention_mask=None if mask_BL is None else mask_BL[:, : past.shape[1] + end],
                past_key_values=state,
                use_cache=True,
                logits_to_keep=torch.from_numpy(columns - begin).to(device) if len(columns) else 1,
            )
            if len(columns):
                found.append((here, *_token_scores(output.logits, columns, cells, here)))
        # Only now: a pass that ran out of memory before is made again as a whole.
        for here, log_probabilities, greedy in found:
            running.add(cells.requests[here], log_probabilities, greedy)
        self.tokens_read += sum(map(len, nodes))
        return state

    def _tokens_per_row(self, rows: int) -> int:
        return max(1, _tokens_per_pass(self.model.device) // rows)

    def _scored_per_row(self, rows: int) -> int:
        return max(1, LOGIT_BYTES // (4 * self._config.vocab_size * rows))


class _Cells:
    """The targets of a chunk's nodes as arrays, ordered by column; rows are padded on the left to ``length``."""

    def __init__(self, nodes: list[Node], length: int) -> None:
        self.length = length
        cells = [
            (length - len(node) + target.column, row, target.token, target.request)
            for row, node in enumerate(nodes)
            for target in node.targets
        ]
        table = np.array(sorted(cells), dtype=np.int64).reshape(-1, 4)
        self.columns, self.rows, self.tokens, self.requests = table.T

    def passes(self, max_columns: int, max_scored: int) -> Iterator[tuple[int, int, slice]]:
        """Cuts into passes: first column, end, and the cells between; ``max_scored`` bounds columns with cells."""
        scored, begin = np.unique(self.columns), 0
        while begin < self.length:
            end = min(begin + max_columns, self.length)
            here = scored[np.searchsorted(scored, begin) : np.searchsorted(scored, end)]
            if len(here) > max_scored:
                end = int(here[max_scored])
            first, last = np.searchsorted(self.columns, (begin, end))
            yield begin, end, slice(int(first), int(last))
            begin = end


class _RunningScores:
    """Sums over the tokens of each continuation, until all of them are there."""

    def __init__(self, lengths: list[int], known: Collection[int]) -> None:
        self._left = np.array(lengths)
        self._sums = np.zeros(len(lengths))
        self._greedy = np.ones(len(lengths), dtype=bool)
        self._done = np.zeros(len(lengths), dtype=bool)
        self._done[list(known)] = True

    def awaits(self, node: Node) -> bool:
        """Whether a score is missing that ends at ``node`` or below."""
        return any(not self._done[request] for part in walk([node]) for request in part.requests)

    def add(self, requests: np.ndarray, log_probabilities: np.ndarray, greedy: np.ndarray) -> None:
        np.add.at(self._sums, requests, log_probabilities)
        np.logical_and.at(self._greedy, requests, greedy)
        np.subtract.at(self._left, requests, 1)

    def finished(self, node: Node) -> Iterator[Score]:
        """The scores of this node's requests, which have no target below, but for those known before."""
        for request in node.requests:
            if self._done[request]:
                continue
            assert not self._left[request]
            self._done[request] = True
            yield Score(request, float(self._sums[request]), bool(self._greedy[request]))


def _rows_of(cache: RecurrentGemmaCache | None, rows: list[int], config: Any) -> RecurrentGemmaCache:
    """A new cache of the states in ``rows`` of ``cache``, in that order, each as often as it stands there."""
    if cache is None:
        return RecurrentGemmaCache(config)
    tensors = cache.tensors()
    index = torch.tensor(rows, device=tensors["next_position"].device)
    return RecurrentGemmaCache.from_tensors(
        config, {name: tensor.index_select(0, index) for name, tensor in tensors.items()}, cache.columns
    )


def _token_scores(logits: Tensor, columns: np.ndarray, cells: _Cells, here: slice) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each cell's token, and whether it is the likeliest, from logits (B, columns, vocab_size)."""
    places = np.stack((cells.rows[here], np.searchsorted(columns, cells.columns[here])))
    # Choices of one token stand at the same place.
    unique, which = np.unique(places, axis=1, return_inverse=True)
    row, column = torch.from_numpy(unique).to(logits.device)
    index = torch.from_numpy(which.reshape(-1)).to(logits.device)
    token = torch.from_numpy(cells.tokens[here]).to(logits.device)
    logits_NV = logits[row, column].float()
    log_probabilities = logits_NV[index, token] - logits_NV.logsumexp(dim=-1)[index]
    greedy = logits_NV.argmax(dim=-1)[index] == token
    return log_probabilities.double().cpu().numpy(), greedy.cpu().numpy()


__all__ = [
    "LOGIT_BYTES",
    "MAX_ROWS",
    "TOKENS_ON_ACCELERATOR",
    "TOKENS_ON_CPU",
    "ContinuationScorer",
    "Score",
    "rows_per_pass",
]
