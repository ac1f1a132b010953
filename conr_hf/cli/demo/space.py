"""`conr-hf demo MODEL --export FOLDER`: the demo as a folder that is ready to be a Space."""

import json
import re
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import yaml

from conr_hf.cli.demo import page as demo_page
from conr_hf.cli.demo.app import about, check_gradio, example_files, saved_targets, title_of
from conr_hf.models.saved import load_saved, target_names
from conr_hf.utils.files import check_writable, write_json

# On transformers and gradio alone: as a saved model does, a Space goes on without this package.
APP = '''"""Predictions for images in the browser: python app.py"""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from page import Target, answer, page, style
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

HERE = Path(__file__).parent
MODEL = {model}

about = json.loads((HERE / "page.json").read_text(encoding="utf-8"))
targets = [Target(**target) for target in about.pop("targets")]
model = AutoModelForImageClassification.from_pretrained(MODEL, dtype=torch.float32).eval()
processor = AutoImageProcessor.from_pretrained(MODEL)
warnings.simplefilter("error", Image.DecompressionBombWarning)


def read(data):
    """The image that a file holds, upright; grey values of 16 bits are scaled to 8."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.mode.startswith("I;16"):
            image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("The file cannot be read as an image: it is none, cut off, or too large.") from error


@torch.inference_mode()
def predict(data):
    """The image, and what the model says of it."""
    image = read(data)
    predictions = model(**processor(images=[image], return_tensors="pt")).logits[0].tolist()
    said = answer(targets, predictions)
    image.thumbnail((1024, 1024))
    return image, said


demo = page(**about, predict=predict, examples=sorted(map(str, (HERE / "examples").glob("*"))))

if __name__ == "__main__":
    demo.launch(max_file_size={max_size}, **style())
'''


def export(name: str, folder: str, *, with_model: bool, max_size: int, examples: str | None) -> None:
    """
    Writes a Space's `app.py`, `page.py`, `page.json`, `requirements.txt`, `README.md` and `examples/` into `folder`,
    and says what is left to do.

    Args:
        name (`str`): Run folder, checkpoint or Hub id.
        folder (`str`): Where to write; it is made, or empty.
        with_model (`bool`): Copy the model into it. Otherwise a model that is not on the Hub must be pushed.
        max_size (`int`): Largest upload, in MB (2^20 bytes).
        examples (`str`, *optional*): As in [`~conr_hf.cli.demo.app.demo`].

    Raises:
        `ValueError`: as [`demo`], and for a folder that holds something, before anything is written.
    """
    check_gradio()
    out = Path(folder)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f'"{folder}" exists and is not an empty folder. Name another for --export.')
    model, processor = load_saved(name)
    targets = saved_targets(name, target_names(model))
    check_writable(folder)
    pictures = out / "examples"
    pictures.mkdir()
    files, credit = example_files(name, examples, pictures)
    for file in map(Path, files):
        if file.parent != pictures:
            shutil.copyfile(file, pictures / file.name)
    on_hub = not Path(name).exists()
    title = title_of(name)
    if with_model:
        model.save_pretrained(out / "model")
        processor.save_pretrained(out / "model")
        source = 'str(HERE / "model")'
    else:
        source = json.dumps(name if on_hub else f"YOUR-NAME/{title}")
    app = APP.replace("{model}", source).replace("{max_size}", str(max_size * 2**20))
    (out / "app.py").write_text(app, encoding="utf-8")
    shutil.copyfile(demo_page.__file__, out / "page.py")
    sentence = about(targets)
    facts = {"title": title, "about": sentence, "credit": credit, "targets": [asdict(target) for target in targets]}
    write_json(out / "page.json", facts)
    needed = ["torch", "torchvision", "transformers", "gradio", "pillow"]
    needed += ["timm"] if model.config.model_type == "timm_wrapper" else []
    lines = [f"{package}=={version(package).partition('+')[0]}" for package in needed]
    (out / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_readme(title, sentence, credit, name if on_hub else None), encoding="utf-8")
    print(f"Written to {folder}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if not on_hub and not with_model:
        print(
            f"Push the model to the Hub first, and write its id in place of YOUR-NAME/{title} in app.py; "
            "or export again --with_model."
        )


def _readme(title: str, sentence: str, credit: str, model_id: str | None) -> str:
    header = {
        "title": title.rpartition("/")[2],
        "emoji": "📐",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "app_file": "app.py",
        "pinned": False,
        **({"models": [model_id]} if model_id is not None else {}),
    }
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"{_plain(sentence)} Try it here with `pip install -r requirements.txt` and `python app.py`.",
    ]
    if credit:
        lines += ["", f"Examples: {_plain(credit)}."]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|$&~-])", r"\\\1", " ".join(text.split()))
