"""`conr-hf demo`: a saved model in the browser, or as the folder of a Space."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from conr_hf.cli.demo import page as demo_page
from conr_hf.cli.demo.page import Target, page, predictor
from conr_hf.data import images
from conr_hf.data.benchmarks.loading import load_benchmark
from conr_hf.data.benchmarks.registry import BENCHMARKS
from conr_hf.inference.conformal import load_intervals
from conr_hf.inference.feature_index import load_index, similar_labels
from conr_hf.models.image_processors import read_options
from conr_hf.models.saved import load_saved, saved_unit, target_names
from conr_hf.training.conr_state import load_state
from conr_hf.utils.environment import current_device
from conr_hf.utils.files import check_writable, write_json
from conr_hf.utils.markdown import escape
from conr_hf.utils.run_folder import results_of

# Like a saved model, a Space does not need this package.
APP = '''"""Predictions for images in the browser: python app.py"""

import json
from pathlib import Path

import images
import torch
from page import Target, page, predictor
from transformers import AutoImageProcessor, AutoModelForImageClassification

HERE = Path(__file__).parent
MODEL = {model}

about = json.loads((HERE / "page.json").read_text(encoding="utf-8"))
targets = [Target(**target) for target in about["targets"]]
model = AutoModelForImageClassification.from_pretrained(MODEL, dtype=torch.float32)
processor = AutoImageProcessor.from_pretrained(MODEL)
predict = predictor(model, processor, targets, images, options=about["image_options"])
demo, look = page(about["title"], targets, predict, HERE / "examples", about["credit"])

if __name__ == "__main__":
    demo.launch(max_file_size={max_size}, **look)
'''

README = """---
title: {title}
emoji: 📐
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
models: {models}
---

Predicts {predicted} from an image. Try it here with `pip install -r requirements.txt` and `python app.py`.

{credit}
"""


def demo(name: str, *, host: str, port: int | None, max_size: int, examples: str | None) -> None:
    """
    Shows a saved model, a folder or Hub id, in the browser until it is interrupted. Without a port it takes the first
    free one from 7860 on; `max_size` of an upload is in MB (2^20 bytes).
    """
    check_gradio()
    model, processor = load_saved(name)
    model.eval().to(current_device())
    targets = saved_targets(name, target_names(model))
    options = read_options(model.config.to_dict())
    nearest = similar_labels(model, processor, load_index(name))
    predict = predictor(model, processor, targets, images, nearest, options)
    with TemporaryDirectory() as scratch:
        credit = write_examples(name, examples, Path(scratch))
        blocks, look = page(title_of(name), targets, predict, Path(scratch), credit)
        launch = {"share": False, "show_error": False, "quiet": True, "max_file_size": max_size * 2**20, **look}
        try:
            _, url, _ = blocks.launch(prevent_thread_lock=True, server_name=host, server_port=port, **launch)
        except OSError as error:
            where = f"{host}, port {port}" if port is not None else host
            raise ValueError(f"The demo cannot listen on {where}. Name another --port or --host.") from error
        print(f"{title_of(name)} is at {url} (Ctrl+C stops it)", flush=True)
        blocks.block_thread()


def export(name: str, folder: str, *, with_model: bool, max_size: int, examples: str | None) -> None:
    """Writes the files of a Space into a new or empty folder, `with_model` or not, and prints what is left to do."""
    check_gradio()
    out, on_hub, title = Path(folder), not Path(name).exists(), title_of(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'"{folder}" exists and is not an empty folder. Name another for --export.')
    model, processor = load_saved(name)
    targets = saved_targets(name, target_names(model))
    check_writable(folder)
    (out / "examples").mkdir()
    credit = write_examples(name, examples, out / "examples")
    source = json.dumps(name if on_hub else f"YOUR-NAME/{title}")
    if with_model:
        source = 'str(HERE / "model")'
        model.save_pretrained(out / "model")
        processor.save_pretrained(out / "model")
    for module in (demo_page, images):
        shutil.copy(str(module.__file__), out)
    about = {"title": title, "credit": credit, "targets": [*map(asdict, targets)]}
    write_json(out / "page.json", {**about, "image_options": read_options(model.config.to_dict())})
    packages = ["torch", "torchvision", "transformers", "gradio", "pillow"]
    packages += ["timm"] if model.config.model_type == "timm_wrapper" else []
    readme = README.format(
        title=json.dumps(title.rpartition("/")[2]),
        gradio=version("gradio"),
        models=json.dumps([name] if on_hub else []),
        predicted=escape(" and ".join(target.title for target in targets)),
        credit=f"Examples: {escape(credit)}." if credit else "",
    )
    app = APP.replace("{model}", source).replace("{max_size}", str(max_size * 2**20))
    requirements = "".join(f"{package}=={version(package).partition('+')[0]}\n" for package in packages)
    for file, text in (("app.py", app), ("README.md", readme), ("requirements.txt", requirements)):
        (out / file).write_text(text, encoding="utf-8")
    print(f"Written to {folder}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if not on_hub and not with_model:
        place = f"in place of YOUR-NAME/{title} in app.py"
        print(f"Push the model to the Hub first, and write its id {place}; or export again --with_model.")


def check_gradio() -> None:
    if find_spec("gradio") is None:
        raise ValueError('The demo needs gradio. Install it with: pip install "conr-hf[demo]"')


def saved_targets(name: str, targets: Sequence[str]) -> list[Target]:
    """A saved model's targets with what the files beside it say: unit, bins of the training labels, intervals."""
    intervals, state = load_intervals(name), load_state(name)
    predicts = f"and the model predicts {', '.join(targets)}. Remove that file."
    if intervals is not None and intervals.targets != list(targets):
        raise ValueError(f'The intervals.json beside "{name}" is for {", ".join(intervals.targets)}, {predicts}')
    if state is not None and (dimensions := len(state[1].edges)) != len(targets):
        raise ValueError(
            f'The conr_state.safetensors beside "{name}" has labels of {dimensions} dimensions, {predicts}'
        )
    bounded = [known for known in (state[0] if state is not None else None, intervals) if known is not None]
    found = []
    for place, target in enumerate(targets):
        facts: dict[str, Any] = {"unit": saved_unit(name)}
        if state is not None:
            facts |= {"edges": state[1].edges[place].tolist(), "train_counts": state[1].train_counts[place].tolist()}
            facts["thresholds"] = list(state[1].thresholds)
        if intervals is not None:
            groups = [vars(group) for group in intervals.groups[target]]
            facts |= {"unit": intervals.unit, "coverage": intervals.coverage, "groups": groups}
        for known in bounded:
            bounds = {"label_min": known.label_min, "label_max": known.label_max}
            facts |= {bound: of_targets[place] for bound, of_targets in bounds.items() if of_targets is not None}
        found.append(Target(target, **facts))
    return found


def write_examples(name: str, folder: str | None, into: Path) -> str:
    """
    Writes example images into the folder `into`: those of `folder`; or, for a model trained on a benchmark that comes
    with the package, test images from the whole label range; or none. Returns their credit line.
    """
    if folder is not None:
        files = images.image_files(Path(folder).glob("*"))
        if not files:
            raise ValueError(f'--examples "{folder}" is no folder with images.')
        for file in files:
            shutil.copy(file, str(into))
        return ""
    recipe = results_of(name).get("recipe", {})
    benchmark = BENCHMARKS.get(str(recipe.get("benchmark")))
    if benchmark is None or (benchmark.folder is None and not benchmark.drawn):
        return ""
    column = (recipe.get("label_columns") or benchmark.label_columns)[0]
    rows = load_benchmark(benchmark.name, recipe.get("benchmark_source"))["test"]
    places = np.argsort(rows[column], kind="stable")[np.linspace(0, len(rows) - 1, 7).round().astype(int)[1:-1]]
    for at, row in enumerate(map(rows.__getitem__, places.tolist()), 1):
        images.to_image(row["image"]).save(into / f"{at}-{column}-{row[column]:.4g}.png")
    return benchmark.credit


def title_of(name: str) -> str:
    return Path(name).resolve().name if Path(name).exists() else name
