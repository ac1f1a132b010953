"""The model card: what it says is what the run was, and nothing in a run's files acts in it."""

import contextlib
import io
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub.repocard
import numpy as np
import pytest
import torch
import yaml
from command_line import TEST_LABELS, TRAIN_LABELS, conr, photos, written
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image
from small import build, images, models
from transformers import AutoImageProcessor, AutoModelForImageClassification

from conr_hf.hub.model_card import write_card
from conr_hf.hub.provenance import hub_ids, strip_paths
from conr_hf.metrics import SHOTS
from conr_hf.utils.markdown import escape

MODEL_CARDS = Path(__file__).parents[2] / "model_cards"
# Of the tasks that the Hub knows, those of images to something else.
TASKS = {"image-classification", "image-feature-extraction", "image-segmentation", "image-to-image", "image-to-text"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    return photos(folder, train=TRAIN_LABELS, validation=TEST_LABELS, test=TEST_LABELS)


def trained(folder, data, **options):
    file = written(folder / "recipe.yaml", data=str(data), unit="years", **{"max_steps": 1, **options})
    ended = conr("train", file, "--output_dir", folder / "run")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("one"), data, target=["age"], max_steps=2, conr_weight=0.05, num_views=2)


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """A run of two targets."""
    folder = tmp_path_factory.mktemp("two")
    source = photos(folder / "eyes", train=TRAIN_LABELS[:30], test=TEST_LABELS)
    for table in source.rglob("metadata.csv"):
        rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
        lines = [f"{name},{label},{float(label) / 100}" for name, label in rows]
        table.write_text("\n".join(["file_name,pitch,yaw", *lines]) + "\n")
    return trained(folder, source, label_columns=["pitch", "yaw"])


@pytest.fixture
def copy(run, tmp_path):
    """The run without its weights, to be changed."""
    return shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors"))


def changed(folder, name="results.json", **values):
    file = folder / name
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **values}))
    return content


def metadata(folder):
    return ModelCard.load(folder / "README.md").data.to_dict()


def body(folder):
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n")
    return text.split("\n---\n", 1)[1]


def check_sections(text):
    """A card has no heading with nothing below it, no gap and nothing that was not filled in."""
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "CODE", text)
    headings = [match.end() for match in re.finditer(r"(?m)^#+ .+\n", outside)]
    for end in headings:
        assert re.match(r"\n[^#\s]", outside[end:]), outside[end - 20 : end + 40]
    for sign in ("\n\n\n", "{{", "{%", "None", "nan", "()"):
        assert sign not in outside, (sign, outside)
    assert len(headings) >= 4


def table(text, first):
    """Cells of the table whose first header is `first`, by the first cell of each row."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0]] = cells[1:]
    return rows


def as_number(cell):
    return float(cell.replace(",", ""))


# ---- What it says ---------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_run(run):
    results = json.loads((run / "results.json").read_text())
    text = body(run)
    check_sections(text)
    for split in ("validation", "test"):
        rows = table(text, split)
        assert list(rows) == [SHOTS[shot] for shot in results[split]]
        for shot, true in results[split].items():
            n, mae, baseline, gm, bmae = map(as_number, rows[SHOTS[shot]])
            assert n == true["n"]
            assert (mae, gm, bmae) == pytest.approx([true[name] for name in ("mae", "gm", "bmae")], rel=1e-3)
            assert baseline == pytest.approx(results["baseline_median"][split][shot]["mae"], rel=1e-3)


def test_the_metadata_has_the_errors_of_the_test_split_in_full(run):
    results = json.loads((run / "results.json").read_text())
    facts = metadata(run)
    (entry,) = facts["model-index"]
    (result,) = entry["results"]
    assert (result["dataset"]["split"], result["dataset"]["name"]) == ("test", "photos")
    names = {"all": "all", "many": "many-shot", "median": "median-shot", "few": "few-shot"}
    expected = [("mae", results["test"][s]["mae"], f"MAE on {name} images (years)") for s, name in names.items()]
    assert [(m["type"], m["value"], m["name"]) for m in result["metrics"]] == expected
    assert {name: facts[name] for name in ("library_name", "metrics")} == {
        "library_name": "transformers",
        "metrics": ["mae"],
    }
    assert facts["pipeline_tag"] in TASKS
    assert {"conr-hf", "image-regression", "imbalanced-regression", "conr", "rank-n-contrast"} == set(facts["tags"])
    assert not {"base_model", "base_model_relation", "license", "datasets"} & set(facts)  # from scratch, own data


def test_results_come_back_from_the_metadata_as_they_went_in(run):
    found = ModelCard.load(run / "README.md").data.eval_results
    assert len(found) == 4
    assert all(isinstance(result, EvalResult) for result in found)
    name, again = model_index_to_eval_results(eval_results_to_model_index("run", found))
    assert (name, again) == ("run", found)


def test_the_hub_takes_the_metadata(run, run_of_two, monkeypatch):
    """`ModelCard.validate` asks the Hub; a stand-in asks for what the Hub's documentation does."""
    seen = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, sent["repoType"]))
            problem = refused(yaml.safe_load(sent["content"].split("---\n")[1]))
            self.send_response(400 if problem else 200)
            self.end_headers()
            self.wfile.write(problem.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    session = huggingface_hub.get_session()

    class Here:
        def post(self, url, **sent):  # older clients have the Hub's own address here
            return session.post(f"http://127.0.0.1:{server.server_port}{urlsplit(url).path}", **sent)

    monkeypatch.setattr(huggingface_hub.repocard, "get_session", Here)
    try:
        for folder in (run, run_of_two):
            ModelCard.load(folder / "README.md").validate()
        bad = ModelCard.load(run / "README.md")
        bad.data.pipeline_tag = "image-regression"
        with pytest.raises(ValueError, match="pipeline_tag"):
            bad.validate()
    finally:
        server.shutdown()
        server.server_close()
    assert seen == [("/api/validate-yaml", "model")] * 3


def refused(facts):
    """What the Hub would say against metadata; "" if nothing."""
    if facts["pipeline_tag"] not in TASKS:
        return "pipeline_tag is unknown"
    if not all(isinstance(tag, str) for tag in [*facts["tags"], *facts["metrics"]]):
        return "tags and metrics must be text"
    for result in facts["model-index"][0]["results"]:
        if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
            return "a result needs a task and a data set"
        if not all(metric["type"] and isinstance(metric["value"], float) for metric in result["metrics"]):
            return "a metric needs a type and a value"
    return ""


def test_it_tells_settings_limits_and_training(run):
    text = body(run)
    results = json.loads((run / "results.json").read_text())
    settings = table(text, "method")
    assert settings["Base loss: L1"] == [f"errors divided by {results['conr']['label_scale']:.4g} years"]
    assert settings["ConR"][0].startswith("weight 0.05; labels within 0.29 years are similar; temperature 0.07;")
    assert settings["Rank-N-Contrast"] == ["weight 1, temperature 2"]
    assert "Resampling" in settings
    assert "RankSim" not in settings
    # Labels are 101 times 30, 20 times 40, and 50 to 59 once each; whole, in bins of one year.
    assert "The training labels lie in bins from 30 to 60 years" in text
    assert "in each bin of 31 to 40; 41 to 60 years" in text
    assert "2 steps" in text
    assert f"seed {results['seed']}, on {len(TRAIN_LABELS)} images" in text
    assert results["versions"]["torch"] in text
    assert "![" in text
    assert "(density.png)" in text
    assert "Data: unknown." in text
    cited = set(re.findall(r"@inproceedings\{(\w+),", text))
    assert cited == {"keramati2024conr", "zha2023rank"}


def test_only_methods_that_were_used_are_named_and_cited(copy):
    results = json.loads((copy / "results.json").read_text())
    plain = {"weight": 0.0, "rnc_weight": 0.0, "resample": "none", "base_loss": "bmc", "reweight": "inverse"}
    options = {"ranksim_weight": 100.0, "fds": "gaussian", "ema_decay": 0.999}
    changed(copy, conr={**results["conr"], **plain}, recipe={**results["recipe"], **options})
    settings = table(write_card(copy).read_text(), "method")
    assert list(settings) == [
        "Base loss: Balanced MSE (BMC)",
        "Re-weighting",
        "RankSim",
        "Feature distribution smoothing",
        "Moving average of the weights",
        "Views",
    ]
    cited = re.findall(r"@inproceedings\{(\w+),", body(copy))
    assert cited == ["ren2022balanced", "gong2022ranksim", "yang2021delving"]
    assert not {"conr", "rank-n-contrast"} & set(metadata(copy)["tags"])


def test_it_tells_of_a_sample_of_anchors(copy):
    results = json.loads((copy / "results.json").read_text())
    changed(copy, conr={**results["conr"], "conr_anchors": 256})
    settings = table(write_card(copy).read_text(), "method")
    assert settings["Rank-N-Contrast"] == [
        "weight 1, temperature 2; at most 256 anchors a batch, drawn at random",
    ]
    assert settings["ConR"][0].endswith("their label; at most 256 anchors a batch, drawn at random")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"augmentation": "light"}, "2 of each image, shifted by up to 7 % of its side, half of them flipped"),
        ({"augmentation": "none"}, "2 of each image"),
        (
            {"augmentation": "strong", "vertical_flip": True},
            "2 of each image, cropped to 50 to 100 % of its area and resized, colours changed by up to 40 % and left "
            "out in 20 % of them, half of them flipped, half of them turned upside down",
        ),
        (
            {"augmentation": "medium", "augment_color": False, "crop_area": 0.9, "horizontal_flip": False},
            "2 of each image, cropped to 90 to 100 % of its area and resized",
        ),
    ],
)
def test_it_tells_how_views_were_made(copy, options, told):
    results = json.loads((copy / "results.json").read_text())
    changed(copy, recipe={**results["recipe"], "horizontal_flip": True, **options})
    assert table(write_card(copy).read_text(), "method")["Views"] == [told]


def test_it_tells_of_a_transform_of_the_users_own(copy):
    changed(copy, own_transform=True)
    assert table(write_card(copy).read_text(), "method")["Views"] == [
        "2 of each image, made by a transform of the user's own"
    ]


def test_methods_without_effect_are_not_named(copy):
    """As the settings themselves are only warned of."""
    results = json.loads((copy / "results.json").read_text())
    idle = {"weight": 0.0, "rnc_weight": 0.0, "resample": "none", "reweight": "none"}
    options = {"ranksim_weight": 100.0, "lds": "gaussian", "freeze_backbone": True}
    changed(copy, conr={**results["conr"], **idle}, recipe={**results["recipe"], **options})
    assert not {"RankSim", "Label distribution smoothing"} & set(table(write_card(copy).read_text(), "method"))
    changed(
        copy, conr={**results["conr"], **idle, "reweight": "inverse"}, recipe={**results["recipe"], "lds": "gaussian"}
    )
    assert "Label distribution smoothing" in table(write_card(copy).read_text(), "method")


def test_prediction_intervals_are_told_where_they_were_made(copy):
    shots = {"n": 12, "covered": 9, "low": 8, "high": 12, "kept": True}
    few = {"n": 4, "covered": 1, "low": 2, "high": 4, "kept": False}
    saved = {
        "schema": 1,
        "coverage": 0.9,
        "unit": "years",
        "targets": ["age"],
        "calibrated_on": "validation",
        "groups": {
            "age": [
                {"low": None, "high": 35.0, "half_width": 4.25, "n": 7},
                {"low": 35.0, "high": None, "half_width": 9.5, "n": 5},
            ]
        },
        "coverage_by_shot": {"test": {"age": {"all": shots, "few": few}}},
    }
    assert "interval" not in body(copy)
    (copy / "intervals.json").write_text(json.dumps(saved))
    text = write_card(copy).read_text()
    check_sections(text.split("\n---\n", 1)[1])
    assert "hold 90 % of the labels" in text
    assert table(text, "prediction (years)") == {"below 35": ["± 4.25", "7"], "from 35": ["± 9.5", "5"]}
    rows = [line for line in text.splitlines() if line.startswith("| test | ") and "%" in line]
    assert rows == [
        "| test | all | 12 | 9 (75 %) | 8 to 12 | yes |",
        "| test | few-shot | 4 | 1 (25 %) | 2 to 4 | **no** |",
    ]
    assert 'predict("image.png", interval=True)' in text


def test_a_card_without_evaluation_has_no_empty_sections(tmp_path):
    folder = trained(tmp_path, photos(tmp_path / "data", train=TRAIN_LABELS[:12]))
    text = body(folder)
    check_sections(text)
    assert "## Results" not in text
    assert "density.png" not in text
    assert "model-index" not in metadata(folder)


def test_faces_are_spoken_of_where_a_benchmark_has_them(copy):
    results = json.loads((copy / "results.json").read_text())
    assert "people" not in body(copy)
    changed(copy, recipe={**results["recipe"], "benchmark": "agedb-dir"})
    text = write_card(copy).read_text()
    assert "people's faces" in text
    assert "consent" in text
    assert "AgeDB is for non-commercial research" in text


# ---- What the model is from -----------------------------------------------------------------------------------------


def test_only_what_is_on_the_hub_is_named_as_such(tmp_path, monkeypatch):
    def base(model, pretrained=True, weights=None):
        return hub_ids(model=model, pretrained=pretrained, weights=weights, data=None)["model"]

    assert base("timm/test_resnet") == "timm/test_resnet.r160_in1k"
    assert base("facebook/dinov2-small") == "facebook/dinov2-small"
    assert base("timm/test_resnet", pretrained=False) is None
    assert base("timm/test_resnet", weights="weights.safetensors") is None
    assert base(str(tmp_path)) is None
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base("runs/first") is None
    assert hub_ids(model="", pretrained=True, weights=None, data="you/faces")["data"] == "you/faces"
    assert hub_ids(model="", pretrained=True, weights=None, data="runs/first")["data"] is None
    assert hub_ids(model="", pretrained=True, weights=None, data="faces.csv")["data"] is None


def test_a_fine_tuned_model_names_its_base_data_and_licence(copy):
    changed(copy, hub_ids={"model": "timm/test_resnet.r160_in1k", "data": "you/faces"})
    text = write_card(copy).read_text()
    facts = metadata(copy)
    assert facts["base_model"] == "timm/test_resnet.r160_in1k"
    assert facts["base_model_relation"] == "finetune"
    assert (facts["license"], facts["datasets"]) == ("apache-2.0", ["you/faces"])
    assert "[`timm/test_resnet.r160_in1k`](https://huggingface.co/timm/test_resnet.r160_in1k), fine-tuned" in text
    assert "on [`you/faces`](https://huggingface.co/datasets/you/faces)." in text
    changed(copy, hub_ids={"model": "facebook/dinov2-small", "data": None})
    assert "Base model: unknown; see its page." in write_card(copy).read_text()
    assert "license" not in metadata(copy)
    results = json.loads((copy / "results.json").read_text())
    changed(
        copy,
        hub_ids={"model": "timm/test_resnet.r160_in1k", "data": None},
        recipe={**results["recipe"], "benchmark": "agedb-dir"},
    )
    write_card(copy)
    assert "license" not in metadata(copy)  # the data's terms allow research only


def test_a_model_from_a_local_folder_has_no_base_on_the_hub(run, data, tmp_path):
    folder = trained(tmp_path, data, model=str(run), pretrained=True, image_size=None)
    assert "base_model" not in metadata(folder)
    assert "`run`, fine-tuned" in body(folder)
    assert str(run.parent) not in (folder / "README.md").read_text()


def test_no_absolute_path_is_told(run):
    text = (run / "README.md").read_text()
    assert str(run.parent) not in text
    assert str(Path(run.anchor, run.parts[1])) + "/" not in text
    assert "output_dir: run" in text


def test_paths_are_cut_to_their_last_part():
    kept = ["recipes/quickstart.yaml", "m/s", "https://a.org/b/c", "a / b", "../x/y", "1/2", ""]
    assert strip_paths(kept) == kept
    assert strip_paths("/home/me/My photos/train") == "train"
    assert strip_paths(r"C:\Users\me\run") == "run"
    assert strip_paths("{model: /home/me/run, a: 1}") == "{model: run, a: 1}"
    assert strip_paths({"a": ["x --data=/home/me/faces.csv --b '/tmp/c d'"]}) == {
        "a": ["x --data=faces.csv --b 'c d'"]
    }


# ---- How the model is used ------------------------------------------------------------------------------------------


def snippets(folder):
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", body(folder))
    assert len(blocks) == 3
    return [block.replace('"you/run"', repr(str(folder))) for block in blocks]


def ran(code):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "snippet", "exec"), {})
    return eval(out.getvalue())


def predictions(folder, image):
    model = AutoModelForImageClassification.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixel_values=pixels).logits[0].tolist()


@pytest.fixture
def image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")
    return Image.open("image.png")


def test_the_snippets_run_as_printed(run, image):
    (expected,) = predictions(run, image)
    plain, stock, ours = snippets(run)
    assert ran(plain) == {"age": pytest.approx(expected, rel=1e-5)}
    assert ran(stock) == [{"label": "age", "score": pytest.approx(expected, rel=1e-5)}]
    if find_spec("conr_hf.pipeline") is None:
        pytest.skip("conr_hf.pipeline is not there")
    assert ran(ours) == {"age": pytest.approx(expected, rel=1e-5)}


def test_the_snippets_are_right_for_two_targets(run_of_two, image):
    text = body(run_of_two)
    check_sections(text)
    assert "sorts the predictions by size" in text
    assert "Predicts pitch and yaw (years)" in text
    expected = dict(zip(("pitch", "yaw"), predictions(run_of_two, image), strict=True))
    plain, stock, ours = snippets(run_of_two)
    assert ran(plain) == pytest.approx(expected, rel=1e-5)
    assert {found["label"]: found["score"] for found in ran(stock)} == pytest.approx(expected, rel=1e-5)
    if find_spec("conr_hf.pipeline") is None:
        pytest.skip("conr_hf.pipeline is not there")
    assert ran(ours) == pytest.approx(expected, rel=1e-5)


# ---- Hostile files --------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "[x](javascript:alert(1)) ![y](http://evil.example/p.png)",
    "`a` **b** _c_ ~~d~~ $e$ &lt; \\* #f @g",
    "x\n\n# Heading\n\n---\n\n- list\n\n```\nfence\n```\n\n    code",
    "1. a",
    "- a",
    "--- {{ 7 * 7 }} {% raw %} {# x #}",
    "a\u202eb\u2028c\x00d",
    "</details></td></table>",
    "'; import os; os.system('x') #",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_from_files_do_nothing_in_a_card(copy, text):
    """The card has the structure that it has with a harmless name, and shows the text as it is."""
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def structure(name):
        versions = {"torch": name}
        results = json.loads((copy / "results.json").read_text())
        values = {"hardware": name, "versions": versions, "unit": name, "command": f"conr-hf train {name}"}
        options = {**results["recipe"], "metric_for_best_model": name, "note": name, "data": f"{name}!"}
        changed(copy, **values, recipe=options, conr={**results["conr"], "push": name})
        changed(copy, "config.json", label_names=[name])
        tokens = parser.parse(body_of(write_card(copy)))
        kinds = [(t.type, t.tag, [(c.type, c.tag) for c in t.children or []]) for t in tokens if t.type != "fence"]
        kinds = [
            (kind, tag, [c for c in inside if c[0] not in ("text", "text_special")]) for kind, tag, inside in kinds
        ]
        return kinds, sum(t.type == "fence" for t in tokens), tokens

    expected, fences, _ = structure("harmless")
    found, found_fences, tokens = structure(text)
    strange = [(a, b) for a, b in zip(found, expected, strict=True) if a != b]
    # Where the name stands as code in a harmless card, a name that code cannot hold stands as text.
    assert all(b == (a[0], a[1], [*a[2], ("code_inline", "code")]) for a, b in strange), strange
    assert found_fences == fences
    shown = " ".join("".join(c.content for c in t.children) for t in tokens if t.type == "inline")
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert plain in " ".join(shown.split())
    for code in [t.content for t in tokens if t.type == "fence" and t.info == "python"]:
        compile(code, "snippet", "exec")
        assert plain not in code


def body_of(path):
    return path.read_text().split("\n---\n", 1)[1]


@pytest.mark.parametrize("text", ["see http://evil.example", "www.evil.example", "ftp://evil.example", ":smile:"])
def test_addresses_are_not_links_by_themselves(text):
    """GitHub makes links of addresses without any sign of Markdown, but not behind a backslash."""
    markdown_it = pytest.importorskip("markdown_it")
    assert not re.search(r"(?<!\\):(?=\S)|www\.", escape(text))
    assert markdown_it.MarkdownIt("commonmark").render(escape(text)) == f"<p>{text}</p>\n"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"test": {"all": {"n": 1, "mae": "<b>", "gm": 1.0, "bmae": 1.0}}}, '"<b>" is no number'),
        ({"test": {"all": {"n": 1, "mae": float("nan"), "gm": 1.0, "bmae": 1.0}}}, '"nan" is no number'),
        ({"test": {"all": {"n": 1}}}, "lack or mistake 'mae'"),
        ({"conr": {"weight": 1}}, "lack or mistake"),
        ({"bins": "many"}, "lack or mistake"),
        ({"recipe": ["a"]}, "lack or mistake"),
        ({"train_seconds": "3"}, "lack or mistake"),
    ],
)
def test_results_that_no_run_writes_are_one_sentence(copy, values, reason):
    before = (copy / "README.md").read_text()
    changed(copy, **values)
    ended = conr("card", copy)
    assert ended.code == 2
    assert reason in ended.err
    assert len(ended.err.splitlines()) == 1
    assert (copy / "README.md").read_text() == before


def test_what_is_no_run_is_refused(copy, tmp_path):
    ended = conr("card", tmp_path / "nothing")
    assert (ended.code, "no such folder" in ended.err) == (2, True)
    (copy / "results.json").write_text("__import__('os').system('x')")
    ended = conr("card", copy)
    assert (ended.code, "results.json" in ended.err, "no JSON" in ended.err) == (2, True, True)


# ---- The user's template --------------------------------------------------------------------------------------------


def test_a_template_of_the_users_takes_the_place_of_ours(run, data, tmp_path):
    template = tmp_path / "mine.md"
    template.write_text("---\n{{ card_data }}\n---\n# {{ model_name }}: {{ targets[0] }} in {{ unit }} é\n", "utf-8")
    folder = trained(tmp_path, data, target=["a*b"], model_card_template=str(template))
    assert body(folder) == "# run: a\\*b in years é\n"
    assert metadata(folder)["tags"][0] == "conr-hf"
    assert conr("card", folder).code == 0
    assert "## Limits" in body(folder)
    assert conr("card", folder, "--template", template).code == 0
    assert body(folder).startswith("# run: a")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{{ café }}".encode("latin-1"), "not UTF-8"),
        (b"a\n{{ unit }", "line 2"),
        (b"{{ unit | shout }}", "No filter named"),
        (b"{{ unitt }}", 'uses "unitt", which a card does not have'),
        (b"{% include '/etc/passwd' %}", "takes in another file"),
    ],
)
def test_a_template_that_cannot_be_used_stops_before_training(data, tmp_path, content, reason):
    template = tmp_path / "mine.md"
    if content is not None:
        template.write_bytes(content)
    file = written(tmp_path / "recipe.yaml", data=str(data), model_card_template=str(template))
    ended = conr("train", file, "--output_dir", tmp_path / "out")
    assert ended.code == 2
    assert reason in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ 1 / 0 }}", "---\n[\n---\n"])
def test_a_template_that_fails_when_filled_in_is_one_sentence_and_costs_no_run(copy, data, tmp_path, text):
    template = tmp_path / "mine.md"
    template.write_text(text)
    before = (copy / "README.md").read_text()
    ended = conr("card", copy, "--template", template)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert (copy / "README.md").read_text() == before
    folder = trained(tmp_path, data, model_card_template=str(template))
    assert "## Limits" in body(folder)


def test_a_template_shows_what_blocks_and_macros_make_of_values(copy, tmp_path):
    template = tmp_path / "mine.md"
    template.write_text("{% macro bold(x) %}**{{ x }}**{% endmacro %}{{ bold(unit) }} {{ [unit, unit] | join('; ') }}")
    changed(copy, unit="<i>")
    assert write_card(copy, str(template)).read_text() == "**&lt;i&gt;** &lt;i&gt;; &lt;i&gt;\n"


# ---- In Python ------------------------------------------------------------------------------------------------------


def test_a_trainer_writes_a_card_from_what_it_knows(run, tmp_path):
    model, processor = models["vit"]("age")
    train, evaluation = images(40), images(12, seed=1)
    trainer = build(model, processor, tmp_path / "ages", train, evaluation, conr_weight=0.1, max_steps=2)
    trainer.train()
    shutil.copy(run / "results.json", tmp_path / "ages")  # of another training into the same folder
    trainer.create_model_card(license="mit", tags="mine", language="en", dataset_tags="you/ages", dataset="Ages")
    text = body(tmp_path / "ages")
    check_sections(text)
    facts = metadata(tmp_path / "ages")
    errors = trainer.evaluate()
    rows = table(text, "validation")
    assert set(rows) == {"all", "few-shot"}
    for shot, name in (("all", "eval_mae"), ("few-shot", "eval_few_mae")):
        assert as_number(rows[shot][1]) == pytest.approx(errors[name], rel=1e-3)
    median = np.median(train["label"])
    assert as_number(rows["all"][2]) == pytest.approx(np.abs(np.array(evaluation["label"]) - median).mean(), rel=1e-3)
    assert (facts["license"], facts["language"], facts["datasets"]) == ("mit", "en", ["you/ages"])
    assert "mine" in facts["tags"]
    (result,) = facts["model-index"][0]["results"]
    assert result["dataset"] == {"name": "Ages", "type": "you/ages", "split": "validation"}
    assert result["metrics"][0]["value"] == pytest.approx(errors["eval_mae"])
    assert table(text, "method")["ConR"][0].startswith("weight 0.1; ")
    assert "Predicts age from an image: `vit`, trained" in text
    assert "years" not in text


def test_a_trainer_of_two_sets_without_training_and_with_an_own_loss(tmp_path):
    model, processor = models["timm-resnet"]("age")
    sets = {"near": images(8, seed=1), "far": images(6, seed=2)}
    trainer = build(model, processor, tmp_path / "x", images(30), sets, compute_loss_func=own_loss, max_steps=1)
    trainer.create_model_card()
    assert "## Results" not in body(tmp_path / "x")
    check_sections(body(tmp_path / "x"))
    trainer.train()
    trainer.create_model_card(finetuned_from="you/base", model_name="Ages")
    text = body(tmp_path / "x")
    assert text.strip().startswith("# Ages")
    assert (as_number(table(text, "near")["all"][0]), as_number(table(text, "far")["all"][0])) == (8, 6)
    assert table(text, "method")["Base loss"] == ["of the author's own"]
    assert metadata(tmp_path / "x")["base_model"] == "you/base"


def own_loss(outputs, labels, num_items_in_batch=None):
    return ((outputs.logits.reshape(labels.shape) - labels) ** 2).mean()


# ---- Cards of the recipes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", sorted(card.parent for card in MODEL_CARDS.glob("*/README.md")), ids=lambda folder: folder.name
)
def test_stored_cards_are_what_is_rendered_from_their_files(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / folder.name)
    (copied / "README.md").unlink()
    assert write_card(copied).read_bytes() == (folder / "README.md").read_bytes()
    check_sections(body(folder))
    for file in folder.iterdir():
        assert file.stat().st_size < 150_000, file
        if file.suffix == ".json":
            content = json.loads(file.read_text())
            assert strip_paths(content) == content, file
        elif file.suffix != ".png":
            assert not re.search(r"(?m)(^|[\s\"'=:])/\w", re.sub(r"https?://\S+", "", file.read_text())), file
    shown = re.findall(r"!\[.*?\]\((.+?)\)", body(folder))
    assert all((folder / name).is_file() for name in shown)
