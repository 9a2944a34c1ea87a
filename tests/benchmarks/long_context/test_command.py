"""The command measures, writes and draws; its tables say what its results say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.long_context import texts
from benchmarks.long_context.measure import VARIANTS, measure_positions, title
from recurrent_gemma.evaluation.long_context import attention_off, excerpts, token_losses, with_window
from tests.modeling.models import WINDOW, tiny_model
from tests.support import ROOT, require

require("matplotlib")
from benchmarks.long_context import report  # noqa: E402

TABLES = "".join(f"<!-- table {name} -->\n<!-- end -->\n" for name in report.TABLES)
PAGE = f"Before.\n<!-- table run -->\nof another command\n<!-- end -->\n{TABLES}After.\n"


@pytest.fixture(scope="module")
def subject() -> texts.Subject:
    generator = torch.Generator().manual_seed(0)
    return texts.Subject(
        name="tiny",
        model=tiny_model(),
        tokenizer=None,
        text="noise",
        text_ids=torch.randint(3, 97, (700,), generator=generator),
        documents=torch.arange(700) // 50,
        passkey={},
        begins_with_bos=False,
    )


def test_variants_are_the_readings_that_they_name(subject: texts.Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.long_context.measure.BLOCK", 20)
    found = measure_positions(subject, length=300, count=5, batch_size=5, chunk_size=64)
    long = excerpts(subject.text_ids, count=5, length=300)
    assert found["excerpts"] == [{"count": 5, "length": 300}, {"count": 50, "length": 8 * WINDOW}]
    model = subject.model

    def losses(**reading: Any) -> torch.Tensor:
        return token_losses(model, long.ids, **reading)

    def expect(variant: str, values: torch.Tensor) -> None:
        assert found["overall"][variant]["loss"][0] == pytest.approx(values.double().mean().item(), abs=1e-5), variant

    expect("whole", losses())
    expect("reset", losses(reset_every=WINDOW))
    expect("far-reset", losses(reset_every=8 * WINDOW))
    expect("recurrence-reset", losses(reset_every=WINDOW, reset="recurrence"))
    with attention_off(model):
        expect("attention-off", losses())
    model = with_window(model, WINDOW - 1)
    expect("narrow", losses())
    # No two of them are the same reading.
    assert len({round(part["loss"][0], 6) for part in found["overall"].values()}) == len(VARIANTS)


def test_bins_are_of_the_losses(subject: texts.Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.long_context.measure.BLOCK", 20)
    # No short excerpts beside the long ones.
    monkeypatch.setattr("benchmarks.long_context.measure.SHORT_WINDOWS", 100)
    count = 35
    found = measure_positions(subject, length=100, count=count, variants=("whole", "reset"), batch_size=count)
    read = excerpts(subject.text_ids, count=count, length=100)
    whole, reset = (token_losses(subject.model, read.ids, reset_every=every).double() for every in (None, WINDOW))
    assert found["tokens_read"] == 3500 == sum(entry["tokens"] for entry in found["bins"])
    drifts = 0
    for entry in found["bins"]:
        columns = slice(entry["first"] - 1, entry["last"])
        assert entry["loss"]["whole"][0] == pytest.approx(whole[:, columns].mean().item(), abs=1e-5)
        assert entry["difference"]["reset"][0] == pytest.approx((reset - whole)[:, columns].mean().item(), abs=1e-5)
        if entry["drift"] is None:
            assert entry["first"] < 16
            continue
        drift = whole[:, columns].mean() - whole[:, WINDOW - 1 : 2 * WINDOW - 1].mean()
        drifts += 1
        assert entry["drift"][0] == pytest.approx(drift.item(), abs=1e-5)
    assert drifts
    # Right after a reset: columns 7, 14, ...; within the first window nothing was reset.
    first = found["since_reset"]["reset"][0]
    assert (first["first"], first["last"], first["tokens"]) == (1, 1, count * len(range(WINDOW, 100, WINDOW)))
    difference = (reset - whole)[:, WINDOW::WINDOW].mean().item()
    assert first["difference"][0] == pytest.approx(difference, abs=1e-5)
    assert found["bins"][0]["first"] == 1 and found["bins"][0]["difference"]["reset"][0] == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long_context")
    (folder / "evidence.md").write_text(PAGE)
    text = folder / "text.txt"
    text.write_text((ROOT / "CONTRIBUTING.md").read_text() * 2)
    parts = ["--length", "700", "--count", "6", "--rounds", "2", "--passkey-lengths", "90", "150"]
    main(["long-context", "--text", str(text), *parts, "--output", str(folder)])
    return folder


def test_results_pictures_and_tables_are_written(written: Path):
    results = json.loads((written / "data" / "long_context.json").read_text())
    assert results["text"] == "text.txt" and results["environment"]["torch"]
    # Its resets lie 1,024 tokens apart, and the excerpts are shorter.
    assert set(results["positions"]["overall"]) == set(VARIANTS) - {"far-reset"}
    assert [(cell["length"], cell["depth"]) for cell in results["passkey"]] == [
        (length, depth) for length in (90, 150) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    for name in ("long_context", "long_context_since_reset", "long_context_passkey"):
        assert "<svg" in (written / "images" / f"{name}.svg").read_text()
    page = (written / "evidence.md").read_text()
    assert page.startswith("Before.\n<!-- table run -->\nof another command\n<!-- end -->\n")
    assert page.endswith("After.\n")
    for name in report.TABLES:
        assert f"<!-- table {name} -->\n|" in page


def test_redrawing_makes_the_same_files(written: Path, tmp_path: Path):
    for folder in ("data", "images"):
        (tmp_path / folder).mkdir()
    results = (written / "data" / "long_context.json").read_bytes()
    (tmp_path / "data" / "long_context.json").write_bytes(results)
    (tmp_path / "evidence.md").write_text(PAGE)
    main(["long-context", "--redraw", "--output", str(tmp_path)])
    for name in ("evidence.md", "images/long_context.svg", "images/long_context_passkey.svg"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_cells_have_the_digits_that_tell_their_ends_apart():
    assert report.signed([0.5, 0.4, 0.6]) == "+0.500 (+0.400 to +0.600)"
    assert report.signed([-0.00012, -0.0002, 0.0001]) == "-0.00012 (-0.00020 to +0.00010)"
    assert report.perplexity([0.0, 0.0, 0.0]) == "1.00 (1.00 to 1.00)"
    assert report.share([0.5, 0.25, 0.75]) == "50 % (25 to 75)"
    assert title("narrow", 128) == "128 keys instead of 129"


def test_an_unknown_table_raises():
    with pytest.raises(ValueError, match="table: expected one of"):
        report.renew("<!-- table long-context/nothing -->\n<!-- end -->", {})


def test_a_part_does_not_replace_the_results_of_the_whole():
    with pytest.raises(ValueError, match="output: expected a folder together with count"):
        main(["long-context", "--count", "2"])
