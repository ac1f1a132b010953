"""`conr-hf export`: a saved model as a file for other runtimes, checked against the model before it is kept."""

import json
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel, TimmWrapperConfig

from conr_hf.models.image_processors import read_options
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.training.conr_state import load_state
from conr_hf.utils.files import check_writable
from conr_hf.utils.run_folder import STATE

BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-4  # label scales
FILES = {"onnx": "model.onnx", "torch-export": "model.pt2", "timm": "timm.safetensors"}
LARGEST_ONNX = 2 * 10**9  # bytes; the limit of its files

Predict = Callable[[Tensor], Tensor]


def export(model_name: str, form: str, output: str | None) -> Path:
    """
    Writes a saved model as a file that needs neither this package nor (except for timm's format) the model's code.

    The file maps `pixel_values`, float32 of shape `(N, C, H, W)` for any N, to `predictions`, float32 of shape
    `(N, T)` in label units. Its metadata are the targets, their unit, and the preprocessing of images. It is read back
    and compared with the model on batches of 1, 2 and 5 images; no file is left if its predictions differ by more than
    1e-4 label scales. Without `output` it is in the model's folder or, for a model of the Hub, in the current one.
    """
    path = _path(model_name, form, output)
    if form == "onnx" and (missing := [name for name in ("onnxscript", "onnxruntime") if find_spec(name) is None]):
        raise ValueError(f'--format onnx needs {" and ".join(missing)}. Install with: pip install "conr-hf[export]"')
    check_writable(str(path.parent))
    model, processor = load_saved(model_name)
    predictor = Predictor(model).eval().requires_grad_(False)
    if form == "timm" and not isinstance(model.config, TimmWrapperConfig):
        raise ValueError(
            f'"{model_name}" is a {type(model).__name__} of transformers and no model of timm. Use --format onnx or '
            "torch-export."
        )
    if form == "onnx" and sum(weight.nbytes for weight in model.parameters()) > LARGEST_ONNX:
        raise ValueError(f'"{model_name}" has over 2 GB, which no ONNX file holds. Use --format torch-export.')
    options = read_options(model.config.to_dict())
    batches = [_pixels(processor, size, options["mode"]) for size in BATCH_SIZES]
    expected = [predictor(pixels) for pixels in batches]
    facts = _facts(model, processor, saved_unit(model_name))
    with TemporaryDirectory(dir=path.parent) as scratch:
        file = Path(scratch, path.name)
        try:
            predict = _WRITERS[form](predictor, batches[1], facts, file)
        except Exception as error:  # tracers raise errors of many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ValueError(f'"{model_name}" cannot be exported as {form}: {reason}.') from error
        _check(predict, batches, expected, _tolerance(model_name, expected), form)
        del predict  # closes the file, which Windows cannot move while it is open
        os.replace(file, path)
    targets = ", ".join(target_names(model))
    print(f"Written to {path}: {targets}, the same as the model on batches of 1, 2 and 5 images.")
    print(f"To predict with it:\n\n{_snippet(model_name, processor, facts, _loading(model, form, path))}")
    return path


def _path(model_name: str, form: str, output: str | None) -> Path:
    usual = Path(FILES[form])
    if output is None and Path(model_name).is_dir():
        return Path(model_name) / usual
    if output is None:
        return Path(f"{Path(model_name).name}-{usual}")
    path = Path(output)
    if path.suffix != usual.suffix:
        raise ValueError(f'--output "{output}" must end in {usual.suffix} for --format {form}.')
    if path.name in ("model.safetensors", STATE):
        raise ValueError(f'--output "{output}" has the name of a file that belongs to the model. Name another.')
    return path


def _pixels(processor: BaseImageProcessor, size: int, mode: str) -> Tensor:
    noise = np.random.default_rng(size).integers(0, 256, (size, 64, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(image).convert(mode) for image in noise]
    pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels


def _facts(model: PreTrainedModel, processor: BaseImageProcessor, unit: str) -> dict[str, str]:
    """Metadata for users of the file, as strings: lists and the processor's settings in JSON."""
    # Mean and std from the pixel values of black and white, as processors name their settings differently.
    options = read_options(model.config.to_dict())
    sides = [Image.new(options["mode"], (64, 64), colour) for colour in ("black", "white")]
    black, white = processor(images=sides, return_tensors="pt")["pixel_values"]
    std = 1 / (white - black).mean(dim=(1, 2))
    mean = -black.mean(dim=(1, 2)) * std
    return {
        "targets": json.dumps(target_names(model)),
        "unit": unit,
        "image_size": json.dumps(list(black.shape[1:])),
        "mean": json.dumps([round(value, 5) for value in mean.tolist()]),
        "std": json.dumps([round(value, 5) for value in std.tolist()]),
        "image_mode": options["mode"],
        "image_range": json.dumps(options["image_range"]),
        "image_processor": processor.to_json_string(),
    }


def _tolerance(model_name: str, expected: list[Tensor]) -> float:
    try:
        saved = load_state(model_name)
    except ValueError:  # written by another version of this package
        saved = None
    largest = max(float(predictions.abs().max()) for predictions in expected)
    return TOLERANCE * (saved[0].label_scale if saved is not None else max(1.0, largest))


def _check(predict: Predict, batches: list[Tensor], expected: list[Tensor], tolerance: float, form: str) -> None:
    for pixels, right in zip(batches, expected, strict=True):
        difference = float((predict(pixels) - right).abs().max())
        if not difference <= tolerance:  # nor is NaN
            raise ValueError(
                f"The {form} file's predictions differ from the model's by up to {difference:.3g} on {len(pixels)} "
                f"images, more than the {tolerance:.3g} allowed. It was not kept."
            )


class Predictor(nn.Module):
    """A model as pixel values in, predictions out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        predictions: Tensor = self.model(pixel_values=pixel_values).logits
        return predictions


def _write_onnx(predictor: Predictor, pixels: Tensor, facts: dict[str, str], file: Path) -> Predict:
    predictor.model.set_attn_implementation("eager")  # ONNX has all of its operations
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["predictions"]}
    program = torch.onnx.export(predictor, (pixels,), dynamo=True, dynamic_shapes=_ANY_NUMBER, verbose=False, **names)
    assert program is not None
    program.model.metadata_props.update(facts)
    program.save(file, external_data=False)
    session = import_module("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["predictions"], {"pixel_values": pixels.numpy()})[0])


def _write_torch_export(predictor: Predictor, pixels: Tensor, facts: dict[str, str], file: Path) -> Predict:
    program = torch.export.export(predictor, (pixels,), dynamic_shapes=_ANY_NUMBER)
    torch.export.save(program, file, extra_files={"conr_hf.json": json.dumps(facts)})
    predict: Predict = torch.export.load(file).module()
    return predict


def _write_timm(predictor: Predictor, pixels: Tensor, facts: dict[str, str], file: Path) -> Predict:
    weights = predictor.model.get_submodule("timm_model").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file, metadata=facts)
    return timm.create_model(**_timm_arguments(predictor.model, file)).eval().requires_grad_(False)


def _timm_arguments(model: PreTrainedModel, file: Path) -> dict[str, Any]:
    own = {"model_name": model.config.architecture, "num_classes": model.config.num_labels}
    return {**own, **(model.config.model_args or {}), "checkpoint_path": str(file)}


def _loading(model: PreTrainedModel, form: str, path: Path) -> str:
    """Lines of code that import what is needed, and predict from `pixels`."""
    if form == "onnx":
        session = f"onnxruntime.InferenceSession({str(path)!r})"
        return f'import onnxruntime\npredictions = {session}.run(["predictions"], {{"pixel_values": pixels}})[0]'
    if form == "torch-export":
        return f"import torch\npredictions = torch.export.load({str(path)!r}).module()(torch.from_numpy(pixels))"
    arguments = ", ".join(f"{name}={value!r}" for name, value in _timm_arguments(model, path).items())
    return f"import timm, torch\npredictions = timm.create_model({arguments}).eval()(torch.from_numpy(pixels))"


def _snippet(model_name: str, processor: BaseImageProcessor, facts: dict[str, str], loading: str) -> str:
    """
    Code from an image file to predictions: with Pillow and numpy alone where they give what the processor does, which
    is tried out, else with the processor.
    """
    imports, predict = loading.splitlines()
    mode = facts.get("image_mode", "RGB")
    size, mean, std = (json.loads(facts[name]) for name in ("image_size", "mean", "std"))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)).convert(mode)
    expected = processor(images=[noise], return_tensors="pt")["pixel_values"][0].numpy()
    side = size[0]
    cut = f"image = image.crop([round((s - {side}) / 2) + at for at in (0, {side}) for s in image.size])"
    for kind in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR) if mode == "RGB" else ():
        stretched = (size[1], size[0])
        scaled = [s * side // min(noise.size) for s in noise.size]
        left, top = (round((s - side) / 2) for s in scaled)
        sides = f"[s * {side} // min(image.size) for s in image.size]"
        shrunk = f"image = image.resize({sides}, Image.Resampling.{kind.name})"
        ways = {
            f"image = image.resize({stretched}, Image.Resampling.{kind.name})": noise.resize(stretched, kind),
            f"{shrunk}\n{cut}": noise.resize(scaled, kind).crop((left, top, left + side, top + side)),
        }
        for way, image in ways.items():
            pixels = ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1)
            if pixels.shape == expected.shape and np.abs(pixels - expected).mean() < 0.02:
                lines = [
                    "import numpy",
                    imports,
                    "from PIL import Image, ImageOps",
                    "",
                    'image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")',
                    way,
                    f"pixels = ((numpy.asarray(image) / 255 - {mean}) / {std}).transpose(2, 0, 1)",
                    'pixels = pixels[None].astype("float32")',
                    predict,
                ]
                return "\n".join(lines)
    lines = [
        imports,
        "from transformers import AutoImageProcessor",
        "from transformers.image_utils import load_image",
        "",
        f"processor = AutoImageProcessor.from_pretrained({model_name!r})",
        f'image = load_image("image.png").convert("{mode}")',
        'pixels = processor(images=[image], return_tensors="pt")["pixel_values"].numpy()',
        predict,
    ]
    return "\n".join(lines)


_ANY_NUMBER = {"pixel_values": {0: torch.export.Dim("batch")}}
_WRITERS = {"onnx": _write_onnx, "torch-export": _write_torch_export, "timm": _write_timm}
