"""What the YAML files in ``tasks/`` call: documents of WinoBias and BOLD, and scores that a classifier gives."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from recurrent_gemma.evaluation.classifier import PERSPECTIVE_KEY, Classifier, PerspectiveClassifier

# The 40 occupations of WinoBias (Zhao et al., 2018, table 1, in the words of its sentences).
OCCUPATIONS = (
    *"""
    accountant analyst assistant attendant auditor baker carpenter cashier ceo chief cleaner clerk cook counselor
    designer developer driver editor farmer guard hairdresser housekeeper janitor laborer lawyer librarian manager
    mechanic mover nurse physician receptionist salesperson secretary sheriff supervisor tailor teacher writer
    """.split(),
    "construction worker",
)
PRONOUNS = frozenset("he him his himself she her hers herself".split())

_NO_SPACE_BEFORE = frozenset(".,;:!?")


def winobias_docs(dataset: Any) -> Any:
    """Sentences with a pronoun and the two occupations it may refer to.

    Args:
        dataset: Rows of ``uclanlp/wino_bias``, of which ``tokens`` and ``coreference_clusters`` are read: pairs of
            first and last token of the mentions of one person.

    Returns:
        The data set with ``sentence``, ``pronoun``, ``occupations`` in their order and ``label``, the index of the
        one referred to.

    Raises:
        ValueError: A row does not name two occupations and a pronoun.
    """
    return dataset.map(lambda row: winobias_doc(row["tokens"], row["coreference_clusters"]))


def winobias_doc(tokens: Sequence[str], clusters: Sequence[str]) -> dict[str, Any]:
    """One document of :func:`winobias_docs`."""
    bounds = [int(bound) for bound in clusters]
    mentions = [(bounds[i], bounds[i + 1]) for i in range(0, len(bounds) - 1, 2)]
    words = [token.lower() for token in tokens]
    pronouns = [first for first, last in mentions if first == last and words[first] in PRONOUNS]
    named = [span for span in mentions if span[0] not in pronouns]
    if len(named) != 1 or not pronouns:
        raise ValueError(
            f"coreference_clusters: expected the spans of one occupation and of its pronouns, got {list(clusters)} in "
            f"{' '.join(tokens)!r}."
        )
    first, last = named[0]
    found = [
        (start, occupation)
        for occupation in OCCUPATIONS
        for start in range(len(words))
        if words[start : start + occupation.count(" ") + 1] == occupation.split(" ")
    ]
    referred = [place for place in found if first <= place[0] <= last]
    # A third occupation, in one sentence of the validation data, stands after the pronoun.
    others = [place for place in found if not first <= place[0] <= last and place[0] < pronouns[0]]
    if len(referred) != 1 or len(others) != 1:
        raise ValueError(
            f"tokens: expected one occupation in the span {first} to {last} and one outside of it before the pronoun, "
            f"got {[name for _, name in referred]} and {[name for _, name in others]} in {' '.join(tokens)!r}."
        )
    occupations = sorted([*referred, *others])
    return {
        "sentence": _joined(tokens),
        "pronoun": tokens[pronouns[0]],
        # As the sentence spells them: CEO is not lower case.
        "occupations": [" ".join(tokens[start : start + len(name.split(" "))]) for start, name in occupations],
        "label": occupations.index(referred[0]),
    }


def _joined(tokens: Sequence[str]) -> str:
    text = ""
    for token in tokens:
        glued = not text or token in _NO_SPACE_BEFORE or token.startswith(("'", "n't"))
        text += token if glued else f" {token}"
    return text


def bold_docs(dataset: Any) -> Any:
    """One document for every prompt of BOLD, whose rows hold all prompts of a person or group.

    Args:
        dataset: Rows of ``AmazonScience/bold``: ``domain``, ``category``, ``name``, ``prompts``.
    """

    def split(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        documents: dict[str, list[Any]] = {"prompt": [], "domain": [], "category": [], "name": []}
        for domain, category, name, prompts in zip(
            rows["domain"], rows["category"], rows["name"], rows["prompts"], strict=True
        ):
            for prompt in prompts:
                for field, value in zip(documents, (prompt, domain, category, name), strict=True):
                    documents[field].append(value)
        return documents

    return dataset.map(split, batched=True, remove_columns=dataset.column_names)


def classifier_score(doc: dict[str, Any], results: Sequence[float]) -> dict[str, float]:
    """The metric of a continuation that the filter has scored."""
    return {"classifier_score": results[0]}


def scores_by(classifier: Classifier) -> Callable[[Any, Any], list[float]]:
    """lm-eval's ``filter_fn`` that turns the continuations of all documents into scores, in one go."""

    # A function, not a partial: lm-eval copies configurations deeply, and would copy the classifier's weights.
    def scores(responses: Sequence[Sequence[str]], docs: Any) -> list[float]:
        return classifier.scores([continuations[0] for continuations in responses])

    return scores


def perspective_scores(responses: Sequence[Sequence[str]], docs: Any) -> Any:
    """The filter of lm-eval's own command line, which has no option for a classifier: Perspective."""
    return scores_by(PerspectiveClassifier())(responses, docs)


def expect_perspective(dataset: Any) -> Any:
    """``dataset``, if lm-eval's own command line can score it.

    Raises:
        ValueError: There is no key for Perspective; before anything is generated.
    """
    if not os.environ.get(PERSPECTIVE_KEY):
        raise ValueError(
            f"classifier: this row is scored by a classifier; set {PERSPECTIVE_KEY} for Google's Perspective, or use "
            "recurrent_gemma.evaluation.load_tasks(..., classifier=...)."
        )
    return dataset


def bold_docs_for_perspective(dataset: Any) -> Any:
    """:func:`bold_docs`, if lm-eval's own command line can score them."""
    return bold_docs(expect_perspective(dataset))


__all__ = [
    "OCCUPATIONS",
    "bold_docs",
    "bold_docs_for_perspective",
    "classifier_score",
    "expect_perspective",
    "perspective_scores",
    "scores_by",
    "winobias_doc",
    "winobias_docs",
]
