"""Small images and models for tests: seconds on one core, nothing fetched."""

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from transformers import (
    ConvNextV2Config,
    Dinov2Config,
    ResNetConfig,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
)

from conr_hf import ConRConfig, ConRTrainer, load_regressor


def images(n, size=32, seed=0, dimensions=1):
    """
    `n` images whose colours follow their long-tailed labels (20 to about 80).

    Columns `image` and `label`; with several dimensions `label0`, `label1`, ... instead of `label`.
    """
    random = np.random.default_rng(seed)
    labels = 20 + np.minimum(random.exponential(15, (n, dimensions)), 60)
    labels = np.round(64 * labels) / 64  # exact in float32, so that tests of units need no allowance for labels
    noise = random.integers(0, 80, (n, size, size, 3))
    noise[:, : size // 2] += (2 * labels[:, 0]).astype(int)[:, None, None, None]
    noise[:, :, : size // 2, 1] += (2 * labels[:, -1]).astype(int)[:, None, None] // 2
    pixels = list(np.clip(noise, 0, 255).astype(np.uint8))
    names = ["label"] if dimensions == 1 else [f"label{dimension}" for dimension in range(dimensions)]
    columns = {name: labels[:, dimension].tolist() for dimension, name in enumerate(names)}
    features = Features({"image": Image(), **{name: Value("float64") for name in names}})
    return Dataset.from_dict({"image": pixels, **columns}, features=features)


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TRANSFORMER = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def vit_config(**changed):
    return ViTConfig(**{**TRANSFORMER, "intermediate_size": 32, **NO_DROPOUT, **changed})


def _dinov2_config():
    return Dinov2Config(**TRANSFORMER, mlp_ratio=2, layerscale_value=1.0, **NO_DROPOUT)


def _swin_config():
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "window_size": 4}
    return SwinConfig(**sizes, depths=[1, 1], num_heads=[1, 2], drop_path_rate=0.0, **NO_DROPOUT)


def _convnextv2_config():
    return ConvNextV2Config(image_size=32, patch_size=4, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1])


def _resnet_config():
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def _siglip_config():
    vision = {**TRANSFORMER, "intermediate_size": 32, "attention_dropout": 0.0}
    return SiglipConfig(
        vision_config=vision, text_config={**vision, "vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2}
    )


def _from_config(make_config):
    def make(target="label"):
        torch.manual_seed(0)
        return load_regressor(make_config(), target, image_size=32)

    return make


def _from_timm(name):
    def make(target="label"):
        torch.manual_seed(0)
        return load_regressor(f"timm/{name}", target, pretrained=False, image_size=32)

    return make


# name -> function(target="label") that returns (model, processor) for images of 32 x 32 pixels, the same every time
models = {
    "vit": _from_config(vit_config),
    "dinov2": _from_config(_dinov2_config),
    "swin": _from_config(_swin_config),
    "convnextv2": _from_config(_convnextv2_config),
    "resnet": _from_config(_resnet_config),
    "siglip": _from_config(_siglip_config),
    "timm-resnet": _from_timm("test_resnet"),
    "timm-vit": _from_timm("test_vit"),
}


def settings(folder, **changed):
    """Settings of a quiet, short run on one CPU that logs every step, ConR alone; `changed` wins."""
    return ConRConfig(
        **{
            "output_dir": str(folder),
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "logging_nan_inf_filter": False,
            "logging_steps": 1,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "resample": "none",
            "rnc_weight": 0.0,
            **changed,
        }
    )


def build(model, processor, folder, train, evaluation=None, **changed):
    """A trainer for a short run; keywords that are not settings of `ConRConfig` go to `ConRTrainer`."""
    ours = {name: changed.pop(name) for name in list(changed) if name not in ConRConfig.__dataclass_fields__}
    return ConRTrainer(
        model,
        settings(folder, **changed),
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        **ours,
    )
