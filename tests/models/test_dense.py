"""Models that predict maps: which there are, the head that is adopted, and what comes out of a saved one."""

import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from small import _depth_anything_config, map_models, models
from torch import nn
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, AutoModelForSemanticSegmentation, LevitConfig

from conr_hf import adopt_head, load_regressor
from conr_hf.models.adopt_head import find_head
from conr_hf.models.factory import dummy_pixels
from conr_hf.models.head import MapHead
from conr_hf.models.outputs import prediction, resized

LINKS = {  # name -> the link, and whether the model is one of depth estimation
    "upernet": ("identity", False),
    "timm": ("identity", False),
    "dpt": ("relu", True),
    "depth-anything": ("relu", True),
    "metric-depth-anything": ("sigmoid", True),
    "glpn": ("sigmoid", True),
    "segformer": ("identity", False),
}


def made(name):
    model, processor = map_models[name](side=64)
    return model.eval(), processor, dummy_pixels(processor, model.config)


@pytest.mark.parametrize("name", map_models)
def test_the_last_convolution_is_adopted_and_nothing_changes(name):
    model, _, pixels = made(name)
    with torch.no_grad():
        before, keys = prediction(model(pixel_values=pixels)), set(model.state_dict())
        head = adopt_head(model, pixels)
        after = prediction(model(pixel_values=pixels))
    assert isinstance(head, MapHead)
    assert head.link == LINKS[name][0]
    assert set(model.state_dict()) == keys
    assert torch.equal(before, after)
    assert before.shape == (1, *before.shape[1:])
    assert before.ndim == 3
    assert adopt_head(model, pixels) is head


@pytest.mark.parametrize("name", map_models)
def test_features_and_link_give_the_prediction(name):
    """So the features are those that the prediction of each pixel is made of."""
    model, _, pixels = made(name)
    head = adopt_head(model, pixels)
    head.start(torch.tensor([40.0]), 20.0, seed=0)
    with torch.no_grad():
        predicted = prediction(model(pixel_values=pixels))
        features = head.take_features()
        side = head.kernel_size[0]
        output = nn.functional.conv2d(features, head.weight, head.bias, padding=side // 2)[:, 0]
        linked = {"relu": output.relu(), "sigmoid": 100 * output.sigmoid(), "identity": output}[head.link]
    assert torch.allclose(resized(linked, predicted.shape[-2:]), predicted, atol=1e-4)
    assert predicted.mean().item() == pytest.approx(40, abs=4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with each model, what it reads and predicts, and what a process without this package makes of it."""
    folder = tmp_path_factory.mktemp("saved")
    for name in map_models:
        model, processor, pixels = made(name)
        adopt_head(model, pixels).start(torch.tensor([40.0]), 20.0, seed=0)
        with torch.no_grad():
            expected = prediction(model(pixel_values=pixels))
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        torch.save((pixels, expected), folder / name / "here.pt")
    code = f"""
import sys, torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, AutoModelForSemanticSegmentation
for name, is_depth in {[(name, LINKS[name][1]) for name in map_models]}:
    folder = {str(folder)!r} + "/" + name
    kind = AutoModelForDepthEstimation if is_depth else AutoModelForSemanticSegmentation
    model = kind.from_pretrained(folder).eval()
    AutoImageProcessor.from_pretrained(folder)
    pixels, _ = torch.load(folder + "/here.pt")
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    torch.save(outputs.predicted_depth if is_depth else outputs.logits, folder + "/there.pt")
assert not any(name.startswith("conr_hf") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
    return folder


@pytest.mark.parametrize("name", map_models)
def test_a_saved_model_is_a_vanilla_one(name, saved):
    """It loads without this package, and again by `load_regressor`, which keeps its head."""
    pixels, expected = torch.load(saved / name / "here.pt")
    # To the rounding of float32: on some processors a convolution's last bits depend on where its weights lie.
    there = torch.load(saved / name / "there.pt").reshape(expected.shape)
    torch.testing.assert_close(there, expected, rtol=1e-6, atol=0)
    again, its_processor = load_regressor(str(saved / name), "label", task="depth")
    with torch.no_grad():
        torch.testing.assert_close(prediction(again.eval()(pixel_values=pixels)), expected, rtol=1e-6, atol=0)
    assert its_processor.to_dict()["size"] == made(name)[1].to_dict()["size"]


def test_a_limit_behind_a_relu_is_a_factor():
    """Of a model of relative depth whose configuration has a max_depth."""
    model, processor = load_regressor(_depth_anything_config("relative", max_depth=10), task="depth", image_size=64)
    pixels = dummy_pixels(processor, model.config)
    head = adopt_head(model, pixels)
    head.start(torch.tensor([40.0]), 20.0, seed=0)
    assert (head.link, head.limit) == ("relu", 10.0)
    assert head.learning_scale(20.0) == 2.0
    with torch.no_grad():
        assert prediction(model.eval()(pixel_values=pixels)).mean().item() == pytest.approx(40, abs=4)


def test_the_head_of_relative_depth_is_renewed_and_that_of_metric_depth_kept(tmp_path):
    for name, kept in (("depth-anything", False), ("metric-depth-anything", True)):
        model, processor, pixels = made(name)
        adopt_head(model, pixels).start(torch.tensor([40.0]), 20.0, seed=0)
        model.config.problem_type = None  # as the checkpoints of others
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        again, _ = load_regressor(str(tmp_path / name), "depth", task="depth")
        assert adopt_head(again, pixels).is_fresh() == (not kept)


def test_weights_of_a_timm_backbone_come_from_a_file(tmp_path):
    """And a file of another model is found out, which timm passes over."""
    source, _ = models["timm-resnet"]()
    state = {key.removeprefix("timm_model."): value for key, value in source.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    model, _ = load_regressor("timm/test_resnet", task="depth", weights=str(tmp_path / "weights.safetensors"))
    loaded = model.backbone._backbone.state_dict()
    same = [key for key in loaded if key in state and torch.equal(loaded[key], state[key])]
    assert len(same) == len(loaded)
    save_file({"other.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"no weights for .* is it of another model\?"):
        load_regressor("timm/test_resnet", task="depth", weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_a_file_fits_where_timm_renames_its_weights(name, tmp_path):
    """Feature maps of ConvNeXt are of `stem_0`, where a file has `stem.0`."""
    source = timm.create_model(name, pretrained=False)
    save_file({key: value.contiguous() for key, value in source.state_dict().items()}, tmp_path / "own.safetensors")
    model, _ = load_regressor(f"timm/{name}", task="depth", weights=str(tmp_path / "own.safetensors"))
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        features = model.backbone.eval()(pixels).feature_maps[-1]
        expected = source.eval().forward_intermediates(pixels, intermediates_only=True, output_fmt="NCHW")[-1]
    assert torch.allclose(features, expected, atol=1e-5)


def test_a_backbone_of_a_checkpoint_keeps_its_weights(tmp_path):
    source, processor = models["convnextv2"]()
    source.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, its_processor = load_regressor(str(tmp_path), "height", task="depth")
    own = source.state_dict()
    of_backbone = {f"convnextv2.{key}": value for key, value in model.backbone.state_dict().items()}
    shared = [key for key in of_backbone if key in own]
    assert len(shared) > 20
    assert all(torch.equal(of_backbone[key], own[key]) for key in shared)
    assert model.config.id2label == {0: "height"}
    assert not its_processor.to_dict().get("do_center_crop")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (LevitConfig(), {}, '"levit" predicts no maps and gives no feature maps'),
        ("timm/resnet-10", {}, "Did you mean"),
        ("timm/test_resnet", {"target": ["a", "b"]}, "a map has one target"),
        ("timm/test_resnet", {"task": "deep"}, 'must be "image" or "depth"'),
        ("no/such/folder", {}, "could not be loaded as a model of maps"),
    ],
)
def test_what_predicts_no_maps_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_regressor(name, **{"task": "depth", "pretrained": False, **options})


def test_a_layer_that_is_not_the_prediction_is_refused():
    model, _, pixels = made("dpt")
    with pytest.raises(ValueError, match="is not a convolution to one map"):
        adopt_head(model, pixels, "head.head.0")
    assert find_head(model, pixels) == "head.head.4"
    model.add_module("unused", nn.Conv2d(4, 1, 1))
    with pytest.raises(ValueError, match='head="unused": its output alone'):
        adopt_head(model, pixels, "unused")


def test_processors_show_the_whole_image(tmp_path):
    """A centre crop would put the map beside the image."""
    for name in ("dpt", "segformer"):
        model, _, _ = made(name)
        kind = AutoModelForDepthEstimation if name == "dpt" else AutoModelForSemanticSegmentation
        model.save_pretrained(tmp_path / name)
        settings = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
        models["dinov2"]()[1].from_dict({**models["dinov2"]()[1].to_dict(), **settings}).save_pretrained(
            tmp_path / name
        )
        _, processor = load_regressor(str(tmp_path / name), task="depth")
        assert not processor.to_dict()["do_center_crop"]
        assert kind.from_pretrained(tmp_path / name) is not None
        assert AutoImageProcessor.from_pretrained(tmp_path / name).to_dict()["do_center_crop"]
