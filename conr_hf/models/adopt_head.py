"""The layer that predicts: found in any model, and adopted as the head, whose input the losses read."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from conr_hf.models.head import ConvHead, Head, LinearHead, MapHead
from conr_hf.models.outputs import prediction, predicts_maps, resized
from conr_hf.models.sharding import check_not_sharded

# What a model of maps makes of its head's output, and the limit of its predictions; see `MapHead`.
Link = tuple[str, float]


class AmbiguousHeadError(ValueError):
    """A model's prediction is not the output of exactly one of its layers."""


def adopt_head(model: nn.Module, pixel_values: Tensor, name: str | None = None) -> Head:
    """
    Replaces the layer whose output is the prediction by one that shares its parameters, computes in float32 and
    remembers its input. Keys of the state dict, outputs and checkpoints stay what they were.

    Of a model that predicts maps that is its last convolution; the prediction may be its output resized, above 0
    (ReLU), or between 0 and the `max_depth` of the configuration (sigmoid).

    Args:
        model (`nn.Module`):
            A model of transformers for image classification, timm models through TimmWrapper among them, for depth
            estimation or for semantic segmentation.
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Any input the model accepts, for one forward.
        name (`str`, *optional*): Name of the layer, for a model whose prediction is more than one layer's output.

    Returns:
        `LinearHead` or `ConvHead`, or `MapHead` of a model that predicts maps: the layer now in the model. A head
        adopted before is returned as it is.

    Raises:
        `ValueError`: if no layer, or more than one, gives the prediction, `name` is not such a layer, or the model is
            not whole.

    Example:
    ```python
    head = adopt_head(model, pixel_values)  # in a training loop of one's own
    predictions = model(pixel_values=pixel_values).logits.squeeze(-1)
    loss = loss_function(head.take_features(), labels, predictions)  # loss_function: a ConRLoss
    ```
    """
    check_not_sharded(model)
    layers = dict(model.named_modules())
    adopted = [layer for layer in layers.values() if isinstance(layer, Head)]
    if name is None and len(adopted) == 1:
        return adopted[0]
    layer_name, link = (name, None) if name is not None else _found(model, pixel_values)
    layer, of_maps, problem = layers.get(layer_name), predicts_maps(model), ""
    if isinstance(layer, Head):
        return layer
    if layer is None or not _could_be_head(layer, of_maps):
        problem = f" is not a {'convolution to one map' if of_maps else 'linear layer or 1x1 convolution'}"
    elif of_maps and (link := link or _link(model, layer, pixel_values)) is None:
        problem = ": its output alone, or what ReLU or a sigmoid makes of it, is not the prediction"
    if layer is None or problem:
        raise ValueError(f'head="{layer_name}"{problem} of {type(model).__name__}. Its layers: {_described(model)}.')
    head = _as_head(layer, link)
    parent, _, attribute = layer_name.rpartition(".")
    setattr(layers[parent], attribute, head)
    return head


def find_head(model: nn.Module, pixel_values: Tensor) -> str:
    """
    The name in `model.named_modules()` of the one layer whose output is the prediction, proved by a forward in
    evaluation mode. An `AmbiguousHeadError` if there is none, or more than one.
    """
    return _found(model, pixel_values)[0]


def _found(model: nn.Module, pixel_values: Tensor) -> tuple[str, Link | None]:
    """The name of the head, and of maps its link."""
    of_maps = predicts_maps(model)
    candidates = {name: module for name, module in model.named_modules() if _could_be_head(module, of_maps)}
    found: dict[str, Link | None]
    if of_maps:
        links = {name: _link(model, layer, pixel_values) for name, layer in candidates.items()}
        found = {name: link for name, link in links.items() if link is not None}
    else:
        predicted, outputs = _forward(model, pixel_values, candidates)
        flat = predicted.flatten()
        found = {name: None for name, output in outputs.items() if torch.equal(output.flatten().to(flat), flat)}
    if len(found) != 1:
        which = f"The output of each of {', '.join(found)} is" if found else "No layer's output alone is"
        raise AmbiguousHeadError(
            f"No single regression head found in {type(model).__name__}. {which} the prediction. "
            f'Its layers: {_described(model)}. Name one with head="...".'
        )
    return next(iter(found.items()))


@torch.no_grad()
def _forward(model: nn.Module, pixel_values: Tensor, layers: dict[str, nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
    """The prediction, and the outputs of some layers."""
    outputs: dict[str, Tensor] = {}

    def remember(name: str, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[name] = output.clone()  # as a ReLU behind it may write into it

    hooks = [layer.register_forward_hook(partial(remember, name)) for name, layer in layers.items()]
    was_training, parameter = model.training, next(model.parameters())
    try:
        predicted = prediction(model.eval()(pixel_values=pixel_values.to(parameter.device, parameter.dtype)))
    except (KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"{type(model).__name__} does not predict from pixel_values alone ({reason}). Take a model that does."
        ) from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"{type(model).__name__} does not take pixels of shape {tuple(pixel_values.shape)}: {reason}. "
            "Give the processor and the image size that the model was made for."
        ) from error
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return predicted, outputs


@torch.no_grad()
def _link(model: nn.Module, layer: nn.Module, pixel_values: Tensor) -> Link | None:
    """What makes the prediction of a layer's output, and the prediction's limit; `None` if nothing known does."""
    assert isinstance(layer, nn.Conv2d)
    limit = float(model.config.to_dict().get("max_depth") or 1)  # type: ignore[union-attr, operator]
    links: dict[Link, Callable[[Tensor], Tensor]] = {
        ("identity", 1.0): lambda output: output,
        ("relu", 1.0): lambda output: output.relu(),
        ("relu", limit): lambda output: output.relu() * limit,
        ("sigmoid", limit): lambda output: output.sigmoid() * limit,
    }
    predicted, outputs = _forward(model, pixel_values, {"": layer})
    if not outputs:  # a layer that no forward runs
        return None
    before = None if layer.bias is None else layer.bias.clone()
    try:
        for sign in (-1, 1):  # outputs below 0, then above, so that a ReLU is seen
            if layer.bias is not None:
                output = outputs[""]
                layer.bias -= (output.max() + 1 if sign < 0 else output.min() - 1).to(layer.bias.dtype)
            predicted, outputs = _forward(model, pixel_values, {"": layer})
            output = resized(outputs[""].squeeze(1), predicted.shape[-2:])
            links = {link: make for link, make in links.items() if torch.allclose(make(output), predicted, atol=1e-6)}
    finally:
        if before is not None:
            layer.bias.copy_(before)  # type: ignore[union-attr]
    return next(iter(links), None)


def _could_be_head(module: nn.Module, of_maps: bool) -> bool:
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, nn.Linear) and not of_maps
    single = module.kernel_size == (1, 1) and module.groups == 1
    if not of_maps:
        return single
    keeps_size = single or (module.kernel_size == (3, 3) and module.padding == (1, 1))
    return keeps_size and module.stride == module.dilation == (1, 1) and module.groups == module.out_channels == 1


def _described(model: nn.Module) -> str:
    of_maps = predicts_maps(model)
    weights = {name: layer.weight for name, layer in model.named_modules() if _could_be_head(layer, of_maps)}
    layers = [f"{name} ({weight.shape[1]} -> {weight.shape[0]})" for name, weight in weights.items()]
    shown = layers if len(layers) <= 8 else [f"{len(layers) - 8} more before them", *layers[-8:]]
    kind = "a convolution to one map" if of_maps else "linear or a 1x1 convolution"
    return ", ".join(shown) if layers else f"none that is {kind}"


def _as_head(layer: nn.Module, link: Link | None) -> Head:
    """A head with the parameters of a layer; a [`MapHead`] if there is a link."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    head: Head
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    if isinstance(layer, nn.Linear):
        head = LinearHead(layer.in_features, layer.out_features, **options)
    elif link is None:
        head = ConvHead(layer.in_channels, layer.out_channels, 1, **options)
    else:
        head = MapHead(layer.in_channels, 1, layer.kernel_size[0], padding=layer.kernel_size[0] // 2, **options)
        head.link, head.limit = link
    head.weight, head.bias = layer.weight, layer.bias
    return head.train(layer.training)
