"""The demo: what its page says against what the model and the files beside it hold, and the page in a browser."""

import importlib.util
import io
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from urllib.request import Request, urlopen

import datasets
import numpy as np
import pytest
import torch
import yaml
from command_line import ROOT, TEST_LABELS, TRAIN_LABELS, conr, photos, written
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from conr_hf import load_benchmark
from conr_hf.cli.demo import app as demo
from conr_hf.cli.demo import page as demo_page
from conr_hf.cli.demo.page import Target, answer
from conr_hf.data import images
from conr_hf.inference.conformal import Group, PredictionIntervals, load_intervals, write_intervals
from conr_hf.inference.feature_index import load_index
from conr_hf.metrics import THRESHOLDS
from conr_hf.models.saved import load_saved
from conr_hf.plots import COLOURS
from conr_hf.plots.style import number as number_in_pictures
from conr_hf.training.conr_state import load_state

HEIGHT = Target(
    "height",
    "m",
    edges=[0.0, 200.0, 400.0, 600.0, 800.0],
    train_counts=[1269, 100, 12, 0],
    coverage=0.9,
    groups=[{"low": None, "high": 300.0, "half_width": 100.0}, {"low": 300.0, "high": None, "half_width": 500.0}],
)


@pytest.fixture(scope="module", autouse=True)
def _quiet_and_apart(tmp_path_factory):
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    validation = [*TEST_LABELS, *TEST_LABELS]
    return photos(tmp_path_factory.mktemp("data") / "photos", train=TRAIN_LABELS, validation=validation)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A tiny run with all that a demo shows: training labels, intervals, features of training images."""
    folder = tmp_path_factory.mktemp("run")
    file = written(folder / "tiny.yaml", data=str(data), unit="years", target=["age"], feature_index=True)
    ended = conr("train", file, "--output_dir", folder / "faces")
    assert ended.code == 0, ended.err
    return folder / "faces"


def bytes_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photograph(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def predict_of(run):
    model, processor = load_saved(str(run))
    targets = demo.saved_targets(str(run), demo.target_names(model))
    similar = demo.similar_labels(model, processor, load_index(str(run)))
    return demo_page.predictor(model, processor, targets, images, similar)


@torch.no_grad()
def by_hand(run, image):
    model = AutoModelForImageClassification.from_pretrained(run).eval()
    return model(**AutoImageProcessor.from_pretrained(run)(images=[image], return_tensors="pt")).logits[0, 0].item()


class Text(HTMLParser):
    """The words of HTML, and the tags and attributes in it."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self.attributes = [], set(), set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.words.append(data)


def words(answers):
    """What an answer says: predictions and sentences."""
    return " ".join(f"{value} {' '.join(Text(sentences).words)}" for value, sentences, _ in answers)


def layers(chart):
    """The layers of a chart, by what they draw."""
    band, bars, line = chart["layer"]
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["rect", "bar", "rule"]
    return band["encoding"], bars, line["encoding"]


# ---- What is said of an image ---------------------------------------------------------------------------------------


def test_the_page_shows_what_plain_transformers_predict(run):
    predict = predict_of(run)
    for seed in range(3):
        image, ((value, _, _),) = predict(bytes_of(photograph(seed)))
        assert image.size == (50, 40)
        assert value == f"{by_hand(run, photograph(seed)):.1f} years"


def test_images_are_read_as_everywhere(run):
    predict = predict_of(run)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    turned = photograph().transpose(Image.Transpose.ROTATE_270)
    image, answers = predict(bytes_of(photograph(), exif=exif))
    assert image.size == turned.size
    assert answers == predict(bytes_of(turned))[1]
    grey = np.random.default_rng(0).integers(0, 256, (32, 32))
    sixteen, eight = Image.fromarray((grey * 257).astype(np.uint16)), Image.fromarray(grey.astype(np.uint8))
    shown, answers = predict(bytes_of(sixteen))
    expected, of_expected = predict(bytes_of(eight.convert("RGB")))
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert answers == of_expected


def test_a_large_image_is_shown_smaller(run):
    assert predict_of(run)(bytes_of(Image.new("RGB", (2048, 1000))))[0].size == (1024, 500)


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (b"not a picture", "it is not an image"),
        (b"", "the file is empty"),
        (bytes_of(photograph(), "JPEG")[:700], "truncated"),
        (bytes_of(Image.new("L", (300, 300))), r"may be a decompression bomb"),
    ],
)
def test_what_is_no_image_is_a_sentence_and_the_next_one_is_read(run, monkeypatch, held, why):
    predict = predict_of(run)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(ValueError, match=f"^The file cannot be read as an image: .*{why}.*\\.$"):
        predict(held)
    assert "years" in words(predict(bytes_of(photograph()))[1])


@pytest.mark.parametrize(
    ("prediction", "sentences"),
    [
        (250.0, ["between 150 and 350 m", "Some training images here: 100 labelled from 200 to 400 m."]),
        (300.0, ["between -200 and 800 m", "Some training images here: 100 labelled"]),
        (10.0, ["Many training images here: 1,269 labelled from 0 to 200 m."]),
        (402.0, ["between -98 and 902 m", "Few training images here: 12 labelled from 400 to 600 m."]),
        (800.0, ["No training images here: none is labelled from 600 to 800 m."]),
        (-1.0, ["No training images here: all are labelled from 0 to 800 m."]),
    ],
)
def test_the_sentences_on_a_prediction(prediction, sentences):
    said = words(answer([HEIGHT], [prediction]))
    for sentence in sentences:
        assert sentence in said


def test_what_is_few_is_what_the_run_says():
    target = Target("age", edges=[0.0, 1.0], train_counts=[7])
    assert "Few training images here: 7 labelled from 0 to 1." in words(answer([target], [0.5]))
    target = Target("age", edges=[0.0, 1.0], train_counts=[7], thresholds=[2, 5])
    assert "Many training images here: 7 labelled from 0 to 1." in words(answer([target], [0.5]))


def test_nothing_is_shown_where_there_can_be_no_label():
    pressure = replace(HEIGHT, name="pressure", unit="bar", label_min=0.0, label_max=800.0)
    said = answer([pressure], [-3.0])
    assert said[0][0] == "0 bar"
    assert "between 0 and 100 bar" in words(said)
    band, _, line = layers(said[0][2])
    assert (band["x"]["datum"], band["x2"]["datum"], line["x"]["datum"]) == (0.0, 100.0, 0.0)
    assert "between 200 and 800 bar" in words(answer([pressure], [700.0]))


def test_without_files_beside_the_model_the_prediction_stands_alone():
    assert answer([Target("age")], [31.42]) == [("31.4", "", None)]


def test_what_is_no_number_is_not_shown():
    with pytest.raises(ValueError, match="not a finite number"):
        answer([HEIGHT], [float("nan")])


def test_intervals_and_bins_are_those_of_the_files(run, tmp_path):
    intervals, state = load_intervals(str(run)), load_state(str(run))
    assert intervals is not None
    (target,) = demo.saved_targets(str(run), ["age"])
    assert (target.unit, target.coverage, target.thresholds) == ("years", 0.9, [20, 100])
    write_intervals(shutil.copytree(run, tmp_path / "bounded"), replace(intervals, label_min=[0.0], label_max=[120.0]))
    (bounded,) = demo.saved_targets(str(tmp_path / "bounded"), ["age"])
    assert (bounded.label_min, bounded.label_max) == (0.0, 120.0)
    predictions = np.append(np.random.default_rng(0).uniform(20, 80, 200), [30.0, 70.0])
    for prediction, width in zip(predictions, intervals.half_widths(predictions[:, None])[:, 0], strict=True):
        assert target.interval(prediction) == pytest.approx((prediction - width, prediction + width))
    found = [-1 if target.bin(prediction) is None else target.bin(prediction) for prediction in predictions]
    assert found == state[1].index(predictions)[:, 0].tolist()


def test_the_page_alone_agrees_with_the_package():
    assert Target("age").thresholds == THRESHOLDS
    assert list(demo_page.AMOUNTS.values()) == [COLOURS[shot] for shot in ("few", "median", "many")]
    for value, span in ((1234.567, 5000.0), (0.12345, 0.5), (3.0, 5.0), (-0.02, 0.0), (1e-7, 1e-9)):
        assert demo_page.number(value, span) == number_in_pictures(value, span)


def test_the_chart_has_a_bar_for_each_bin_and_the_prediction_with_its_interval():
    band, bars, line = layers(answer([HEIGHT], [250.0])[0][2])
    values = bars["data"]["values"]
    assert [bar["shot"].split()[0] for bar in values] == ["many", "some", "few"]  # and none for the empty bin
    assert [(bar["from"], bar["to"], bar["samples"]) for bar in values] == [
        (0.0, 200.0, 1269),
        (200.0, 400.0, 100),
        (400.0, 600.0, 12),
    ]
    assert line["x"] == {"datum": 250.0}
    assert (band["x"]["datum"], band["x2"]["datum"]) == (150.0, 350.0)
    scale, heights = (bars["encoding"][axis]["scale"] for axis in "xy")
    assert scale["domain"] == [0.0, 800.0]
    assert scale["clamp"]
    assert heights["type"] == "log"
    assert heights["domain"][0] < 1 < 1269 < heights["domain"][1]
    _, bars, _ = layers(answer([HEIGHT], [-50.0])[0][2])
    assert bars["encoding"]["x"]["scale"]["domain"] == [-50.0, 800.0]


def test_a_hundred_thousand_bins_make_a_small_chart():
    edges = np.linspace(0, 1, 100_001).tolist()
    counts = [0] * 100_000
    counts[70_000] = 30
    ((_, _, chart),) = answer([Target("x", edges=edges, train_counts=[1] * 100_000)], [0.5])
    assert len(json.dumps(chart)) < 100_000
    ((_, _, chart),) = answer([Target("x", edges=edges, train_counts=counts)], [0.5])
    (bar,) = layers(chart)[1]["data"]["values"]
    assert bar["from"] <= 0.7 < bar["to"]
    assert bar["samples"] == 30


def test_names_and_units_are_text_whatever_they_hold():
    name = '<img src=x onerror="alert(1)">&amp;'
    targets = [Target(name, "</b><script>", [0.0, 1.0], [5], 0.9, HEIGHT.groups), Target("plain $x^$")]
    for _, sentences, _ in answer(targets, [0.5, 2.0], [[0.1, 2.0]]):
        read = Text(sentences)
        assert read.tags == {"p"}
        assert not read.attributes
    assert "</b><script>" in words(answer(targets, [0.5, 2.0]))


def test_several_targets_have_a_chart_each():
    answers = answer([HEIGHT, Target("slope", "%", [0.0, 10.0], [30])], [250.0, 5.0], [[100.0, 1.0], [200.0, 2.0]])
    assert [layers(chart)[2]["x"]["datum"] for _, _, chart in answers] == [250.0, 5.0]
    said = words(answers)
    assert "similar training images are labelled 100, 200 m." in said
    assert "similar training images are labelled 1, 2 %." in said


def test_files_of_another_model_are_refused(run, tmp_path):
    for name in ("config.json", "model.safetensors", "conr_state.safetensors"):
        shutil.copy(run / name, tmp_path)
    groups = {"yaw": [Group(None, None, 1.0, 20)]}
    write_intervals(tmp_path, PredictionIntervals(0.9, "", ["yaw"], "validation", groups, {}))
    with pytest.raises(ValueError, match=r"intervals\.json.* is for yaw, and the model predicts age\. Remove"):
        demo.saved_targets(str(tmp_path), ["age"])
    (tmp_path / "intervals.json").unlink()
    with pytest.raises(ValueError, match=r"labels of 1 dimensions, and the model predicts pitch, yaw"):
        demo.saved_targets(str(tmp_path), ["pitch", "yaw"])
    save_file(
        {"features": np.zeros((4, 3), np.float16), "labels": np.zeros((4, 1))},
        tmp_path / "feature_index.safetensors",
        metadata={"head": ""},
    )
    model, processor = load_saved(str(run))
    with pytest.raises(ValueError, match=r"feature_index\.safetensors .* another model's"):
        demo.similar_labels(model, processor, load_index(str(tmp_path)))


# ---- Features of training images ------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_index_holds_what_the_head_reads_and_the_labels(run, data):
    saved = load_file(run / "feature_index.safetensors")
    assert set(saved) == {"features", "labels"}
    assert saved["features"].dtype == np.float16
    assert saved["labels"][:, 0].tolist() == list(TRAIN_LABELS)  # every row, in order
    model = AutoModelForImageClassification.from_pretrained(run).eval()
    processor = AutoImageProcessor.from_pretrained(run)
    for row in (0, 7, 130):
        image = Image.open(data / "train" / f"{row:03}.png")
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        body = model.timm_model.forward_head(model.timm_model.forward_features(pixels), pre_logits=True)
        assert saved["features"][row] == pytest.approx(body[0].numpy(), rel=2e-3, abs=1e-4)


def test_a_training_image_is_most_like_itself(run, data):
    predict = predict_of(run)
    for row in (0, 7, 130):
        answers = predict((data / "train" / f"{row:03}.png").read_bytes())[1]
        assert f"similar training images are labelled {TRAIN_LABELS[row]}," in words(answers)


def test_an_index_is_of_rows_that_can_be_read_again(data, tmp_path):
    file = written(tmp_path / "a.yaml", data=str(data), feature_index=True, streaming=True)
    ended = conr("train", file)
    assert ended.code == 2
    assert "feature_index is true, but streaming" in ended.err


def test_what_is_no_index_is_named(tmp_path):
    (tmp_path / "feature_index.safetensors").write_bytes(b"no index")
    with pytest.raises(ValueError, match=r"does not hold a feature index .* Remove it"):
        load_index(str(tmp_path))
    (tmp_path / "feature_index.safetensors").unlink()
    assert load_index(str(tmp_path)) is None


# ---- Examples -------------------------------------------------------------------------------------------------------


def test_examples_are_test_images_of_the_packages_own_benchmark(tmp_path):
    recipe = {"benchmark": "earth-elevation", "label_columns": ["label"]}
    (tmp_path / "results.json").write_text(json.dumps({"recipe": recipe}))
    out = tmp_path / "examples"
    out.mkdir()
    assert "NASA" in demo.write_examples(str(tmp_path), None, out)
    files = sorted(map(str, out.iterdir()))
    test = load_benchmark("earth-elevation")["test"]
    labels = [float(re.search(r"label-([\d.]+)\.png", file).group(1)) for file in files]
    assert len(labels) == 5
    assert labels == sorted(labels)
    known = {np.asarray(row["image"]).tobytes(): row["label"] for row in test}
    for file, label in zip(files, labels, strict=True):
        assert known[np.asarray(Image.open(file)).tobytes()] == pytest.approx(label, abs=1)


def test_own_data_has_examples_only_if_they_are_named(run, data, tmp_path):
    assert demo.write_examples(str(run), None, tmp_path) == ""
    assert not list(tmp_path.iterdir())
    assert demo.write_examples(str(run), str(data / "validation"), tmp_path) == ""
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        f"{row:03}.png" for row in range(24)
    ]  # metadata.csv is no image
    with pytest.raises(ValueError, match="is no folder with images"):
        demo.write_examples(str(run), str(data), tmp_path)


# ---- conr-hf demo ---------------------------------------------------------------------------------------------------


def test_without_gradio_one_sentence_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    for options in ((), ("--export", tmp_path / "space")):
        ended = conr("demo", run, *options)
        assert ended.code == 2
        assert ended.err == 'conr-hf: The demo needs gradio. Install it with: pip install "conr-hf[demo]"\n'


def test_it_listens_on_this_machine_alone_and_limits_uploads(run, monkeypatch):
    gradio = pytest.importorskip("gradio")
    given = {}

    def launch(blocks, **options):
        given.update(options, analytics=blocks.analytics_enabled)
        return None, "http://127.0.0.1:7860/", None

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda blocks: None)
    monkeypatch.setenv("GRADIO_SHARE", "True")
    assert conr("demo", run).code == 0
    assert (given["server_name"], given["server_port"], given["share"]) == ("127.0.0.1", None, False)
    assert given["max_file_size"] == 10 * 2**20
    assert not given["show_error"]
    assert not given["analytics"]
    assert conr("demo", run, "--host", "0.0.0.0", "--port", 8001, "--max_size", 3).code == 0
    assert (given["server_name"], given["server_port"], given["share"]) == ("0.0.0.0", 8001, False)
    assert given["max_file_size"] == 3 * 2**20

    def taken(blocks, **options):
        raise OSError("Cannot find empty port in range: 8001-8001")

    monkeypatch.setattr(gradio.Blocks, "launch", taken)
    ended = conr("demo", run, "--port", 8001)
    assert ended.code == 2
    assert "cannot listen on 127.0.0.1, port 8001" in ended.err


# ---- A Space --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gradio_or_not(monkeypatch):
    """An export needs only gradio's version."""
    if importlib.util.find_spec("gradio") is None:
        real = demo.version
        monkeypatch.setattr(demo, "version", lambda name: "6.31.0" if name == "gradio" else real(name))
        monkeypatch.setattr(demo, "check_gradio", lambda: None)


@pytest.mark.usefixtures("gradio_or_not")
def test_an_exported_folder_is_a_space(run, data, tmp_path):
    out = tmp_path / "space"
    ended = conr("demo", run, "--export", out, "--examples", data / "validation")
    assert ended.code == 0, ended.err
    assert "Push the model to the Hub first" in ended.out
    for name in ("app.py", "page.py", "images.py"):
        py_compile.compile(str(out / name), doraise=True)
    assert 'MODEL = "YOUR-NAME/faces"' in (out / "app.py").read_text()
    header = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
    assert header["title"] == "faces"
    assert (header["sdk"], header["app_file"], header["emoji"]) == ("gradio", "app.py", "📐")
    assert "license" not in header
    needed = dict(line.split("==") for line in (out / "requirements.txt").read_text().splitlines())
    assert needed["gradio"] == header["sdk_version"]
    assert {"torch", "torchvision", "transformers", "timm"} <= set(needed)
    assert not any("+" in version for version in needed.values())
    assert len(list((out / "examples").iterdir())) == 24
    assert not (out / "model").exists()
    assert str(run) not in "".join(file.read_text() for file in out.glob("*.*"))


@pytest.mark.usefixtures("gradio_or_not")
def test_a_folder_that_holds_something_is_left_alone(run, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "kept.txt"):
        ended = conr("demo", run, "--export", place)
        assert ended.code == 2
        assert "is not an empty folder. Name another for --export." in ended.err
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]
    ended = conr("demo", run, "--with_model")
    assert ended.code == 2
    assert "add --export FOLDER" in ended.err


def test_the_space_predicts_without_this_package(run, tmp_path):
    pytest.importorskip("gradio")
    out = tmp_path / "space"
    assert conr("demo", run, "--export", out, "--with_model").code == 0
    photograph().save(tmp_path / "a.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    code = f"""
import json
import sys
sys.path.insert(0, {str(out)!r})
sys.modules["conr_hf"] = None
import app
print(json.dumps(app.predict(open({str(tmp_path / "a.png")!r}, "rb").read())[1]))
try:
    app.predict(open({str(tmp_path / "text.jpg")!r}, "rb").read())
except ValueError as error:
    print(json.dumps(str(error)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    ((value, sentences, chart),), refusal = map(json.loads, ended.stdout.strip().splitlines())
    ((our_value, our_sentences, our_chart),) = predict_of(run)(bytes_of(photograph()))[1]
    assert (value, chart) == (our_value, json.loads(json.dumps(our_chart)))
    assert sentences == re.sub("<p>The most similar.*?</p>", "", our_sentences)
    assert refusal.startswith("The file cannot be read as an image")


# ---- In a browser ---------------------------------------------------------------------------------------------------

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture
def chromium():
    pytest.importorskip("playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    return found


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "log"


@pytest.fixture(scope="module")
def served(run, log):
    """The address of `conr-hf demo`, in a process of its own, which Ctrl+C ends."""
    pytest.importorskip("gradio")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": str(log.parent)}
    command = [sys.executable, "-m", "conr_hf", "demo", str(run), "--max_size", "1"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=log.parent,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background shell ignores
        )
    try:
        for _ in range(600):
            found = re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
            if found or process.poll() is not None:
                break
            time.sleep(0.2)
        assert found, log.read_text()[-2000:]
        yield found.group()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_in_a_browser(run, chromium, served, log, tmp_path):
    from playwright.sync_api import sync_playwright

    photograph().save(tmp_path / "photo.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)).save(
        tmp_path / "large.png"
    )
    asked = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served)
        upload = page.locator("#picture input[type=file]")
        upload.set_input_files(str(tmp_path / "photo.png"))
        page.wait_for_selector("#answer canvas")
        assert f"{by_hand(run, photograph()):.1f} years" in page.inner_text("#answer")
        assert "most similar training images are labelled" in page.inner_text("#answer")
        picture = page.locator("#answer canvas").bounding_box()
        assert picture["x"] >= 0
        assert picture["x"] + picture["width"] <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("footer").count() == 0
        page.locator("#picture button[aria-label]").first.click()  # clears it
        page.wait_for_selector("#answer >> text=is shown here")
        upload.set_input_files(str(tmp_path / "text.jpg"))
        page.wait_for_selector("#answer >> text=cannot be read")
        assert page.inner_text("#answer").strip() == "The file cannot be read as an image: it is not an image."
        upload.set_input_files(str(tmp_path / "large.png"))
        page.wait_for_selector("text=maximum allowed size of 1")
        upload.set_input_files(str(tmp_path / "photo.png"))  # it goes on
        page.wait_for_selector("#answer canvas")
        browser.close()
    assert "Traceback" not in log.read_text()
    assert asked
    assert not [url for url in asked if not url.startswith((served, "data:", "blob:"))]


def test_only_what_was_uploaded_is_opened(served, tmp_path):
    photograph().save(tmp_path / "private.png")
    for extra in ({}, {"meta": {"_type": "gradio.FileData"}}):
        body = json.dumps({"data": [{"path": str(tmp_path / "private.png"), **extra}]}).encode()
        place = f"{served}gradio_api/call/predict"
        event = json.load(urlopen(Request(place, body, {"content-type": "application/json"})))["event_id"]
        said = urlopen(f"{place}/{event}", timeout=60).read().decode()
        assert "years" not in said
        assert "private" not in said
