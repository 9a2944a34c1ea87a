"""Long documents as consecutive windows in parallel lanes, for truncated back-propagation through time."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from recurrent_gemma.modeling.heads.loss import IGNORED
from recurrent_gemma.training.documents import Document, as_dataset, expect_positive, read_document


class _Lane(NamedTuple):
    """What one row of the batches reads, from the first window to the last."""

    input_ids: np.ndarray  # (columns,) int64
    position_ids: np.ndarray  # (columns,) int64; 0 where a document begins
    shift_labels: np.ndarray  # (columns,) int64; each column's label is the next token


def cut_into_windows(
    documents: Any,
    *,
    lanes: int,
    window_length: int,
    keep_documents: bool = False,
    bos_token_id: int | None = None,
    pad_token_id: int = 0,
) -> Any:
    """Rows of ``window_length`` tokens; of batches of ``lanes`` rows in order, row b of each goes on with row b before.

    The label of a window's last token is the first token of the next window, so no label is lost at the cuts, and
    ``position_ids`` go on from window to window and restart at 0 with another document, which resets the state.

    Args:
        documents: A ``datasets.Dataset``, or a sequence of dicts, with ``input_ids``; other columns as in
            ``pack_documents``. They are read in order.
        lanes: Rows of a batch.
        window_length: Columns of a batch: as far as a gradient flows back.
        keep_documents: False: the text is cut into lanes of equal length; a document that such a cut meets goes on in
            the next lane as one of its own. True: every document is whole, in the lane that is shortest when its turn
            comes, and shorter lanes end with pads.
        bos_token_id: A token that only begins a document, so that documents joined unnoticed raise.
        pad_token_id: Any id, after the end of a lane.

    Returns:
        A ``Dataset``, or a list of dicts, with ``input_ids``, ``position_ids``, ``shift_labels`` (-100 where nothing is
        to be learned), and the row's ``window`` and ``lane`` for :class:`TruncatedBPTTTrainer`, which checks the order.

    Raises:
        TypeError, ValueError: As in ``pack_documents``; too little text for the number of lanes.

    Source: Jaeger, "A tutorial on training recurrent neural networks", 2002, section 4; lanes as in Dai et al.,
        "Transformer-XL", 2019.
    """
    for name, value in (("lanes", lanes), ("window_length", window_length)):
        expect_positive(name, value)
    dataset = as_dataset(documents)
    read = [read_document(example, f"documents[{i}]", bos_token_id=bos_token_id) for i, example in enumerate(documents)]
    contents = _whole_documents(read, lanes) if keep_documents else _equal_parts(read, lanes, window_length)
    filled = sum(bool(content) for content in contents)
    if filled < lanes:
        tokens = sum(len(document.input_ids) for document in read)
        raise ValueError(
            f"lanes: expected text for each of the {lanes}, got {tokens} tokens in {len(read)} documents, which fill "
            f"{filled}; take fewer lanes, shorter windows or more text."
        )
    longest = max(sum(len(document.input_ids) for document in content) for content in contents)
    windows = -(-longest // window_length)
    joined = [_join(content, windows * window_length, pad_token_id) for content in contents]
    columns: dict[str, list] = {name: [] for name in (*_Lane._fields, "window", "lane")}
    for window in range(windows):
        for index, lane in enumerate(joined):
            columns["window"].append(window)
            columns["lane"].append(index)
            for name, values in lane._asdict().items():
                columns[name].append(values[window * window_length : (window + 1) * window_length])
    if dataset is not None:
        return type(dataset).from_dict(columns)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [{name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in row.items()} for row in rows]


def expect_windows(rows: Any, name: str, lanes: int) -> int:
    """How many windows of ``lanes`` rows there are.

    Raises:
        TypeError, ValueError: The rows are not all that ``cut_into_windows`` has made with ``lanes`` lanes, in order.
    """
    dataset = as_dataset(rows, name)
    columns = []
    for key in ("window", "lane"):
        known = key in dataset.column_names if dataset is not None else all(key in row for row in rows)
        if not known or not len(rows):
            raise ValueError(f"{name}: expected rows with {key!r}, got others; make them with cut_into_windows.")
        values = [row[key] for row in rows] if dataset is None else dataset.select_columns([key])[:][key]
        columns.append(np.asarray(values))
    window, lane = columns
    if lane.max() + 1 != lanes:
        raise ValueError(
            f"{name}: expected as many lanes as the batch has rows ({lanes}), got {lane.max() + 1}; set "
            "per_device_train_batch_size and per_device_eval_batch_size to the data's lanes."
        )
    expected = np.divmod(np.arange(len(lane)), lanes)
    if len(lane) % lanes or (window != expected[0]).any() or (lane != expected[1]).any():
        raise ValueError(
            f"{name}: expected all rows in the order that cut_into_windows gave them, got others; do not shuffle, "
            "select or concatenate them, but the documents."
        )
    return len(lane) // lanes


def _equal_parts(documents: list[Document], lanes: int, window_length: int) -> list[list[Document]]:
    """The text in order in parts of equally many windows, but for the last part; they may be fewer than ``lanes``."""
    tokens = sum(len(document.input_ids) for document in documents)
    size = -(-tokens // (lanes * window_length)) * window_length
    parts: list[list[Document]] = [[] for _ in range(lanes)]
    begin = 0  # of the document in the text
    for document in documents:
        end = begin + len(document.input_ids)
        cuts = [begin, *range((begin // size + 1) * size, end, size), end]
        for first, last in pairwise(cuts):
            parts[first // size].append(Document(*(values[first - begin : last - begin] for values in document)))
        begin = end
    return parts


def _whole_documents(documents: list[Document], lanes: int) -> list[list[Document]]:
    """Each document in the lane that is the shortest so far."""
    contents: list[list[Document]] = [[] for _ in range(lanes)]
    lengths = [0] * lanes
    for document in documents:
        shortest = lengths.index(min(lengths))
        contents[shortest].append(document)
        lengths[shortest] += len(document.input_ids)
    return contents


def _join(documents: Sequence[Document], length: int, pad_token_id: int) -> _Lane:
    pads = length - sum(len(document.input_ids) for document in documents)
    if pads:
        # A document of its own that nothing is learned from. A mask would have to cover every column ever read.
        documents = [*documents, Document(np.full(pads, pad_token_id), np.full(pads, IGNORED))]
    ids, labels = map(np.concatenate, zip(*documents, strict=True))
    positions = np.concatenate([np.arange(len(document.input_ids)) for document in documents])
    return _Lane(ids, positions, np.append(labels[1:], IGNORED))
