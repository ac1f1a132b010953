"""`conr-hf demo`: a saved model in the browser."""

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from conr_hf.cli.demo.page import Target, answer, number, page, style
from conr_hf.data.benchmarks.loading import load_benchmark
from conr_hf.data.benchmarks.registry import BENCHMARKS
from conr_hf.data.images import describe_error, to_image
from conr_hf.inference.conformal import load_intervals
from conr_hf.inference.feature_index import FeatureIndex, load_index
from conr_hf.models.adopt_head import adopt_head
from conr_hf.models.factory import dummy_pixels
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.training.state import load_state

EXAMPLES = 5
SHOWN = 1024  # pixels of the longer side of the image in the page


def demo(name: str, *, host: str, port: int | None, max_size: int, examples: str | None) -> None:
    """
    Shows a saved model in the browser until it is interrupted.

    Args:
        name (`str`): Run folder, checkpoint or Hub id.
        host (`str`): Address to listen on.
        port (`int`, *optional*): Port to listen on. Unset: the first free one from 7860 on.
        max_size (`int`): Largest upload, in MB (2^20 bytes).
        examples (`str`, *optional*):
            A folder of images to choose from. Unset: test images of the benchmark, if it comes with the package.

    Raises:
        `ValueError`: without gradio; for a model or examples that are not there; for an address that is taken.
    """
    check_gradio()
    model, processor = load_saved(name)
    targets = saved_targets(name, target_names(model))
    predict = predictor(model, processor, targets, load_index(name))
    with TemporaryDirectory() as scratch:
        files, credit = example_files(name, examples, Path(scratch))
        blocks = page(title_of(name), about(targets), predict, files, credit)
        try:
            _, url, _ = blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                max_file_size=max_size * 2**20,
                show_error=False,
                quiet=True,
                prevent_thread_lock=True,
                **style(),
            )
        except OSError as error:
            where = f"{host}, port {port}" if port is not None else host
            raise ValueError(f"The demo cannot listen on {where}. Name another --port or --host.") from error
        print(f"{title_of(name)} is at {url} (Ctrl+C stops it)", flush=True)
        blocks.block_thread()


def check_gradio() -> None:
    """
    Raises:
        `ValueError`: if gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise ValueError('The demo needs gradio. Install it with: pip install "conr-hf[demo]"')


def saved_targets(name: str, targets: Sequence[str]) -> list[Target]:
    """
    What is known of a saved model's targets from the files beside it: unit, training labels, intervals.

    Raises:
        `ValueError`: for a file that is no such, or another model's.
    """
    intervals, state = load_intervals(name), load_state(name)
    if intervals is not None and intervals.targets != list(targets):
        raise ValueError(
            f'The intervals.json beside "{name}" is for {", ".join(intervals.targets)}, and the model predicts '
            f"{', '.join(targets)}. Remove that file."
        )
    if state is not None and len(state[1].edges) != len(targets):
        raise ValueError(
            f'The conr_state.safetensors beside "{name}" has labels of {len(state[1].edges)} dimensions, and the '
            f"model predicts {', '.join(targets)}. Remove that file."
        )
    unit = intervals.unit if intervals is not None else saved_unit(name)
    found = []
    for place, target in enumerate(targets):
        facts: dict[str, Any] = {"name": target, "unit": unit}
        if state is not None:
            facts["edges"] = state[1].edges[place].tolist()
            facts["train_counts"] = state[1].train_counts[place].tolist()
        if intervals is not None:
            facts["coverage"] = intervals.coverage
            facts["groups"] = [
                {"low": group.low, "high": group.high, "half_width": group.half_width}
                for group in intervals.groups[target]
            ]
        found.append(Target(**facts))
    return found


def predictor(
    model: PreTrainedModel, processor: BaseImageProcessor, targets: Sequence[Target], index: FeatureIndex | None
) -> Callable[[bytes], tuple[Image.Image, str]]:
    """
    What the page asks of a model: takes what an image file holds; returns the image, upright, and the HTML of
    [`~conr_hf.cli.demo.page.answer`]. It raises `ValueError` for what cannot be read as an image.

    Raises:
        `ValueError`: for an index of another model.
    """
    model.eval().to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    layer = adopt_head(model, dummy_pixels(processor), index.head) if index is not None else None
    if index is not None and layer is not None:
        columns = index.features.shape[1], index.labels.shape[1]
        if columns != (layer.weight.shape[1], len(targets)):
            raise ValueError("The feature_index.safetensors beside the model is another model's. Remove that file.")

    def predict(data: bytes) -> tuple[Image.Image, str]:
        try:
            image = to_image({"bytes": data})
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"The file cannot be read as an image: {describe_error(error)}.") from error
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            predictions = model(pixel_values=pixels.to(model.device)).logits[0].double().tolist()
        nearest: list[list[float]] = []
        if index is not None and layer is not None:
            nearest = index.nearest_labels(layer.take_features()[0].float().cpu().numpy()).tolist()
        said = answer(targets, predictions, nearest)
        image.thumbnail((SHOWN, SHOWN))
        return image, said

    return predict


def example_files(name: str, folder: str | None, into: Path) -> tuple[list[str], str]:
    """
    Images to choose from, and whose they are: those of `folder`; or test images from all over the label range, written
    into `into`, where the model was trained on a benchmark that comes with the package; or none.

    Raises:
        `ValueError`: for a folder without images.
    """
    if folder is not None:
        known = Image.registered_extensions()
        found = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in known)
        if not found:
            raise ValueError(f'--examples "{folder}" is no folder with images.')
        return [str(file) for file in found], ""
    recipe = saved_recipe(name)
    benchmark = BENCHMARKS.get(str(recipe.get("benchmark")))
    if benchmark is None or (benchmark.folder is None and not benchmark.drawn):
        return [], ""
    rows = load_benchmark(benchmark.name, recipe.get("benchmark_source"))["test"]
    column = (recipe.get("label_columns") or benchmark.label_columns)[0]
    labels = np.asarray(rows[column], np.float64)
    order = np.argsort(labels, kind="stable")
    places = order[np.linspace(0, len(order) - 1, EXAMPLES + 2).round().astype(int)[1:-1]]
    files = []
    for at, place in enumerate(places.tolist(), 1):
        label = number(labels[place], float(np.ptp(labels))).replace(",", "")
        files.append(str(into / f"{at}-{column}-{label}.png"))
        to_image(rows[place]["image"]).save(files[-1])
    return files, benchmark.credit


def saved_recipe(name: str) -> dict[str, Any]:
    """The recipe of the run that a saved model or checkpoint lies in; empty without."""
    files = [folder / "results.json" for folder in (Path(name), Path(name).parent)]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return dict(found[0].get("recipe", {})) if found else {}


def title_of(name: str) -> str:
    """What a model is called: its id on the Hub, or its folder."""
    return Path(name).resolve().name if Path(name).exists() else name


def about(targets: Sequence[Target]) -> str:
    """A sentence on what a model predicts."""
    named = [f"{target.name} ({target.unit})" if target.unit else target.name for target in targets]
    *first, last = named
    return f"Predicts {', '.join(first)}{' and ' if first else ''}{last} from an image."
