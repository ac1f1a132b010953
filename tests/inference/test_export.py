"""Exported models: the same predictions in a process that knows neither conr_hf nor the model."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from command_line import conr
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification

from conr_hf.inference import export

KINDS = {"timm-resnet": "height", "vit": ["pitch", "yaw"]}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
ENDINGS = {"onnx": "model.onnx", "torch-export": "model.pt2", "timm": "timm.safetensors"}


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """A timm model of one target and a ViT of two, of no small predictions, with the unit of a run beside them."""
    folders = {}
    for name, target in KINDS.items():
        model, processor = small.models[name](target)
        with torch.no_grad():
            for parameter in list(model.parameters())[-2:]:
                parameter.add_(3.0)
        if name == "vit":
            processor.image_mean, processor.image_std = MEAN, STD
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
        (folders[name] / "results.json").write_text('{"unit": "m"}')
    return folders


def needed(form):
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is missing, which writes ONNX files")
        pytest.importorskip("onnxruntime", reason="onnxruntime is missing, which reads ONNX files")


@pytest.mark.parametrize(
    ("name", "form"), [*itertools.product(KINDS, ("onnx", "torch-export")), ("timm-resnet", "timm")]
)
def test_a_file_predicts_elsewhere_what_the_model_predicts(name, form, saved_models, tmp_path):
    """By the code that is printed, from an image file on; its last line takes any number of images."""
    needed(form)
    ended = conr("export", saved_models[name], "--format", form)
    assert ended.code == 0, ended.err
    assert str(saved_models[name] / ENDINGS[form]) in ended.out
    snippet = ended.out.partition("To predict with it:\n\n")[2].strip()
    picture = Image.fromarray(np.random.default_rng(7).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "image.png")
    pixels = np.random.default_rng(7).standard_normal((3, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "pixels.npy", pixels)
    code = f"""
import sys
sys.modules["conr_hf"] = sys.modules["transformers"] = None
{snippet}
numpy.save("of_image.npy", numpy.asarray(predictions if {form == "onnx"} else predictions.detach()))
pixels = numpy.load("pixels.npy")
{snippet.splitlines()[-1]}
numpy.save("predictions.npy", numpy.asarray(predictions if {form == "onnx"} else predictions.detach()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    model = AutoModelForImageClassification.from_pretrained(saved_models[name]).eval()
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
        processor = AutoImageProcessor.from_pretrained(saved_models[name])
        of_image = model(**processor(images=[picture], return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "of_image.npy"), of_image, rtol=0.01)
    found = np.load(tmp_path / "predictions.npy")
    assert found.shape == (3, model.config.num_labels)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def facts_in(file, form):
    if form == "onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    if form == "torch-export":
        extra = {"conr_hf.json": ""}
        torch.export.load(file, extra_files=extra)
        return json.loads(extra["conr_hf.json"])
    with safe_open(file, "np") as opened:
        return opened.metadata()


@pytest.mark.parametrize("form", ["onnx", "torch-export", "timm"])
def test_a_file_tells_targets_unit_and_pixels(form, saved_models, tmp_path):
    needed(form)
    name = "timm-resnet" if form == "timm" else "vit"
    file = (tmp_path / "own").with_suffix(Path(ENDINGS[form]).suffix)
    export.export(str(saved_models[name]), form, str(file))
    facts = facts_in(file, form)
    targets = KINDS[name]
    assert json.loads(facts["targets"]) == ([targets] if isinstance(targets, str) else targets)
    assert facts["unit"] == "m"
    assert json.loads(facts["image_size"]) == [32, 32]
    mean, std = ([0.5] * 3, [0.5] * 3) if form == "timm" else (MEAN, STD)
    assert json.loads(facts["mean"]) == pytest.approx(mean, abs=1e-4)
    assert json.loads(facts["std"]) == pytest.approx(std, abs=1e-4)
    assert isinstance(json.loads(facts["image_processor"]), dict)


def test_a_file_that_predicts_something_else_is_not_kept(saved_models, monkeypatch):
    right = export._WRITERS["torch-export"]

    def wrong(*given):
        predict = right(*given)
        return lambda pixels: predict(pixels) + (0.25 if len(pixels) == 5 else 0)

    monkeypatch.setitem(export._WRITERS, "torch-export", wrong)
    file = saved_models["vit"] / "wrong.pt2"
    with pytest.raises(
        ValueError, match=r"differ from the model's by up to 0\.25 on 5 images, more than the 0\.000\d+"
    ):
        export.export(str(saved_models["vit"]), "torch-export", str(file))
    assert not list(saved_models["vit"].glob("*wrong*")) + list(saved_models["vit"].glob("tmp*"))


def test_what_cannot_be_exported_is_one_sentence(saved_models, tmp_path, monkeypatch):
    refusals = [
        (("vit", "--format", "timm"), "is a ViTForImageClassification of transformers and no model of timm"),
        (("vit", "--format", "torch-export", "--output", tmp_path / "m.onnx"), r"must end in \.pt2"),
        (("timm-resnet", "--format", "timm", "--output", tmp_path / "model.safetensors"), "belongs to the model"),
    ]
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    refusals.append(
        (("vit", "--format", "onnx"), r'needs onnxscript and onnxruntime\. .*pip install "conr-hf\[export\]"')
    )
    for (name, *options), why in refusals:
        ended = conr("export", saved_models[name], *options)
        assert ended.code == 2
        assert re.search(why, ended.err), ended.err
        assert len(ended.err.strip().splitlines()) == 1


def test_a_processor_that_does_something_else_is_named_in_the_code_and_not_imitated(saved_models):
    processor = AutoImageProcessor.from_pretrained(saved_models["vit"])
    facts = {"image_size": "[32, 32]", "mean": str(MEAN), "std": str(STD)}
    loading = "import torch\npredictions = 1"
    assert "AutoImageProcessor" not in export._snippet("folder", processor, facts, loading)
    processor.do_rescale = False
    snippet = export._snippet("folder", processor, facts, loading)
    assert "AutoImageProcessor.from_pretrained('folder')" in snippet
    assert "pixels = processor(" in snippet
