"""`LearningTrainer`: which parameters learn, and at which rate."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from transformers.models.timm_wrapper import TimmWrapperForImageClassification
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import BestRun
from transformers.training_args import OptimizerNames

from conr_hf.models.head import Head, of_rows
from conr_hf.models.peft import check_head_is_saved, frozen_norms, has_adapter
from conr_hf.training.checkpoint_mixin import KeepingTrainer
from conr_hf.training.scheduler import multistep_schedule
from conr_hf.training.sharding import check_full_state_dict, set_wrap_classes

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
        check_full_state_dict(self.accelerator)
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
            set_wrap_classes(self.accelerator.state.fsdp_plugin, self.model)

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
                apply_layer_decay(optimizer, self.model, self.args.layer_decay)
            scale = self.head.learning_scale(self.resolved.label_scale)
            scaled = not self._optimizer_groups_itself() and split_head_group(optimizer, self.head, scale)
            self._head_factor = scale if scaled else 1.0
            if scaled and isinstance(self.resolved.head_scale, Tensor):
                self._head_factor = self.resolved.head_scale.to(self.head.weight.device)
                scale_row_steps(optimizer, self.head, self._head_factor / scale)
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
            self.lr_scheduler = multistep_schedule(made, steps, self.args.get_warmup_steps(num_training_steps))
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


def split_head_group(optimizer: torch.optim.Optimizer, head: Head, label_scale: float) -> bool:
    """
    Moves the head's parameters to groups of their own, last, with learning rate lr * s and weight decay wd / s.

    Together with a gradient multiplied by s (`Head.gradient_factor`) that is what a head over standardised labels does
    under SGD, Adam, AdamW and Lion, with and without clipping.

    Args:
        optimizer (`torch.optim.Optimizer`): A new optimizer; changed in place.
        head (`Head`): The head.
        label_scale (`float`): Label scale s, in label units.

    Returns:
        `bool`: whether the optimizer had the head's parameters in its groups; otherwise it stays as it is.
    """
    mine = {id(parameter) for parameter in head.parameters()}
    groups = []
    for group in optimizer.param_groups:
        moved = [parameter for parameter in group["params"] if id(parameter) in mine]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in mine]
            scaled = {"lr": group["lr"] * label_scale, "weight_decay": group.get("weight_decay", 0.0) / label_scale}
            groups.append({**group, **scaled, "params": moved})
    for group in groups:
        optimizer.add_param_group(group)
    return bool(groups)


def scale_row_steps(optimizer: torch.optim.Optimizer, head: Head, relative_scales: Tensor) -> None:
    """
    Lets the optimizer step as if every row of the head were divided by its relative scale, for labels whose dimensions
    have scales of their own; outside of a step the parameters are as they are.

    As exact as [`split_head_group`] is, whatever the optimizer makes of a gradient and a weight, but for the rounding
    of the division.

    Args:
        optimizer (`torch.optim.Optimizer`): It steps the head.
        head (`Head`): The head. Its gradients are those of the divided rows (`Head.gradient_factor`).
        relative_scales (`torch.Tensor` of shape `(T,)`): Scale of each label dimension over the label scale.
    """
    rows = [(parameter, of_rows(relative_scales.to(parameter.device), parameter)) for parameter in head.parameters()]
    kept: list[Tensor] = []

    @torch.no_grad()
    def divide(*_: object) -> None:
        kept[:] = [parameter.clone() for parameter, _ in rows]
        for parameter, scales in rows:
            parameter.div_(scales)

    @torch.no_grad()
    def restore(*_: object) -> None:
        # By the difference, so that what did not move is as it was to the last bit.
        for (parameter, scales), before in zip(rows, kept, strict=True):
            parameter.sub_(before / scales).mul_(scales).add_(before)
        kept.clear()

    optimizer.register_step_pre_hook(divide)
    optimizer.register_step_post_hook(restore)


def apply_layer_decay(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """
    Splits the optimizer's groups by layer; each layer's learning rate is `decay` times that of the next one up. The
    head, and what follows the last block, keep theirs.

    Args:
        optimizer (`torch.optim.Optimizer`): A new optimizer; changed in place.
        model (`nn.Module`): Its model, unwrapped.
        decay (`float`): Share of the learning rate that a layer has of the next one's.

    Source: Bao et al., "BEiT", arXiv 2106.08254; the layers of timm models are timm's.
    """
    depths = layer_ids(model)
    last = max(depths.values())
    of_parameter = {id(parameter): last - depths[name] for name, parameter in model.named_parameters()}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        below: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            below.setdefault(of_parameter[id(parameter)], []).append(parameter)
        for layers, parameters in sorted(below.items()):
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * decay**layers})


def layer_ids(model: nn.Module) -> dict[str, int]:
    """
    The depth of each parameter by its name: 0 before the first block, then by blocks in order, and one more behind
    them. Of timm models blocks are timm's.

    Otherwise a block is a member of a `ModuleList` of one class. Where such a list holds most of a member's
    parameters, as in a stage of blocks, its own members are the blocks; what lies between blocks belongs to the next.

    Raises:
        `ValueError`: if there is no block.
    """
    if isinstance(model, TimmWrapperForImageClassification):
        inner = model.timm_model
        layers = group_parameters(inner, inner.group_matcher(coarse=False), reverse=True)
        return {f"timm_model.{name}": depth for name, depth in layers.items()}
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(
            f"layer_decay is set, but {type(model).__name__} has no list of layers to go by. Leave it unset."
        )
    names = [name for name, _ in model.named_parameters()]
    within = [next((number for number, block in enumerate(blocks, 1) if name.startswith(block)), 0) for name in names]
    begin = next(place for place, number in enumerate(within) if number)
    depths, following = {}, len(blocks) + 1
    for name, number in zip(reversed(names[begin:]), reversed(within[begin:]), strict=True):
        following = number or following
        depths[name] = following
    return {**dict.fromkeys(names[:begin], 0), **depths}


def _blocks(module: nn.Module, prefix: str = "") -> list[str]:
    """Prefixes of the names of a module's blocks, in order."""
    found = []
    for name, child in module.named_children():
        inner = f"{prefix}{name}."
        if isinstance(child, nn.ModuleList) and len({type(member) for member in child}) == 1:
            for place, member in enumerate(child):
                parts = _blocks(member, f"{inner}{place}.")
                share = sum(_size(member.get_submodule(part[len(inner) + len(str(place)) + 1 : -1])) for part in parts)
                found += parts if share > _size(member) / 2 else [f"{inner}{place}."]
        else:
            found += _blocks(child, inner)
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
