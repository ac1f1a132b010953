"""`ConRTrainer`: a `Trainer` that is right for regression, and adds ConR to the base loss."""

import dataclasses
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, EvalPrediction, PreTrainedModel
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from conr_hf import losses
from conr_hf.data.cmixup import CMixup
from conr_hf.data.collator import ImageCollator
from conr_hf.data.columns import Row, column_names
from conr_hf.imbalance import Bins, density_weights, make_bins
from conr_hf.models.adopt_head import adopt_head
from conr_hf.models.factory import check_matches_config
from conr_hf.models.head import MapHead
from conr_hf.models.safe_loading import reason_of
from conr_hf.training.checkpoints import checkpoint_to_resume, last_complete_checkpoint
from conr_hf.training.compute_metrics import MeasuringTrainer
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig, resolve
from conr_hf.training.config.validation import (
    check_batches,
    check_dense_settings,
    check_gaze_labels,
    check_label_kind,
    check_output_range,
    check_processes,
    check_settings,
)
from conr_hf.training.data_module import DataSets
from conr_hf.training.errors import describe_lost_process
from conr_hf.training.objective.objective import Objective, lds_kernel
from conr_hf.training.state import load_state
from conr_hf.utils.distributed import world_size

logger = logging.get_logger(__name__)


class ConRTrainer(MeasuringTrainer):
    """
    Trains an image-regression model with ConR (Contrastive Regularizer, [arXiv
    2309.06651](https://huggingface.co/papers/2309.06651)) beside the base loss, and by default with the resampling and
    Rank-N-Contrast that go with it (see [`ConRConfig`]).

    What a user of `Trainer` knows works as there. What differs:

    - Rows need an image and its label; transforms, collator, metrics and the choice of the best model are set.
    - Training does not depend on the labels' unit: losses read residuals divided by the label scale s, and the head
      learns as one over standardised labels would (exactly so with SGD, Adam, AdamW and Lion, not with LAMB and LARS),
      while its weights and the saved model stay in label units.
    - The loss is the mean over the samples of a step, however they are split into micro-batches and processes.
    - A checkpoint loads in plain transformers, without this package.

    Args:
        model (`PreTrainedModel`, *optional*): The model, in float32; or give `model_init`.
        args ([`ConRConfig`], *optional*): Settings.
        data_collator (`Callable`, *optional*): Your own collator, for rows of your own making.
        train_dataset (a `datasets` or `torch.utils.data` data set, *optional*):
            Rows by index, with an image and label columns, and perhaps `sample_weight`; the label may be a map, for a
            model that predicts maps, NaN where a pixel has no label; or ready for the model, with
            `pixel_values` of shape `(C, H, W)`, or `(V, C, H, W)` for V views, and `labels`. Or a stream of such rows:
            its labels are read once before training, an epoch has as many rows, and their order is the stream's own
            (`stream.shuffle(seed=..., buffer_size=...)`). It must give all its rows, in one order, to each process and
            worker, which share them here.
        eval_dataset (a data set, or `dict` of names to data sets, *optional*): The same, for evaluation.
        processing_class (`BaseImageProcessor`, *optional*): The model's image processor; saved beside the model.
        train_labels (array of shape `(N,)` or `(N, T)`, or [`Bins`], *optional*):
            Labels of a stream's rows, or their histogram, so that it is not read for them.
        compute_metrics (`Callable`, *optional*):
            Your metrics, added to ours. Predictions have the labels' shape. Of maps it is called batch by batch, as
            with `batch_eval_metrics` of `Trainer`.
        preprocess_logits_for_metrics (`Callable`, *optional*): As in `Trainer`, on predictions in the labels' shape.
        label_distance (`Callable`, *optional*):
            Your own distance of labels in place of `conr_distance`, for ConR and Rank-N-Contrast: of two tensors of
            shapes `(M, 1, T)` and `(1, K, T)`, in label units, it returns `(M, K)`, not negative. `conr_window` and
            `conr_push_scale` are then in its unit.
        kwargs (*optional*): Anything else that `Trainer` takes: `model_init`, `callbacks`, `optimizers` (the head is
            then an ordinary layer to it), `compute_loss_func` (takes the base loss's place, in label units), ...

    Raises:
        `ValueError`: if model, settings or data cannot be trained with; the sentence says what to change.

    Example:
    ```python
    from conr_hf import ConRConfig, ConRTrainer, load_benchmark, load_regressor

    model, processor = load_regressor("facebook/dinov2-small", target="elevation")
    data = load_benchmark("earth-elevation")
    trainer = ConRTrainer(model, ConRConfig("runs/first"), train_dataset=data["train"],
                          eval_dataset=data["validation"], processing_class=processor)
    trainer.train()
    ```
    """

    # Says that compute_loss scales for accumulation; older transformers ask model_accepts_loss_kwargs instead.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: ConRConfig | None = None,
        data_collator: Callable[[list[Row]], dict[str, Any]] | None = None,
        train_dataset: Dataset[Row] | None = None,
        eval_dataset: DataSets | None = None,
        processing_class: BaseImageProcessor | None = None,
        *,
        train_labels: npt.ArrayLike | Bins | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        label_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        args = ConRConfig() if args is None else args
        if not isinstance(args, ConRConfig):
            raise ValueError(f"args is a {type(args).__name__}; it must be a ConRConfig, which takes the same fields.")
        check_processes(args)
        evaluation_sets = list(eval_dataset) if isinstance(eval_dataset, dict) else [""] * (eval_dataset is not None)
        self._label_distance = label_distance
        self._resolved: ResolvedConfig | None = None
        self._bins: Bins | None = None
        super().__init__(
            model,
            args.settled(evaluation_sets),
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            train_labels,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            **kwargs,
        )
        self._given_bins = train_labels if isinstance(train_labels, Bins) else None
        self.model_accepts_loss_kwargs = True
        self._check_modes()
        if model is not None:
            self._adopt(self.model)

    # ---- Settings and model --------------------------------------------------------------------------------------

    @property
    def resolved(self) -> ResolvedConfig:
        """The settings with every unset one derived from the training labels; frozen when `train()` starts."""
        if self._resolved is None and self.train_dataset is not None:
            may_resample = self.compute_loss_func is None and not self.is_stream
            may_resample = may_resample and "sample_weight" not in column_names(self.train_dataset)
            self._resolved = resolve(self.args, self.training_labels(), may_resample, self.is_map)
            if self._label_distance is not None:
                self._resolved = dataclasses.replace(self._resolved, distance="own")
        return self._resolved if self._resolved is not None else self._saved()[0]

    @property
    def bins(self) -> Bins:
        """Bins of the training labels with their counts; without a training set, those saved beside the model."""
        if self._bins is None and self.train_dataset is not None:
            self._bins = self._given_bins or make_bins(self.training_labels(), self.bin_width())
            if (thresholds := self.shot_thresholds()) is not None:
                self._bins = dataclasses.replace(self._bins, thresholds=thresholds)
        return self._bins if self._bins is not None else self._saved()[1]

    def _saved(self) -> tuple[ResolvedConfig, Bins]:
        saved = load_state(self.model.config._name_or_path)
        if saved is None:
            raise ValueError(
                "The label scale and the shots come from training labels: give train_dataset, or a model that "
                "ConRTrainer saved."
            )
        return saved

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        self._adopt(model)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        As in `Trainer`; `True` and `"true"` resume from the last checkpoint that was written to its end.

        Ctrl-C and SIGTERM end it when the step that runs is done and a checkpoint of it saved, from which a resumed
        run is the one that was not interrupted; a second such signal ends it at once.

        Raises:
            `ValueError`: for what cannot be trained with, and for a checkpoint that would run code as it is read.
            `ChildProcessError`: for a data-loader worker that died, with the row that it read last.
            `ConnectionError`: where another process of the run ended, or has not answered for `ddp_timeout` seconds.
            `OSError`: for a checkpoint that finds no room on the disk; those before it are whole.
            `FloatingPointError`: for a loss or gradient that is not finite, before the step that would harm the
                weights; with `on_bad_loss="skip"` only after 10 in a row.
            `KeyboardInterrupt`, or on SIGTERM `SystemExit` with code 143, when that checkpoint is saved.
        """
        self._resumed_from = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        try:
            with self.workers.naming_dead():
                output = super().train(self._resumed_from, trial, ignore_keys_for_eval)
            self.watch.stop_if_asked()
            return output
        except UnpicklingError as error:
            if self._resumed_from is None:
                raise
            raise ValueError(f'The checkpoint "{self._resumed_from}" cannot be read: {reason_of(error)}.') from error
        except RuntimeError as error:
            lost = describe_lost_process(
                error, self.args.ddp_timeout, last_complete_checkpoint(str(self.args.output_dir))
            )
            if lost is None or world_size() == 1:
                raise
            raise ConnectionError(lost) from error
        finally:  # what the user does with the model from here on is theirs
            self.watch.end()
            self.finish_feeding()
            self.finish_keeping()
            self.finish_learning()
            self.head.smooth = None

    def _hp_search_setup(self, trial: Any) -> None:
        # The one place in train() where settings and model are final and no checkpoint is loaded yet.
        super()._hp_search_setup(trial)
        self.check_data()
        self._resolved = self._bins = None
        if isinstance(self.data_collator, ImageCollator):
            self.data_collator = self.collator()
        self.args.check()  # a search or the user may have set others since
        self._check_modes()
        check_label_kind(type(self.model).__name__, self.head, self.labels_are_maps, self.args.label_columns)
        if self.is_map:
            check_dense_settings(self.args, self.processing_class)
            self.check_metrics()
        labels, dims = self.training_labels(), self.head.weight.shape[1]
        check_batches(self.args, self.global_batch(), self.training_rows())
        check_gaze_labels(self.all_labels(), self.args, self._user_metrics is not None)
        if isinstance(self.head, MapHead):
            check_output_range(type(self.model).__name__, self.head, labels)
        if self._label_distance is not None:  # tried out, as a step would be a late place for its errors
            some = torch.from_numpy(labels[:4])
            losses.label_distance(some, some, self._label_distance)
        self.step_objective = Objective(
            self.args, self.resolved, labels, self.bins, self.args.device, dims, self._label_distance
        )
        if self.step_objective.smoothing is not None:
            self.head.smooth = torch.compiler.disable(self.step_objective.smooth)
        self.start_learning()
        self.head.features = None  # of a forward of the user's own, with its graph
        if self.head.is_fresh() or self.args.retrain_head:
            self.head.start(torch.tensor(self.resolved.label_mean), self.resolved.head_scale, self.args.seed)
        logger.info(f"Training with {self.resolved}")

    def row_weights(self) -> np.ndarray | None:
        if self.resolved.resample == "none":
            return None
        weights = density_weights(self.training_labels(), self.bins, self.resolved.resample, lds_kernel(self.args))
        if not self.is_map:
            return weights
        # A map is drawn by the mean over its pixels.
        return np.bincount(self.pixel_rows(), weights) / np.bincount(self.pixel_rows())

    def mixing(self) -> CMixup | None:
        if self.args.cmixup_alpha == 0:
            return None
        labels = self.resolved.alike(torch.from_numpy(self.training_labels())).numpy()
        return CMixup(labels, self.args.cmixup_alpha, self.resolved.cmixup_bandwidth, self.sampling_seed())

    def _check_modes(self) -> None:
        check_settings(
            self.args,
            mixed_precision=self.accelerator.mixed_precision,
            is_sharded=self.is_sharded,
            own_loss=self.compute_loss_func is not None,
            own_collator=not isinstance(self.data_collator, ImageCollator),
            is_stream=self.is_stream,
            plain_optimizer=self.plain_optimizer(),
            steps_early=self.steps_early(),
        )

    def _adopt(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"The model's {name} is {parameter.dtype}, in which a prediction of 63.37 becomes 63.25. Load it "
                    "in float32, by load_regressor or dtype=torch.float32; bf16=True trains in mixed precision."
                )
        self.head = adopt_head(model, self.dummy_pixels, self.args.head)
        outputs, columns = self.head.weight.shape[0], self.args.label_columns
        if outputs != len(columns):
            raise ValueError(
                f"The model predicts {outputs} values, but label_columns names {len(columns)} ({', '.join(columns)}). "
                "Load it with load_regressor(..., target=...), one target for each column."
            )
        if isinstance(self.head, MapHead):
            check_dense_settings(self.args, self.processing_class)
        if isinstance(model, PreTrainedModel):
            check_matches_config(model)
        config: Any = model.config
        config.problem_type = "regression"  # unset, pipelines put a sigmoid on a single output

    # ---- Figures and files ---------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.watch.read()
            logs = {**self.watch.without_skipped(logs), **self.step_objective.read_figures()}
        super().log(logs, start_time)
