"""The long-context part of docs/evidence.md: its tables are those of the results, and its claims follow from them."""

import json
from pathlib import Path

import pytest

from benchmarks.long_context.command import COUNT, DEPTHS, ROUNDS, WINDOWS
from benchmarks.long_context.measure import VARIANTS
from tests.support import ROOT, code_blocks, require, run_warm

require("matplotlib")
from benchmarks.long_context import report  # noqa: E402

PAGE = (ROOT / "docs" / "evidence.md").read_text()
RESULTS = json.loads((ROOT / "docs" / "data" / "long_context.json").read_text())
POSITIONS = RESULTS["positions"]
WINDOW = RESULTS["model"]["window"]
OVERALL = {variant: found.get("difference") for variant, found in POSITIONS["overall"].items()}


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


def since_reset(variant: str, first: int) -> list[float]:
    """The loss more than the whole model's, in the bin that begins so many tokens after a reset."""
    (found,) = (entry for entry in POSITIONS["since_reset"][variant] if entry["first"] == first)
    return found["difference"]


def test_it_reads_on_as_well_as_it_began():
    last = POSITIONS["bins"][-1]
    mean, low, high = last["drift"]
    assert low < 0.0 < high < 0.01 and last["last"] / 256 > 160 and last["first"] / 256 == 64
    assert f"{last['first']:,} to {last['last']:,}" in PAGE and POSITIONS["reference"] == [128, 255]
    assert f"by {mean:.3f}\n   nats ({low:.3f} to {high:+.3f})" in PAGE


@pytest.mark.parametrize(("variant", "text"), [("reset", "it costs {}"), ("recurrence-reset", "it is {}"),
                                               ("attention-off", "costs {}")])  # fmt: skip
def test_what_a_missing_part_costs(variant: str, text: str):
    mean, low, _ = OVERALL[variant]
    assert low > 0.02 and text.format(f"{mean:+.3f}") in PAGE


def test_the_order_of_what_they_cost():
    reset, recurrence, attention = (OVERALL[name] for name in ("reset", "recurrence-reset", "attention-off"))
    assert 0.4 < recurrence[0] / reset[0] < 0.6
    assert reset[2] < attention[1]


def test_one_key_less_is_not_seen():
    mean, low, high = OVERALL["narrow"]
    assert low < 0.0 < high < 1e-4 and f"{mean:.5f} ({low:.5f} to {high:+.5f})" in PAGE


def test_the_demo_model_remembers_about_a_hundred_tokens():
    assert since_reset("far-reset", 32)[1] > 0.0 > since_reset("far-reset", 64)[1]
    assert f"the loss is {since_reset('far-reset', 32)[0]:.3f} too high between 32 and 63" in PAGE
    assert all(since_reset("far-reset", first)[0] < 0.002 for first in (64, 128, 256, 512))


def test_the_demo_model_finds_no_passkey():
    for cell in RESULTS["passkey"]:
        low, high = cell["first"][1:]
        assert low <= cell["chance"] <= high and cell["exact"][0] == 0.0
    shares = [100 * cell["first"][0] for cell in RESULTS["passkey"]]
    (trials,) = {cell["trials"] for cell in RESULTS["passkey"]}
    assert f"first in {min(shares):.0f} to {max(shares):.0f} % of {trials} prompts" in PAGE


def test_reading_a_passkey_leaves_a_trace_that_fades():
    cells = sorted(RESULTS["passkey"], key=lambda cell: cell["distance"])
    near = [cell["gain"][0] for cell in cells if cell["distance"] <= 104]
    assert min(cell["gain"][1] for cell in cells if cell["distance"] <= 104) > 0.1
    assert f"The key is {min(near):.2f} to {max(near):.2f} nats likelier" in PAGE
    gain = {round(cell["distance"]): cell["gain"][0] for cell in cells}
    assert f"{gain[135]:.3f} after 135, {gain[252]:.3f} after 252" in PAGE
    assert all(abs(cell["gain"][0]) < 1e-4 for cell in cells if cell["distance"] > 1000)


def test_the_python_example_runs(tmp_path: Path):
    example = code_blocks(PAGE.split("### Your own checkpoint")[1], "python")[0]
    lines = run_warm("-c", example, cwd=tmp_path).stdout.splitlines()
    assert len(lines) > 5 and lines[-2].startswith("256 0 ") and lines[-1].startswith("256 1 ")
