"""What a training step minimises: the base loss, ConR and other regularisers."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from conr_hf.imbalance import Bins, FeatureSmoothing, make_density, smoothing_kernel
from conr_hf.losses import conr_loss, rank_n_contrast, ranksim
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.method_config import BALANCED_LOSSES
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.objective.base_loss import BalancedMSE, base_loss
from conr_hf.training.objective.loss_meter import LossMeter
from conr_hf.training.objective.pixel_sampling import Rows, resize_to_features
from conr_hf.utils.distributed import gather_group, gather_rows, rank, sum_over_processes

Sums = tuple[dict[str, Tensor | float], Tensor | None]  # of figures, and of the features of an epoch


class Objective:
    """
    Losses, density weights, feature statistics and logged figures of one run.

    Args:
        args ([`ConRConfig`]): The run's settings.
        resolved ([`ResolvedConfig`]): What they come to.
        labels (`np.ndarray` of shape `(N,)` or `(N, T)`): Training labels, in label units.
        bins ([`Bins`]): Their bins.
        device (`torch.device`): Where training runs.
        dims (`int`): Dimensions of a feature.
        label_distance (`Callable`, *optional*): The user's own, in place of the one in `resolved`.
    """

    def __init__(
        self,
        args: ConRConfig,
        resolved: ResolvedConfig,
        labels: np.ndarray,
        bins: Bins,
        device: torch.device,
        dims: int,
        label_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.args, self.resolved = args, resolved
        self.peers = gather_group(args.conr_gather, args.local_process_index, args.ddp_timeout_delta)
        self._distance = label_distance or resolved.distance
        kernel = lds_kernel(args)
        self.base_density = make_density(labels, bins, resolved.reweight, kernel).to(device)
        self.conr_density = make_density(labels, bins, resolved.conr_reweight, kernel).to(device)
        self.balanced: BalancedMSE | None = None
        if resolved.base_loss in BALANCED_LOSSES:
            self.balanced = BalancedMSE(
                resolved, labels, bins, device, args.gai_components, args.noise_learning_rate, args.seed
            )
        self.smoothing: FeatureSmoothing | None = None
        if args.fds != "none":
            fds_kernel = smoothing_kernel(args.fds, args.fds_kernel_size, args.fds_sigma)
            self.smoothing = FeatureSmoothing(bins, dims, fds_kernel, args.fds_momentum, args.fds_clip, device)
        self.rows: Tensor  # labels of the rows that the head is about to read, in label units
        self._epoch = 0
        self.figures = LossMeter(args, resolved, device)

    def compared(self, samples: list[int]) -> int:
        """How many of the processes' samples are compared with each other, this one's among them."""
        return sum(samples[process] for process in self.peers.ranks)

    # ---- Losses --------------------------------------------------------------------------------------------------

    def base(
        self, predictions: Tensor, labels: Tensor, shares: Tensor, candidates: Tensor, samples: list[int]
    ) -> Tensor:
        """
        Weighted sum of the base loss over this process's labels.

        Args:
            predictions (`torch.Tensor` of shape `(M,)` or `(M, T)`): In label units.
            labels (`torch.Tensor` like `predictions`): Of views, or of pixels, in label units; finite.
            shares (`torch.Tensor` of shape `(M,)`): What each counts in the mean over the step's samples; 0 to leave
                it out.
            candidates (`torch.Tensor` of shape `(B,)` or `(B, T)`): The samples' labels; BMC alone reads them.
            samples (`list[int]`): How many of the B samples count, on each process; the rest repeat others.

        Returns:
            `torch.Tensor`, a scalar.
        """
        factors = self.base_density.weights(labels) * shares
        if self.balanced is None:
            losses = base_loss(predictions, labels, self.resolved)
        else:
            if self.resolved.base_loss == "bmc":
                (candidates,) = gather_rows([candidates], samples)
            losses = self.balanced(predictions, labels, candidates, factors)
        return (losses * factors).sum()

    def regularisers(
        self, rows: Rows, samples: list[int], rows_of_sample: int, measured_at: Tensor | None, of_maps: bool
    ) -> Tensor | None:
        """
        This process's part of ConR, Rank-N-Contrast and RankSim, each times its weight, over the rows of its peers;
        their parts sum to the whole.

        Args:
            rows ([`Rows`]): Views, or pixels of views, `rows_of_sample` of each of the B samples in
                turn.
            samples (`list[int]`): How many of the B samples count, on each process.
            rows_of_sample (`int`): Rows of each sample.
            measured_at (`torch.Tensor`, *optional*): The features, to measure the gradients of ConR and
                Rank-N-Contrast at, where that of the base loss was.
            of_maps (`bool`): Some rows may have no label; these are left out.

        Returns:
            `torch.Tensor`, a scalar, differentiable in the features of all peers; or `None` without regulariser, or
            rows.
        """
        args, settings, peers = self.args, self.resolved, self.peers
        counts = [samples[process] * rows_of_sample for process in peers.ranks]
        if settings.weight == settings.rnc_weight == args.ranksim_weight == 0 or sum(counts) == 0:
            return None
        all_features, all_labels, all_predictions = gather_rows(
            [rows.features, rows.labels, rows.predictions.detach()], counts, peers
        )
        all_weights = self.conr_density.weights(all_labels)
        first, count = sum(counts[: peers.place]), counts[peers.place]
        if of_maps:
            labelled = all_labels.isfinite().nonzero().squeeze(1)
            first, end = torch.stack([(labelled < bound).sum() for bound in (first, first + count)]).tolist()
            count = end - first
            all_features, all_labels, all_predictions, all_weights = (
                part.index_select(0, labelled) for part in (all_features, all_labels, all_predictions, all_weights)
            )
        if all_features.device.type == "cpu" and not (
            all_features.isfinite().all() and all_predictions.isfinite().all()
        ):
            return (all_features.sum() + all_predictions.sum()) * torch.nan  # the losses refuse rows they cannot name
        anchors, everything = slice(first, first + count), len(all_labels)
        if self._distance in ("mean_abs", "euclidean"):  # others are of labels as they are
            all_labels, all_predictions = settings.alike(all_labels), settings.alike(all_predictions)
        parts = []
        if settings.weight > 0:
            loss, statistics = conr_loss(
                all_features,
                all_labels,
                all_predictions,
                all_weights,
                window=settings.window,
                push_scale=settings.push_scale,
                temperature=settings.temperature,
                push=settings.push,
                formulation=settings.formulation,
                reduction=settings.reduction,
                distance=self._distance,
                anchors=anchors,
                return_statistics=True,
            )
            parts.append(settings.weight * loss)
            self.figures.add(conr=loss.detach() * everything, **statistics._asdict())
            if measured_at is not None:
                parts[-1] = self.figures.add_gradient("conr", parts[-1], measured_at)
        if settings.rnc_weight > 0:
            loss = rank_n_contrast(
                all_features,
                all_labels,
                temperature=args.rnc_temperature,
                distance=self._distance,
                anchors=anchors,
            )
            parts.append(settings.rnc_weight * loss)
            self.figures.add(rnc=loss.detach() * everything)
            if measured_at is not None:
                parts[-1] = self.figures.add_gradient("rnc", parts[-1], measured_at)
        if args.ranksim_weight > 0:
            loss = ranksim(all_features, all_labels, interpolation=args.ranksim_interpolation)
            loss = loss / len(peers.ranks)
            parts.append(args.ranksim_weight * loss)
            self.figures.add(ranksim=loss.detach() * everything)
        self.figures.add(rows=count)
        return torch.stack(parts).sum()

    def smooth(self, features: Tensor) -> Tensor:
        """
        What the head reads in place of `features`, by feature distribution smoothing.

        Args:
            features (`torch.Tensor` of shape `(M, D)`, or `(N, D, h, w)` of maps): The head's input, for `self.rows`.
        """
        assert self.smoothing is not None
        if features.ndim == 2:
            return self.smoothing.smooth(features, self.rows)
        points, labels = _points(features, self.rows)
        smoothed = self.smoothing.smooth(points, labels)  # without a label, as outside all bins, they stay as they are
        return smoothed.reshape(len(features), *features.shape[2:], -1).movedim(-1, 1)

    def update_fds(self, features: Tensor, rows: Tensor) -> None:
        """
        Adds features to the statistics that smooth those of the next epoch.

        Args:
            features (`torch.Tensor` of shape `(M, D)`, or `(N, D, h, w)` of maps): The head's input, without repeats.
            rows (`torch.Tensor` of shape `(M,)`, or `(N, H, W)` of maps): Their labels.
        """
        if self.smoothing is None:
            return
        if features.ndim == 4:
            features, rows = _points(features, rows)  # those without a label are left out, as outside all bins
        self.smoothing.add(features, rows)

    # ---- What is learned beside the model ------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Turns the feature statistics of the epoch before into those that smooth this one."""
        if self.smoothing is not None and epoch > self._epoch:
            self.smoothing.end_epoch(sum_over_processes)
        self._epoch = epoch

    def optimizer_step(self, skipped: bool) -> None:
        """Moves Balanced MSE's noise, the same on all processes, unless the model's own step was skipped."""
        if self.balanced is not None:
            gradient = sum_over_processes(self.balanced.take_gradient())
            if not skipped:
                self.balanced.step(gradient)

    def sums(self) -> Sums:
        """The sums that a step adds to, for [`~Objective.put_back`]."""
        return self.figures.sums(), None if self.smoothing is None else self.smoothing.sums()

    def put_back(self, sums: Sums) -> None:
        """Forgets what was added since [`~Objective.sums`]."""
        figures, features = sums
        self.figures.put_back(figures)
        if self.smoothing is not None and features is not None:
            self.smoothing.put_back(features)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run goes on with, on all processes at once; the first one's is to be saved."""
        state = {"epoch": torch.tensor(self._epoch)}
        if self.balanced is not None:
            state |= {f"noise.{name}": value for name, value in self.balanced.state().items()}
        if self.smoothing is not None:
            self.smoothing.merge(sum_over_processes, keep=rank() == 0)
            state |= {f"fds.{name}": value for name, value in self.smoothing.state().items()}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """
        Goes on where [`~Objective.state`] was taken.

        Raises:
            `ValueError`: if the checkpoint comes from a run with other methods.
        """
        needed = {"noise.log_noise": self.balanced, "fds.counts": self.smoothing}
        if any(part is not None and name not in state for name, part in needed.items()):
            raise ValueError(
                "The checkpoint holds no state of base_loss or fds; it comes from a run with other settings. Resume "
                "with those, or train from the checkpoint as a model."
            )
        self._epoch = int(state.get("epoch", 0))
        if self.balanced is not None:
            self.balanced.load(_under("noise.", state))
        if self.smoothing is not None:
            self.smoothing.load(_under("fds.", state))
            self.smoothing.merge(lambda sums: sums, keep=rank() == 0)

    # ---- Figures -------------------------------------------------------------------------------------------------

    def read_figures(self) -> dict[str, float]:
        """The figures to log, [`LossMeter.read`], and Balanced MSE's `noise_sigma`, in label units."""
        figures = self.figures.read()
        if self.balanced is not None:
            figures["noise_sigma"] = self.balanced.noise_sigma
        return figures


def lds_kernel(args: ConRConfig) -> np.ndarray | None:
    """The kernel of label distribution smoothing, if it is on."""
    return None if args.lds == "none" else smoothing_kernel(args.lds, args.lds_kernel_size, args.lds_sigma)


def _points(features: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Features of all points of maps, `(M, D)`, and their labels, `(M,)`."""
    return features.movedim(1, -1).flatten(0, 2), resize_to_features(maps, features.shape[2:]).flatten()


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
