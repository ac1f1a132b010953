"""`LearningTrainer`: which parameters learn, and at which rate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import BestRun
from transformers.training_args import OptimizerNames

from conr_hf.adapters import check_head_is_saved, frozen_norms, has_adapter
from conr_hf.head import Head, head_groups, step_rows_alike
from conr_hf.keeping import KeepingTrainer
from conr_hf.layer_decay import decay_by_layer
from conr_hf.schedule import drop_schedule
from conr_hf.sharding import check_saves_whole, shard_by_layer

_IN_BACKWARD = (OptimizerNames.LOMO, OptimizerNames.ADALOMO)  # they step as each gradient comes


class LearningTrainer(KeepingTrainer):
    """
    What [`ConRTrainer`] does with parameters: the head learns at its own rate, lower layers more slowly if wanted, and
    a frozen backbone not at all.

    Args:
        args, kwargs: As in [`ConRTrainer`].
    """

    head: Head

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._frozen: list[nn.Parameter] = []
        self._learned: list[str] = []  # names of the parameters of the last train(); sharding makes others of them
        self._made_optimizer = False
        self.frozen_norms: list[nn.Module] = []  # beneath adapters
        # Of the head's gradient; kept here since a second train() keeps its optimizer.
        self._head_factor: float | Tensor = 1.0
        super().__init__(*args, **kwargs)

    def head_alone(self) -> bool:
        """Whether the backbone is frozen."""
        return self.args.freeze_backbone or self.args.retrain_head

    def plain_optimizer(self) -> bool:
        """Whether the trainer makes the optimizer itself, over groups of parameters that may be changed."""
        return (self.optimizer is None or self._made_optimizer) and not self._optimizer_groups_itself()

    def steps_early(self) -> bool:
        """Whether a step is done before the gradients of all processes are known."""
        return self.is_deepspeed_enabled or self.args.optim in _IN_BACKWARD

    def start_learning(self) -> None:
        """Freezes what does not learn; an optimizer of other parameters, of an earlier `train()`, is made anew."""
        if self.model is self.sharded_model and (self.is_deepspeed_enabled or self.args.retrain_head):
            cause = "retrain_head" if self.is_fsdp_enabled else "DeepSpeed"
            raise ValueError(
                f"An earlier train() has sharded the model, with which {cause} cannot start again. Save it, and give "
                "it to a new trainer."
            )
        check_saves_whole(self.accelerator)
        if self.head_alone():
            own = {id(parameter) for parameter in self.head.parameters()}
            self._frozen = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
            for parameter in self._frozen:
                parameter.requires_grad = False
        self.frozen_norms = []
        if has_adapter(self.model):
            check_head_is_saved(self.model, self.head)
            self.frozen_norms = frozen_norms(self.model)
        learns = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        learns.append(f"of model {id(self.model)}")
        if self._made_optimizer and learns != self._learned:
            self.optimizer = self.lr_scheduler = None
        self._learned = learns
        if self.is_fsdp_enabled:
            shard_by_layer(self.accelerator.state.fsdp_plugin, self.model)

    def finish_learning(self) -> None:
        """The model's parameters and head are again what they were to its user."""
        self.head.gradient_factor = 1.0
        for parameter in self._frozen:
            parameter.requires_grad = True
        self._frozen = []

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            if self.args.layer_decay is not None:
                decay_by_layer(optimizer, self.model, self.args.layer_decay)
            scale = self.head.learning_scale(self.resolved.label_scale)
            scaled = not self._optimizer_groups_itself() and head_groups(optimizer, self.head, scale)
            self._head_factor = scale if scaled else 1.0
            if scaled and isinstance(self.resolved.head_scale, Tensor):
                self._head_factor = self.resolved.head_scale.to(self.head.weight.device)
                step_rows_alike(optimizer, self.head, self._head_factor / scale)
            self._made_optimizer = True
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

    def _optimizer_groups_itself(self) -> bool:
        chosen = self.optimizer_cls_and_kwargs
        is_factory = chosen is not None and is_optimizer_factory(chosen[0])
        return is_factory or self.args.optim in _IN_BACKWARD
