"""Every checkpoint is a plain transformers model: it predicts the same where `conr_hf` cannot be imported."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small
from safetensors.numpy import load_file, save_file
from transformers import TrainerCallback

from conr_hf.training.conr_state import load_state
from conr_hf.utils.run_folder import STATE

# Runs in a Python that has transformers only; folders on stdin, what they predict on stdout.
PLAIN_TRANSFORMERS = """
import inspect, json, sys

sys.modules["conr_hf"] = None
try:
    import conr_hf
except ImportError:
    pass
else:
    raise AssertionError("conr_hf can be imported")

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ImageClassificationPipeline, pipeline

found = {}
for folder, paths in json.load(sys.stdin).items():
    images = [Image.open(path) for path in paths]
    model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        predictions = model(pixel_values=pixels).logits
    # Before transformers knew regression here, a pipeline had to be told not to squash the output.
    knows = "regression" in inspect.getsource(ImageClassificationPipeline.postprocess)
    told = {} if knows else {"function_to_apply": "none"}
    pipe = pipeline("image-classification", model=folder, device="cpu", **told)
    found[folder] = {
        "predictions": predictions.tolist(),
        "pipeline": pipe(images[:3]),
        "misfits": [str(key) for keys in info.values() for key in keys],
        "problem_type": model.config.problem_type,
        "own_code": hasattr(model.config, "auto_map"),
    }
print(json.dumps(found))
"""


@dataclass
class Run:
    scale: float
    columns: int
    checkpoints: dict  # folder -> the trainer's predictions, of shape (N, T)
    resolved: object
    bins: object
    best: str
    final: str


class PredictOnSave(TrainerCallback):
    """Notes what the trainer predicts at each checkpoint, just after it was written."""

    def __init__(self):
        self.trainer, self.predictions = None, {}

    def on_save(self, args, state, control, **kwargs):
        folder = str(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        self.predictions[folder] = self.trainer.predict(self.trainer.eval_dataset).predictions


NAMES = ["vit", "dinov2", "swin", "convnextv2", "resnet", "timm-resnet", "timm-vit", "two-targets", "methods"]


def train(name, folder):
    columns = 2 if name == "two-targets" else 1
    architecture = "vit" if name in ("two-targets", "methods") else name
    model, processor = small.models[architecture](["age", "height"][:columns])
    data = small.images(16, dimensions=columns)
    changed = {"label_columns": ["label0", "label1"]} if columns == 2 else {}
    if name == "methods":
        changed = {"base_loss": "bmc", "fds": "gaussian", "ema_decay": 0.9, "ranksim_weight": 1.0}
    noted = PredictOnSave()
    age = itertools.count()  # a metric that calls the first checkpoint the best, so that the best is not the last
    trainer = small.build(
        model,
        processor,
        folder,
        data,
        data,
        callbacks=[noted],
        num_train_epochs=2,
        learning_rate=1e-2,
        save_only_model=True,
        compute_metrics=lambda _: {"age": float(next(age))},
        metric_for_best_model="age",
        greater_is_better=False,
        **changed,
    )
    noted.trainer = trainer
    trainer.train()
    final = str(folder / "final")
    trainer.save_model(final)
    checkpoints = {**noted.predictions, final: trainer.predict(data).predictions}
    checkpoints = {folder: predictions.reshape(16, columns) for folder, predictions in checkpoints.items()}
    best = trainer.state.best_model_checkpoint
    return Run(trainer.resolved.label_scale, columns, checkpoints, trainer.resolved, trainer.bins, best, final)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {name: train(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory):
    """What plain transformers says of each checkpoint; one process for all of them."""
    folder = tmp_path_factory.mktemp("images")
    paths = {columns: [] for columns in (1, 2)}
    for columns, listed in paths.items():
        for index, row in enumerate(small.images(16, dimensions=columns)):
            listed.append(str(folder / f"{columns}-{index}.png"))
            row["image"].save(listed[-1])
    asked = {checkpoint: paths[run.columns] for run in runs.values() for checkpoint in run.checkpoints}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_plain_transformers_predicts_the_same(name, runs, plain):
    run = runs[name]
    assert len(run.checkpoints) == 3  # two epochs, and the model saved at the end
    for folder, expected in run.checkpoints.items():
        found = plain[folder]
        deviation = np.abs(np.array(found["predictions"]) - expected).max() / run.scale
        print(f"{name}: {deviation:.1e} label scales")
        assert deviation < 1e-5
        assert found["misfits"] == []
        assert found["problem_type"] == "regression"
        assert not found["own_code"]
    first, second, _ = run.checkpoints.values()
    assert np.abs(first - second).max() / run.scale > 0.01  # the checkpoints differ, or little was shown


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_prints_label_units_under_the_targets_name(name, runs, plain):
    run = runs[name]
    for folder, expected in run.checkpoints.items():
        for printed, row in zip(plain[folder]["pipeline"], expected, strict=False):
            scores = {entry["label"]: entry["score"] for entry in printed}
            assert sorted(scores) == ["age", "height"][: run.columns]
            assert np.abs(np.array([scores[label] for label in sorted(scores)]) - row).max() / run.scale < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_best_checkpoint_is_what_training_ends_with(name, runs):
    """Trainer alone would load no encoder layer of ViT, DINOv2 and Swin: their files hold older names."""
    run = runs[name]
    assert run.best == next(iter(run.checkpoints))
    assert np.abs(run.checkpoints[run.final] - run.checkpoints[run.best]).max() / run.scale < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_bins_are_saved_beside_each_checkpoint(name, runs):
    run = runs[name]
    for folder in run.checkpoints:
        resolved, bins = load_state(folder)
        assert resolved == run.resolved
        assert bins.to_dict().keys() == run.bins.to_dict().keys()
        for field, parts in run.bins.to_dict().items():
            for saved, expected in zip(bins.to_dict()[field], parts, strict=True):
                np.testing.assert_array_equal(saved, expected)


def test_a_folder_without_state_has_none(tmp_path):
    assert load_state(tmp_path) is None


def test_settings_of_another_version_are_refused(runs, tmp_path):
    """They would end in the depths, and the model itself is fine."""
    tensors = load_file(Path(next(iter(runs[NAMES[0]].checkpoints)), STATE))
    save_file(tensors, tmp_path / STATE, metadata={"resolved": '{"window": 1.0}'})
    with pytest.raises(ValueError, match=r"another version of conr_hf, with or without .*rnc_weight.*training"):
        load_state(str(tmp_path))
