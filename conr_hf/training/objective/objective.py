"""What a training step minimises: the base loss, ConR and other regularisers."""

from collections.abc import Callable

import torch
from torch import Tensor

from conr_hf.imbalance import FeatureSmoothing, make_density, smoothing_kernel
from conr_hf.losses import conr_loss, rank_n_contrast, ranksim
from conr_hf.losses.gradient_share import with_gradient
from conr_hf.models.head import Head
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import lds_kernel
from conr_hf.training.data_module import DataModule
from conr_hf.training.objective.base_loss import BaseLoss, set_outputs
from conr_hf.training.objective.batch import Batch
from conr_hf.training.objective.feature_gradients import FeatureGradient, GradientShares, feature_gradient
from conr_hf.training.objective.loss_meter import LossMeter
from conr_hf.training.objective.pixel_sampling import (
    ContrastRows,
    generator_of,
    pool_maps,
    resize_to_features,
    sample_pixels,
)
from conr_hf.utils.distributed import gather_group, gather_rows, rank, sum_over_processes, world_size


class Objective:
    """
    The losses of one run, with what they learn beside the model: density weights, feature statistics, noise.
    `label_distance` and `own_loss` are the user's; `is_sharded`: the head is held in parts.
    """

    def __init__(
        self,
        args: ConRConfig,
        data: DataModule,
        head: Head,
        label_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        own_loss: Callable[..., Tensor] | None = None,
        is_sharded: bool = False,
    ) -> None:
        self.args, self.resolved, self.head, self.own_loss = args, data.resolved, head, own_loss
        self._is_sharded = is_sharded
        self._uses_ranksim = args.ranksim_weight > 0 or self.resolved.ranksim_gradient_share > 0
        self.group = gather_group(args.conr_gather, args.local_process_index, args.ddp_timeout_delta)
        self._distance = label_distance or self.resolved.distance
        self.base = BaseLoss(args, data)
        density = make_density(data.training_labels(), data.bins, self.resolved.conr_reweight, lds_kernel(args))
        self.conr_density = density.to(args.device)
        self.smoothing: FeatureSmoothing | None = None
        if args.fds != "none":
            kernel = smoothing_kernel(args.fds, args.fds_kernel_size, args.fds_sigma)
            dims = head.weight.shape[1]
            self.smoothing = FeatureSmoothing(data.bins, dims, kernel, args.fds_momentum, args.fds_clip, args.device)
            head.smooth = torch.compiler.disable(self.smooth)
        self.labels: Tensor  # of the rows that the head is about to read, in label units
        self.measures_gradients = False  # in this step, at the features
        self.meter = LossMeter(args, self.resolved, args.device)
        self.shares = GradientShares(self.resolved, self.group, args.device)
        self._epoch = 0

    def __call__(self, batch: Batch) -> Tensor:
        """
        Base loss plus regularisers, scaled so that gradients, averaged over processes and summed over micro-batches,
        are those of the mean over the step's samples.
        """
        # How many of the processes' samples are compared with each other, this one's among them.
        contrasted = sum(batch.counts[process] for process in self.group.ranks)
        if self.own_loss is None:
            loss = self.base(batch)
            self.meter.add(base=loss.detach() * batch.total, samples=batch.counts[rank()])
        else:
            # Without repeats, or times 0 where all are repeats: a mean over no rows would not be a number.
            rows = batch.own_rows or batch.views
            set_outputs(batch.outputs, batch.predictions[:rows])
            items = batch.total * batch.views
            loss = self.own_loss(batch.outputs, batch.labels[:rows], num_items_in_batch=items) * (batch.own_rows > 0)
        self.update_fds(batch.features[: batch.own_rows], batch.labels[: batch.own_rows])
        if contrasted > 0 and (self.resolved.uses_conr or self.resolved.uses_rnc or self._uses_ranksim):
            of_base = self._base_gradient(loss, batch) if self.shares.terms or self.measures_gradients else None
            if of_base is not None:  # as a mean over the samples that are compared, as the regularisers are
                of_base = of_base * (batch.total / contrasted)
            regularisers = self.regularisers(self.contrast_rows(batch), batch, of_base)
            loss = loss + regularisers * contrasted / batch.total
        return loss * world_size()

    # ---- Losses --------------------------------------------------------------------------------------------------

    def contrast_rows(self, batch: Batch) -> ContrastRows:
        """What ConR compares: the views; of maps their pixels, or means of views."""
        predictions = batch.predictions.detach()
        if not batch.is_map:
            return ContrastRows(batch.features, batch.labels, predictions)
        size = batch.features.shape[-2:]
        labels, predictions = resize_to_features(batch.labels, size), resize_to_features(predictions, size)
        if self.args.conr_pixels == 0:
            return pool_maps(batch.features, labels, predictions)
        weights = self.conr_density.weights(labels.flatten()).view_as(labels)
        first, views = batch.position, batch.views
        seeds = [(self.args.seed, self._epoch, first + i // views, i % views) for i in range(len(labels))]
        return sample_pixels(batch.features, labels, predictions, weights, self.args.conr_pixels, seeds)

    def regularisers(self, rows: ContrastRows, batch: Batch, of_base: Tensor | None = None) -> Tensor:
        """
        This process's part of ConR, Rank-N-Contrast and RankSim, each times its weight, over the rows of its group;
        their parts sum to the whole. Rows are views or pixels, the same number of each sample in turn. The scalar is
        differentiable in the features of the whole group, but a term with a share of the gradient in those of this
        process alone, with the sum of all processes' gradients. `of_base` is the base loss's gradient at the features,
        as a mean over the samples that are compared: what shares and logged figures are taken of.
        """
        args, settings, group = self.args, self.resolved, self.group
        rows_of_sample = len(rows.labels) * batch.views // len(batch.labels)
        counts = [batch.counts[process] * rows_of_sample for process in group.ranks]
        own = [rows.features, rows.labels, rows.predictions.detach()]
        features, labels, predictions = gather_rows(own, counts, group)
        weights = self.conr_density.weights(labels)
        if self._distance in ("mean_abs", "euclidean"):  # others are of labels as they are
            labels, predictions = settings.to_common_scale(labels), settings.to_common_scale(predictions)
        as_gathered = features, labels
        order, anchors, rows_per_anchor = self._anchors(labels, counts, batch)
        if order is not None:
            features, labels, predictions, weights = (
                part.index_select(0, order) for part in (features, labels, predictions, weights)
            )
        if features.device.type == "cpu" and not (features.isfinite().all() and predictions.isfinite().all()):
            return (features.sum() + predictions.sum()) * torch.nan  # the losses refuse rows they cannot name
        row_count = len(labels)
        halves: tuple[slice, ...] = ()  # of a sample of anchors, of all processes
        counts_of_halves = settings.conr_anchors // 2, (settings.conr_anchors + 1) // 2
        if rows_per_anchor > 1 and settings.conr_anchors > 1:
            middle = min(max(counts_of_halves[0], anchors.start), anchors.stop)
            halves = slice(anchors.start, middle), slice(middle, anchors.stop)
        terms: list[Tensor] = []
        shared: dict[str, tuple[Tensor, FeatureGradient]] = {}

        def conr(of: slice, is_counted: bool = True) -> Tensor:
            loss, statistics = conr_loss(
                features,
                labels,
                predictions,
                weights,
                window=settings.window,
                push_scale=settings.push_scale,
                temperature=settings.temperature,
                push=settings.push,
                formulation=settings.formulation,
                reduction=settings.reduction,
                distance=self._distance,
                anchors=of,
                return_statistics=True,
            )
            if is_counted:
                self.meter.add(**{name: count * rows_per_anchor for name, count in statistics._asdict().items()})
            return loss * rows_per_anchor

        def rnc(of: slice, is_counted: bool = True) -> Tensor:
            loss = rank_n_contrast(
                features, labels, temperature=args.rnc_temperature, distance=self._distance, anchors=of
            )
            return loss * rows_per_anchor

        def of_all_rows(_: slice, is_counted: bool = True) -> Tensor:
            return ranksim(*as_gathered, interpolation=args.ranksim_interpolation)

        def add(
            name: str, loss_of: Callable[..., Tensor], weight: float, sample: tuple[slice, ...], copies: int = 1
        ) -> None:
            if of_base is not None and name in self.shares.terms:
                parts = [loss_of(of) for of in sample or (anchors,)]
                loss = torch.stack(parts).sum() / copies
                found = feature_gradient(parts, batch.features, counts_of_halves, rows_per_anchor, copies)
                shared[name] = loss, found
            else:
                loss = loss_of(anchors) / copies
                terms.append(weight * loss)
                # One anchor alone has no estimate, and RankSim no figure.
                is_measured = name != "ranksim" and (bool(sample) or rows_per_anchor == 1)
                if of_base is not None and self.measures_gradients and is_measured:
                    parts = [loss_of(of, is_counted=False) for of in sample] or [loss]
                    found = feature_gradient(parts, batch.features, counts_of_halves, rows_per_anchor)
                    self.meter.add_gradient(name, weight, found, of_base)
            self.meter.add(**{name: loss.detach() * row_count})

        if settings.uses_conr:
            add("conr", conr, settings.weight, halves)
        if settings.uses_rnc:
            add("rnc", rnc, settings.rnc_weight, halves)
        if self._uses_ranksim:
            add("ranksim", of_all_rows, args.ranksim_weight, (), copies=len(group.ranks))
        if of_base is not None and shared:
            gradients = {name: gradient for name, (_, gradient) in shared.items()}
            samples = sum(counts) / rows_of_sample / batch.total  # of those of the step
            for name, weight in self.shares.weigh(gradients, of_base, rows_per_anchor, samples).items():
                loss, found = shared[name]
                terms.append(with_gradient(weight * loss, batch.features, weight * found.gradient))
                self.meter.add(**{f"{name}_weight": weight * row_count / len(group.ranks)})
                if self.measures_gradients:
                    self.meter.add_gradient(name, weight, found, of_base)
        if of_base is not None and self.measures_gradients:
            self.meter.add(base_gradient=of_base.square().sum())
        self.meter.add(rows=row_count / len(group.ranks))
        return torch.stack(terms).sum()

    def _anchors(self, labels: Tensor, counts: list[int], batch: Batch) -> tuple[Tensor | None, slice, float]:
        """
        The rows that are compared, in the order to put them in (`None`: all, as gathered); this process's anchors, a
        slice of them so ordered; and how many rows an anchor stands for, by which the losses over all processes'
        anchors are multiplied, to be in the mean over draws what they are over all rows.
        """
        process, processes = self.group.place, len(self.group.ranks)
        order, row_count, first, end = None, len(labels), sum(counts[:process]), sum(counts[: process + 1])
        if batch.is_map:  # rows without a label are left out
            order = labels.isfinite().nonzero().squeeze(1)
            row_count = len(order)
            first, end = torch.stack([(order < bound).sum() for bound in (first, end)]).tolist()
        anchor_count = self.resolved.conr_anchors
        if not 0 < anchor_count < row_count:
            return order, slice(first, end), 1.0
        # The same on all processes of the group, each of which takes an equal part of them, whosever rows they are:
        # by the position of the group's first sample. Batches that have none are all at 0.
        position = max(batch.position - process * (len(batch.labels) // batch.views), 0)
        seed = self.args.seed, self._epoch, position, batch.views  # pixels of views 0 to V - 1 are drawn by theirs
        shuffled = torch.randperm(row_count, generator=generator_of(seed)).to(labels.device)
        first, end = (anchor_count * part // processes for part in (process, process + 1))
        return shuffled if order is None else order[shuffled], slice(first, end), row_count / anchor_count

    def _base_gradient(self, loss: Tensor, batch: Batch) -> Tensor | None:
        """
        The gradient at the features of this process's base loss, of their shape; `None` where nothing learns below
        them, the head is not whole here, or a loss of the user's own reads no prediction.
        """
        if self._is_sharded or not batch.features.requires_grad:
            return None
        # The features of a compiled model, and cached ones, are no step on the way to predictions.
        (gradient,) = torch.autograd.grad(loss, batch.predictions, retain_graph=True, allow_unused=True)
        if gradient is None and self.shares.terms:
            raise ValueError(
                f"{next(iter(self.shares.terms))}_gradient_share is a share of the base loss's gradient in the "
                "predictions, of which compute_loss_func reads none. Set the weight in its place."
            )
        if gradient is None:
            return None
        self.labels = batch.labels  # which FDS smooths by
        return self.head.gradient_at_features(batch.features, gradient)

    # ---- Feature distribution smoothing --------------------------------------------------------------------------

    def smooth(self, features: Tensor) -> Tensor:
        """What the head reads in place of `(M, D)`, or `(N, D, h, w)` of maps, by feature distribution smoothing."""
        assert self.smoothing is not None
        if features.ndim == 2:
            return self.smoothing.smooth(features, self.labels)
        points, labels = _points(features, self.labels)
        smoothed = self.smoothing.smooth(points, labels)  # without a label, as outside all bins, they stay as they are
        return smoothed.reshape(len(features), *features.shape[2:], -1).movedim(-1, 1)

    def update_fds(self, features: Tensor, labels: Tensor) -> None:
        """Adds features without repeats, shaped as in `smooth`, to the statistics that smooth the next epoch's."""
        if self.smoothing is None:
            return
        if features.ndim == 4:
            features, labels = _points(features, labels)  # those without a label are left out, as outside all bins
        if self.args.on_bad_loss == "skip":  # or one bad batch would spoil the statistics of an epoch
            finite = features.isfinite().all(1)
            features, labels = features[finite], labels[finite]
        self.smoothing.add(features, labels)

    # ---- Steps, epochs and checkpoints ---------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Turns the feature statistics of the epoch before into those that smooth this one."""
        if self.smoothing is not None and epoch > self._epoch:
            self.smoothing.end_epoch(sum_over_processes)
        self._epoch = epoch

    def optimizer_step(self, skipped: bool) -> None:
        """Ends a step: moves Balanced MSE's noise, the same on all processes, unless the model's step was skipped."""
        self.meter.end_step(skipped)
        self.shares.end_step(skipped)
        if self.base.balanced is not None:
            gradient = sum_over_processes(self.base.balanced.take_gradient())
            if not skipped:
                self.base.balanced.step(gradient)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run goes on with, on all processes at once; the first one's is to be saved."""
        state = {"epoch": torch.tensor(self._epoch)}
        state |= {f"share.{name}": value for name, value in self.shares.state().items()}
        if self.base.balanced is not None:
            state |= {f"noise.{name}": value for name, value in self.base.balanced.state().items()}
        if self.smoothing is not None:
            self.smoothing.merge(sum_over_processes, keep=rank() == 0)
            state |= {f"fds.{name}": value for name, value in self.smoothing.state().items()}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on where [`~Objective.state`] was taken; a checkpoint of a run with other methods is a `ValueError`."""
        needed: dict[str, object] = {"noise.log_noise": self.base.balanced, "fds.counts": self.smoothing}
        needed |= {f"share.{name}": term for name, term in self.shares.terms.items()}
        if any(part is not None and name not in state for name, part in needed.items()):
            raise ValueError(
                "The checkpoint holds no state of base_loss or fds, or of a gradient share; it comes from a run with "
                "other settings. Resume with those, or train from the checkpoint as a model."
            )
        self._epoch = int(state.get("epoch", 0))
        self.shares.load(_under("share.", state))
        if self.base.balanced is not None:
            self.base.balanced.load(_under("noise.", state))
        if self.smoothing is not None:
            self.smoothing.load(_under("fds.", state))
            self.smoothing.merge(lambda sums: sums, keep=rank() == 0)

    def read_figures(self) -> dict[str, float]:
        """The figures to log, [`LossMeter.read`], and Balanced MSE's `noise_sigma`, in label units."""
        figures = self.meter.read()
        if self.base.balanced is not None:
            figures["noise_sigma"] = self.base.balanced.noise_sigma
        return figures


def _points(features: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Features of all points of maps, `(M, D)`, and their labels, `(M,)`."""
    return features.movedim(1, -1).flatten(0, 2), resize_to_features(maps, features.shape[2:]).flatten()


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
