"""`load_regressor`: what of a checkpoint is kept, what is new, and what a wrong name gets for an answer."""

import numpy as np
import pytest
import small
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
)

from conr_hf import load_regressor


def saved_vit(folder, dtype=torch.float32, **changed):
    """A ViT checkpoint in `folder`, with a head that is neither new nor zero."""
    torch.manual_seed(1)
    model = ViTForImageClassification(small.vit_config(**changed)).to(dtype)
    with torch.no_grad():
        model.classifier.bias.uniform_(30, 40)
        model.classifier.weight.normal_()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def pixels(processor):
    return processor(images=[row["image"] for row in small.images(3, size=48)], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", small.models)
def test_the_processor_reloads_beside_the_model(name, tmp_path):
    model, processor = small.models[name]("age")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = pixels(processor)
    assert expected.shape == (3, 3, 32, 32)
    assert torch.equal(pixels(AutoImageProcessor.from_pretrained(tmp_path)), expected)
    plain, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(expected).logits, model.eval()(expected).logits)
    again, processor = load_regressor(str(tmp_path), "age")
    assert torch.equal(pixels(processor), expected)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_classifier_gets_a_new_head_and_keeps_its_backbone(tmp_path):
    """1000 classes do not fit one target; the rest of the checkpoint does."""
    saved = saved_vit(tmp_path, num_labels=1000)
    model, _ = load_regressor(str(tmp_path), "age")
    assert model.classifier.weight.shape == (1, 16)
    assert model.classifier.bias.item() == 0
    assert 0.01 < model.classifier.weight.std().item() < 0.03
    state = model.state_dict()
    for key, weight in saved.state_dict().items():
        assert key.startswith("classifier") or torch.equal(state[key], weight), key


@pytest.mark.parametrize("targets", [["age"], ["pitch", "yaw"]])
def test_a_regression_checkpoint_keeps_its_head(targets, tmp_path):
    saved = saved_vit(tmp_path, num_labels=len(targets))
    model, _ = load_regressor(str(tmp_path), targets)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    assert torch.equal(model.classifier.bias, saved.classifier.bias)
    assert model.config.id2label == dict(enumerate(targets))
    assert model.config.label2id == {target: index for index, target in enumerate(targets)}
    assert model.config.problem_type == "regression"


def test_a_checkpoint_whose_backbone_does_not_fit_is_refused(tmp_path):
    """ignore_mismatched_sizes alone would start the position embeddings at random, and say so in a warning only."""
    saved_vit(tmp_path, num_labels=1000)
    with pytest.raises(ValueError, match=r"no fitting weights for .*vit\.embeddings\.position_embeddings: they would"):
        load_regressor(str(tmp_path), patch_size=4)


def test_a_bf16_checkpoint_is_loaded_in_float32(tmp_path):
    """TrainingSummary in bf16, a bias of 33.37 would be 33.25."""
    saved = saved_vit(tmp_path, torch.bfloat16, num_labels=1)
    model, _ = load_regressor(str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.classifier.bias, saved.classifier.bias.float())


def test_without_weights_a_local_model_starts_anew(tmp_path):
    saved = saved_vit(tmp_path, num_labels=1)
    model, processor = load_regressor(str(tmp_path), pretrained=False)
    assert not torch.equal(model.vit.embeddings.cls_token, saved.vit.embeddings.cls_token)
    assert model.classifier.bias.item() == 0
    assert pixels(processor).shape == (3, 3, 32, 32)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_timm_from_scratch_keeps_timms_own_initialisation(name):
    """TimmWrapper draws every weight from N(0, 0.02); a convolutional network does not train from there."""
    torch.manual_seed(0)
    model, _ = load_regressor(f"timm/{name}", pretrained=False)
    torch.manual_seed(0)
    own = timm.create_model(name, num_classes=1)
    for (key, weight), expected in zip(model.timm_model.named_parameters(), own.parameters(), strict=True):
        if weight.dim() == 4 and weight.numel() > 500:
            assert weight.std().item() == pytest.approx(expected.std().item(), rel=0.15), key
    first = next(weight for weight in model.parameters() if weight.dim() == 4)
    assert first.std().item() > 0.04
    head = model.timm_model.get_classifier()
    assert 0.015 < head.weight.std().item() < 0.025
    assert head.bias.item() == 0


def test_timm_takes_a_file_of_weights(tmp_path):
    torch.manual_seed(1)
    own = timm.create_model("test_resnet", num_classes=1000)
    file = tmp_path / "weights.safetensors"
    save_file(own.state_dict(), file)
    model, processor = load_regressor("timm/test_resnet", "age", weights=str(file))
    head = model.timm_model.get_classifier()
    heads = {id(parameter) for parameter in own.get_classifier().parameters()}
    state = model.timm_model.state_dict()
    for key, weight in own.named_parameters():
        assert id(weight) in heads or torch.equal(state[key], weight), key
    assert head.weight.shape[0] == 1
    assert head.bias.item() == 0
    assert model.config.id2label == {0: "age"}
    assert "file" not in model.config.pretrained_cfg  # a path of this computer in a config to share
    assert pixels(processor).shape == (3, 3, 160, 160)


@pytest.mark.parametrize("lacking", ["prefix", "layer"])
def test_a_file_that_does_not_fit_is_refused(lacking, tmp_path):
    """timm passes over what a file lacks: training would start from a backbone that is partly, or wholly, random."""
    weights = timm.create_model("test_resnet", num_classes=10).state_dict()
    if lacking == "prefix":
        weights = {f"encoder.{name}": weight for name, weight in weights.items()}
    else:
        weights = {name: weight for name, weight in weights.items() if not name.startswith("layer3.")}
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"has no fitting weights for timm_model\..* they would start at random"):
        load_regressor("timm/test_resnet", "age", weights=str(file))


def test_a_file_with_a_trained_head_keeps_it(tmp_path):
    weights = timm.create_model("test_resnet", num_classes=1).state_dict()
    weights["fc.bias"] = torch.tensor([7.0])
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    model, _ = load_regressor("timm/test_resnet", "age", weights=str(file))
    assert model.timm_model.fc.bias.item() == 7
    torch.testing.assert_close(model.timm_model.fc.weight, weights["fc.weight"], rtol=0, atol=0)


def test_a_checkpoint_with_two_heads_of_another_size_gets_two_new_ones(tmp_path):
    """Distilled DeiT: naming one head must not make the other a misfit."""
    targets = [f"class {index}" for index in range(8)]
    model, processor = load_regressor("timm/deit_tiny_distilled_patch16_224", targets, pretrained=False, image_size=32)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, _ = load_regressor(str(tmp_path), "age", head="timm_model.head")
    for head in (model.timm_model.head, model.timm_model.head_dist):
        assert head.weight.shape[0] == 1
        assert head.bias.item() == 0


def test_an_image_size_that_the_model_does_not_take_is_refused_by_the_trainer(tmp_path):
    model, _ = small.models["vit"]()
    _, other = load_regressor(small.vit_config(image_size=64), image_size=64)
    with pytest.raises(ValueError, match=r"does not take pixels of shape \(1, 3, 64, 64\): .*\. Give the processor"):
        small.build(model, other, tmp_path, small.images(4))


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("timm/resnet10tt", {"pretrained": False}, r'timm has no model "resnet10tt"\. Did you mean timm/resnet10t\?'),
        ("timm/resnet10tt", {}, r"Did you mean timm/resnet10t\?"),
        ("timm/qqqqqqqqqq", {"pretrained": False}, r'timm has no model "qqqqqqqqqq"\.'),
        ("timm/test_resnet", {"weights": "no/such.file"}, r'weights="no/such.file" is not a file'),
        ("./no/such/folder", {}, r'"\./no/such/folder" could not be loaded: .*Give a local folder, a model id'),
        ("./no/such/folder", {"pretrained": False}, r'"\./no/such/folder" could not be loaded'),
        ("google/vit", {"weights": "w.bin"}, r'weights="w.bin" needs a timm model; "google/vit" does not start'),
    ],
)
def test_wrong_names(name, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_regressor(name, **arguments)


@pytest.mark.parametrize("target", [[], ["a", "a"]])
def test_targets_must_differ(target):
    with pytest.raises(ValueError, match="give one name, or several different ones"):
        load_regressor(small.vit_config(), target)


@pytest.mark.parametrize("name", ["vit", "timm-vit"])
def test_several_targets(name):
    model, _ = small.models[name](["pitch", "yaw"])
    assert model.config.id2label == {0: "pitch", 1: "yaw"}
    assert model(pixel_values=torch.zeros(2, 3, 32, 32)).logits.shape == (2, 2)


@pytest.mark.parametrize("name", ["resnet", "timm-resnet", "timm-vit"])
def test_the_whole_image_is_resized(name):
    """A centre crop would cut off what the label may hang on; evaluation sees all of the image."""
    _, processor = small.models[name]()
    image = np.zeros((48, 48, 3), np.uint8)
    image[:3], image[-3:], image[:, :3], image[:, -3:] = 255, 255, 255, 255
    found = processor(images=[image], return_tensors="pt")["pixel_values"][0, 0]
    assert found[0, 16] == found[-1, 16] == found[16, 0] == found[16, -1] == found.max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_trainer_refuses_half_precision(dtype, tmp_path):
    model, processor = small.models["vit"]()
    with pytest.raises(ValueError, match=r"a prediction of 63\.37 becomes 63\.25\. Load it in float32"):
        small.build(model.to(dtype), processor, tmp_path, small.images(4))


def test_the_trainer_refuses_a_model_with_another_number_of_targets(tmp_path):
    model, processor = small.models["vit"](["pitch", "yaw"])
    with pytest.raises(ValueError, match=r"predicts 2 values, but label_columns names 1 \(label\)"):
        small.build(model, processor, tmp_path, small.images(4))
