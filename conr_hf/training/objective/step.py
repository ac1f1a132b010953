"""`MinimisingTrainer`: what a training step minimises, over views of images and over pixels of maps."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from conr_hf.data.augmentation import visible_fraction
from conr_hf.models.head import MapHead
from conr_hf.models.outputs import prediction, resized
from conr_hf.training.hub_mixin import PushingTrainer
from conr_hf.training.objective.base_loss import base_loss
from conr_hf.training.objective.gradient_cache import RandomState, buffers_kept, parts_of
from conr_hf.training.objective.pixel_sampling import Rows, pool_maps, resize_to_features, sample_pixels
from conr_hf.utils.distributed import rank, world_size

_OURS = ("labels", "pixel_values", "position", "sample_weight")  # of a batch; whatever else it holds is the model's


class MinimisingTrainer(PushingTrainer):
    """
    What [`ConRTrainer`] minimises: the base loss and regularisers of a batch, as its share of the step.

    Args:
        args, kwargs: As in [`ConRTrainer`].
    """

    @property
    def is_map(self) -> bool:
        """Whether the model predicts maps: a number for each pixel."""
        return isinstance(self.head, MapHead)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """
        Base loss plus ConR, scaled so that gradients, averaged over processes and summed over micro-batches, are those
        of the mean over the step's samples. In evaluation: the mean base loss of the batch's rows, or labelled pixels,
        of which `eval_loss` is a mean over batches; errors such as `eval_mae` are over all rows or pixels.
        """
        training = model.training
        if training and self.head_alone():  # batch norm and dropout of what does not learn
            model.eval()
            self.head.train()
        if training:
            for norm in self.frozen_norms:
                norm.eval()
        size = self.args.forward_batch_size
        if training and size is not None and size < len(inputs["labels"]):
            return self._cached_loss(model, inputs, size, num_items_in_batch)
        outputs, predictions, rows = self._forward(model, inputs, training)
        if training:
            features = self.head.take_features()
            loss = self._training_loss(inputs, features, predictions, rows, num_items_in_batch, outputs)
        elif self.compute_loss_func is not None:
            self._hand_over(outputs, predictions)
            loss = self.compute_loss_func(outputs, inputs["labels"].float(), num_items_in_batch=None)
        elif self.is_map:
            predicted, known, valid = _labelled(predictions, rows)
            loss = (base_loss(predicted, known, self.resolved) * valid).sum() / valid.sum().clamp(min=1)
        else:
            loss = base_loss(predictions, rows, self.resolved).mean()
        return (loss, {"loss": loss, "logits": predictions}) if return_outputs else loss

    def _forward(self, model: nn.Module, inputs: dict[str, Any], training: bool) -> tuple[Any, Tensor, Tensor]:
        """The model's outputs, predictions in the labels' shape, and labels, of the batch's B * V views."""
        pixels, views = inputs["pixel_values"], _views(inputs)
        others = {name: value for name, value in inputs.items() if name not in _OURS}
        # Channels last makes convolutions faster (a step of ResNet-50 by a fifth, of EfficientNet-Lite0 by a third, at
        # 224 pixels on a CPU) and is nothing to a transformer. Weights stay as they are: fused AdamW steps wrongly,
        # without a word, from a state that was saved in the other layout.
        pixels = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=torch.channels_last)
        rows = self._labels_of_views(inputs["labels"].float(), views)
        if training:
            self.step_objective.rows = rows
        outputs = model(pixel_values=pixels, **others)
        predictions = prediction(outputs).float()
        predictions = resized(predictions, rows.shape[-2:]) if self.is_map else predictions.reshape(rows.shape)
        return outputs, predictions, rows

    def _cached_loss(
        self, model: nn.Module, inputs: dict[str, Any], size: int, step_samples: Tensor | int | None
    ) -> Tensor:
        """
        The loss over a batch of which `size` samples fit in memory: features and predictions of all parts without
        graph; the loss and its gradients in them, once; then each part again, with graph, which carries these
        gradients on to the parameters. All parts but the last are gone backward through here, and the last by
        `Trainer`.

        Source: Gao et al., ["Scaling Deep Contrastive Learning Batch Size under Memory Limited
        Setup"](https://arxiv.org/abs/2101.06983).
        """
        parts = parts_of(inputs, size)
        states, found = [], []
        with torch.no_grad(), buffers_kept(model):
            for part in parts:
                states.append(RandomState(part["pixel_values"]))
                _, predictions, rows = self._forward(model, part, training=True)
                found.append((self.head.take_features(), predictions, rows))
        features, predictions, rows = (torch.cat(some) for some in zip(*found, strict=True))
        leaves = features.requires_grad_(), predictions.requires_grad_()
        loss = self._training_loss(inputs, *leaves, rows, step_samples)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        of_features, of_predictions = (
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, gradients, strict=True)
        )
        first = 0
        for part, state, (_, _, labels) in zip(parts, states, found, strict=True):
            own = slice(first, first + len(labels))
            first = own.stop
            is_last = first == len(rows)
            with nullcontext() if is_last else self.accelerator.no_sync(model):  # DDP decides in the forward
                with state.replayed():
                    _, predictions, _ = self._forward(model, part, training=True)
                carrier = (predictions * of_predictions[own]).sum()
                carrier = carrier + (self.head.take_features() * of_features[own]).sum()
                if not is_last:
                    self.accelerator.backward(carrier)
        return carrier + (loss - carrier).detach()

    def _labels_of_views(self, labels: Tensor, views: int) -> Tensor:
        """Labels of the B * V views: `(B * V,)`, `(B * V, T)` or `(B * V, H, W)`."""
        if labels.ndim == (4 if self.is_map else 3):  # each view has its own
            rows = labels.flatten(0, 1)
            return rows if self.is_map or rows.shape[1] > 1 else rows[:, 0]
        return labels.repeat_interleave(views, 0)

    def _training_loss(
        self,
        inputs: dict[str, Any],
        features: Tensor,
        predictions: Tensor,
        rows: Tensor,
        step_samples: Tensor | int | None,
        outputs: Any = None,
    ) -> Tensor:
        objective, samples, views = self.step_objective, self.samples(inputs), _views(inputs)
        total = sum(samples) if step_samples is None else step_samples
        count = samples[rank()] * views
        measured_at = features if self._measures(features) else None
        if self.compute_loss_func is not None:
            # Without repeats, or times 0 where all are repeats: a mean over no rows would not be a number.
            self._hand_over(outputs, predictions[: count or views])
            own: Tensor = self.compute_loss_func(outputs, rows[: count or views], num_items_in_batch=total * views)
            loss = own * (count > 0)
        else:
            loss = self._base(inputs, predictions, rows, views, samples, total, measured_at)
        objective.update_fds(features[:count], rows[:count])
        of_sample = views
        if self.is_map:
            compared = self._compared_pixels(features, rows, predictions.detach(), inputs.get("position", 0), views)
            of_sample = len(compared.labels) // len(inputs["labels"])
        else:
            compared = Rows(features, rows, predictions)
        regularisers = objective.regularisers(compared, samples, of_sample, measured_at, self.is_map)
        if regularisers is not None:
            loss = loss + regularisers * objective.compared(samples) / total
        return loss * world_size()

    def _base(
        self,
        inputs: dict[str, Any],
        predictions: Tensor,
        rows: Tensor,
        views: int,
        samples: list[int],
        total: Tensor | int,
        measured_at: Tensor | None,
    ) -> Tensor:
        """
        The base loss: a sample is the mean of its views; a view of a map is the sum over its labelled pixels, divided
        by the number that a view usually has of them.
        """
        shares = torch.ones(len(rows) // views, device=rows.device)
        if "sample_weight" in inputs:
            shares = shares * inputs["sample_weight"]
        shares = torch.where(torch.arange(len(shares), device=rows.device) < samples[rank()], shares, 0)
        shares = (shares / (views * total)).repeat_interleave(views)
        candidates = rows.view(-1, views, *rows.shape[1:])[:, 0]
        if self.is_map:
            maps = rows
            predictions, rows, valid = _labelled(predictions, maps)
            # All pixels count alike, so that a view with few of them counts less. Their usual number is that of the
            # training set, and not the batch's, so that no pixel's weight hangs on its company.
            share = self.valid_share()
            if inputs["labels"].ndim == 4:  # moved with their views, which lack what lies outside the image
                share *= visible_fraction(maps.shape[1:], self.args.crop_padding)
            pixels = maps[0].numel()
            shares = shares.repeat_interleave(pixels) * valid / (pixels * share)
        loss = self.step_objective.base(predictions, rows, shares, candidates, samples)
        gradient = None if measured_at is None else self._gradient_at(measured_at, loss, predictions)
        # As a mean over the samples that are compared, as the regularisers are.
        compared = self.step_objective.compared(samples)
        gradient = None if gradient is None else gradient * (total / max(compared, 1))
        self.step_objective.figures.add_base(loss * total, samples[rank()], gradient)
        return loss

    def _measures(self, features: Tensor) -> bool:
        """Whether gradients at the features are measured: where there are two to compare, and the head reads them."""
        whole = not (self.is_sharded or self.args.fds != "none")
        compares = self.resolved.weight > 0 or self.resolved.rnc_weight > 0
        # Features of a compiled model, and cached ones, are no step on the way to predictions; of maps no chain rule
        # leads back.
        reached = not (self.is_map and (self.args.torch_compile or features.is_leaf))
        return whole and compares and reached and features.requires_grad and self.compute_loss_func is None

    def _gradient_at(self, features: Tensor, loss: Tensor, predictions: Tensor) -> Tensor:
        if self.is_map:
            return torch.autograd.grad(loss, features, retain_graph=True)[0]
        (gradient,) = torch.autograd.grad(loss, predictions, retain_graph=True)
        return gradient.reshape(len(features), -1) @ self.head.weight.detach().flatten(1)

    def _hand_over(self, outputs: Any, predictions: Tensor) -> None:
        """Gives a user's loss of maps predictions in the labels' size, and otherwise those of `predictions`' rows."""
        name = "predicted_depth" if "predicted_depth" in outputs else "logits"
        outputs[name] = predictions if self.is_map else outputs[name][: len(predictions)]

    def _compared_pixels(self, features: Tensor, maps: Tensor, predictions: Tensor, position: int, views: int) -> Rows:
        """Pixels, or means of views, that ConR compares."""
        size = features.shape[-2:]
        labels, predictions = resize_to_features(maps, size), resize_to_features(predictions, size)
        if self.args.conr_pixels == 0:
            return pool_maps(features, labels, predictions)
        weights = self.step_objective.conr_density.weights(labels.flatten()).view_as(labels)
        place = (self.args.seed, self.order.epoch)
        seeds = [(*place, position + i // views, i % views) for i in range(len(maps))]
        return sample_pixels(features, labels, predictions, weights, self.args.conr_pixels, seeds)


def _views(inputs: dict[str, Any]) -> int:
    """Views of each sample (V)."""
    pixels: Tensor = inputs["pixel_values"]
    return pixels.shape[1] if pixels.dim() == 5 else 1


def _labelled(predictions: Tensor, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and labels of all pixels, both 0 where there is no label, and where there is one: `(P,)` each."""
    predictions, labels = predictions.flatten(), maps.flatten()
    valid = labels.isfinite()
    return torch.where(valid, predictions, 0), torch.where(valid, labels, 0), valid
