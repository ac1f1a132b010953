"""`ConRTrainer`: a `Trainer` that is right for regression, and adds ConR to the base loss."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, EvalPrediction, PreTrainedModel
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import BestRun, TrainOutput
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from conr_hf.base_loss import base_loss
from conr_hf.config import ConRConfig
from conr_hf.data.mixing import CMixup
from conr_hf.data.rows import Row
from conr_hf.data.views import ImageCollator
from conr_hf.distributed import rank, world_size
from conr_hf.feeding import DataSets
from conr_hf.head import Head, adopt_head, head_groups
from conr_hf.imbalance import Bins, density_weights, make_bins
from conr_hf.keeping import KeepingTrainer
from conr_hf.launch import check_processes, checkpoint_to_resume
from conr_hf.layer_decay import decay_by_layer
from conr_hf.metrics import flat, shot_metrics_from_bins
from conr_hf.models import check_vanilla
from conr_hf.objective import Objective, lds_kernel
from conr_hf.resolved import Resolved, resolve
from conr_hf.schedule import drop_schedule
from conr_hf.state import load_state

logger = logging.get_logger(__name__)

_OURS = ("labels", "pixel_values", "position", "sample_weight")  # of a batch; whatever else it holds is the model's


class ConRTrainer(KeepingTrainer):
    """
    Trains an image-regression model with ConR (Contrastive Regularizer, [arXiv
    2309.06651](https://huggingface.co/papers/2309.06651)) beside the base loss.

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
        train_dataset (`datasets.Dataset` or `torch.utils.data.Dataset`, *optional*):
            Rows by index, with an image and label columns, and perhaps `sample_weight`; or ready for the model, with
            `pixel_values` of shape `(C, H, W)`, or `(V, C, H, W)` for V views, and `labels`.
        eval_dataset (a data set, or `dict` of names to data sets, *optional*): The same, for evaluation.
        processing_class (`BaseImageProcessor`, *optional*): The model's image processor; saved beside the model.
        compute_metrics (`Callable`, *optional*): Your metrics, added to ours. Predictions have the labels' shape.
        preprocess_logits_for_metrics (`Callable`, *optional*): As in `Trainer`, on predictions in the labels' shape.
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
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        args = ConRConfig() if args is None else args
        if not isinstance(args, ConRConfig):
            raise ValueError(f"args is a {type(args).__name__}; it must be a ConRConfig, which takes the same fields.")
        check_processes(args)
        evaluation_sets = list(eval_dataset) if isinstance(eval_dataset, dict) else [""] * (eval_dataset is not None)
        self._user_metrics = compute_metrics
        self._resolved: Resolved | None = None
        self._bins: Bins | None = None
        self._frozen: list[nn.Parameter] = []
        self._head_factor = 1.0  # of the head's gradient; kept here since a second train() keeps its optimizer
        super().__init__(
            model,
            args.settled(evaluation_sets),
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics=self._all_metrics,
            preprocess_logits_for_metrics=partial(_squeezed, then=preprocess_logits_for_metrics),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and self.accelerator.mixed_precision != "no":
            raise ValueError(
                f"mixed_precision is {self.accelerator.mixed_precision} under FSDP or DeepSpeed, which round the "
                "head and the predictions with it (63.37 becomes 63.25). Set it to no, with --tf32 true for speed."
            )
        if args.ema_decay is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("ema_decay needs the whole model on each process; leave it unset with FSDP or DeepSpeed.")
        if args.layer_decay is not None and (self.optimizer is not None or self._optimizer_groups_itself()):
            raise ValueError("layer_decay needs an optimizer made by the trainer in plain groups; leave it unset.")
        if model is not None:
            self._adopt(self.model)

    # ---- Settings and model --------------------------------------------------------------------------------------

    @property
    def resolved(self) -> Resolved:
        """The settings with every unset one derived from the training labels; frozen when `train()` starts."""
        if self._resolved is None and self.train_dataset is not None:
            self._resolved = resolve(self.args, self.training_labels())
        return self._resolved if self._resolved is not None else self._saved()[0]

    @property
    def bins(self) -> Bins:
        """Bins of the training labels with their counts; without a training set, those saved beside the model."""
        if self._bins is None and self.train_dataset is not None:
            self._bins = make_bins(self.training_labels(), self.bin_width())
        return self._bins if self._bins is not None else self._saved()[1]

    def _saved(self) -> tuple[Resolved, Bins]:
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
        """As in `Trainer`; `True` and `"true"` resume from the last checkpoint that was written to its end."""
        self._resumed_from = checkpoint_to_resume(resume_from_checkpoint, str(self.args.output_dir))
        try:
            outcome = super().train(self._resumed_from, trial, ignore_keys_for_eval)
            self.finish_keeping()
            return outcome
        finally:  # what the user does with the model from here on is theirs
            self.head.gradient_factor, self.head.smooth = 1.0, None
            for parameter in self._frozen:
                parameter.requires_grad = True
            self._frozen = []

    def _hp_search_setup(self, trial: Any) -> None:
        # The one place in train() where settings and model are final and no checkpoint is loaded yet.
        super()._hp_search_setup(trial)
        self.check_data()
        self._resolved = self._bins = None
        if isinstance(self.data_collator, ImageCollator):
            self.data_collator = self.collator()
        self._check_batches()
        labels, dims = self.training_labels(), self.head.weight.shape[1]
        self.objective = Objective(self.args, self.resolved, labels, self.bins, self.args.device, dims)
        if self.objective.smoothing is not None:
            self.head.smooth = torch.compiler.disable(self.objective.smooth)
        if self.args.freeze_backbone or self.args.retrain_head:
            own = {id(parameter) for parameter in self.head.parameters()}
            self._frozen = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
            for parameter in self._frozen:
                parameter.requires_grad = False
        if self.head.is_fresh() or self.args.retrain_head:
            self.head.start(torch.tensor(self.resolved.label_mean), self.resolved.label_scale, self.args.seed)
        logger.info(f"Training with {self.resolved}")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            if self.args.layer_decay is not None:
                decay_by_layer(optimizer, self.model, self.args.layer_decay)
            scale = self.resolved.label_scale
            scaled = not self._optimizer_groups_itself() and head_groups(optimizer, self.head, scale)
            self._head_factor = scale if scaled else 1.0
        self.head.gradient_factor = self._head_factor
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.args.lr_drop_epochs is not None and self.lr_scheduler is None:
            steps = [epoch * self.steps_per_epoch() for epoch in self.args.lr_drop_epochs]
            made = self.optimizer if optimizer is None else optimizer
            assert made is not None
            self.lr_scheduler = drop_schedule(made, steps, self.args.get_warmup_steps(num_training_steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def row_weights(self) -> np.ndarray | None:
        if self.args.resample == "none":
            return None
        return density_weights(self.training_labels(), self.bins, self.args.resample, lds_kernel(self.args))

    def mixing(self) -> CMixup | None:
        if self.args.cmixup_alpha == 0:
            return None
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return CMixup(self.training_labels(), self.args.cmixup_alpha, self.resolved.cmixup_bandwidth, seed)

    def _check_batches(self) -> None:
        if self.args.base_loss != "bmc":
            return
        batch = self.args.train_batch_size * self.args.world_size
        rest = len(self.training_labels()) % batch
        if batch == 1 or (rest == 1 and not self.args.dataloader_drop_last):
            which = "a batch" if batch == 1 else "the last batch of an epoch"
            raise ValueError(
                f"base_loss is bmc, which compares the samples of a batch, and {which} has one sample. Set "
                "per_device_train_batch_size to another size, or dataloader_drop_last to true."
            )

    def _optimizer_groups_itself(self) -> bool:
        chosen = self.optimizer_cls_and_kwargs
        is_factory = chosen is not None and is_optimizer_factory(chosen[0])
        return is_factory or self.args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO)

    def hyperparameter_search(  # type: ignore[override]
        self,
        hp_space: Callable[[Any], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """As in `Trainer`, but the objective is `metric_for_best_model` (`eval_mae`), not the sum of all metrics."""
        metric = self.args.metric_for_best_model or "eval_mae"
        name = metric if metric.startswith("eval_") else f"eval_{metric}"
        return super().hyperparameter_search(
            hp_space,
            compute_objective or (lambda metrics: metrics[name]),
            n_trials,
            direction or ("maximize" if self.args.greater_is_better else "minimize"),
            **kwargs,
        )

    def _adopt(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"The model's {name} is {parameter.dtype}, in which a prediction of 63.37 becomes 63.25. Load it "
                    "in float32, by load_regressor or dtype=torch.float32; bf16=True trains in mixed precision."
                )
        self.head: Head = adopt_head(model, self.example_pixels, self.args.head)
        outputs, columns = self.head.weight.shape[0], self.args.label_columns
        if outputs != len(columns):
            raise ValueError(
                f"The model predicts {outputs} values, but label_columns names {len(columns)} ({', '.join(columns)}). "
                "Load it with load_regressor(..., target=...), one target for each column."
            )
        if isinstance(model, PreTrainedModel):
            check_vanilla(model)
        config: Any = model.config
        config.problem_type = "regression"  # unset, pipelines put a sigmoid on a single output

    # ---- Loss ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """
        Base loss plus ConR, scaled so that gradients, averaged over processes and summed over micro-batches, are those
        of the mean over the step's samples. In evaluation: the mean base loss of the batch's rows.
        """
        labels, pixels, training = inputs["labels"].float(), inputs["pixel_values"], model.training
        if training and self._frozen:  # batch norm and dropout of what does not learn
            model.eval()
            self.head.train()
        views = pixels.shape[1] if pixels.dim() == 5 else 1
        others = {name: value for name, value in inputs.items() if name not in _OURS}
        # Channels last is faster for convolutions on CPU and GPU, and nothing to a transformer.
        pixels = pixels.reshape(-1, *pixels.shape[-3:]).contiguous(memory_format=torch.channels_last)
        rows = labels.repeat_interleave(views, 0)
        if training:
            self.objective.rows = rows
        outputs = model(pixel_values=pixels, **others)
        predictions = outputs.logits.float().reshape(rows.shape)
        if training:
            loss = self._training_loss(inputs, outputs, predictions, rows, views, num_items_in_batch)
        elif self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=None)
        else:
            loss = base_loss(predictions, labels, self.resolved).mean()
        return (loss, {"loss": loss, "logits": predictions}) if return_outputs else loss

    def _training_loss(
        self,
        inputs: dict[str, Any],
        outputs: Any,
        predictions: Tensor,
        rows: Tensor,
        views: int,
        step_samples: Tensor | int | None,
    ) -> Tensor:
        samples = self.samples(inputs)
        total = sum(samples) if step_samples is None else step_samples
        features = self.head.take_features()
        if self.compute_loss_func is not None:
            # Without repeats, or times 0 where all are repeats: a mean over no rows would not be a number.
            count = samples[rank()] * views
            outputs.logits = outputs.logits[: count or views]
            loss = self.compute_loss_func(outputs, rows[: count or views], num_items_in_batch=total * views)
            loss = loss * (count > 0)
        else:
            weight = inputs.get("sample_weight")
            loss = self.objective.base(predictions, rows, inputs["labels"].float(), weight, samples, total)
        if self.objective.smoothing is not None:
            count = samples[rank()] * views
            self.objective.smoothing.add(features[:count], rows[:count])
        regularisers = self.objective.regularisers(features, rows, predictions, samples, views)
        if regularisers is not None:
            loss = loss + regularisers * sum(samples) / total
        return loss * world_size()

    # ---- Figures and files ---------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.objective.read_figures()}
            for name in {"loss", "base_loss", "conr_loss"} & set(logs):
                if not math.isfinite(logs[name]):
                    raise FloatingPointError(
                        f"{name} is {logs[name]} at step {self.state.global_step}: training diverged. "
                        "Lower learning_rate."
                    )
        super().log(logs, start_time)

    def _all_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        metrics = flat(shot_metrics_from_bins(prediction.predictions, prediction.label_ids, self.bins))
        return {**metrics, **(self._user_metrics(prediction) if self._user_metrics is not None else {})}


def _squeezed(
    logits: Tensor | tuple[Tensor, ...],
    labels: Tensor | None,
    then: Callable[[Tensor, Tensor | None], Tensor] | None,
) -> Tensor:
    """Predictions in the labels' shape, where `predict` on rows without labels gives the model's own `(N, 1)`."""
    predictions = logits[0] if isinstance(logits, tuple) else logits
    if labels is None and predictions.shape[-1] == 1:
        predictions = predictions.squeeze(-1)
    return predictions if then is None else then(predictions, labels)
