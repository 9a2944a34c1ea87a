"""The exactness in docs/evidence.md: its table is that of the results, they can be had again, and its claims follow."""

import importlib.util
import json
import re

import pytest

from benchmarks import __main__ as benchmarks
from tests.parity import measure
from tests.parity.cases import CASES
from tests.support import ROOT
from tests.tolerances import GRADIENTS_VS_JAX, LOGITS_VS_JAX

PAGE = (ROOT / "docs" / "evidence.md").read_text()
RESULTS = json.loads(measure.RESULTS.read_text())["cases"]
LOGITS = ("prefill", "decode", "packed")


def test_the_table_is_that_of_the_results():
    assert measure.renewed(PAGE, {"cases": RESULTS}) == PAGE
    assert "<!-- table exactness/jax -->\n| model" in PAGE
    assert list(RESULTS) == [case.name for case in CASES]


def test_one_case_measured_again():
    # Rounding differs between machines; the order of magnitude does not.
    again, stored = measure.measure(CASES[0]), RESULTS[CASES[0].name]
    assert {who: figures.keys() for who, figures in again.items()} == {
        who: figures.keys() for who, figures in stored.items()
    }
    for who, figures in again.items():
        for quantity, figure in figures.items():
            assert figure == pytest.approx(stored[who][quantity], rel=2)


def test_claims_about_ours():
    ours = [figures[measure.OURS] for figures in RESULTS.values()]
    assert max(figures[name] for figures in ours for name in LOGITS) < 6e-5 < LOGITS_VS_JAX
    assert max(figures["gradients"] for figures in ours) < 2e-5 < GRADIENTS_VS_JAX
    assert "logits within 6e-5, gradients within 2e-5 of the largest" in PAGE
    assert all(figures[measure.OURS]["bf16"] < figures[measure.JAX]["bf16"] for figures in RESULTS.values())


def test_claims_about_in_tree():
    compared = {name: figures for name, figures in RESULTS.items() if measure.IN_TREE in figures}
    assert len(compared) == 3
    for name, figures in compared.items():
        for quantity in ("prefill", "decode"):
            assert figures[measure.IN_TREE][quantity] > 1
            assert figures[measure.IN_TREE_WIDER][quantity] < LOGITS_VS_JAX
        # The only one of them without a recurrence.
        assert (figures[measure.IN_TREE_WIDER]["packed"] > 1) == (name != "tiny_window")


def test_commands_of_the_table_of_claims_exist():
    rows = re.findall(r"^\| .* \| \[.*\]\(.*\) \| `(.*?)`", PAGE, flags=re.MULTILINE)
    assert len(rows) == 11
    for program, *words in map(str.split, rows):
        if program == "pytest":
            assert all((ROOT / word).exists() for word in words)
        elif words[1] == "benchmarks":
            benchmarks.parse(words[2:])  # ends the process on what it does not know
        else:
            assert importlib.util.find_spec(words[1])
