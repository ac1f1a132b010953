"""Models that PEFT trains by adapters, such as LoRA: their head, and what an adapter does not hold."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.import_utils import is_peft_available

from conr_hf.models.outputs import prediction

logger = logging.get_logger(__name__)


def has_adapter(model: nn.Module) -> bool:
    """Whether a model is trained by adapters of PEFT: by `get_peft_model`, or transformers' own `add_adapter`."""
    if isinstance(model, PreTrainedModel):
        return model._hf_peft_config_loaded
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def adapter_norms(model: nn.Module, head: nn.Module, pixel_values: Callable[[], Tensor]) -> list[nn.Module]:
    """
    Batch norms beneath adapters that do not learn: they are the pretrained model's, whose running statistics no
    adapter holds, and training must leave them as they are. None in a model without adapters; a model that would
    neither train its head nor save it with them, or whose adapters take no part in its prediction for `pixel_values`,
    is refused.
    """
    if not has_adapter(model):
        return []
    name = next(name for name, layer in model.named_modules() if layer is head).removeprefix("base_model.model.")
    if ".modules_to_save." not in name:
        plain = name.removesuffix(".base_layer")
        raise ValueError(
            f"{plain}, the layer that predicts, would be neither trained nor saved with the adapter. Name it to PEFT: "
            f'LoraConfig(..., modules_to_save=["{plain}"]).'
        )
    _check_take_part(model, name, pixel_values())
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    return [norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters())]


def _check_take_part(model: nn.Module, head: str, pixel_values: Tensor) -> None:
    """Refuses adapters of which none has a gradient, and names those that have none."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    of_adapter = [name for name in trained if not name.removeprefix("base_model.model.").startswith(f"{head}.")]
    was_training, device = model.training, next(model.parameters()).device
    try:
        with torch.enable_grad():
            predicted = prediction(model.eval()(pixel_values=pixel_values.to(device)))
            gradients = torch.autograd.grad(predicted.sum(), list(trained.values()), allow_unused=True)
    finally:
        model.train(was_training)
    found = dict(zip(trained, gradients, strict=True))
    idle = [name.removeprefix("base_model.model.") for name in of_adapter if found[name] is None]
    if not idle:
        return
    named = f"{', '.join(idle[:4])}{f' and {len(idle) - 4} more' if len(idle) > 4 else ''}"
    problem = "have no gradient: the model reads these layers' weights past the layers"
    if len(idle) == len(of_adapter):
        raise ValueError(f"The adapter would learn nothing, as {named} {problem}. Name other target_modules to PEFT.")
    logger.warning(f"A part of the adapter will not learn, as {named} {problem}.")
