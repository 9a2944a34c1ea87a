"""What the demo model is measured against: n-gram models on the same tokens, and how much of its text is copied."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence


class KneserNey:
    """Interpolated Kneser-Ney n-gram model over token ids.

    Source: Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", section 3: absolute
    discounts n1 / (n1 + 2 n2) of each order (0.5 where n1 is 0), lower orders from continuation counts, and below the
    unigram the uniform distribution over the vocabulary.

    Args:
        order: Length of the n-grams; 1 is a unigram model.
        vocab_size: Number of tokens that can follow.
        documents: Training documents as token ids, each starting with BOS, which is a context and never predicted.
    """

    def __init__(self, order: int, vocab_size: int, documents: Iterable[Sequence[int]]) -> None:
        self.order = order
        self.vocab_size = vocab_size
        counts: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            counts.update(self._ngrams(document))
        # One triple an order, the unigram's first: counts, the counts' sums by context, distinct successors by context.
        self._levels: list[tuple[Counter, Counter, Counter]] = []
        self._discounts: list[float] = []
        while True:
            totals: Counter[tuple[int, ...]] = Counter()
            for ngram, count in counts.items():
                totals[ngram[:-1]] += count
            self._levels.insert(0, (counts, totals, Counter(ngram[:-1] for ngram in counts)))
            once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
            self._discounts.insert(0, once / (once + 2 * twice) if once else 0.5)
            if not totals or () in totals:
                break
            counts = Counter(ngram[1:] for ngram in counts)

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """Probability of ``token`` after ``context`` (its last ``order - 1`` tokens count)."""
        probability = 1.0 / self.vocab_size
        for length, ((counts, totals, distinct), discount) in enumerate(
            zip(self._levels, self._discounts, strict=True)
        ):
            suffix = context[len(context) - length :]
            total = totals[suffix]
            if total == 0:
                break
            own = max(counts[(*suffix, token)] - discount, 0.0)
            probability = (own + discount * distinct[suffix] * probability) / total
        return probability

    def perplexity(self, documents: Iterable[Sequence[int]]) -> float:
        """exp of the mean negative log-likelihood of every token but BOS."""
        logs = [math.log(self.probability(n[:-1], n[-1])) for document in documents for n in self._ngrams(document)]
        return math.exp(-sum(logs) / len(logs))

    def _ngrams(self, document: Sequence[int]) -> Iterable[tuple[int, ...]]:
        padded = [document[0]] * (self.order - 1) + list(document[1:])
        return (tuple(padded[i : i + self.order]) for i in range(len(padded) - self.order + 1))


def words(text: str) -> list[str]:
    """Words of ``text`` in lower case, without punctuation."""
    return re.findall(r"[a-z']+", text.lower())


def copied_share(generated: Iterable[str], training: Iterable[str], length: int = 8) -> float:
    """Share of the generated texts' n-grams of words that occur in the training texts."""

    def ngrams(text: str) -> Iterable[str]:
        text_words = words(text)
        return (" ".join(text_words[i : i + length]) for i in range(len(text_words) - length + 1))

    known = {hash(ngram) for text in training for ngram in ngrams(text)}
    found = [hash(ngram) in known for text in generated for ngram in ngrams(text)]
    return sum(found) / max(len(found), 1)
