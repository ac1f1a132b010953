"""Small images and models for tests: seconds on one core, nothing fetched."""

import multiprocessing

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import (
    ConvNextV2Config,
    DepthAnythingConfig,
    Dinov2Config,
    DPTConfig,
    GLPNConfig,
    ResNetConfig,
    SegformerConfig,
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


def maps(n, size=32, map_size=16, seed=0):
    """
    `n` images and, in column `label`, a long-tailed number (20 to 80) for each of `map_size` x `map_size` pixels,
    which the image's blocks show by their colour; every fifth pixel or so has none, NaN.
    """
    random = np.random.default_rng(seed)
    labels = 20 + np.minimum(random.exponential(15, (n, map_size, map_size)), 60)
    labels = np.round(64 * labels) / 64
    noise = random.integers(0, 60, (n, size, size, 3))
    shown = noise + (2 * labels).astype(int).repeat(size // map_size, 1).repeat(size // map_size, 2)[..., None]
    labels[random.random(labels.shape) < 0.2] = np.nan
    features = Features({"image": Image(), "label": List(List(Value("float64")))})
    pixels = list(np.clip(shown, 0, 255).astype(np.uint8))
    return Dataset.from_dict({"image": pixels, "label": list(labels)}, features=features)


def calls_of(monkeypatch, module, name):
    """How often a function of a module is called from now on, by forked workers too; read it as `.value`."""
    calls = multiprocessing.get_context("fork").Value("i", 0)
    really = vars(module)[name]

    def counted(*args, **options):
        with calls:
            calls.value += 1
        return really(*args, **options)

    monkeypatch.setattr(module, name, counted)
    return calls


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


FOUR_STAGES = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 8,
    "drop_path_rate": 0.0,
    **NO_DROPOUT,
}
NECK = {"neck_hidden_sizes": [16, 16, 16, 16], "fusion_hidden_size": 16, "initializer_range": 0.1}
FOUR_LAYERS = {**TRANSFORMER, "num_hidden_layers": 4, "initializer_range": 0.1, **NO_DROPOUT}


def _dpt_config():
    return DPTConfig(
        **{**FOUR_LAYERS, **NECK}, intermediate_size=32, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False
    )


def _depth_anything_config(kind, **changed):
    stages = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    backbone = Dinov2Config(**FOUR_LAYERS, mlp_ratio=2, **stages)
    sizes = {"reassemble_hidden_size": 16, "patch_size": 8, "head_hidden_size": 8, **NECK}
    return DepthAnythingConfig(backbone_config=backbone, depth_estimation_type=kind, **sizes, **changed)


def _for_maps(make_config):
    def make(target="label", side=32):
        torch.manual_seed(0)
        return load_regressor(make_config(), target, task="depth", pretrained=False, image_size=side)

    return make


# name -> function(target="label", side=32) that returns (model, processor) of a model that predicts maps
map_models = {
    "upernet": _for_maps(_convnextv2_config),
    "timm": _for_maps(lambda: "timm/test_resnet"),
    "dpt": _for_maps(_dpt_config),
    "depth-anything": _for_maps(lambda: _depth_anything_config("relative", max_depth=1)),
    "metric-depth-anything": _for_maps(lambda: _depth_anything_config("metric", max_depth=100)),
    "glpn": _for_maps(lambda: GLPNConfig(**FOUR_STAGES, num_encoder_blocks=4, sr_ratios=[8, 4, 2, 1], max_depth=100)),
    "segformer": _for_maps(lambda: SegformerConfig(**FOUR_STAGES, architectures=["SegformerForSemanticSegmentation"])),
}


def settings(folder, **changed):
    """Settings of a quiet, short run on one CPU that logs every step, ConR alone over two views; `changed` wins."""
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
            "num_views": 2,
            "horizontal_flip": True,
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
