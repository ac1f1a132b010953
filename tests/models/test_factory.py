"""`load_regressor`: what of a checkpoint is kept, what is new, and what a wrong name gets for an answer."""

import logging

import numpy as np
import pytest
import small
import timm
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2ImageProcessor,
    TimmWrapperConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import conr_hf.pipeline  # noqa: F401 - registers the task
from conr_hf import adopt_head, load_regressor
from conr_hf.inference.export import export
from conr_hf.inference.predict import predict_images
from conr_hf.models.saved import load_saved
from conr_hf.training.objective.batch import memory_format


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


# ---- Models that people bring ---------------------------------------------------------------------------------------


def test_what_load_regressor_sets_itself_may_be_given_too(tmp_path):
    """Half of the tutorials give ignore_mismatched_sizes."""
    saved_vit(tmp_path, num_labels=1000)
    same = {"ignore_mismatched_sizes": True, "num_labels": 1, "dtype": "float32", "id2label": {0: "age"}}
    assert load_regressor(str(tmp_path), "age", **same)[0].config.num_labels == 1
    for name, value in {"ignore_mismatched_sizes": False, "num_labels": 3, "dtype": torch.bfloat16}.items():
        with pytest.raises(ValueError, match=f"^{name} is {value}, but load_regressor sets it to "):
            load_regressor(str(tmp_path), "age", **{name: value})


def test_a_configuration_with_several_classes_makes_the_first():
    model, _ = load_regressor(DeiTConfig(**small.TRANSFORMER, intermediate_size=32), image_size=32)
    assert type(model) is DeiTForImageClassification


def test_a_configuration_of_timm_needs_no_description_of_weights():
    model, processor = load_regressor(TimmWrapperConfig(architecture="test_resnet"), "bar", image_size=32)
    assert model.eval()(pixel_values=pixels(processor)).logits.shape == (3, 1)
    assert model.config.id2label == {0: "bar"}


SIGLIP = {**small.TRANSFORMER, "intermediate_size": 32, "num_patches": 16}
WORDS = {**SIGLIP, "vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("image_size", [None, 32])
def test_patches_of_any_shape_are_refused(image_size, tmp_path):
    model = Siglip2ForImageClassification(Siglip2Config(vision_config=SIGLIP, text_config=WORDS))
    model.save_pretrained(tmp_path)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(tmp_path)
    for given in (str(tmp_path), model.config):
        with pytest.raises(
            ValueError, match=r"^Siglip2ImageProcessor makes p.* of an image, where training .* a google/siglip2-"
        ):
            load_regressor(given, image_size=image_size)


def test_a_model_that_needs_more_than_pixels_is_refused():
    model = Siglip2ForImageClassification(Siglip2Config(vision_config=SIGLIP, text_config=WORDS))
    with pytest.raises(
        ValueError, match=r"^Siglip2ForImageClassification does not predict from pixel_values alone \("
    ):
        adopt_head(model, torch.zeros(1, 16, 192))


@pytest.mark.parametrize("name", ["vit", "timm"])
def test_a_model_of_one_channel_gets_grey_images(name, tmp_path):
    if name == "vit":
        model, processor = load_regressor(small.vit_config(num_channels=1), image_size=32)
    else:
        model, processor = load_regressor("timm/test_resnet", pretrained=False, image_size=32, in_chans=1)
    rows, later = small.images(12), small.images(3, seed=1)
    trainer = small.build(model, processor, tmp_path, rows, max_steps=1)
    trainer.train()
    predicted = trainer.predict(later).predictions
    trainer.save_model()
    grey = [row["image"].convert("L") for row in later]
    again = AutoImageProcessor.from_pretrained(tmp_path)
    vanilla = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = vanilla(**again(images=grey, return_tensors="pt")).logits[:, 0]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)
    found = transformers.pipeline("image-regression", model=str(tmp_path), image_processor=again)(later[0]["image"])
    assert found["label"] == pytest.approx(float(predicted[0]), rel=1e-5)
    grey[0].save(tmp_path / "grey.png")
    of_file = predict_images(str(tmp_path), [str(tmp_path / "grey.png")], 1).values[0]
    assert of_file[0] == pytest.approx(float(predicted[0]), rel=1e-5)
    export(str(tmp_path), "torch-export", None)  # which compares it with the model


def test_a_model_of_four_channels_is_told_by_its_channels():
    with pytest.raises(
        ValueError, match=r"^The model takes 4 channels, but images are read in colour, with 3 channels"
    ):
        load_regressor(small.vit_config(num_channels=4))


def test_four_channels_of_ones_own_can_be_trained(tmp_path):
    model = ViTForImageClassification(small.vit_config(num_channels=4, num_labels=1))
    rows = [{"pixel_values": torch.randn(4, 32, 32), "labels": float(index)} for index in range(4)]
    assert small.build(model, None, tmp_path, rows, max_steps=1).train().global_step == 1


def test_what_timm_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"^timm/test_resnet cannot be made with \{'chans': 1\}: .* argument 'chans'"):
        load_regressor("timm/test_resnet", pretrained=False, chans=1)


def test_a_missing_folder_is_no_fault_of_the_network(tmp_path):
    for load in (load_regressor, load_saved):
        with pytest.raises(ValueError, match=r"there is no such folder\. Give a"):
            load(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r'"resnet10t" could not be loaded: .* Did you mean timm/resnet10t\?'):
        load_regressor("resnet10t", local_files_only=True)


def test_transformers_says_nothing_of_how_it_keeps_the_processor_of_timm(tmp_path, caplog):
    model, processor = small.models["timm-resnet"]()
    model.save_pretrained(tmp_path)
    for module in ("timm_wrapper.image_processing_timm_wrapper", "auto.image_processing_auto"):
        logger = logging.getLogger(f"transformers.models.{module}")
        logger.addHandler(caplog.handler)
        logger.warning_once.cache_clear()
    processor.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(tmp_path)
    assert "disabled" not in caplog.text
    assert "not available" not in caplog.text


@pytest.mark.parametrize(
    ("name", "layout"),
    [("timm-resnet", torch.channels_last), ("resnet", torch.channels_last), ("convnextv2", torch.contiguous_format)],
)
def test_pixels_lie_channels_last_only_where_that_is_known_to_be_good(name, layout, tmp_path):
    """For other convolutions torch may end the process in the backward pass."""
    model, processor = small.models[name]()
    seen = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True)
    trainer = small.build(model, processor, tmp_path, small.images(8), max_steps=1, eval_strategy="no")
    seen.clear()
    trainer.train()
    assert seen
    for pixels in seen:
        assert pixels.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_efficientnet"])
def test_a_network_beneath_a_dense_head_has_the_layout_it_has_alone(name):
    """It is taken apart there, and a step would lose its speed."""
    for task in ("image", "depth"):
        model, _ = load_regressor(name, "depth", task=task, pretrained=False, image_size=32)
        assert memory_format(model) is torch.channels_last
