"""Draws the README's picture: bytes that one sequence keeps against its length, for this family and for full attention.

    python -m benchmarks.state_size_plot [--preset recurrentgemma-2b] [--output docs/images/state_size.svg]

Sizes are computed from the config, not measured; the tests compare them with the tensors of a cache.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from benchmarks.style import drawing, save
from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import kv_cache_bytes, state_bytes

LENGTHS = [2**exponent for exponent in range(7, 21)]
DTYPE = torch.bfloat16
OURS, FULL_ATTENTION = "#0b7285", "#c2255c"
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "state_size.svg"


def draw(axes: Axes, config: RecurrentGemmaConfig, title: str) -> None:
    """Both curves on log-log axes, each labelled at its end."""
    state = [state_bytes(config, length=length, dtype=DTYPE).total for length in LENGTHS]
    full = [kv_cache_bytes(config, length, dtype=DTYPE) for length in LENGTHS]
    axes.loglog(LENGTHS, full, color=FULL_ATTENTION, linewidth=2.5)
    axes.loglog(LENGTHS, state, color=OURS, linewidth=2.5)
    last = LENGTHS[-1]
    label = {"ha": "right", "va": "center", "fontweight": "bold"}
    axes.text(last / 8, full[-1] / 2, f"full attention: {_size(full[-1])} at 1M tokens", color=FULL_ATTENTION, **label)
    axes.text(last, state[-1] * 2, f"RecurrentGemma: {_size(state[-1])} at any length", color=OURS, **label)
    window = config.attention_window_size
    axes.axvline(window, color="0.7", linewidth=1, linestyle=":")
    axes.text(window * 1.1, min(state) / 1.4, f"window of {window:,} tokens is full", color="0.45", fontsize=9)
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel("tokens in the sequence")
    axes.set_ylabel("memory of one sequence (bf16)")
    axes.set_xticks([2**8, 2**11, 2**14, 2**17, 2**20], ["256", "2k", "16k", "128k", "1M"])
    axes.set_yticks([10**6, 10**7, 10**8, 10**9, 10**10], ["1 MB", "10 MB", "100 MB", "1 GB", "10 GB"])
    axes.minorticks_off()
    axes.set_xlim(LENGTHS[0], last)
    axes.grid(color="0.92")


def main() -> None:
    """Read the options, draw, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="recurrentgemma-2b")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="picture; its suffix gives the format")
    options = parser.parse_args()
    with drawing():
        figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
        draw(axes, RecurrentGemmaConfig.from_preset(options.preset), f"What one sequence costs: {options.preset}")
        save(figure, options.output)


def _size(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
