"""docs/architecture.md holds true: its NumPy is the model, its shapes and counts are those of every preset."""

import importlib.util
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.support import ROOT, code_blocks, require, run_python

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
WEIGHTS = re.findall(r"^\| (both|recurrent|attention) \| `(\S+)` \| (.*) \|$", PAGE, flags=re.MULTILINE)


def table(first: str) -> tuple[list[str], dict[str, list[str]]]:
    """Head and rows, by their first cells, of the table whose first column is headed ``first``."""
    (text,) = re.findall(rf"^(\| {first} \|.*\n(?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    (_, *head), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return head, {name.strip("`"): cells for name, *cells in rows}


def built(preset: str) -> RecurrentGemmaForCausalLM:
    with torch.device("meta"):
        return RecurrentGemmaForCausalLM(RecurrentGemmaConfig.from_preset(preset))


def sizes(config: RecurrentGemmaConfig) -> dict[str, int]:
    heads, width = config.num_attention_heads, config.hidden_size
    return {
        "1": 1,
        "D": width,
        "M": config.mlp_width,
        "R": config.lru_width,
        "K": config.conv1d_width,
        "H": heads,
        "R/H": config.lru_width // heads,
        "GD/H": config.num_key_value_heads * width // heads,
    }


def layer_shapes(config: RecurrentGemmaConfig, kind: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's weights as the page's table has them."""
    size = sizes(config)
    return {name: tuple(size[s] for s in shape.split(", ")) for of, name, shape in WEIGHTS if of in ("both", kind)}


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def test_the_numpy_is_the_model(tmp_path: Path):
    (code,) = code_blocks(PAGE, "python")
    run_python("-c", code, cwd=tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_and_counts(preset: str):
    model = built(preset)
    config = model.config
    kinds = ["recurrent" if kind == "linear_attention" else "attention" for kind in config.layers_block_type]
    for layer, kind in zip(model.model.layers, kinds, strict=True):
        found = {name: tuple(weight.shape) for name, weight in layer.state_dict().items()}
        assert found == layer_shapes(config, kind)
    head, rows = table("parameters")
    column = head.index(preset)
    rest = (config.vocab_size + 1) * config.hidden_size
    by_kind = {kind: count(layer_shapes(config, kind)) for kind in ("recurrent", "attention")}
    total = rest + sum(by_kind[kind] for kind in kinds)
    assert total == model.num_parameters()
    expected = [*(by_kind[kind] if kind in kinds else None for kind in by_kind), rest, total]
    assert [cells[column] for cells in rows.values()] == [f"{n:,}" if n else "" for n in expected]


def test_configs_are_those_of_the_presets():
    head, rows = table("field")
    assert head == list(PRESETS)
    for preset, column in zip(PRESETS, zip(*rows.values(), strict=True), strict=True):
        config = RecurrentGemmaConfig.from_preset(preset)
        recurrent = config.layers_block_type.count("linear_attention")
        layers = {"recurrent layers": recurrent, "attention layers": config.num_hidden_layers - recurrent}
        expected = [layers[name] if name in layers else getattr(config, name) for name in rows]
        assert list(column) == [str(value) for value in expected]
        assert set(PRESETS[preset]) - set(rows) == {"block_types"}
        assert (config.conv1d_width, config.vocab_size) == (4, 256_000)


def test_figures_in_the_text():
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b")
    scale = built("recurrentgemma-2b").model.embed_tokens.embed_scale
    assert f"For D = {config.hidden_size} the scale is {scale}" in PAGE
    shapes = layer_shapes(config, "recurrent")
    inside = count({name: shape for name, shape in shapes.items() if ".rg_lru." in name})
    assert f"gates included, is {100 * inside / count(shapes):.1f} % of the parameters" in PAGE


def test_the_paper_s_way_to_write_the_decay():
    param, gate = np.linspace(-9, 3, 25), np.linspace(0, 1, 25)
    by_the_paper = (1 / (1 + np.exp(param))) ** (8 * gate)
    np.testing.assert_allclose(np.exp(-8 * gate * np.log1p(np.exp(param))), by_the_paper, rtol=1e-12)


def test_what_is_named_of_the_source_is_there():
    require("recurrentgemma.common")
    named = re.findall(r"\*Source:\*(.*?)\*Here:\*", PAGE, flags=re.DOTALL)
    assert len(named) == 5
    spec = importlib.util.find_spec("recurrentgemma")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "jax"
    for text in named:
        names: list[str] = []
        for word in re.findall(r"`([^`]+)`", text):
            if not word.endswith(".py"):
                names.append(word)
                continue
            source = (folder / word).read_text()
            assert names and [name for name in names if not re.search(rf"^(class|def) {name}\(", source, re.M)] == []
            names = []
        assert names == []


def test_the_picture():
    picture = ElementTree.parse(PICTURE).getroot()
    space = {"s": "http://www.w3.org/2000/svg"}
    assert picture.get("role") == "img"
    labels = [picture.find(f"s:{tag}", space) for tag in ("title", "desc")]
    assert picture.get("aria-labelledby") == " ".join(label.get("id", "") for label in labels if label is not None)
    assert all(label is not None and label.text for label in labels)
    words = " ".join(text.text or "" for text in picture.iterfind(".//s:text", space))
    modules = {part for _, name, _ in WEIGHTS for part in name.split(".")[:2]} - {"weight"}
    assert [name for name in sorted(modules) if name not in words] == []


@pytest.mark.parametrize("dark", [False, True])
def test_texts_of_the_picture_are_readable(dark: bool):
    style = re.search(r"<style>(.*?)@media[^{]*\{(.*)\}\s*</style>", PICTURE.read_text(), re.DOTALL)
    assert style is not None
    light_style, dark_style = style.groups()
    fills = dict(re.findall(r"(\.\w+|text) \{ fill: (#\w{6})", light_style))
    assert {".g", ".b", ".k", ".s", "text"} <= set(fills)
    if dark:
        changed = dict(re.findall(r"(\.\w+|text) \{ fill: (#\w{6})", dark_style))
        assert {".g", ".b", ".k", ".s", "text"} <= set(changed)
        fills |= changed
    for ground in (".g", ".b", ".k", ".s"):
        dim, bright = sorted((luminance(fills[ground]), luminance(fills["text"])))
        assert (bright + 0.05) / (dim + 0.05) > 7  # AAA of WCAG 2.2


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, as WCAG 2.2 defines it."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
