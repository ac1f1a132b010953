import subprocess
import sys
from pathlib import Path

import conr_hf.losses

PROGRAM = """
import sys

for name in (
    "accelerate", "datasets", "evaluate", "huggingface_hub", "matplotlib", "optuna", "pandas", "peft", "PIL",
    "safetensors", "scipy", "sklearn", "timm", "tokenizers", "torchvision", "transformers", "yaml",
):
    sys.modules[name] = None  # importing it raises ImportError

import torch

from conr_hf.losses import conr_loss

features = torch.eye(3, requires_grad=True)
labels, predictions = torch.tensor([20.0, 21.0, 40.0]), torch.tensor([30.0, 22.0, 30.5])
conr_loss(features, labels, predictions, window=1.0, push_scale=0.01).backward()
assert features.grad.any()
print("done")
"""


def test_the_losses_work_with_torch_alone():
    root = Path(conr_hf.losses.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "done", done.stderr
