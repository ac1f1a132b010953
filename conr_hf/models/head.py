"""The regression head: a model's own last layer, in float32, which remembers its input."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conr_hf.models.outputs import resized


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor, or by one for each of its rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * of_rows(ctx.factor, gradient), None  # type: ignore[attr-defined]


def of_rows(factor: float | Tensor, tensor: Tensor) -> float | Tensor:
    """A factor, or one for each row of `tensor`, `(T,)`, in a form that multiplies it: `(T, 1, ...)`."""
    return factor if isinstance(factor, float) else factor.view(-1, *[1] * (tensor.ndim - 1))


class _Head(nn.Module):
    """Shared by the heads; see [`~conr_hf.models.adopt_head.adopt_head`]."""

    weight: Tensor
    bias: Tensor | None
    gradient_factor: float | Tensor = 1.0
    features: Tensor | None = None
    smooth: Callable[[Tensor], Tensor] | None = None  # FDS: the layer reads its result instead of the features

    def _parameters_in_float32(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        if isinstance(self.gradient_factor, Tensor) or self.gradient_factor != 1.0:
            weight = _ScaleGradient.apply(weight, self.gradient_factor)
            bias = None if bias is None else _ScaleGradient.apply(bias, self.gradient_factor)
        return weight, bias

    def learning_scale(self, label_scale: float) -> float:
        """What the head's gradient and learning rate are multiplied by, where labels have this scale."""
        return label_scale

    def _smoothed(self, features: Tensor) -> Tensor:
        return self.smooth(features) if self.smooth is not None and self.training else features

    def take_features(self) -> Tensor:
        """
        The input of the last forward, of shape `(B, D)`, or `(B, D, h, w)` of a [`MapHead`], and dtype float32, with
        its graph. The head drops it, so that the graph is freed with its user: without a forward since the last call
        it raises a `RuntimeError`.
        """
        if self.features is None:  # as under nn.DataParallel
            raise RuntimeError("The head has seen no forward since its features were last taken.")
        features, self.features = self.features, None
        return features

    def gradient_at_features(self, features: Tensor, of_predictions: Tensor) -> Tensor:
        """
        The gradient at features, shaped as [`~_Head.take_features`] gives them, of a loss whose gradient at the
        predictions from them is `of_predictions`, `(B,)` or `(B, T)`, or `(B, H, W)` of a [`MapHead`]; of the shape of
        the features, without the way there through a model's graph.
        """
        of_input = of_predictions.reshape(len(features), -1) @ self.weight.detach().float().flatten(1)
        if self.smooth is None or not self.training:
            return of_input
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            return torch.autograd.grad(self._smoothed(leaf), leaf, of_input)[0]

    def is_fresh(self) -> bool:
        """Whether the head is untrained: its bias is all zeros, as `load_regressor` and transformers leave it."""
        return self.bias is not None and not bool(self.bias.any())

    @torch.no_grad()
    def start(self, label_mean: Tensor, label_scale: float | Tensor, seed: int) -> None:
        """
        Starts a fresh head where a head over standardised labels starts: weight `label_scale` * N(0, 0.02), bias
        `label_mean`, both `(T,)` in label units (or one scale for all). The draw comes from a generator of its own, so
        that nothing else shifts with it.
        """
        draw = torch.empty(self.weight.shape).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
        self.weight.copy_(draw * of_rows(label_scale, draw))
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


class MapHead(_Head, nn.Conv2d):
    """
    The last convolution of a model that predicts maps, in float32 under autocast, that remembers its input: a feature
    for every pixel.

    `link` is what the model makes of its output y before it is the prediction: `"identity"`, y; `"relu"`,
    `limit` max(y, 0); `"sigmoid"`, `limit` / (1 + exp(-y)).
    """

    link: str = "identity"
    limit: float = 1.0

    def learning_scale(self, label_scale: float) -> float:
        # Before a sigmoid the output has no unit.
        return 1.0 if self.link == "sigmoid" else label_scale / self.limit

    @torch.no_grad()
    def start(self, label_mean: Tensor, label_scale: float | Tensor, seed: int) -> None:
        if self.link != "sigmoid":
            return super().start(label_mean / self.limit, label_scale / self.limit, seed)
        share = (label_mean / self.limit).clamp(0.01, 0.99)
        slope = float((self.limit * share * (1 - share)).mean())  # of the prediction in y
        return super().start(share.logit(), label_scale / slope, seed)

    def gradient_at_features(self, features: Tensor, of_predictions: Tensor) -> Tensor:
        # Of models that resize their maps themselves, as if that were linear and done once.
        weight, bias = self.weight.detach().float(), None if self.bias is None else self.bias.detach().float()
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            leaf = features.detach().requires_grad_()
            output = F.conv2d(self._smoothed(leaf), weight, bias, padding=self.kernel_size[0] // 2).squeeze(1)
            linked = {"identity": output, "relu": output.relu(), "sigmoid": output.sigmoid()}[self.link] * self.limit
            predictions = resized(linked, of_predictions.shape[-2:])
            return torch.autograd.grad(predictions, leaf, of_predictions)[0]

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            features = input.float()
            self.features = features
            weight, bias = self._parameters_in_float32()
            return F.conv2d(self._smoothed(features), weight, bias, padding=self.kernel_size[0] // 2)


Head = LinearHead | ConvHead | MapHead
