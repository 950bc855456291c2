"""`samebits bench prefill`: what is counted and told. No figure of a machine is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from samebits.bench.prefill import (
    ROUND_TOKENS,
    beside_library,
    line_of,
    operations_of_token,
    plot,
    prompts_of_round,
    row_of,
    table_rows,
)
from samebits.config import ModelConfig
from samebits.models.load import read_model_files
from samebits.models.weights import expected_shapes


def test_a_tokens_operations_are_those_of_its_products_and_attention() -> None:
    files = read_model_files(ModelConfig(model="qwen3-8b-shaped", load_format="dummy"))
    shapes = expected_shapes(files.spec, files.family.names)
    layers = 36 * (6144 * 4096 + 4096 * 4096 + 24576 * 4096 + 4096 * 12288)
    attention = 4 * 36 * 4096 * 1025 / 2
    expected = 2 * layers + attention + 2 * 151936 * 4096 / 1024
    assert operations_of_token(files.spec, shapes, 1024) == pytest.approx(expected)


def test_the_first_round_warms_up_and_profiles_stand_beside_each_other(tmp_path: Path) -> None:
    row = row_of(1024, {"exact": [1.0, 44.0, 46.0, 45.0], "unpinned": [9.0, 40.0, 36.0, 38.0]}, 1e10)
    assert row["tokens per second"] == {"exact": 45.0, "unpinned": 38.0}
    assert row["speed against unpinned"] == round(45 / 38, 4)
    row["floor tokens per second"] = 50.0
    assert line_of(row) == "1024: exact 45, unpinned 38 tokens/s"
    alone = row_of(2048, {"exact": [1.0, 2.0]}, 1e10) | {"floor tokens per second": 50.0}
    assert "speed against unpinned" not in alone
    rows = table_rows({"prefill": [row]})
    assert len({len(cells) for cells in rows}) == 1
    pytest.importorskip("matplotlib")
    plot({"model": "tiny", "gpu": "none", "prefill": [row, row]}, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").stat().st_size > 10_000


def test_the_library_alone_stands_beside_the_engine_where_there_is_a_figure(tmp_path: Path) -> None:
    bare = row_of(1024, {"exact": [1.0, 45.0], "unpinned": [9.0, 40.0]}, 1e10) | {
        "floor tokens per second": 50.0
    }
    assert beside_library(bare, {}) == bare
    step = {"rows": 8192}
    row = beside_library(bare, {"library tokens per second": 48.0, "library step": step})
    assert row["share of library"] == {"exact": round(45 / 48, 4), "unpinned": round(40 / 48, 4)}
    assert row["library step"] == step and row["tokens per second"] == bare["tokens per second"]
    header, *cells = table_rows({"prefill": [row, bare]})
    place = header.index("library")
    assert header[place - 1 : place + 3] == ("floor", "library", "exact/library", "MHz")
    assert [found[place - 1 : place + 2] for found in cells] == [("50", "48", "0.938x"), ("50", "", "")]
    pytest.importorskip("matplotlib")
    for name, rows in (("all", [row, row]), ("some", [row, bare]), ("none", [bare, bare])):
        plot({"model": "tiny", "gpu": "none", "prefill": rows}, tmp_path / f"{name}.png")
    drawn = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("all", "some", "none")}
    assert len(set(drawn.values())) == 3


def test_a_round_is_of_whole_steps() -> None:
    """The rest of a last step would be charged as a step of its own."""
    assert [prompts_of_round(tokens, 8192) for tokens in (1024, 2048)] == [64, 32]
    for step_tokens in (8448, 16896):
        assert [prompts_of_round(tokens, step_tokens) for tokens in (1024, 2048)] == [66, 33]
    assert 33 * 2048 % 8448 == 0 and ROUND_TOKENS <= 33 * 2048
    assert prompts_of_round(2048, 1000) == 32, "no small number of prompts does"
