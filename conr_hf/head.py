"""The regression head: the model's own last layer, adopted so that losses can read what goes into it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoSingleHeadError(ValueError):
    """A model's prediction is not the output of exactly one of its layers."""


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None  # type: ignore[attr-defined]


class _Head(nn.Module):
    """What the two adopted layers share; see [`adopt_head`]."""

    weight: Tensor
    bias: Tensor | None
    gradient_factor: float = 1.0
    features: Tensor | None = None
    smooth: Callable[[Tensor], Tensor] | None = None  # of FDS: what the layer reads in place of the features

    def _parameters_in_float32(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        if self.gradient_factor != 1.0:
            weight = _ScaleGradient.apply(weight, self.gradient_factor)
            bias = None if bias is None else _ScaleGradient.apply(bias, self.gradient_factor)
        return weight, bias

    def _smoothed(self, features: Tensor) -> Tensor:
        return self.smooth(features) if self.smooth is not None and self.training else features

    def take_features(self) -> Tensor:
        """
        The input of the last forward, of shape `(B, D)` and dtype float32, with its graph; it is given away, so that
        the graph lives no longer than its user.

        Raises:
            `RuntimeError`: if there was no forward since the last call, as under `nn.DataParallel`.
        """
        if self.features is None:
            raise RuntimeError("The head has seen no forward since its features were last taken.")
        features, self.features = self.features, None
        return features

    def is_fresh(self) -> bool:
        """Whether the head is untrained: its bias is all zeros, as `load_regressor` and transformers leave it."""
        return self.bias is not None and not bool(self.bias.any())

    @torch.no_grad()
    def start(self, label_mean: Tensor, label_scale: float, seed: int) -> None:
        """
        Starts a fresh head where a head over standardised labels starts: weight `label_scale` * N(0, 0.02), bias
        `label_mean`. The draw comes from a generator of its own, so that nothing else shifts with it.

        Args:
            label_mean (`torch.Tensor` of shape `(T,)`): Mean of the training labels, in label units.
            label_scale (`float`): Label scale (the design's s), in label units.
            seed (`int`): Seed of the draw.
        """
        draw = torch.empty(self.weight.shape).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        self.weight.copy_(draw * label_scale)
        if self.bias is not None:
            self.bias.copy_(label_mean)


class LinearHead(_Head, nn.Linear):  # type: ignore[misc]
    """A linear layer that computes in float32 under autocast and remembers its input."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            features = input.float()
            self.features = features
            return F.linear(self._smoothed(features), *self._parameters_in_float32())


class ConvHead(_Head, nn.Conv2d):
    """A 1x1 convolution over a 1x1 map, in float32 under autocast, that remembers its input."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            features = input.float()
            self.features = features.flatten(1)
            smoothed = self._smoothed(self.features).view_as(features)
            return F.conv2d(smoothed, *self._parameters_in_float32())


Head = LinearHead | ConvHead


def adopt_head(model: nn.Module, pixel_values: Tensor, name: str | None = None) -> Head:
    """
    Replaces the layer whose output is the logits by one that shares its parameters, computes in float32 and remembers
    its input. Keys of the state dict, outputs and checkpoints stay what they were.

    Args:
        model (`nn.Module`): An image-classification model of transformers, timm models through TimmWrapper among them.
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Any input the model accepts, for one forward.
        name (`str`, *optional*): Name of the layer, for a model whose logits are more than one layer's output.

    Returns:
        `LinearHead` or `ConvHead`: the layer now in the model. A head adopted before is returned as it is.

    Raises:
        `ValueError`: if no layer, or more than one, gives the logits, or `name` is not such a layer.

    Example:
    ```python
    head = adopt_head(model, pixel_values)  # in a training loop of one's own
    predictions = model(pixel_values=pixel_values).logits.squeeze(-1)
    loss = loss_function(head.take_features(), labels, predictions)  # loss_function: a ConRLoss
    ```
    """
    layer_name = name if name is not None else find_head(model, pixel_values)
    layers = dict(model.named_modules())
    layer = layers.get(layer_name)
    if isinstance(layer, LinearHead | ConvHead):
        return layer
    if layer is None or not _could_be_head(layer):
        raise ValueError(
            f'head="{layer_name}" is not a linear layer or 1x1 convolution of {type(model).__name__}. '
            f"Its layers: {_described(model)}."
        )
    head = _adopted(layer)
    parent, _, attribute = layer_name.rpartition(".")
    setattr(layers[parent], attribute, head)
    return head


@torch.no_grad()
def find_head(model: nn.Module, pixel_values: Tensor) -> str:
    """
    The name of the one layer whose output is the logits, proved by one forward in evaluation mode.

    Args:
        model (`nn.Module`): An image-classification model.
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): Any input the model accepts.

    Returns:
        `str`: the layer's name in `model.named_modules()`.

    Raises:
        `NoSingleHeadError`: if there is no such layer, or more than one; it lists the layers seen.
        `ValueError`: if the model does not take such pixels.
    """
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    candidates = {name: module for name, module in model.named_modules() if _could_be_head(module)}
    hooks = [module.register_forward_hook(remember(name)) for name, module in candidates.items()]
    was_training = model.training
    parameter = next(model.parameters())
    try:
        logits = model.eval()(pixel_values=pixel_values.to(parameter.device, parameter.dtype)).logits
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
    found = [
        name
        for name, output in outputs.items()
        if output.numel() == logits.numel() and torch.equal(output.reshape(logits.shape), logits)
    ]
    if len(found) != 1:
        which = f"The output of each of {', '.join(found)} is" if found else "No layer's output alone is"
        raise NoSingleHeadError(
            f"No single regression head found in {type(model).__name__}. {which} the prediction. "
            f'Its layers: {_described(model)}. Name one with head="...".'
        )
    return found[0]


def head_groups(optimizer: torch.optim.Optimizer, head: Head, label_scale: float) -> bool:
    """
    Moves the head's parameters to groups of their own, last, with learning rate lr * s and weight decay wd / s.

    Together with a gradient multiplied by s (`Head.gradient_factor`) that is what a head over standardised labels does
    under SGD, Adam, AdamW and Lion, with and without clipping.

    Args:
        optimizer (`torch.optim.Optimizer`): A new optimizer; changed in place.
        head ([`LinearHead`] or [`ConvHead`]): The head.
        label_scale (`float`): Label scale s, in label units.

    Returns:
        `bool`: whether the optimizer had the head's parameters in its groups; otherwise it stays as it is.
    """
    mine = {id(parameter) for parameter in head.parameters()}
    groups = []
    for group in optimizer.param_groups:
        moved = [parameter for parameter in group["params"] if id(parameter) in mine]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in mine]
            scaled = {"lr": group["lr"] * label_scale, "weight_decay": group.get("weight_decay", 0.0) / label_scale}
            groups.append({**group, **scaled, "params": moved})
    for group in groups:
        optimizer.add_param_group(group)
    return bool(groups)


def _could_be_head(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _described(model: nn.Module) -> str:
    layers = [
        f"{name} ({module.weight.shape[1]} -> {module.weight.shape[0]})"
        for name, module in model.named_modules()
        if _could_be_head(module)
    ]
    shown = layers if len(layers) <= 8 else [f"{len(layers) - 8} more before them", *layers[-8:]]
    return ", ".join(shown) if layers else "none that is linear or a 1x1 convolution"


def _adopted(layer: nn.Module) -> Head:
    head: Head
    if isinstance(layer, nn.Conv2d):
        head = ConvHead(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None, device="meta")
    else:
        assert isinstance(layer, nn.Linear)
        head = LinearHead(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    head.weight, head.bias = layer.weight, layer.bias
    return head.train(layer.training)
