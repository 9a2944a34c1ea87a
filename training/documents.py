"""Tokenized documents as they come from tokenizers, chat templates and datasets, checked and brought to one form."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recurrent_gemma.modeling.heads.loss import IGNORED

# Masks of what is to be learned, under the names that Transformers' chat templates and TRL give them.
TARGET_MASKS = ("assistant_masks", "completion_mask")
# What only examples of several documents have.
_BOUNDARIES = ("position_ids", "seq_lengths", "seq_idx", "cu_seq_lens_q")


class Document(NamedTuple):
    """One document."""

    input_ids: np.ndarray  # (tokens,) int64
    labels: np.ndarray  # (tokens,) int64; -100 at the first token, which nothing precedes


def read_document(example: Mapping[str, Any], name: str, *, bos_token_id: int | None = None) -> Document:
    """The document in ``example``.

    Args:
        example: ``input_ids``; optionally ``labels`` (default: the ids), ``attention_mask`` (0 at pads, which are taken
            out), and ``assistant_masks`` or ``completion_mask`` (1 at what is to be learned). Anything else is ignored.
        name: What errors call it.
        bos_token_id: A token that only begins a document. Then one inside is an error.

    Raises:
        TypeError: Values that are not integers.
        ValueError: No token, several documents, columns of other lengths, or a value that its column cannot have.
    """
    ids = token_ids(example, name)
    expect_one_document(example, name)
    labels = ids.copy() if example.get("labels") is None else column_of(example, "labels", name, len(ids))
    expect_labels(labels, name)
    for mask_name in TARGET_MASKS:
        if example.get(mask_name) is not None:
            labels = where_mask(labels, example, mask_name, name)
    valid = valid_tokens(example, name, len(ids))
    ids, labels = ids[valid], labels[valid]
    expect_bos_at_starts(ids, np.arange(len(ids)) == 0, bos_token_id, name)
    labels[0] = IGNORED
    return Document(ids, labels)


def expect_one_document(example: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if ``example`` says that it holds several documents."""
    for key in _BOUNDARIES:
        if example.get(key) is not None:
            raise ValueError(
                f"{name}.{key}: expected documents that are not packed yet, got a row with document boundaries; rows "
                "of TRL go with TRL's own collator (padding_free=True), rows with position_ids with PackingCollator."
            )


def token_ids(example: Mapping[str, Any], name: str) -> np.ndarray:
    """(tokens,) int64 ``input_ids`` of an example; at least one."""
    if not isinstance(example, Mapping):
        raise TypeError(f"{name}: expected a dict with input_ids, got {type(example).__name__}.")
    if "input_ids" not in example:
        raise ValueError(f"{name}: expected input_ids, got {sorted(example)}; tokenize the documents first.")
    ids = column_of(example, "input_ids", name)
    if not len(ids):
        raise ValueError(f"{name}.input_ids: expected at least one token, got none; leave out empty documents.")
    if (ids < 0).any():
        raise ValueError(f"{name}.input_ids: expected ids from 0 on, got {ids.min()}; mark pads by attention_mask.")
    return ids


def column_of(
    example: Mapping[str, Any], key: str, name: str, length: int | None = None, kinds: str = "iu"
) -> np.ndarray:
    """(tokens,) int64 values of one key of an example, ``length`` of them if given, of dtypes of these ``kinds``."""
    try:
        # The default dtype of an empty list is floating-point.
        values = np.asarray(example[key], dtype=None if len(example[key]) else np.int64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}.{key}: expected a list of integers, got none: {error}.") from error
    if values.dtype.kind not in kinds:
        raise TypeError(f"{name}.{key}: expected integers, got {values.dtype}; pass what a tokenizer gives.")
    if values.ndim != 1:
        raise ValueError(
            f"{name}.{key}: expected one document, a flat list of integers, got shape {values.shape}; pass each "
            "document by itself."
        )
    if length is not None and len(values) != length:
        raise ValueError(f"{name}.{key}: expected as many values as input_ids ({length}), got {len(values)}.")
    return values.astype(np.int64)  # a copy, so that what the caller gave stays as it is


def where_mask(labels: np.ndarray, example: Mapping[str, Any], key: str, name: str) -> np.ndarray:
    """``labels`` (tokens,) where the mask ``key`` of an example is 1, and -100 elsewhere."""
    return np.where(_mask(example, key, name, len(labels)), labels, IGNORED)


def valid_tokens(example: Mapping[str, Any], name: str, length: int) -> np.ndarray:
    """(tokens,) bool, false at pads; at least one is true."""
    if example.get("attention_mask") is None:
        return np.ones(length, dtype=bool)
    valid = _mask(example, "attention_mask", name, length)
    if not valid.any():
        raise ValueError(f"{name}.attention_mask: expected a token, got pads alone; leave out empty documents.")
    return valid


def expect_bos_at_starts(ids: np.ndarray, starts: np.ndarray, bos_token_id: int | None, name: str) -> None:
    """Raise ValueError if there is a ``bos_token_id`` where no document begins."""
    if bos_token_id is None:
        return
    inside = np.flatnonzero((ids == bos_token_id) & ~starts)
    if len(inside):
        raise ValueError(
            f"{name}.input_ids: expected bos_token_id = {bos_token_id} where a document begins only, got it at place "
            f"{inside[0]}; pass each document by itself, or position_ids with rows that are packed."
        )


def expect_labels(labels: np.ndarray, name: str) -> None:
    """Raise ValueError unless labels are ids or -100."""
    wrong = labels[(labels < 0) & (labels != IGNORED)]
    if len(wrong):
        raise ValueError(
            f"{name}.labels: expected ids, or {IGNORED} where nothing is to be learned, got {wrong[0]}; mark it with "
            f"{IGNORED}."
        )


def as_dataset(rows: Any, name: str = "documents") -> Any | None:
    """``rows`` if it is a ``datasets.Dataset``, None if it is another sequence.

    Raises:
        TypeError: It is neither.
    """
    datasets = sys.modules.get("datasets")  # whoever has one has imported it
    if datasets is not None and isinstance(rows, datasets.Dataset):
        return rows
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise TypeError(
            f"{name}: expected a datasets.Dataset or a sequence of dicts with input_ids, got {type(rows).__name__}; "
            "pass each split of a DatasetDict by itself."
        )
    return None


def expect_positive(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless ``value`` is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}.")


def _mask(example: Mapping[str, Any], key: str, name: str, length: int) -> np.ndarray:
    """(tokens,) bool."""
    mask = column_of(example, key, name, length, kinds="biu")
    if ((mask != 0) & (mask != 1)).any():
        raise ValueError(f"{name}.{key}: expected 0 or 1, got {mask[(mask != 0) & (mask != 1)][0]}.")
    return mask == 1
