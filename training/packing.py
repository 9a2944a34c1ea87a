"""Packing: documents one after the other in rows without pads, with losses and gradients of separate documents.

``position_ids`` that restart at 0 say where a document begins; state, convolution history and attention do not cross
such a border (``modeling/inputs.py``). Here is what other libraries leave open: a map that turns documents, with masks
of what is to be learned and of pads, into rows, and a collator for batches of several rows.

- Documents packed batch by batch into one row: ``transformers.DataCollatorWithFlattening`` does it as well.
- TRL's trainers pack by themselves: ``packing=True``, or ``padding_free=True``.

Batches of both give the same numbers here.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from recurrent_gemma.modeling.heads.loss import IGNORED
from recurrent_gemma.training.documents import (
    TARGET_MASKS,
    Document,
    as_dataset,
    column_of,
    expect_bos_at_starts,
    expect_labels,
    expect_positive,
    read_document,
    token_ids,
    valid_tokens,
    where_mask,
)

Overlong = Literal["raise", "split", "truncate"]
_OVERLONG = ("raise", "split", "truncate")


class _Row(NamedTuple):
    """Documents one after the other."""

    input_ids: np.ndarray  # (columns,) int64
    labels: np.ndarray  # (columns,) int64; -100 at the first token of every document
    position_ids: np.ndarray  # (columns,) int64; 0 at the first token of every document


def pack_documents(
    documents: Any,
    *,
    max_length: int,
    overlong: Overlong = "raise",
    bos_token_id: int | None = None,
    group_size: int = 1000,
    **map_options: Any,
) -> Any:
    """Rows of at most ``max_length`` tokens that hold the documents whole, as few rows as best-fit decreasing finds.

    Args:
        documents: A ``datasets.Dataset``, or a sequence of dicts, with ``input_ids``; optionally ``labels`` (default:
            the ids), ``attention_mask`` (pads, 0, are taken out) and ``assistant_masks`` or ``completion_mask`` (labels
            only where they are 1). Other columns are left out.
        max_length: Tokens of a row.
        overlong: What becomes of a longer document. ``"raise"``; ``"split"``: pieces of equal length, documents of
            their own, whose first tokens have no label; ``"truncate"``: its beginning.
        bos_token_id: A token that only begins a document, so that documents joined unnoticed raise.
        group_size: How many documents are looked at together.
        **map_options: For ``Dataset.map``, such as ``num_proc``.

    Returns:
        A ``Dataset``, or a list of dicts, with ``input_ids``, ``labels`` (-100 at every document's first token) and
        ``position_ids`` (0 there). The same rows every time; documents keep their order within a row, and rows that of
        their first documents.

    Raises:
        TypeError, ValueError: A document is empty, longer than ``max_length``, packed already, or has columns of other
            lengths or values; an option is out of range.
    """
    expect_positive("max_length", max_length)
    expect_positive("group_size", group_size)
    if overlong not in _OVERLONG:
        raise ValueError(f"overlong: expected one of {list(_OVERLONG)}, got {overlong!r}.")
    pack = partial(_pack_group, max_length=max_length, overlong=overlong, bos_token_id=bos_token_id)
    dataset = as_dataset(documents)
    if dataset is not None:
        return dataset.map(
            partial(_pack_columns, pack=pack),
            with_indices=True,
            batched=True,
            batch_size=group_size,
            remove_columns=dataset.column_names,
            **map_options,
        )
    if map_options:
        raise TypeError(
            f"pack_documents: expected {sorted(map_options)} with a datasets.Dataset only, got "
            f"{type(documents).__name__}; leave out what is for Dataset.map."
        )
    groups = (range(i, min(i + group_size, len(documents))) for i in range(0, len(documents), group_size))
    return [row for group in groups for row in pack([documents[i] for i in group], list(group))]


@dataclass(kw_only=True)
class PackingCollator:
    """A batch out of packed rows or of plain documents, for ``model(**batch)`` and the Trainer.

    Examples with ``position_ids`` are packed rows (of ``pack_documents``, or of any kind whose positions restart at 0)
    and make one row of the batch each, padded to the longest. Examples without are documents (columns as in
    ``pack_documents``) and are joined to one row without pads. ``DataCollatorWithFlattening`` does the latter, too, but
    for masks of pads and answers.

    Args:
        pad_token_id: Any id; pads change nothing.
        padding_side: ``"right"`` or ``"left"``.
        padding_free: Whether all examples are joined to one row. None: documents are, packed rows are not.
        pad_to_multiple_of: Pad the columns to a multiple of this.
        return_flash_attn_kwargs: Also return ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q`` and
            ``max_length_k`` of a batch of one row, named and typed as in ``DataCollatorWithFlattening``. Pads, if any,
            count as a document there.
        bos_token_id: A token that only begins a document, so that documents joined unnoticed raise.
        target_mask: ``"assistant_masks"`` or ``"completion_mask"``: every example has this column, and labels only
            where it is 1. None: documents may have either. The Trainer drops these columns, unless
            ``remove_unused_columns=False``, and without a name here their absence goes unnoticed.

    Raises:
        ValueError: An option is out of range.
    """

    pad_token_id: int = 0
    padding_side: Literal["right", "left"] = "right"
    padding_free: bool | None = None
    pad_to_multiple_of: int | None = None
    return_flash_attn_kwargs: bool = False
    bos_token_id: int | None = None
    target_mask: str | None = None

    def __post_init__(self) -> None:
        if self.padding_side not in ("right", "left"):
            raise ValueError(f'padding_side: expected "right" or "left", got {self.padding_side!r}.')
        if self.target_mask not in (None, *TARGET_MASKS):
            raise ValueError(f"target_mask: expected None or one of {list(TARGET_MASKS)}, got {self.target_mask!r}.")
        if self.pad_to_multiple_of is not None:
            expect_positive("pad_to_multiple_of", self.pad_to_multiple_of)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batch of int64 tensors (B, L).

        Returns:
            ``input_ids``, ``labels`` (-100 at pads and at every document's first token), ``position_ids`` (0 at pads),
            and ``attention_mask`` if there are pads.

        Raises:
            TypeError, ValueError: As in ``pack_documents``; positions that neither restart at 0 nor go on by 1; packed
                rows and documents in one batch; an example without ``target_mask``; ``return_flash_attn_kwargs`` with
                several rows.
        """
        packed = [feature.get("position_ids") is not None for feature in features]
        if not features or any(packed) != all(packed):
            got = f"position_ids in {sum(packed)} of {len(packed)}"
            raise ValueError(f"features: expected packed rows, or documents, and no mixture, got {got} examples.")
        rows = []
        for index, feature in enumerate(features):
            name = f"features[{index}]"
            if self.target_mask is not None and feature.get(self.target_mask) is None:
                raise ValueError(
                    f"{name}: expected {self.target_mask}, the collator's target_mask, got {sorted(feature)}; pass "
                    "remove_unused_columns=False to TrainingArguments, or the documents to pack_documents first, and "
                    "leave target_mask out: its rows have labels."
                )
            if packed[index]:
                rows.append(_read_row(feature, name, self.bos_token_id, self.target_mask))
            else:
                rows.append(_join([read_document(feature, name, bos_token_id=self.bos_token_id)]))
        if self.padding_free or (self.padding_free is None and not any(packed)):
            rows = [_Row(*map(np.concatenate, zip(*rows, strict=True)))]
        return self._batch(rows)

    def _batch(self, rows: list[_Row]) -> dict[str, Any]:
        multiple = self.pad_to_multiple_of or 1
        columns = -(-max(len(row.input_ids) for row in rows) // multiple) * multiple
        fills = {"input_ids": self.pad_token_id, "labels": IGNORED, "position_ids": 0}
        batch: dict[str, Any] = {
            name: torch.full((len(rows), columns), fill, dtype=torch.long) for name, fill in fills.items()
        }
        mask = torch.zeros(len(rows), columns, dtype=torch.long)
        for index, row in enumerate(rows):
            length = len(row.input_ids)
            place = slice(length) if self.padding_side == "right" else slice(columns - length, columns)
            mask[index, place] = 1
            for name, values in row._asdict().items():
                batch[name][index, place] = torch.from_numpy(values)
        if not mask.all():
            batch["attention_mask"] = mask
        return {**batch, **self._lengths(batch["position_ids"], mask)} if self.return_flash_attn_kwargs else batch

    def _lengths(self, positions: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        if positions.shape[0] != 1:
            raise ValueError(
                f"return_flash_attn_kwargs: expected a batch of one row, got {positions.shape[0]}; set "
                "padding_free=True, or leave it out: position_ids say the same."
            )
        # All pads together are one document: they begin where the mask changes from 1 to 0, or at the first column.
        before = torch.nn.functional.pad(mask[0, :-1], (1, 0), value=1)
        starts = torch.where(mask[0] == 1, positions[0] == 0, before == 1).nonzero().flatten()
        lengths = torch.cat((starts, torch.tensor([positions.shape[1]]))).to(torch.int32)
        longest = int(lengths.diff().max())
        return {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": longest, "max_length_k": longest}


def _pack_columns(columns: Mapping[str, Any], indices: list[int], *, pack: Any) -> dict[str, list]:
    """One group of a Dataset, which comes by columns and goes by columns."""
    rows = pack([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)], indices)
    return {name: [row[name] for row in rows] for name in _Row._fields}


def _pack_group(
    examples: list[Mapping[str, Any]],
    indices: list[int],
    *,
    max_length: int,
    overlong: Overlong,
    bos_token_id: int | None,
) -> list[dict[str, list[int]]]:
    pieces: list[Document] = []
    for example, index in zip(examples, indices, strict=True):
        name = f"documents[{index}]"
        document = read_document(example, name, bos_token_id=bos_token_id)
        pieces += _fit(document, name, max_length, overlong)
    groups = _best_fit_decreasing([len(piece.input_ids) for piece in pieces], max_length)
    rows = (_join([pieces[i] for i in group]) for group in groups)
    return [{name: values.tolist() for name, values in row._asdict().items()} for row in rows]


def _fit(document: Document, name: str, max_length: int, overlong: Overlong) -> list[Document]:
    """The document in pieces of at most ``max_length`` tokens."""
    length = len(document.input_ids)
    if length <= max_length:
        return [document]
    if overlong == "raise":
        raise ValueError(
            f"{name}.input_ids: expected at most max_length = {max_length} tokens, got {length}; allow more, or choose "
            'overlong="split" or overlong="truncate".'
        )
    if overlong == "truncate":
        return [Document(*(values[:max_length] for values in document))]
    # Of equal length, since a last piece of one token would have no label.
    parts = -(-length // max_length)
    pieces = [Document(*piece) for piece in zip(*(np.array_split(values, parts) for values in document), strict=True)]
    for piece in pieces:
        piece.labels[0] = IGNORED
    return pieces


def _best_fit_decreasing(lengths: list[int], max_length: int) -> list[list[int]]:
    """Indices of what goes into each row: the longest first, each to the fullest row that has room for it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens left in a row and its index, ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(room, (lengths[index], -1))
        left, row = room.pop(place) if place < len(room) else (max_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        if left > lengths[index]:
            bisect.insort(room, (left - lengths[index], row))
    return sorted(sorted(row) for row in rows)


def _join(documents: list[Document]) -> _Row:
    ids, labels = map(np.concatenate, zip(*documents, strict=True))
    return _Row(ids, labels, np.concatenate([np.arange(len(document.input_ids)) for document in documents]))


def _read_row(feature: Mapping[str, Any], name: str, bos_token_id: int | None, target_mask: str | None) -> _Row:
    """A row that is packed already; pads are taken out."""
    ids = token_ids(feature, name)
    positions = column_of(feature, "position_ids", name, len(ids))
    labels = ids.copy() if feature.get("labels") is None else column_of(feature, "labels", name, len(ids))
    expect_labels(labels, name)
    if target_mask is not None:
        labels = where_mask(labels, feature, target_mask, name)
    valid = valid_tokens(feature, name, len(ids))
    ids, labels, positions = ids[valid], labels[valid], positions[valid]
    wrong = np.flatnonzero((positions != 0) & (positions != np.concatenate(([0], positions[:-1] + 1))))
    if len(wrong):
        raise ValueError(
            f"{name}.position_ids: expected every token at 0, which begins a document, or one after the token before "
            f"it, got {positions[wrong[0]]} at {wrong[0]}; make rows with pack_documents."
        )
    expect_bos_at_starts(ids, positions == 0, bos_token_id, name)
    labels[positions == 0] = IGNORED
    return _Row(ids, labels, positions)
