"""What stands around the package: its pages, those made from its docstrings, and how it is cited."""

import importlib
import importlib.util
import inspect
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

import conr_hf
from conr_hf.cli import commands, main
from conr_hf.cli.recipe import read_recipe

PROJECT = Path(conr_hf.__file__).parents[1]
PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for path in [PROJECT / "README.md", *PROJECT.glob("docs/*.md"), *PROJECT.glob("recipes/**/README.md")]
)
PUBLISHED = [*PAGES, *sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("model_cards/*/*.md"))]


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


def text_of(name):
    return in_the_project(name).read_text(encoding="utf-8")


def tokens_of(name):
    """Markdown's tokens, those inside of lines among them."""
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is missing, which reads the pages")
    for token in markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(text_of(name)):
        yield token
        yield from token.children or []


def anchors_of(name):
    """Anchors of the headings, as GitHub and the Hub make them."""
    tokens = list(tokens_of(name))
    headings = [text.content for opened, text in itertools.pairwise(tokens) if opened.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_of(name, language):
    return [token.content for token in tokens_of(name) if token.type == "fence" and token.info == language]


def command_lines(name):
    """The command lines of `conr-hf` in a page, in blocks and within text, without the placeholders `[...]`."""
    lines = [line for block in code_of(name, "bash") for line in block.splitlines()]
    lines += [token.content for token in tokens_of(name) if token.type == "code_inline"]
    lines = [re.sub(r"^accelerate launch .* -m conr_hf ", "conr-hf ", line) for line in lines]
    words = [shlex.split(re.sub(r"\[.*?\]", "", line), comments=True) for line in lines if line.startswith("conr-hf ")]
    return [line[1:] for line in words]


def test_the_readme_is_read_in_one_sitting():
    assert len(text_of("README.md").splitlines()) <= 200


def test_the_readme_and_the_index_name_every_page():
    pages = {Path(name).name for name in PAGES if name.startswith("docs/")} - {"README.md"}
    for name, folder in (("README.md", "docs/"), ("docs/README.md", "")):
        linked = {token.attrs["href"] for token in tokens_of(name) if token.type == "link_open"}
        assert {folder + page for page in pages} <= linked


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    links = [token.attrs["href"] for token in tokens_of(name) if token.type == "link_open"]
    links += [token.attrs["src"] for token in tokens_of(name) if token.type == "image"]
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (PROJECT / name).parent / path if path else PROJECT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.resolve().relative_to(PROJECT).as_posix()), link


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_files_of_the_project_exist(name):
    """Every `from conr_hf... import ...`, every dotted name, and every file of tests, recipes and docs."""
    text = text_of(name)
    for module, names in re.findall(r"from (conr_hf[\w.]*) import ([\w, ]+)", text):
        for imported in re.findall(r"\w+", names):
            assert hasattr(importlib.import_module(module), imported), f"{module}.{imported}"
    for dotted in re.findall(r"\bconr_hf(?:\.\w+)+", text):
        assert resolves(dotted), dotted
    for path in re.findall(r"\b(?:tests|recipes|docs|conr_hf)/[\w/-]+\.(?:py|ya?ml|md|sh)\b", text):
        assert (PROJECT / path).is_file(), path


def resolves(dotted):
    try:
        importlib.import_module(dotted)
    except ImportError:
        module, _, attribute = dotted.rpartition(".")
        return hasattr(importlib.import_module(module), attribute)
    return True


@pytest.mark.parametrize("name", PUBLISHED)
def test_commands_and_their_options_exist(name, monkeypatch, capsys):
    for command, function in list(vars(commands).items()):
        if inspect.isfunction(function):
            monkeypatch.setattr(commands, command, lambda *given: 0)
    monkeypatch.chdir(PROJECT)
    for line in command_lines(name):
        if line[0] == "train" and len(line) > 1 and "--help" not in line:
            read_recipe(line[1:])
        else:
            with pytest.raises(SystemExit) as ended:
                main(line if len(line) > 1 or line[0] in ("env", "recipes") else [*line, "--help"])
            assert ended.value.code == 0, f"{line}: {capsys.readouterr().err}"


def test_the_example_of_the_readme_runs_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = code_of("README.md", "python")[0]
    assert "num_train_epochs=1" in code
    exec(code.replace("num_train_epochs=1", 'max_steps=2, report_to="none"'), {})
    assert "test_few_mae" in capsys.readouterr().out


def test_the_loop_of_ones_own_runs_as_printed_and_learns_as_without_conr():
    torch.manual_seed(0)
    ages = 20 + torch.empty(256).exponential_(1 / 15).clamp(max=60)
    pixels = torch.randn(256, 3, 8, 8) + ages[:, None, None, None] / 30
    rows = [rows for _ in range(30) for rows in torch.randperm(256).split(64)]
    (code,) = code_of("docs/your-own-loop.md", "python")
    plain = code.replace("loss = base + share(criterion(features, ages, predictions), base, features)", "loss = base")
    assert plain != code
    errors = []
    for loop in (code, plain):
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        backbone, head = torch.nn.Sequential(*layers), torch.nn.Linear(16, 1)
        torch.nn.init.constant_(head.bias, ages.mean())
        optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], 1e-2)
        loader = [(pixels[some], ages[some]) for some in rows]
        exec(loop, {"loader": loader, "backbone": backbone, "head": head, "optimizer": optimizer})
        with torch.no_grad():
            errors.append((head(backbone(pixels)).squeeze(-1) - ages).abs().mean().item())
    print(f"as printed {errors[0]:.2f}, without ConR {errors[1]:.2f}")
    assert errors[0] < 1.1 * errors[1]
    assert errors[1] < 0.5 * (ages - ages.median()).abs().mean()


def test_the_tree_of_the_architecture_is_that_of_the_package():
    tree = re.search(r"```\n(conr_hf/.*?)```", text_of("docs/architecture.md"), re.DOTALL)[1]
    named, parents = set(), []
    for indent, folder in re.findall(r"^( *)(\w+)/  ", tree.partition("\nrecipes/")[0], re.MULTILINE):
        parents[len(indent) // 2 :] = [folder]
        named.add("/".join(parents))
    package = PROJECT / "conr_hf"
    folders = {path.parent.relative_to(PROJECT).as_posix() for path in package.rglob("__init__.py")}
    assert named == folders
