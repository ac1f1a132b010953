"""The page of a demo. It needs gradio and torch alone: an exported Space has a copy of this file."""

import html
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

AMOUNTS = {"few": "#D55E00", "some": "#E69F00", "many": "#0072B2"}  # of training images, and their colours
HINT = "The prediction for your image is shown here."

Answer = tuple[str, str, dict[str, Any] | None]  # prediction with unit, sentences as HTML, Vega-Lite chart
Predict = Callable[[bytes], tuple[Any, list[Answer]]]  # the content of an image file -> the image and the answers


@dataclass(frozen=True)
class Target:
    """What a demo knows about one number that a model predicts."""

    name: str
    unit: str = ""
    edges: Sequence[float] = ()  # B + 1 edges of the bins of the training labels; none if they are not known
    train_counts: Sequence[int] = ()  # training labels in each of the B bins
    coverage: float = 0.0  # share of the labels that the intervals should contain
    groups: Sequence[Mapping[str, Any]] = ()  # as in conr_hf.inference.conformal.Group, ascending
    thresholds: Sequence[float] = (20, 100)  # training labels in a bin: few below the first, many above the second
    label_min: float | None = None  # the smallest label that there can be
    label_max: float | None = None

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def interval(self, prediction: float) -> tuple[float, float] | None:
        """The ends of a prediction's interval, in label units, if there is one."""
        for group in self.groups:
            if group["high"] is None or prediction < group["high"]:
                low, high = prediction - group["half_width"], prediction + group["half_width"]
                return self.possible(low), self.possible(high)
        return None

    def possible(self, label: float) -> float:
        """A label, or the nearest that there can be."""
        label = label if self.label_min is None else max(label, self.label_min)
        return label if self.label_max is None else min(label, self.label_max)

    def amount(self, count: int) -> str:
        """How many training images `count` in a bin are."""
        few, many = self.thresholds
        return list(AMOUNTS)[(count >= few) + (count > many)]

    def bin(self, prediction: float) -> int | None:
        """The bin of the training labels that contains a prediction; `None` outside all of them."""
        if not self.edges or not self.edges[0] <= prediction <= self.edges[-1]:
            return None
        return min(bisect_right(self.edges, prediction), len(self.train_counts)) - 1


def number(value: float, span: float) -> str:
    """A label, to at least a hundredth of the `span` of the labels; whole numbers have no decimals."""
    decimals = max(0, 2 - math.floor(math.log10(span))) if span > 0 else 2
    return f"{value:,.{0 if value == round(value) else min(decimals, 9)}f}"


def predictor(
    model: Any,
    processor: Any,
    targets: Sequence[Target],
    images: Any,
    nearest: Callable[[], list[list[float]]] = list,
    options: Mapping[str, Any] | None = None,
) -> Predict:
    """
    Returns a function that predicts with a saved model and its processor. `images` is the module `conr_hf.data.images`
    or a copy of it, and `options` are those of its `to_image` for the model; `nearest` returns the labels of the
    training images most similar to the model's last input.
    """
    import torch

    def predict(data: bytes) -> tuple[Any, list[Answer]]:
        try:
            image = images.to_image({"bytes": data}, **(options or {}))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"The file cannot be read as an image: {images.describe_error(error)}.") from error
        with torch.inference_mode():
            pixels = processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device)
            predictions = model(pixel_values=pixels).logits[0].double().tolist()
        image.thumbnail((1024, 1024))
        return image, answer(targets, predictions, nearest())

    return predict


def answer(
    targets: Sequence[Target], predictions: Sequence[float], nearest: Sequence[Sequence[float]] = ()
) -> list[Answer]:
    """
    What the page shows of T predictions, in label units, and of the labels of the K most similar training images, each
    of T numbers. A prediction that is not finite is a `ValueError`.
    """
    if not all(map(math.isfinite, predictions)):
        raise ValueError("The model's answer to this image is not a finite number.")
    answers = []
    for place, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
        prediction = target.possible(prediction)
        span = target.edges[-1] - target.edges[0] if target.edges else abs(prediction)
        unit, sentences = f" {target.unit}" if target.unit else "", []
        if interval := target.interval(prediction):
            low, high = (number(end, span) for end in interval)
            sentences.append(f"{100 * target.coverage:g} % of labels like this lie between {low} and {high}{unit}.")
        if target.edges:
            sentences.append(f"{_region(target, prediction, span, unit)}.")
        if nearest:
            labels = ", ".join(number(row[place], span) for row in nearest)
            sentences.append(f"The most similar training images are labelled {labels}{unit}.")
        text = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
        answers.append((number(prediction, span) + unit, text, _chart(target, prediction) if target.edges else None))
    return answers


def _region(target: Target, prediction: float, span: float, unit: str) -> str:
    """How many training images have a label in the prediction's bin."""
    place = target.bin(prediction)
    if place is None:
        low, high = (number(end, span) for end in (target.edges[0], target.edges[-1]))
        return f"No training images here: all are labelled from {low} to {high}{unit}"
    start, end, count = target.edges[place], target.edges[place + 1], target.train_counts[place]
    low, high = (number(edge, min(span, 100 * (end - start))) for edge in (start, end))
    amount, labelled = (target.amount(count).capitalize(), f"{count:,}") if count else ("No", "none is")
    return f"{amount} training images here: {labelled} labelled from {low} to {high}{unit}"


def _chart(target: Target, prediction: float) -> dict[str, Any]:
    """A Vega-Lite chart of the training labels per bin, coloured by shot, with the prediction and its interval."""
    edges, counts = target.edges, target.train_counts
    few, many = (f"{threshold:g}" for threshold in target.thresholds)
    legend = {"few": f"few (< {few})", "some": f"some ({few} to {many})", "many": f"many (> {many})"}
    step = math.ceil(len(counts) / 300)  # bins in a bar: narrower bars would not be seen
    bars = [
        {
            "from": edges[start],
            "to": edges[min(start + step, len(counts))],
            "samples": top,
            "shot": legend[target.amount(top)],
        }
        for start in range(0, len(counts), step)
        if (top := max(counts[start : start + step]))
    ]
    low, high = target.interval(prediction) or (prediction, prediction)
    span = {"domain": [min(edges[0], prediction), max(edges[-1], prediction)], "nice": False, "clamp": True}
    heights = {"type": "log", "domain": [0.6, 1.6 * max(*counts, target.thresholds[1])], "nice": False}
    powers = {"title": "training images per bin", "values": [10**power for power in range(10)], "format": ","}
    there = [amount for amount in AMOUNTS if any(bar["shot"] == legend[amount] for bar in bars)]
    colours = {"domain": [legend[amount] for amount in there], "range": [AMOUNTS[amount] for amount in there]}
    bar = {
        "x": {"field": "from", "type": "quantitative", "axis": {"title": target.title, "grid": False}, "scale": span},
        "x2": {"field": "to"},
        "y": {"field": "samples", "type": "quantitative", "axis": powers, "scale": heights},
        "y2": {"datum": 0.6},
        "color": {
            "field": "shot",
            "title": None,
            "scale": colours,
            "legend": {"orient": "bottom"},
        },
    }
    band, line = {"type": "rect", "fill": "gray", "opacity": 0.2}, {"type": "rule", "stroke": "#CC79A7", "size": 3}
    layers = [
        {"mark": band, "encoding": {"x": {"datum": low}, "x2": {"datum": high}}},
        {"mark": {"type": "bar", "tooltip": True, "opacity": 1}, "encoding": bar, "data": {"values": bars}},
        {"mark": line, "encoding": {"x": {"datum": prediction}}},
    ]
    look = {"background": "transparent", "height": 200, "usermeta": {"embedOptions": {"actions": False}}}
    return {"data": {"values": [{}]}, "encoding": {}, "layer": layers, **look}  # gradio reads the empty encoding


def page(
    title: str, targets: Sequence[Target], predict: Predict, examples: Path, credit: str
) -> tuple[Any, dict[str, Any]]:
    """
    The page as `gradio.Blocks`, and arguments for its `launch`. It shows the message of a `ValueError` of `predict`;
    the folder of examples and their credit line may be empty.
    """
    import gradio as gr
    from gradio.components.plot import AltairPlotData

    def show(upload: Mapping[str, Any] | None) -> dict[Any, Any]:
        image, answers, message = None, list[Answer](), HINT
        try:
            if upload is not None:
                path = Path(str(upload.get("path"))).resolve()
                if not path.is_relative_to(Path(picture.GRADIO_CACHE).resolve()):
                    raise ValueError("The file was not uploaded.")
                image, answers = predict(path.read_bytes())
        except ValueError as error:
            message = html.escape(str(error))
        shown = {picture: image, note: gr.HTML(message, visible=not answers), result: gr.Column(visible=bool(answers))}
        for (value, sentences, chart), (label, text, plot) in zip(answers, parts, strict=False):
            drawn = chart and AltairPlotData(type="altair", chart="bar", plot=json.dumps(chart))
            shown |= {label: value, text: sentences, plot: drawn}
        return shown

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        predicted = html.escape(" and ".join(target.title for target in targets))
        gr.HTML(f"<h1>{html.escape(title)}</h1><p>Predicts {predicted} from an image.</p>")
        with gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(sources=["upload", "clipboard"], buttons=[], height=320, elem_id="picture")
                caption = f"Examples ({credit})" if credit else "Examples"
                files = [[str(path)] for path in sorted(examples.glob("*"))]
                chosen = gr.Examples(files, picture, label=caption, visible=bool(files))
            with gr.Column(min_width=300, elem_id="answer"):
                note = gr.HTML(HINT)
                with gr.Column(visible=False) as result:
                    parts = [
                        (gr.Label(label=each.name), gr.HTML(), gr.Plot(show_label=False, visible=bool(each.edges)))
                        for each in targets
                    ]
        # Not preprocessed: gradio itself would clip 16 bits, and not say what is wrong with a file.
        call: dict[str, Any] = {"fn": show, "inputs": picture, "outputs": [picture, note, result, *chain(*parts)]}
        picture.input(**call, preprocess=False, api_name="predict")
        chosen.load_input_event.then(**call, preprocess=False, api_visibility="private")
    # Fonts of the reader's system, as others would be downloaded; small images without blur.
    css = "#picture img {image-rendering: pixelated; object-fit: contain; width: 100%; height: 100%}"
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui"], font_mono=["ui-monospace"])
    return blocks, {"theme": theme, "css": css, "footer_links": [], "ssr_mode": False}
