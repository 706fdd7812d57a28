"""The notebooks: public API only, one question each, and executed as scripts in a fresh folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

import varscale_analysis
from varscale_analysis import figures

FOLDER = Path(__file__).resolve().parents[2] / "analysis" / "notebooks"
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
ALLOWED = {"varscale_analysis", "numpy", "pandas", "matplotlib", "pathlib"}
PUBLIC = {
    "varscale_analysis": set(varscale_analysis.__all__),
    "varscale_analysis.figures": set(figures.__all__),
}
PAGES = {"var_law_reexamined": FOLDER.parents[1] / "docs" / "results" / "var-law.md"}
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def test_there_is_one_for_each_question() -> None:
    assert set(NOTEBOOKS) == {
        "comparing_two_families",
        "three_routes_to_a_frontier",
        "var_law_reexamined",
        "your_sweep_from_csv_to_plan",
    }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_asks_one_question_and_says_what_can_be_concluded(name: str) -> None:
    cells = jupytext.read(NOTEBOOKS[name], fmt="py:percent").cells
    assert {cell.cell_type for cell in cells} == {"markdown", "code"}
    assert cells[0].cell_type == cells[-1].cell_type == "markdown"
    assert cells[0].source.startswith("# ") and cells[0].source.count("**Question.**") == 1
    assert "## What can and cannot be concluded" in cells[-1].source
    assert sum("**Question.**" in cell.source for cell in cells) == 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_uses_the_public_api_only(name: str) -> None:
    for node in ast.walk(ast.parse(NOTEBOOKS[name].read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED - {"varscale_analysis"}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            assert module.split(".")[0] in ALLOWED
            if module.startswith("varscale_analysis"):
                assert {alias.name for alias in node.names} <= PUBLIC[module]
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"private name .{node.attr} in line {node.lineno}"
        elif isinstance(node, ast.Name):
            assert not node.id.startswith("__"), f"{node.id} in line {node.lineno}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_as_a_script_and_draws_its_figures(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "error", NOTEBOOKS[name]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    drawn = sorted(tmp_path.rglob("*.png"))
    assert len(drawn) >= NOTEBOOKS[name].read_text().count(".savefig(") > 0
    assert all(path.stat().st_size > 5_000 for path in drawn)
    if name in PAGES:
        _page_holds(PAGES[name], run.stdout, [path.name for path in drawn])


def _page_holds(page: Path, printed: str, drawn: list[str]) -> None:
    """The page quotes what the notebook prints (numbers within 2 %, for other versions of numpy), and its figures."""
    text = page.read_text()
    for figure in drawn:
        assert f"({page.stem}/{figure})" in text, f"{page.name} does not show {figure}"
    (quoted,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    here, there = printed.splitlines(), quoted.splitlines()
    assert len(here) == len(there), f"{page.name} quotes {len(there)} lines, the notebook prints {len(here)}"
    for new, old in zip(here, there, strict=True):
        assert _NUMBER.sub("#", new).split() == _NUMBER.sub("#", old).split()
        if "fits certified" in new:  # a law that the points hardly hold: which of its fits pass is a matter of rounding
            continue
        for a, b in zip(_NUMBER.findall(new), _NUMBER.findall(old), strict=True):
            assert float(a.replace(",", "")) == pytest.approx(float(b.replace(",", "")), rel=0.02, abs=0.006), new
