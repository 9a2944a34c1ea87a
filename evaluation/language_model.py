"""lm-eval's model ``recurrent_gemma``: its Hugging Face model with one BOS, left padding and shared contexts."""

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from recurrent_gemma.evaluation.continuation_scores import LOGIT_BYTES, ContinuationScorer, rows_per_pass
from recurrent_gemma.evaluation.generation_batches import generation_batches
from recurrent_gemma.evaluation.requirements import require_lm_eval
from recurrent_gemma.modeling import RecurrentGemmaCache

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

logger = logging.getLogger("recurrent_gemma")

NAME = "recurrent_gemma"

# What lm-eval takes for the longest input: a state of constant size has no such bound.
_UNBOUNDED = 2**31 - 1

_Encoded = tuple[tuple[str, str] | None, list[int], list[int]]


@functools.cache
def language_model() -> "type[HFLM]":
    """lm-eval's ``HFLM`` with :class:`RecurrentGemmaRequests` mixed in, registered as ``recurrent_gemma``.

    Raises:
        ImportError: lm-eval is not installed.
    """
    require_lm_eval()
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM

    made = type("RecurrentGemmaLM", (RecurrentGemmaRequests, HFLM), {"__doc__": RecurrentGemmaRequests.__doc__})
    return register_model(NAME)(made)


class RecurrentGemmaRequests:
    """How requests of lm-eval are read by a model of this family. Mixed into ``HFLM``, whose arguments it takes.

    - Every sequence begins with one BOS, whether the text, a chat template or nobody wrote it. (``HFLM`` puts two in
      front of rolling text, and one behind that of a template that is not at the very start.)
    - There is no longest input: nothing is cut off, and rolling text is read from end to end with one state, unless
      ``max_length`` is given. What is cut off then keeps its BOS; rolling text falls into lm-eval's windows, of which
      only the first has one.
    - Log-likelihoods are taken in fp32, whatever the model's dtype.
    - Contexts that several requests share are read once, whole or in part (:mod:`.continuation_scores`), and so are
      the examples before prompts that are answered (:mod:`.generation_batches`).
    - ``batch_size="auto"`` counts tokens and tries nothing out.
    - Answers that lm-eval's cache has are not computed again, and what is computed beside them does not change.

    Args:
        *args, **kwargs: Those of ``HFLM``.
        shared_contexts: False: ``HFLM``'s own path, which reads every context with every choice, to compare with.
        seed: Where the random numbers of each batch of sampled answers begin.

    Raises:
        ValueError: ``add_bos_token``, ``prefix_token_id``, ``truncation`` or ``mixed_precision_dtype`` ask for
            something else, or the tokenizer has no BOS.
    """

    tokenizer: Any
    model: Any
    device: torch.device
    batch_size: int | str
    batch_size_per_gpu: int | str
    cache_hook: Any

    def __init__(self, *args: Any, shared_contexts: bool = True, seed: int = 1234, **kwargs: Any) -> None:
        if kwargs.get("add_bos_token") not in (None, True):
            raise ValueError(
                f"add_bos_token: expected None or True, got {kwargs['add_bos_token']!r}; the models of this family "
                "were trained with one BOS before every text."
            )
        if kwargs.get("truncation"):
            raise ValueError("truncation: expected False, got True; this family has no longest input, see max_length.")
        if shared_contexts and kwargs.get("mixed_precision_dtype") is not None:
            raise ValueError(
                "mixed_precision_dtype: expected None with shared contexts, got "
                f"{kwargs['mixed_precision_dtype']!r}; give dtype, or shared_contexts=False."
            )
        kwargs.setdefault("softmax_dtype", "float32")
        self.shared_contexts, self.seed, self.tokens_read = shared_contexts, seed, 0
        self._beginning: RecurrentGemmaCache | None = None
        super().__init__(*args, **kwargs)
        bos, prefix = self.tokenizer.bos_token_id, kwargs.get("prefix_token_id")
        if bos is None:
            raise ValueError("tokenizer: expected one with a BOS token, got none; use the checkpoint's own.")
        if prefix not in (None, bos):
            raise ValueError(f"prefix_token_id: expected None or the tokenizer's BOS, {bos}, got {prefix}.")

    @property
    def max_length(self) -> int:
        """Tokens of the longest input: ``max_length`` where given, else as good as unbounded."""
        return self._max_length or _UNBOUNDED  # type: ignore[attr-defined]

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
    ) -> list[int]:
        """Ids of ``string`` with one BOS in front; with ``add_special_tokens=False`` only if the text has one."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer.encode(string, add_special_tokens=False)
        written = next((place for place, token in enumerate(ids) if token != bos), len(ids))
        begin = [bos] if written or add_special_tokens is not False else []
        return _cut([*begin, *ids[written:]], left_truncate_len)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of ``strings``, each with one BOS, padded on the left."""
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for row, tokens in enumerate(rows):
            columns = slice(length - len(tokens), None) if padding_side == "left" else slice(len(tokens))
            ids[row, columns], mask[row, columns] = torch.tensor(tokens), 1
        return ids, mask

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text after BOS; in windows only where ``max_length`` is given."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        bos = self.tokenizer.bos_token_id
        known = self._known("loglikelihood_rolling", [request.args for request in requests])
        windows: list[_Encoded] = []
        texts: list[int] = []
        for index, request in enumerate(requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0])[1:],
                prefix_token=bos,
                max_seq_len=self.max_length,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in cut]
            windows += parts
            texts += [index] * len(parts)
        left = Counter(texts)
        sums = [0.0] * len(requests)

        def add(window: int, answer: tuple[float, bool]) -> None:
            text = texts[window]
            sums[text] += answer[0]
            left[text] -= 1
            if not left[text]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[text].args, sums[text])

        self._score(windows, {window for window, text in enumerate(texts) if text in known}, add, disable_tqdm)
        return [known.get(index, total) for index, total in enumerate(sums)]

    def _loglikelihood_tokens(
        self, requests: Sequence[_Encoded], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each continuation, and whether it is the greedy one, in the requests' order."""
        answers: dict[int, tuple[float, bool]] = self._known("loglikelihood", [key for key, _, _ in requests])

        def keep(index: int, answer: tuple[float, bool]) -> None:
            answers[index] = answer
            self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)

        self._score(requests, set(answers), keep, disable_tqdm)
        return [answers[index] for index in range(len(requests))]

    def _score(
        self,
        requests: Sequence[_Encoded],
        known: Collection[int],
        keep: Callable[[int, tuple[float, bool]], None],
        disable_tqdm: bool,
    ) -> None:
        """Give every answer that is not ``known`` to ``keep`` as it comes."""
        pairs = [(_cut(context, self._room(scored)), scored) for _, context, scored in requests]
        if not self.shared_contexts:
            wanted = [index for index in range(len(pairs)) if index not in known]
            again = [(requests[index][0], *pairs[index]) for index in wanted]
            plain = super()._loglikelihood_tokens(again, disable_tqdm=disable_tqdm)  # type: ignore[misc]
            # It reads what is the same but for the last token once.
            self.tokens_read += sum(map(len, {(*context, *scored[:-1]) for _, context, scored in again}))
            for index, answer in zip(wanted, plain, strict=True):
                keep(index, answer)
            return
        scorer = ContinuationScorer(self.model, batch_size=self.batch_size, max_rows=self.max_batch_size)  # type: ignore[attr-defined]
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            bar.update(len(known))
            for score in scorer.scores(pairs, known):
                keep(score.request, (score.log_likelihood, score.is_greedy))
                bar.update()
        self.tokens_read += scorer.tokens_read

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Answers in batches of equal options and similar lengths, each up to its stop strings."""
        calls = [request.args for request in requests]
        answers: dict[int, str] = self._known("generate_until", calls)
        prompts = [self.tok_encode(context) for context, _ in calls]
        # A prompt that is cut off below has no beginning to share.
        share = self.shared_contexts and self._max_length is None  # type: ignore[attr-defined]
        batches = generation_batches(prompts, [options for _, options in calls], self._generated_rows, share=share)
        beginning: tuple[tuple[int, ...], RecurrentGemmaCache | None] = ((), None)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for batch in batches:
                if any(index not in answers for index in batch.requests):
                    if batch.shared != beginning[0]:
                        beginning = (batch.shared, self._read(batch.shared))
                    if calls[batch.requests[0]][1].get("do_sample"):
                        torch.manual_seed(self.seed)
                    with self._batch_of(len(batch.requests), beginning[1]):
                        together = [requests[index] for index in batch.requests]
                        texts = super().generate_until(together, disable_tqdm=True)  # type: ignore[misc]
                    answers.update(zip(batch.requests, texts, strict=True))
                bar.update(len(batch.requests))
        return [answers[index] for index in range(len(requests))]

    def _generated_rows(self, length: int) -> int:
        """Rows of a batch whose longest prompt has ``length`` tokens."""
        if self.batch_size != "auto":
            return int(self.batch_size)
        return rows_per_pass(length + self.max_gen_toks, self.device, self.max_batch_size)  # type: ignore[attr-defined]

    @torch.no_grad()
    def _read(self, tokens: tuple[int, ...]) -> RecurrentGemmaCache | None:
        """The state after ``tokens``; None after none."""
        if not tokens:
            return None
        cache = RecurrentGemmaCache(self.model.config)
        ids = torch.tensor([tokens], device=self.device)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    @contextlib.contextmanager
    def _batch_of(self, rows: int, beginning: RecurrentGemmaCache | None) -> Iterator[None]:
        """``HFLM`` makes one batch of so many requests; they go on from one state."""
        before, self.batch_size_per_gpu, self._beginning = self.batch_size_per_gpu, rows, beginning
        try:
            yield
        finally:
            self.batch_size_per_gpu, self._beginning = before, None

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        # The answer to a chat ends where its turn does, whatever the checkpoint's generation config says.
        ends = {*_as_list(self.model.generation_config.eos_token_id), *_turn_ends(self.tokenizer)}
        options = {"eos_token_id": sorted(ends) or None, **options}
        if self._beginning is None:
            return super()._model_generate(context, max_length, stop, **options)  # type: ignore[misc]
        # Rows are pads, the beginning, and the rest: what has been read is taken out.
        read, mask = self._beginning.columns, options.pop("attention_mask")
        rows, length = context.shape
        pads = (mask == 0).sum(dim=1, keepdim=True)
        columns = torch.arange(length, device=context.device)
        left = ((columns < pads) | (columns >= pads + read)).expand(rows, length)
        rest, rest_mask = (tensor[left].view(rows, length - read) for tensor in (context, mask))
        answer = super()._model_generate(  # type: ignore[misc]
            rest,
            max_length - read,
            stop,
            attention_mask=torch.cat((mask.new_ones(rows, read), rest_mask), dim=1),
            past_key_values=self._beginning.fork(rows),
            **options,
        )
        return torch.cat((context, answer[:, rest.shape[1] :]), dim=1)

    def _detect_batch_size(self, requests: Sequence[_Encoded] | None = None, pos: int = 0) -> int:
        """Rows for ``batch_size="auto"`` on ``HFLM``'s own path, which would try sizes out until one fits."""
        assert requests is not None
        length = len(requests[pos][1]) + len(requests[pos][2])
        # That path has the logits of all tokens at once.
        at_once = max(1, LOGIT_BYTES // (4 * self.model.config.vocab_size * length))
        return min(at_once, rows_per_pass(length, self.device, self.max_batch_size))  # type: ignore[attr-defined]

    def _known(self, kind: str, calls: Sequence[Any]) -> dict[int, Any]:
        """Answers that lm-eval's cache has, by place.

        They are left out here, not before: what is read together then depends on all requests, and an answer is the
        same, rounding included, in a run that goes on after a kill.
        """
        from lm_eval.api.model import hash_args

        stored, found = self.cache_hook.dbdict, {}
        for index, call in enumerate(calls if stored is not None else ()):
            # Samples are drawn anew, as lm-eval does.
            if kind == "generate_until" and call[1].get("do_sample"):
                continue
            key = hash_args(kind, call)
            if key in stored:
                found[index] = stored[key]
        return found

    def _room(self, continuation: list[int]) -> int:
        """Tokens of a context that fit before ``continuation``, whose last token is not read."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(
                f"max_length: expected room for a continuation of {len(continuation)} tokens and BOS, got "
                f"{self.max_length}; leave it out, since this family has no longest input."
            )
        return room


def _cut(ids: list[int], length: int | None) -> list[int]:
    """``ids`` with as many left out after the first one, BOS, as do not fit."""
    if length is None or len(ids) <= length:
        return ids
    logger.warning(
        "max_length: %d tokens were cut off at the beginning of an input of %d.", len(ids) - length, len(ids)
    )
    return [ids[0], *ids[len(ids) - length + 1 :]]


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _turn_ends(tokenizer: Any) -> list[int]:
    """The id of ``<end_of_turn>``, where the tokenizer has it as a token of its own."""
    token = tokenizer.get_vocab().get("<end_of_turn>")
    return [] if token is None else [token]


__all__ = ["NAME", "RecurrentGemmaRequests", "language_model"]
