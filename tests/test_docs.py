"""What stands around the package: pages from its docstrings, and how it is cited."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import conr_hf

PROJECT = Path(conr_hf.__file__).parents[1]


def in_the_project(name):
    path = PROJECT / name
    if not path.is_file():
        pytest.skip(f"conr_hf is installed; there is no {name}")
    return path


def test_references_and_examples_become_markdown_that_pdoc_knows():
    path = in_the_project(".ci/docs.py")
    pytest.importorskip("pdoc", reason="pdoc is missing, which makes the pages")
    spec = importlib.util.spec_from_file_location("docs", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    given = (
        "Bins as [`~conr_hf.imbalance.make_bins`] and [`Bins`] make them, [a link](https://x.y) and list[int].\n\n"
        "Example:\n    >>> f(1)\n    2\n"
    )
    expected = (
        "Bins as `conr_hf.imbalance.make_bins` and `Bins` make them, [a link](https://x.y) and list[int].\n\n"
        "###### Example:\n\n```python\n>>> f(1)\n2\n```\n"
    )
    assert build.plain_markdown(given) == expected


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load(in_the_project("CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == conr_hf.__version__
    (paper,) = citation["references"]
    assert paper["title"].startswith("ConR: Contrastive Regularizer")
    assert [author["family-names"] for author in paper["authors"]] == ["Keramati", "Meng", "Evans"]


def test_the_planning_tables_are_those_of_the_model_of_costs():
    """Who plans a run by them would run out of memory."""
    folder = in_the_project("recipes/accelerate/costs.py").parent
    spec = importlib.util.spec_from_file_location("costs", folder / "costs.py")
    costs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(costs)
    text = (folder / "README.md").read_text(encoding="utf-8")
    head = re.search(
        r"(\w+): ([\d.]+) million parameters, features of (\d+) numbers, (\d+) MB kept of a view; "
        r"(\d+) samples of (\d+) views",
        text,
    )
    name, *numbers = head.groups()
    millions, width, kept, samples, views = map(float, numbers)
    model = costs.Model(round(millions * 1e6), int(width), kept * 1e6)
    devices = [int(row) for row in re.findall(r"^\| (\d+) \| \d+ \| \d+ \| [\d.]+ [MG]B", text, re.MULTILINE)]
    assert devices == [1, 8, 64, 512]
    for table in costs.tables(name, model, devices, int(samples), int(views)).split("\n\n"):
        assert table in text
