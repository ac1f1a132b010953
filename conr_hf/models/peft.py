"""Models that PEFT trains by adapters, such as LoRA: their head, and what an adapter does not hold."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available


def has_adapter(model: nn.Module) -> bool:
    """Whether a model is trained by adapters of PEFT: by `get_peft_model`, or transformers' own `add_adapter`."""
    if isinstance(model, PreTrainedModel):
        return model._hf_peft_config_loaded
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def adapter_norms(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """
    Batch norms beneath adapters that do not learn: they are the pretrained model's, whose running statistics no
    adapter holds, and training must leave them as they are. None in a model without adapters; a model that would
    neither train its head nor save it with them is refused.
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
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    return [norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters())]
