"""The settings of a run: `ConRConfig`."""

import copy
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from conr_hf.data.config import DataConfig
from conr_hf.hub.card_template import read_template
from conr_hf.imbalance.density import DensityMethod
from conr_hf.training.config.method_config import MethodConfig
from conr_hf.utils.fields import check_choices, check_not_negative, check_positive, warn_without_effect, with_help

logger = logging.get_logger(__name__)

# Metrics that should be small, and those that should be large.
ERRORS = ("mae", "mse", "rmse", "gm", "bmae", "abs_rel", "log10", "error", "loss")
AGREEMENTS = ("r2", "pearson", "spearman", "delta1", "delta2", "delta3")
CONR_ALONE = 0.05  # conr_weight where it is unset, and neither resampling nor Rank-N-Contrast is on
_EVALUATION = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 500, "load_best_model_at_end": False}


@with_help
@dataclass
class ConRConfig(DataConfig, MethodConfig, TrainingArguments):
    """
    Settings of [`ConRTrainer`]: those of `TrainingArguments`, [`MethodConfig`] and [`DataConfig`], and the ones
    below.

    Everything is in label units. Unset fields are derived when training starts, from the training
    labels (R is their range, s their label scale) and from what else is on.

    Args:
        conr_weight (`float`, *optional*):
            Weight of ConR beside the base loss on residuals divided by s. The paper's beta, over raw labels, is
            beta / s for L1 and beta / s^2 for MSE. Unset: 0 beside resampling (`resample`) or Rank-N-Contrast
            (`rnc_weight`), to which it adds nothing that our studies could show; 0.05 where both are off, as they are
            with label maps. 0: a plain fine-tune, without these two as well unless they are set.
        conr_gradient_share (`float`, *optional*):
            In place of `conr_weight`: the norm of ConR's gradient at the features, times its weight, in that of the
            base loss's; 0.1 to 0.6 is usual. The weight follows from the steps before, and is 0 in the first; see
            `conr_hf.losses.GradientShare`. 0 computes no ConR, and leaves what is beside it as it is. Unset:
            `conr_weight`.
        conr_window (`float`, *optional*):
            Labels within this distance are similar (the paper's omega). Unset: 0.01 R.
        conr_temperature (`float`, *optional*, defaults to 0.07):
            Temperature of the feature similarities.
        conr_push (`str`, *optional*, defaults to `"exponential"`):
            How the push grows with label distance d: `"exponential"`, exp(e d), or `"linear"`, e d.
        conr_push_scale (`float`, *optional*):
            How fast the push grows (the paper's e), per label unit. Unset: 1 / R.
        conr_formulation (`str`, *optional*, defaults to `"exact"`):
            `"exact"` is the paper's loss, `"reference"` what the authors' published code computes.
        conr_reduction (`str`, *optional*, defaults to `"mean"`):
            Mean over all rows (`"mean"`) or over the anchors (`"anchors"`).
        conr_distance (`str`, *optional*, defaults to `"mean_abs"`):
            Distance of labels of several dimensions: `"mean_abs"` or `"euclidean"`, or `"angular"`, the angle between
            directions, of two columns that are pitch and yaw in radians.
        conr_reweight (`str`, *optional*, defaults to `"sqrt_inverse"`):
            Density weights of the push (the paper's eta), apart from `reweight`: `"none"`, `"inverse"` or
            `"sqrt_inverse"`.
        conr_gather (`str`, *optional*, defaults to `"all"`):
            Whose rows are compared: those of `"all"` processes, so that several train as one would; of those on the
            same `"node"`; or each process's own (`"none"`). Also for Rank-N-Contrast and RankSim. What a process
            sends in a step grows with the number of processes compared.
        conr_pixels (`int`, *optional*, defaults to 1024):
            With label maps: pixels of each view that ConR compares with those of all other views of the step, drawn
            in proportion to the density weights of `conr_reweight`, so that rare labels are among them. 0 compares
            whole views by the means of their pixels, as the paper's published code does.
        conr_anchors (`int`, *optional*):
            How many rows (views or pixels) are compared with all others of their micro-batch, drawn anew in each. ConR
            and Rank-N-Contrast take the sum over these anchors times all rows by anchors: in the mean over draws the
            value and gradient over all rows. 0: all rows. Unset: 128 with label maps, else all. The logged figure of
            this name is another: the share of rows that have both a positive and a negative.
        forward_batch_size (`int`, *optional*):
            Samples whose forward and backward fit in memory, on each device. The batch, whose samples are compared,
            may then be as large as its features allow: each part of it goes through the model twice, which takes half
            as long again, and gives the gradients of the whole batch. Batch norm normalises each part by its own
            statistics. Unset: the whole batch at once.
        head (`str`, *optional*):
            Name of the layer that predicts, for a model with several; see `adopt_head`.
        lr_drop_epochs (`list[int]`, *optional*):
            Epochs, such as 60 and 80, after each of which the learning rate drops to a tenth; constant in between.
            Unset: `lr_scheduler_type`.
        on_bad_loss (`str`, *optional*, defaults to `"stop"`):
            What to do in a step whose loss, or whose gradient's norm, is not finite: `"stop"` ends training and names
            its rows; `"skip"` leaves the step out with a warning, up to 10 such steps in a row, and waits for each
            step's loss to know. In float16 a gradient that overflows is left to the loss scaler.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Train in an `output_dir` that holds another run, whose files (checkpoints, model, exports, results,
            pictures, report) are removed when training begins. Unset, `conr-hf train` refuses such a folder, and
            `ConRTrainer` warns of it, unless the run resumes.
        model_card_template (`str`, *optional*):
            File with a Jinja template for the model card, in UTF-8, that uses the fields of
            `conr_hf.hub.card_template.CardValues`. Unset: the package's own.
        eval_strategy (`str`, *optional*):
            When to evaluate: `"no"`, `"steps"` or `"epoch"`. Unset: `"epoch"` with an evaluation set.
        save_strategy (`str`, *optional*):
            When to save a checkpoint: `"no"`, `"steps"`, `"epoch"` or `"best"`. Unset: as `eval_strategy`.
        save_steps (`float`, *optional*):
            Steps between checkpoints. Unset: as `eval_steps`.
        load_best_model_at_end (`bool`, *optional*):
            Load the best checkpoint at the end. Unset: true with an evaluation set.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Must stay false, since images and labels are columns.
        dataloader_persistent_workers (`bool`, *optional*):
            Keep the workers of training from epoch to epoch; those of evaluation always end with it. Unset: true, if
            there are workers (`dataloader_num_workers`).

    Raises:
        `ValueError`: for a value that a setting cannot have; the sentence says which it may have.

    Example:
    ```python
    ConRConfig("runs/age", num_train_epochs=10, learning_rate=1e-4)  # resampling and Rank-N-Contrast
    ConRConfig("runs/age-with-conr", conr_gradient_share=0.15)  # ConR beside them
    ConRConfig("runs/age-conr", resample="none", rnc_weight=0, num_views=2)  # the paper's method alone
    ConRConfig("runs/age-plain", conr_weight=0)  # a plain fine-tune
    ```
    """

    conr_weight: float | None = None
    conr_gradient_share: float | None = None
    conr_window: float | None = None
    conr_temperature: float = 0.07
    conr_push: Literal["exponential", "linear"] = "exponential"
    conr_push_scale: float | None = None
    conr_formulation: Literal["exact", "reference"] = "exact"
    conr_reduction: Literal["mean", "anchors"] = "mean"
    conr_distance: Literal["mean_abs", "euclidean", "angular"] = "mean_abs"
    conr_reweight: DensityMethod = "sqrt_inverse"
    conr_gather: Literal["all", "node", "none"] = "all"
    conr_pixels: int = 1024
    conr_anchors: int | None = None
    forward_batch_size: int | None = None
    head: str | None = None
    lr_drop_epochs: list[int] | None = None
    on_bad_loss: Literal["stop", "skip"] = "stop"
    overwrite_output_dir: bool = False
    model_card_template: str | None = None

    # Fields of TrainingArguments whose defaults depend on whether there is an evaluation set; None is unset.
    eval_strategy: IntervalStrategy | str | None = None  # type: ignore[assignment]
    save_strategy: SaveStrategy | str | None = None  # type: ignore[assignment]
    save_steps: float | None = None  # type: ignore[assignment]
    load_best_model_at_end: bool | None = None  # type: ignore[assignment]
    dataloader_persistent_workers: bool | None = None  # type: ignore[assignment]
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.label_columns, str):
            self.label_columns = [self.label_columns]
        if isinstance(self.flipped_columns, str):
            self.flipped_columns = [self.flipped_columns]
        for name in ("label_min", "label_max"):
            if isinstance(bound := getattr(self, name), int | float):
                setattr(self, name, [float(bound)])
        unset = [name for name in (*_EVALUATION, "metric_for_best_model") if getattr(self, name) is None]
        # For now as TrainingArguments has them; where the best model is kept, evaluation and saving must agree.
        together: dict[str, Any] = {}
        if self.load_best_model_at_end or self.lr_scheduler_type == "reduce_lr_on_plateau":
            saves = self.save_strategy if self.save_strategy != "best" else None
            strategy = self.eval_strategy or saves or "epoch"
            steps = self.eval_steps or self.logging_steps
            together = {"eval_strategy": strategy, "save_strategy": strategy, "save_steps": steps}
        for name, value in {**_EVALUATION, **together}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if not torch.accelerator.is_available():
            # Without this, two processes that a launcher starts on a CPU do not find each other.
            self.use_cpu = True
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # Transformers starts the processes of a CPU without ddp_timeout; it then finds them started.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=self.ddp_timeout_delta)
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # TrainingArguments maximises every metric but a loss, and would keep the worst model.
            name = self.metric_for_best_model.lower()
            self.greater_is_better = not name.endswith(ERRORS)
            if self.greater_is_better and not name.endswith(AGREEMENTS):
                logger.warning(
                    f"The best model is the one with the greatest {self.metric_for_best_model}. "
                    "If less of it is better, set greater_is_better to false."
                )
        self.check()
        super().__post_init__()
        for name in unset:  # so that a copy by dataclasses.replace knows what its user set
            setattr(self, name, None)

    @property
    def balances(self) -> bool:
        """Whether resampling and Rank-N-Contrast are on where they are not set."""
        return not self.only_head_trains and (self.conr_gradient_share is not None or self.conr_weight != 0)

    def conr_strength(self, may_resample: bool = True, of_maps: bool = False) -> float:
        """`conr_gradient_share`, or `conr_weight`, or what that is if unset; without ConR 0."""
        if self.only_head_trains:
            return 0.0
        if self.conr_gradient_share is not None:
            return self.conr_gradient_share
        if self.conr_weight is not None:
            return self.conr_weight
        rnc = self.rank_n_contrast_weight(self.balances and not of_maps) + (self.rnc_gradient_share or 0.0)
        resamples = self.resampling(self.balances, may_resample) != "none"
        return 0.0 if resamples or rnc > 0 else CONR_ALONE

    def check(self) -> None:
        """Refuses values that a setting cannot have; the sentence says which it may have."""
        strategies = {"eval_strategy": tuple(IntervalStrategy), "save_strategy": tuple(SaveStrategy)}
        check_choices(self, {"train_sampling_strategy": ("random", "sequential"), **strategies})
        if self.resample not in (None, "none") and self.train_sampling_strategy != "random":
            raise ValueError(
                f"resample is {self.resample} and train_sampling_strategy {self.train_sampling_strategy}: rows that "
                "are drawn by weight have no order. Set one of them to its default."
            )
        check_not_negative(self, "conr_weight", "conr_window", "conr_push_scale", "learning_rate", "weight_decay")
        check_not_negative(self, "conr_pixels", "conr_anchors", "conr_gradient_share")
        if self.conr_gradient_share is not None and self.conr_weight is not None:
            raise ValueError(
                f"conr_gradient_share is {self.conr_gradient_share} and conr_weight {self.conr_weight}, which each "
                "set how strong ConR is. Leave one of them out."
            )
        check_positive(self, "conr_temperature")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "forward_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more.")
        self.check_data(self.loss_space)
        if self.conr_distance == "angular" and len(self.label_columns) != 2:
            raise ValueError(
                f"conr_distance is angular, the angle between directions, but label_columns is {self.label_columns}; "
                "name two columns, pitch and yaw in radians."
            )
        epochs = self.lr_drop_epochs
        if epochs is not None and (not epochs or epochs != sorted(set(epochs)) or epochs[0] < 1):
            raise ValueError(f"lr_drop_epochs is {epochs}; give rising numbers of epochs from 1 on, as in 60 80.")
        if epochs is not None and self.lr_scheduler_type != "linear":
            raise ValueError(
                f"lr_drop_epochs is {epochs} and lr_scheduler_type {self.lr_scheduler_type!s}, which each set the "
                "learning rate. Leave one of them out."
            )
        if self.model_card_template is not None:
            read_template(self.model_card_template)
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns is true; it must be false, since images and labels are columns.")
        self.check_full_eval()
        of_conr = "conr_weight" if self.conr_gradient_share is None else "conr_gradient_share"
        in_order = self.train_sampling_strategy != "random"
        self.check_methods(self.label_columns, self.balances, self.conr_strength(may_resample=not in_order), of_conr)
        shifts = self.augmentation != "none" and self.augmentation_settings().crop_area == 1
        needs = self.method_needs(self.balances)
        needs |= {
            "label_scale": (not self.scale_each, "scale_each false"),
            "flipped_columns": (self.horizontal_flip, "horizontal_flip"),
            "augment_color": (self.augmentation in ("medium", "strong"), "augmentation medium or strong"),
            "crop_area": (self.augmentation != "none" and self.crop_padding > 0, "augmentation and crop_padding"),
            "crop_padding": (shifts or self.crop_padding == 0, "augmentation light, or crop_area 1"),
            **dict.fromkeys(("horizontal_flip", "vertical_flip"), (self.augmentation != "none", "augmentation")),
        }
        warn_without_effect(self, needs)
        for name, needed in {"prediction_loss_only": False, "eval_do_concat_batches": True}.items():
            if getattr(self, name) is not needed:
                raise ValueError(
                    f"{name} is {str(not needed).lower()}; it must be {str(needed).lower()}, since shots need all "
                    "predictions at once."
                )

    def check_full_eval(self) -> None:
        """Refuses evaluation in half precision."""
        for name, is_on in (("bf16_full_eval", self.bf16_full_eval), ("fp16_full_eval", self.fp16_full_eval)):
            if is_on:
                raise ValueError(
                    f"{name} is true, which turns the model's weights into half precision for good: a prediction of "
                    f"63.37 becomes 63.25. Leave it out; {name[:4]} trains and evaluates in mixed precision."
                )

    def with_evaluation_defaults(self, evaluation_sets: list[str] | None) -> "ConRConfig":
        """A copy with settled evaluation fields, for evaluation sets of these names (`[""]`: one without a name)."""
        args = copy.copy(self)
        if args.label_names is None:
            args.label_names = ["labels"]  # Trainer finds none for a model whose forward takes no labels
        if args.save_strategy is None and args.save_steps is not None:
            args.save_strategy = SaveStrategy.STEPS
        if args.eval_strategy is None and evaluation_sets and args.save_strategy == "steps":
            # Evaluated where the user saves, or the best model would not be among what is saved.
            args.eval_strategy = IntervalStrategy.STEPS
            args.eval_steps = args.eval_steps or args.save_steps
        elif args.eval_strategy is None:
            args.eval_strategy = IntervalStrategy.EPOCH if evaluation_sets else IntervalStrategy.NO
        evaluates = args.eval_strategy != "no"
        if args.save_strategy is None:
            args.save_strategy = SaveStrategy(args.eval_strategy if evaluates else "epoch")
        if args.save_steps is None:
            args.save_steps = args.eval_steps if evaluates and args.eval_steps is not None else 500
        chooses = evaluates and bool(evaluation_sets)
        if args.load_best_model_at_end is None:
            args.load_best_model_at_end = chooses and args.save_strategy != "no"
            between = args.save_strategy == "steps" and (args.save_steps or 1) % (args.eval_steps or 1)
            coincide = args.save_strategy == "best" or (args.save_strategy == args.eval_strategy and not between)
            if args.load_best_model_at_end and not coincide:
                logger.warning(
                    f"No best model is kept, as saves ({args.save_strategy!s}, {args.save_steps} steps) and "
                    f"evaluations ({args.eval_strategy!s}, {args.eval_steps} steps) do not coincide."
                )
                args.load_best_model_at_end = False
        if args.metric_for_best_model is None:
            first = evaluation_sets[0] if evaluation_sets else ""
            metric = "_".join(part for part in ("eval", first, "mae") if part)
            args.metric_for_best_model = metric if chooses else None
            args.greater_is_better = False if chooses else None
        if args.lr_scheduler_type == "reduce_lr_on_plateau":  # which else waits for a fall of every metric
            mode = "max" if args.greater_is_better else "min"
            args.lr_scheduler_kwargs = {"mode": mode, **(args.lr_scheduler_kwargs or {})}  # type: ignore[dict-item]
        if args.on_bad_loss == "skip":
            args.logging_nan_inf_filter = True  # or the logged loss would stay NaN after the first skipped step
        accelerator_config: Any = copy.copy(args.accelerator_config)
        if accelerator_config.dispatch_batches:
            raise ValueError("dispatch_batches is true; leave it unset, since each process reads its own rows.")
        accelerator_config.dispatch_batches = False  # unset, a stream's batches are dispatched
        args.accelerator_config = accelerator_config
        return args

    @classmethod
    def own_fields(cls) -> list[str]:
        """Names of the fields that `TrainingArguments` lacks, or has with another default."""
        return [*cls.__annotations__, *DataConfig.__annotations__, *MethodConfig.__annotations__]
