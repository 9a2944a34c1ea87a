"""The long-context part of docs/evidence.md: its tables are those of the results, and its claims follow from them."""

import json

from benchmarks.long_context.command import COUNT, DEPTHS, ROUNDS, WINDOWS
from benchmarks.long_context.measure import VARIANTS
from tests.support import ROOT, require

require("matplotlib")
from benchmarks.long_context import report  # noqa: E402

PAGE = (ROOT / "docs" / "evidence.md").read_text()
RESULTS = json.loads((ROOT / "docs" / "data" / "long_context.json").read_text())
POSITIONS = RESULTS["positions"]
WINDOW = RESULTS["model"]["window"]


def test_tables_are_those_of_the_results():
    assert report.renew(PAGE, RESULTS) == PAGE
    for table in report.TABLES:
        assert f"<!-- table {table} -->\n|" in PAGE


def test_pictures_are_there():
    for name in ("long_context", "long_context_since_reset", "long_context_passkey"):
        assert f"(images/{name}.svg)" in PAGE
        assert (ROOT / "docs" / "images" / f"{name}.svg").read_text().startswith("<?xml")


def test_the_results_are_those_of_the_whole_measurement():
    assert RESULTS["model"]["name"] == "the embedded demo model" and WINDOW == 128
    assert set(POSITIONS["overall"]) == set(VARIANTS)
    long = POSITIONS["excerpts"][0]
    assert long["count"] == COUNT and long["length"] == POSITIONS["text_tokens"] > 32_768
    assert POSITIONS["bins"][-1]["last"] == long["length"]
    cells = [(cell["length"], cell["depth"]) for cell in RESULTS["passkey"]]
    assert cells == [(int(windows * WINDOW), depth) for windows in WINDOWS for depth in DEPTHS]
    assert {cell["trials"] for cell in RESULTS["passkey"]} == {ROUNDS * RESULTS["passkey"][0]["candidates"]}
