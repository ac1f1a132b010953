"""The head is the model's own last layer: the same keys, the same outputs, and its input at hand."""

from types import SimpleNamespace

import pytest
import small
import torch
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTForImageClassification

from conr_hf import adopt_head, load_regressor
from conr_hf.models.adopt_head import find_head
from conr_hf.models.head import ConvHead, LinearHead
from conr_hf.training.optimizer import split_head_group


def pixels(rows=3):
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def outputs(model):
    with torch.no_grad():
        return model.eval()(pixel_values=pixels()).logits


class Small(nn.Module):
    """A network of the test's own, with logits as transformers gives them."""

    def __init__(self, *heads, backbone=None):
        super().__init__()
        self.backbone = backbone or nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.heads = nn.ModuleList(heads)

    def forward(self, pixel_values):
        features = self.backbone(pixel_values)
        logits = [head(features if isinstance(head, nn.Conv2d) else features.flatten(1)) for head in self.heads]
        return SimpleNamespace(logits=(sum(logits) / len(logits)).flatten(1) if logits else features.flatten(1))


def with_conv_head():
    torch.manual_seed(0)
    return Small(nn.Conv2d(8, 1, 1))


@pytest.mark.parametrize("name", [*small.models, "conv"])
def test_adopting_changes_neither_keys_nor_outputs(name):
    model = with_conv_head() if name == "conv" else small.models[name]()[0]
    expected, state = outputs(model), {key: value.clone() for key, value in model.state_dict().items()}
    was_training = model.train().training
    head = adopt_head(model, pixels())
    assert model.training == head.training == was_training
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(outputs(model), expected)
    assert isinstance(head, ConvHead if name == "conv" else LinearHead)


@pytest.mark.parametrize("name", ["dla46_c", "resnetv2_50"])
def test_a_convolution_is_the_last_layer_of_some_timm_models(name):
    torch.manual_seed(0)
    model, _ = load_regressor(f"timm/{name}", pretrained=False, image_size=32)
    expected = outputs(model)
    head = adopt_head(model, pixels())
    assert isinstance(head, ConvHead)
    assert torch.equal(outputs(model), expected)
    features = head.take_features()
    assert features.shape == (3, head.in_channels)
    torch.testing.assert_close(features @ head.weight.flatten(1).T + head.bias, expected)


@pytest.mark.parametrize("name", [*small.models, "conv"])
def test_features_are_what_goes_into_the_head_in_float32(name):
    """Under bf16 a prediction of 63.37 would be 63.25, and pairs of one label would look alike that are not."""
    model = (with_conv_head() if name == "conv" else small.models[name]()[0]).eval()
    seen = []
    head = adopt_head(model, pixels())
    with torch.no_grad():
        head.bias.fill_(63.37)
    head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixel_values=pixels()).logits
    features = head.take_features()
    assert logits.dtype == features.dtype == torch.float32
    assert features.shape == (3, head.weight.shape[1])
    assert torch.equal(features, seen[0].float().reshape(features.shape))
    expected = features.double() @ head.weight.flatten(1).double().T + 63.37
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    assert not torch.equal(logits, logits.bfloat16().float())  # finer than bf16


def test_features_carry_their_graph_and_are_given_away_once():
    model = small.models["vit"]()[0]
    head = adopt_head(model, pixels())
    model(pixel_values=pixels())
    head.take_features().sum().backward()
    assert model.vit.embeddings.cls_token.grad is not None
    with pytest.raises(RuntimeError, match="has seen no forward"):
        head.take_features()


def test_adopting_twice_gives_the_same_layer():
    model = small.models["vit"]()[0]
    head = adopt_head(model, pixels())
    assert adopt_head(model, pixels()) is head
    assert adopt_head(model, pixels(), "classifier") is head


def two_averaged_heads():
    torch.manual_seed(0)
    return Small(nn.Linear(8, 1), nn.Linear(8, 1))


def deit_with_teacher():
    torch.manual_seed(0)
    config = DeiTConfig(**small.TRANSFORMER, intermediate_size=32, num_labels=1, **small.NO_DROPOUT)
    return DeiTForImageClassificationWithTeacher(config)


@pytest.mark.parametrize(
    ("make", "candidates"),
    [
        (two_averaged_heads, ["heads.0 (8 -> 1)", "heads.1 (8 -> 1)"]),
        (deit_with_teacher, ["cls_classifier (16 -> 1)", "distillation_classifier (16 -> 1)"]),
    ],
)
def test_two_averaged_heads_are_a_question_to_the_user(make, candidates):
    model = make()
    with pytest.raises(ValueError, match=r'Name one with head="\.\.\."') as raised:
        adopt_head(model, pixels())
    for candidate in candidates:
        assert candidate in str(raised.value)
    expected, name = outputs(model), candidates[0].split()[0]
    head = adopt_head(model, pixels(), name)
    assert model.get_submodule(name) is head
    assert torch.equal(outputs(model), expected)


def test_two_layers_that_both_give_the_logits_are_named():
    """A layer behind the head that changes nothing: which of the two is meant cannot be known."""
    identity = nn.Linear(1, 1)
    with torch.no_grad():
        identity.weight.fill_(1.0)
        identity.bias.zero_()
    model = Small(nn.Sequential(nn.Linear(8, 1), identity))
    with pytest.raises(ValueError, match=r"The output of each of heads\.0\.0, heads\.0\.1 is the prediction"):
        adopt_head(model, pixels())


def test_a_model_without_a_linear_layer():
    with pytest.raises(ValueError, match=r"Its layers: none that is linear or a 1x1 convolution\."):
        adopt_head(Small(), pixels())


@pytest.mark.parametrize("name", ["backbone.0", "no.such.layer"])
def test_a_name_that_is_no_head(name):
    with pytest.raises(ValueError, match=rf'head="{name}" is not a linear layer.*heads\.0 \(8 -> 1\)'):
        adopt_head(two_averaged_heads(), pixels(), name)


def test_of_many_layers_the_last_are_listed():
    config = small.vit_config(num_hidden_layers=4, num_labels=1)
    with pytest.raises(ValueError, match=r"\d+ more before them, .*classifier \(16 -> 1\)\.$"):
        adopt_head(ViTForImageClassification(config), pixels(), "none")


def test_finding_the_head_leaves_no_trace():
    model = small.models["resnet"]()[0].train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert find_head(model, pixels()) == "classifier.1"
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # batch norms too
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_the_gradient_factor_reaches_weight_and_bias_only(layer):
    def gradients(factor):
        torch.manual_seed(0)
        model = Small(nn.Linear(8, 1)) if layer == "linear" else with_conv_head()
        head = adopt_head(model, pixels())
        head.gradient_factor = factor
        logits = model(pixel_values=pixels()).logits
        logits.square().sum().backward()
        return logits, head.weight.grad, head.bias.grad, model.backbone[0].weight.grad

    logits, weight, bias, backbone = gradients(1.0)
    scaled = gradients(3.0)
    assert torch.equal(scaled[0], logits)
    torch.testing.assert_close(scaled[1], 3 * weight)
    torch.testing.assert_close(scaled[2], 3 * bias)
    assert torch.equal(scaled[3], backbone)


def test_head_groups_come_last_and_hold_the_head_alone():
    model = two_averaged_heads()
    head = adopt_head(model, pixels(), "heads.1")
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.3}, {"params": biases}], lr=0.5)
    assert split_head_group(optimizer, head, 10.0)
    *_, weight, bias = optimizer.param_groups
    assert len(optimizer.param_groups) == 4
    assert (weight["params"], weight["lr"], weight["weight_decay"]) == ([head.weight], 5.0, pytest.approx(0.03))
    assert (bias["params"], bias["lr"], bias["weight_decay"]) == ([head.bias], 5.0, pytest.approx(0.001))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_an_optimizer_that_does_not_train_the_head_stays_as_it_is():
    model = two_averaged_heads()
    head = adopt_head(model, pixels(), "heads.1")
    optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.5)
    assert not split_head_group(optimizer, head, 10.0)
    assert len(optimizer.param_groups) == 1
