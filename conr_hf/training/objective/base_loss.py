"""The base loss of a run: of residuals, or Balanced MSE with its learnable noise; weighted by label density."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conr_hf.imbalance import Bins, fit_mixture, make_density
from conr_hf.losses import bmc, bni, focal_l1, focal_mse, gai, huber, l1, make_mixture, mse
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.method_config import BALANCED_LOSSES
from conr_hf.training.config.resolved_config import ResolvedConfig, lds_kernel
from conr_hf.training.data_module import DataModule
from conr_hf.training.objective.batch import Batch
from conr_hf.utils.distributed import gather_rows


class BaseLoss:
    """
    The weighted base loss of a batch: a sample is the mean of its views; a view of a map is the sum over its labelled
    pixels, divided by the number that a view usually has of them.
    """

    def __init__(self, args: ConRConfig, data: DataModule) -> None:
        self.args, self.data, self.resolved = args, data, data.resolved
        labels = data.training_labels()
        density = make_density(labels, data.bins, self.resolved.reweight, lds_kernel(args))
        self.density = density.to(args.device)
        self.balanced: BalancedMSE | None = None
        if self.resolved.base_loss in BALANCED_LOSSES:
            self.balanced = BalancedMSE(
                self.resolved, labels, data.bins, args.device, args.gai_components, args.noise_learning_rate, args.seed
            )

    def __call__(self, batch: Batch) -> Tensor:
        """This process's part of the mean base loss over the step's samples, a scalar."""
        predictions, labels, weights = batch.predictions, batch.labels, batch.sample_shares()
        if batch.is_map:
            predictions, labels, valid = labelled_pixels(predictions, labels)
            # All pixels count alike, so that a view with few of them counts less. Their usual number is that of the
            # training set, and not the batch's, so that no pixel's weight depends on its company.
            share, size = self.data.valid_share(), batch.labels.shape[1:]
            if batch.labels_by_view and self.data.transform is None:
                # Shifted with their views, which lack what lies outside the image.
                share *= self.args.augmentation_settings().visible_fraction(size)
            weights = weights.repeat_interleave(size.numel()) * valid / (size.numel() * share)
        weights = self.density.weights(labels) * weights
        if self.balanced is None:
            losses = base_loss(predictions, labels, self.resolved)
        else:
            candidates = batch.labels.view(-1, batch.views, *batch.labels.shape[1:])[:, 0]  # of the samples
            if self.resolved.base_loss == "bmc":
                (candidates,) = gather_rows([candidates], batch.counts)
            losses = self.balanced(predictions, labels, candidates, weights)
        return (losses * weights).sum()


def evaluation_loss(
    predictions: Tensor, labels: Tensor, resolved: ResolvedConfig, outputs: Any, own_loss: Callable[..., Tensor] | None
) -> Tensor:
    """
    The mean of [`base_loss`] over a batch's rows, or labelled pixels (the others are NaN); or the user's own loss.
    """
    if own_loss is not None:
        set_outputs(outputs, predictions)
        return own_loss(outputs, labels, num_items_in_batch=None)
    if labels.ndim < 3:
        return base_loss(predictions, labels, resolved).mean()
    predictions, labels, valid = labelled_pixels(predictions, labels)
    return (base_loss(predictions, labels, resolved) * valid).sum() / valid.sum().clamp(min=1)


def set_outputs(outputs: Any, predictions: Tensor) -> None:
    """Gives a user's loss predictions, of maps in the labels' shape, and otherwise in that of the model's own."""
    name = "predicted_depth" if "predicted_depth" in outputs else "logits"
    is_map = predictions.ndim == 3
    outputs[name] = predictions if is_map else predictions.reshape(len(predictions), *outputs[name].shape[1:])


def labelled_pixels(predictions: Tensor, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and labels of all pixels, both 0 where there is no label, and where there is one: `(P,)` each."""
    predictions, labels = predictions.flatten(), maps.flatten()
    valid = labels.isfinite()
    return torch.where(valid, predictions, 0), torch.where(valid, labels, 0), valid


def base_loss(predictions: Tensor, labels: Tensor, resolved: ResolvedConfig) -> Tensor:
    """
    The base loss of each row, `(M,)`, without unit, a mean over label dimensions: of residuals divided by the label
    scale, or each dimension's own with `scale_each`. Predictions and labels are `(M,)` or `(M, T)`, in label units.

    Balanced MSE is that of a training set's density; here, as in evaluation, it is the plain squared error.
    """
    scale = resolved.loss_scale
    if resolved.loss_space == "log1p":
        residuals = (_log1p(predictions) - _log1p(labels)) / scale
    else:
        residuals = resolved.to_common_scale(predictions - labels) / scale
    if resolved.base_loss == "huber":
        return huber(residuals, resolved.huber_delta / scale)
    if resolved.base_loss in ("focal_l1", "focal_mse"):
        focal = focal_l1 if resolved.base_loss == "focal_l1" else focal_mse
        return focal(residuals, resolved.focal_beta * scale)
    return {"l1": l1, **dict.fromkeys(("mse", *BALANCED_LOSSES), mse)}[resolved.base_loss](residuals)


def _log1p(values: Tensor) -> Tensor:
    # A prediction may fall below 0, and must find its way back: there the function goes on as an odd one.
    return values.sign() * values.abs().log1p()


class BalancedMSE:
    """
    Balanced MSE on standardised labels, and the noise that it learns beside the model.

    The noise is no parameter of the model, so that checkpoints stay vanilla. Its gradient is taken from the loss
    alone, where neither loss scaling nor a wrapper of the model reaches it, and its logarithm is what is learned, so
    that a step is a share of it whatever the label unit; `learning_rate` is the logarithm's, and 0 keeps it.

    Source: Ren et al., "Balanced MSE for Imbalanced Visual Regression", CVPR 2022, arXiv 2203.16427.
    """

    def __init__(
        self,
        resolved: ResolvedConfig,
        labels: np.ndarray,  # of the training set, (N,) or (N, T), in label units
        bins: Bins,  # of these labels
        device: torch.device,
        components: int,  # of GAI's mixture
        learning_rate: float,
        seed: int,  # of the mixture's fit
    ) -> None:
        self.resolved = resolved
        rows = torch.from_numpy(labels.reshape(len(labels), -1).astype(np.float64))  # (N, T)
        self._mean = (_log1p(rows) if resolved.loss_space == "log1p" else rows).mean(0).float().to(device)
        log_noise = math.log(resolved.noise_sigma / resolved.loss_scale)
        self._log_noise = torch.tensor(log_noise, device=device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._log_noise], lr=learning_rate)
        self._gradient = torch.zeros((), device=device)
        if resolved.base_loss == "gai":
            fitted = fit_mixture(self._standardised(rows.float().to(device)).cpu().numpy(), components, seed)
            self._mixture = make_mixture(*(torch.from_numpy(part).float().to(device) for part in fitted))
        if resolved.base_loss == "bni":
            # Of several label dimensions the joint bins that hold a label. A bin's centre is the mean of its labels:
            # whole ages stand for themselves, and not for the middle between two.
            places = bins.index(labels) + 1
            joint = places[:, 0] if places.shape[1] == 1 else np.unique(places, axis=0, return_inverse=True)[1].ravel()
            counts = np.bincount(joint)
            held = counts > 0
            sums = np.stack([np.bincount(joint, weights=column) for column in rows.numpy().T], 1)
            centres = torch.from_numpy(sums[held] / counts[held, None])
            self._centres = self._standardised(centres.float().to(device))
            self._frequencies = torch.from_numpy(counts[held] / counts.sum()).float().to(device)

    @property
    def noise_sigma(self) -> float:
        """The noise's standard deviation, in label units, or in those of log(1 + label) under `log1p`."""
        return math.exp(self._log_noise.item()) * self.resolved.loss_scale

    def __call__(self, predictions: Tensor, labels: Tensor, candidates: Tensor, factors: Tensor) -> Tensor:
        """
        The loss of each row, `(M,)`, without unit; the gradient in the noise is put aside for
        [`~BalancedMSE.take_gradient`]. All labels are in label units; BMC alone reads `candidates`, those of all
        samples of all processes. `factors` are what each row's loss is multiplied by in the step's loss.
        """
        log_noise = self._log_noise.detach().requires_grad_()
        predictions, labels = self._standardised(predictions), self._standardised(labels)
        if self.resolved.base_loss == "gai":
            losses = gai(predictions, labels, self._mixture, log_noise.exp())
        elif self.resolved.base_loss == "bni":
            losses = bni(predictions, labels, self._centres, self._frequencies, log_noise.exp())
        else:
            losses = bmc(predictions, labels, self._standardised(candidates), log_noise.exp())
        if self._optimizer.param_groups[0]["lr"] > 0:
            self._gradient += torch.autograd.grad((losses * factors).sum(), log_noise, retain_graph=True)[0]
        return losses

    def step(self, gradient: Tensor) -> None:
        """Moves the noise by its gradient, summed over the processes."""
        self._log_noise.grad = gradient
        self._optimizer.step()
        self._log_noise.grad = None

    def take_gradient(self) -> Tensor:
        """The gradient in the noise's logarithm that this process has put aside since the last call."""
        gradient, self._gradient = self._gradient, torch.zeros_like(self._gradient)
        return gradient

    def state(self) -> dict[str, Tensor]:
        """What a resumed run goes on with."""
        adam = self._optimizer.state.get(self._log_noise, {})
        return {"log_noise": self._log_noise.detach().cpu(), **{name: value.cpu() for name, value in adam.items()}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on where [`~BalancedMSE.state`] was taken."""
        device = self._log_noise.device
        with torch.no_grad():
            self._log_noise.copy_(state["log_noise"])
        adam = {name: value if name == "step" else value.to(device) for name, value in state.items()}
        adam.pop("log_noise")
        self._optimizer.state[self._log_noise] = adam

    def _standardised(self, values: Tensor) -> Tensor:
        rows = values.reshape(len(values), len(self._mean))  # of no rows, too: a process may hold repeats alone
        rows = _log1p(rows) if self.resolved.loss_space == "log1p" else rows
        return self.resolved.to_common_scale(rows - self._mean) / self.resolved.loss_scale  # (M, T)
