"""`ConRTrainer`: a `Trainer` that is right for regression, and adds ConR to the base loss."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor, EvalPrediction, PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from conr_hf.data.collator import ImageCollator
from conr_hf.data.columns import Row
from conr_hf.data.sampler import TrainingSampler
from conr_hf.imbalance import Bins
from conr_hf.models.factory import check_precision, prepare_model
from conr_hf.models.head import MapHead
from conr_hf.models.peft import adapter_norms
from conr_hf.training import callbacks, refit
from conr_hf.training.checkpoint_mixin import CheckpointMixin
from conr_hf.training.checkpoints import checkpoint_to_resume
from conr_hf.training.compute_metrics import ComputeMetrics, squeeze_predictions
from conr_hf.training.config.config import ConRConfig
from conr_hf.training.config.resolved_config import ResolvedConfig
from conr_hf.training.config.validation import check_dense_settings, check_processes, check_settings, validate_run
from conr_hf.training.conr_state import load_training_state
from conr_hf.training.data_module import Collator, DataModule, DataSets
from conr_hf.training.dataloader_workers import quiet_worker_deaths
from conr_hf.training.dataloaders import DataLoaders
from conr_hf.training.errors import reading_errors, training_errors
from conr_hf.training.hub_mixin import HubMixin
from conr_hf.training.objective.base_loss import evaluation_loss
from conr_hf.training.objective.batch import Forwarded, collect_batch, forward_views, view_labels
from conr_hf.training.objective.gradient_cache import cached_loss
from conr_hf.training.objective.objective import Objective
from conr_hf.training.optimizer import frozen_backbone, scale_learning, trained_names
from conr_hf.training.scheduler import multistep_schedule
from conr_hf.training.sharding import check_can_shard, set_wrap_classes, unsharded


class ConRTrainer(CheckpointMixin, HubMixin, Trainer):
    """
    Trains an image-regression model with ConR (Contrastive Regularizer, [arXiv
    2309.06651](https://huggingface.co/papers/2309.06651)) beside the base loss, and by default with the resampling and
    Rank-N-Contrast that go with it (see [`ConRConfig`]).

    What a user of `Trainer` knows works as there. What differs:

    - Rows need an image and its label; transforms, collator, metrics and the choice of the best model are set.
    - Training does not depend on the labels' unit: the head learns as one over standardised labels would (exactly so
      with SGD, Adam, AdamW and Lion), while its weights and the saved model stay in label units.
    - The loss is the mean over the samples of a step, however they are split into micro-batches and processes.
    - A checkpoint loads in plain transformers, without this package.

    Args:
        model (`PreTrainedModel`, *optional*): The model, in float32; or give `model_init`.
        args ([`ConRConfig`], *optional*): Settings.
        data_collator (`Callable`, *optional*): Your own collator, for rows of your own making.
        train_dataset (a `datasets` or `torch.utils.data` data set, *optional*):
            Rows with an image and label columns, and perhaps `sample_weight`; for a model that predicts maps, the
            label is a map, NaN where a pixel has no label. Or rows ready for the model: `pixel_values` of shape
            `(C, H, W)`, or `(V, C, H, W)` for V views, and `labels`. Or a stream of such rows: its labels are read
            once before training, and their order is its own (`stream.shuffle(seed=..., buffer_size=...)`); it must
            give all its rows, in one order, to each process and worker, which share them here.
        eval_dataset (a data set, or `dict` of names to data sets, *optional*): The same, for evaluation.
        processing_class (`BaseImageProcessor`, *optional*): The model's image processor; saved beside the model.
        train_labels (array of shape `(N,)` or `(N, T)`, or [`Bins`], *optional*):
            Labels of a stream's rows, or their histogram, so that it is not read for them.
        compute_metrics (`Callable`, *optional*):
            Your metrics, added to ours. Predictions have the labels' shape. Of maps it is called batch by batch, as
            with `batch_eval_metrics` of `Trainer`.
        preprocess_logits_for_metrics (`Callable`, *optional*): As in `Trainer`, on predictions in the labels' shape.
        label_distance (`Callable`, *optional*): Your own, in place of `conr_distance`: of tensors `(M, 1, T)` and
            `(1, K, T)`, in label units, it returns `(M, K)`, not negative: the unit of window and push scale.
        transform (`Callable`, *optional*): A torchvision v2 transform of images from 0 (black) to 1 that takes the
            place of `augmentation`. A label map, a `tv_tensors.Mask`, is moved along.
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

    args: ConRConfig
    model: PreTrainedModel
    processing_class: BaseImageProcessor | None
    train_dataset: Any
    eval_dataset: Any

    loss_is_scaled_for_ga = True  # older transformers ask model_accepts_loss_kwargs instead

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: ConRConfig | None = None,
        data_collator: Collator | None = None,
        train_dataset: Dataset[Row] | None = None,
        eval_dataset: DataSets | None = None,
        processing_class: BaseImageProcessor | None = None,
        *,
        train_labels: npt.ArrayLike | Bins | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        label_distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        transform: Callable[..., Any] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        args = ConRConfig() if args is None else args
        if not isinstance(args, ConRConfig):
            raise ValueError(f"args is a {type(args).__name__}; it must be a ConRConfig, which takes the same fields.")
        check_processes(args)
        evaluation_sets = list(eval_dataset) if isinstance(eval_dataset, dict) else [""] * (eval_dataset is not None)
        args = args.with_evaluation_defaults(evaluation_sets)
        # Before super().__init__(), which calls model_init, which adopts the head by a forward of the data's pixels.
        own = compute_loss_func, label_distance, transform
        self.data = DataModule(args, train_dataset, eval_dataset, data_collator, train_labels, *own)
        self.loaders = DataLoaders(args, self.data, processing_class, self.global_batch)
        self.metrics = ComputeMetrics(self.data, compute_metrics)
        super().__init__(
            model,
            args,
            None,
            # A stream has no length until its labels are read: Trainer would ask for max_steps.
            None if self.data.is_stream else train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=self.metrics,
            preprocess_logits_for_metrics=partial(squeeze_predictions, then=preprocess_logits_for_metrics),
            compute_loss_func=compute_loss_func,
            **kwargs,
        )
        if model is not None:
            self._adopt(self.model)
        self.data_collator = self.loaders.collator()
        self.train_dataset, self.label_distance = train_dataset, label_distance
        self.model_accepts_loss_kwargs = True
        self.interrupt = callbacks.InterruptCallback(self)
        self.nan_guard = callbacks.NanGuardCallback(self, self.loaders, self.interrupt)
        self.objective_callback = callbacks.ObjectiveCallback(self, self.loaders, self.nan_guard)
        self.ema = callbacks.EMACallback(self.nan_guard)
        folder, epoch = callbacks.OutputDirCallback(self.accelerator), callbacks.SetEpochCallback(self.loaders)
        callbacks.use_brief_logging(self, self.data, self.metrics)
        ours = folder, epoch, self.interrupt, self.nan_guard, self.objective_callback, self.ema
        for callback in ours:  # behind the user's
            self.add_callback(callback)
        self._frozen_norms: list[nn.Module] = []  # beneath adapters
        self._made_optimizer = False
        self._trained_names: list[str] = []  # of the parameters that the optimizer was made for
        # What the head's gradient is multiplied by; kept here since a second train() keeps its optimizer.
        self._head_factor: float | Tensor = 1.0
        check_settings(self, args, self.data, self._made_optimizer)

    # ---- Settings and model --------------------------------------------------------------------------------------

    @property
    def resolved(self) -> ResolvedConfig:  # type: ignore[override]
        """The settings with every unset one derived from the training labels; fixed when `train()` starts."""
        return self.data.resolved

    @property
    def bins(self) -> Bins:  # type: ignore[override]
        """Bins of the training labels with their counts; without a training set, those saved beside the model."""
        return self.data.bins

    @property
    def is_sharded(self) -> bool:  # type: ignore[override]
        """Whether FSDP or DeepSpeed holds the model in parts."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def is_map(self) -> bool:
        """Whether the model predicts maps: a number for each pixel."""
        return isinstance(self.head, MapHead)

    def global_batch(self) -> int:
        """Samples of a micro-batch over all processes."""
        return self._train_batch_size * (1 if self.accelerator.split_batches else self.args.world_size)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        self._adopt(model)
        return model

    def _adopt(self, model: Any) -> None:
        self.data.take_model(model)
        self.head = prepare_model(model, self.loaders.dummy_pixels(), self.data.label_names, self.args.head)
        if self.is_map:
            check_dense_settings(self.args, self.processing_class)
        self.metrics.is_map = self.args.batch_eval_metrics = self.is_map

    # ---- Training ------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        As in `Trainer`; `True` and `"true"` resume from the last checkpoint that was written to its end. Ctrl-C and
        SIGTERM end it when the step is done and a checkpoint of it saved; a second such signal ends it at once.

        Raises:
            `ValueError`: for what cannot be trained with, and for a checkpoint that would run code as it is read.
            `ChildProcessError`, `ConnectionError`: for a data-loader worker, or another process of the run, that died
                or has not answered for `ddp_timeout` seconds.
            `OSError`: for a checkpoint that finds no room on the disk; those before it are whole.
            `FloatingPointError`: for a loss or gradient that is not finite, before it harms the weights; with
                `on_bad_loss="skip"` only after 10 in a row.
            `KeyboardInterrupt`, or on SIGTERM `SystemExit` with code 143, when that checkpoint is saved.
        """
        resumed_from = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        with ExitStack() as self._after_training, training_errors(self.args, resumed_from):
            self._after_training.callback(self._end_training)
            self.objective_callback.saved = self.ema.saved = load_training_state(resumed_from)
            output = super().train(resumed_from, trial, ignore_keys_for_eval)
            self.interrupt.stop_if_asked()
        refit.refit_head(self, self.data, self.head)
        return output

    def _hp_search_setup(self, trial: Any) -> None:
        # The one place in train() where settings and model are final and no checkpoint is loaded yet.
        super()._hp_search_setup(trial)
        self.data.train_dataset, self.data.eval_dataset = self.train_dataset, self.eval_dataset
        self.data.check()
        self.data.resolve_anew()
        if isinstance(self.data_collator, ImageCollator):  # one that the user has set stays
            self.data_collator = self.loaders.collator()
        check_settings(self, self.args, self.data, self._made_optimizer)
        validate_run(self, self.args, self.data, self.head, self.metrics, self.global_batch(), self.label_distance)
        check_can_shard(self, self.model is self.objective_callback.trained_model, self.args.retrain_head)
        self.training_objective = self.objective_callback.objective = Objective(
            self.args, self.data, self.head, self.label_distance, self.compute_loss_func, self.is_sharded
        )
        if self.args.only_head_trains:
            self._after_training.enter_context(frozen_backbone(self.model, self.head))
        self._frozen_norms = adapter_norms(self.model, self.head, self.loaders.dummy_pixels)
        trained = trained_names(self.model)
        if self._made_optimizer and trained != self._trained_names:  # of other parameters, by an earlier train()
            self.optimizer = self.lr_scheduler = None
        self._trained_names = trained
        if self.is_fsdp_enabled:
            set_wrap_classes(self.accelerator.state.fsdp_plugin, self.model)
        self.head.features = None  # of a forward of the user's own, with its graph
        if self.head.is_fresh() or self.args.retrain_head:
            self.head.start(torch.tensor(self.resolved.label_mean), self.resolved.head_scale, self.args.seed)

    def _end_training(self) -> None:
        """What the user does with the model from here on is theirs, also where training was cut short."""
        self.interrupt.signals.end()
        self.ema.finish()
        self.head.gradient_factor, self.head.smooth = 1.0, None
        self.callback_handler.train_dataloader = None  # its workers would last as long as the trainer
        self.accelerator._dataloaders.clear()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            self._made_optimizer = True
            self._head_factor = scale_learning(self, optimizer, self.head, self.resolved, self.args.layer_decay)
        self.head.gradient_factor = self._head_factor
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> torch.optim.lr_scheduler.LRScheduler:
        if self.args.lr_drop_epochs is not None and self.lr_scheduler is None:
            steps = [epoch * self.loaders.steps_per_epoch() for epoch in self.args.lr_drop_epochs]
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = multistep_schedule(optimizer, steps, self.args.get_warmup_steps(num_training_steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `Trainer`, but the objective is `metric_for_best_model` (`eval_mae`), not the sum of all metrics."""
        name = f"eval_{(self.args.metric_for_best_model or 'mae').removeprefix('eval_')}"
        if len(args) < 2:  # n_trials, direction
            kwargs.setdefault("direction", "maximize" if self.args.greater_is_better else "minimize")
        return super().hyperparameter_search(hp_space, compute_objective or (lambda m: m[name]), *args, **kwargs)

    # ---- A step --------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """
        Base loss plus ConR, scaled so that gradients, averaged over processes and summed over micro-batches, are those
        of the mean over the step's samples. In evaluation: the mean base loss of the batch's rows, or labelled pixels,
        of which `eval_loss` is a mean over batches; errors such as `eval_mae` are over all rows or pixels.
        """
        if not model.training:
            return self._evaluation_loss(model, inputs, return_outputs)
        if self.args.only_head_trains:  # batch norm and dropout of what does not learn
            model.eval()
            self.head.train()
        for norm in self._frozen_norms:
            norm.eval()

        def forward(part: dict[str, Any]) -> Forwarded:
            labels = self.training_objective.labels = view_labels(part, self.is_map)
            outputs, predictions = forward_views(model, part, labels)
            return Forwarded(self.head.take_features(), predictions, labels, outputs)

        def loss_of(forwarded: Forwarded) -> Tensor:
            counts = self.loaders.sample_counts(inputs)
            return self.training_objective(collect_batch(inputs, forwarded, counts, num_items_in_batch))

        size = self.args.forward_batch_size
        if size is not None and size < len(inputs["labels"]):
            loss = cached_loss(inputs, size, forward, loss_of, model, self.accelerator)
        else:
            loss = loss_of(forward(inputs))
        self.nan_guard.record(loss, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _evaluation_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        labels = view_labels(inputs, self.is_map)
        outputs, predictions = forward_views(model, inputs, labels)
        loss = evaluation_loss(predictions, labels, self.resolved, outputs, self.compute_loss_func)
        return (loss, {"loss": loss, "logits": predictions}) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # which finds by itself what overflows in float16, and skips it
            self.nan_guard.record_grad_norm(norm)
        return norm

    # ---- Batches -------------------------------------------------------------------------------------------------

    def _get_dataloader(self, dataset: Dataset[Row], description: str, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        is_training = kwargs.get("is_training", False)
        rows = self.loaders.rows(dataset, is_training, description)
        with self.loaders.loader_settings(is_training):
            loader = super()._get_dataloader(rows, description, *args, **kwargs)
        self.loaders.prepare_workers(loader, is_training)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> TrainingSampler:
        return self.loaders.train_sampler(train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of a step, and its number of samples over all processes."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        quiet_worker_deaths()
        return batches, sum(sum(self.loaders.sample_counts(batch)) for batch in batches)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.data_collator, ImageCollator) and not self.data_collator.makes_views:
            inputs = self.data_collator.with_views(inputs)
        # DeepSpeed would round labels to the precision of its mixed-precision mode.
        exact = {name: inputs[name].float() for name in ("labels", "sample_weight") if name in inputs}
        return {**super()._prepare_inputs(inputs), **{name: t.to(self.args.device) for name, t in exact.items()}}

    # ---- Evaluation and figures ----------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.ema.applied():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self.ema.applied():
            return super().predict(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        check_precision(self.model)
        self.args.check_full_eval()
        self.metrics.streamed = None
        is_whole = self.is_sharded and self.model is not self.objective_callback.trained_model
        try:
            with reading_errors(self.args), unsharded(self) if is_whole else nullcontext():
                return super().evaluation_loop(*args, **kwargs)
        finally:
            self.head.features = None  # of the last batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.nan_guard.check()
            logs = {**logs, **self.training_objective.read_figures()}
            if self.nan_guard.skips:
                logs.pop("grad_norm", None)  # no number
        super().log(logs, start_time)
