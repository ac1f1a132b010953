"""The page of a demo, in gradio and the standard library alone: an exported Space has a copy of this file."""

import bisect
import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FEW, MANY = 20, 100  # training samples in a bin: fewer than the first are few, more than the second many

LEFT, RIGHT, TOP, BOTTOM = 34, 316, 40, 166  # the panel of a picture of 340 x 206

CSS = """
.gradio-container {max-width: 1080px !important; margin: auto !important}
.html-container:has(> .prose > .conr) {padding: 0 !important}
.conr {--few: #D55E00; --median: #E69F00; --many: #0072B2; --quiet: #62656b; overflow-wrap: anywhere}
.dark .conr {--few: #F08A4B; --median: #F0B93A; --many: #56A8E0; --quiet: #b4b6bb}
.conr h1 {font-size: 1.6rem; margin: 0 0 .2rem; line-height: 1.2}
.conr h2 {font-size: 1rem; font-weight: 600; margin: 0; color: var(--quiet)}
.conr p {margin: .35rem 0; line-height: 1.45}
.conr .about, .conr .hint {color: var(--quiet)}
.conr .hint {margin: 0; padding: 2.5rem 1rem; text-align: center; border: 1px dashed var(--border-color-primary);
  border-radius: 6px}
.conr .refusal {margin: 0; padding: .8rem 1rem; border-left: 4px solid var(--few); border-radius: 4px;
  background: var(--background-fill-secondary)}
.conr section + section {margin-top: 1.4rem; padding-top: 1.2rem; border-top: 1px solid var(--border-color-primary)}
.conr .value {font-size: 2.6rem; font-weight: 600; line-height: 1.15; margin: .1rem 0 .4rem}
.conr .value small {font-size: 1.2rem; font-weight: 400; color: var(--quiet)}
.conr .shot::before {content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .45em;
  border-radius: 50%; background: var(--shot)}
.conr .few {--shot: var(--few)}
.conr .median {--shot: var(--median)}
.conr .many {--shot: var(--many)}
.conr svg {display: block; width: 100%; max-width: 500px; height: auto; margin: .7rem 0 .3rem}
.conr svg text {font: 10.5px var(--font); fill: var(--quiet)}
.conr svg rect {fill: var(--shot)}
.conr svg .band {fill: var(--body-text-color); opacity: .12}
.conr svg .grid {stroke: var(--border-color-primary)}
.conr svg .limit {stroke: var(--quiet); stroke-dasharray: 2 3}
.conr svg .limit-name {font-size: 9px}
.conr svg .here {stroke: var(--body-text-color); stroke-width: 1.6}
.conr svg .here-name {font-size: 12.5px; font-weight: 600; fill: var(--body-text-color)}
.conr .legend {display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem; color: var(--quiet)}
#picture img {image-rendering: pixelated; object-fit: contain; width: 100%; height: 100%}
@media (max-width: 640px) {
  #picture {height: 240px !important}
  #examples .gallery {gap: 6px}
  #examples .gallery .container {width: 54px; height: 54px}
}
"""


@dataclass(frozen=True)
class Target:
    """
    What a demo knows of one number that a model predicts.

    Args:
        name (`str`): What it is called.
        unit (`str`, *optional*, defaults to `""`): Its unit.
        edges (sequence of B + 1 `float`, *optional*): Bins of the training labels; none where they are not known.
        train_counts (sequence of B `int`, *optional*): Training labels in each bin.
        coverage (`float`, *optional*, defaults to 0.0): Share of labels that the intervals promise to hold.
        groups (sequence of `Mapping`, *optional*):
            As in [`~conr_hf.inference.conformal.Group`], ascending; none where there are no intervals.
    """

    name: str
    unit: str = ""
    edges: Sequence[float] = ()
    train_counts: Sequence[int] = ()
    coverage: float = 0.0
    groups: Sequence[Mapping[str, Any]] = ()

    def interval(self, prediction: float) -> tuple[float, float] | None:
        """The ends of a prediction's interval, in label units, if there is one."""
        for group in self.groups:
            if group["high"] is None or prediction < group["high"]:
                return prediction - group["half_width"], prediction + group["half_width"]
        return None

    def bin(self, prediction: float) -> int | None:
        """The bin of the training labels that a prediction falls into; `None` outside all of them."""
        if not self.edges or not self.edges[0] <= prediction <= self.edges[-1]:
            return None
        return min(bisect.bisect_right(self.edges, prediction), len(self.train_counts)) - 1


def answer(targets: Sequence[Target], predictions: Sequence[float], nearest: Sequence[Sequence[float]] = ()) -> str:
    """
    The HTML of what a model says of an image.

    Args:
        targets (sequence of T [`Target`]): What it predicts.
        predictions (sequence of T `float`): In label units.
        nearest (sequence of K sequences of T `float`, *optional*):
            Labels of the training images whose features are nearest, nearest first.

    Raises:
        `ValueError`: for a prediction that is no finite number.
    """
    if not all(map(math.isfinite, predictions)):
        raise ValueError("The model's answer to this image is not a finite number.")
    parts = [
        "".join(_section(target, prediction, [labels[place] for labels in nearest]))
        for place, (target, prediction) in enumerate(zip(targets, predictions, strict=True))
    ]
    return f'<div class="conr">{"".join(parts)}</div>'


def page(
    title: str,
    about: str,
    predict: Callable[[bytes], tuple[Any, str]],
    examples: Sequence[str] = (),
    credit: str = "",
) -> Any:
    """
    The page as `gradio.Blocks`, to be launched with what [`style`] returns.

    Args:
        title (`str`): What is shown, such as the model's name.
        about (`str`): A sentence on it.
        predict (`Callable`):
            Takes what a file holds; returns the image as the model sees it, and the HTML of [`answer`]. A `ValueError`
            is shown as its sentence.
        examples (sequence of `str`, *optional*): Paths of images to choose from.
        credit (`str`, *optional*, defaults to `""`): Whose they are.
    """
    import gradio as gr

    hint = '<div class="conr"><p class="hint">The prediction for your image is shown here.</p></div>'

    def shown(path: str | Path) -> tuple[Any, str]:
        try:
            return predict(Path(path).read_bytes())
        except ValueError as error:
            return None, refusal(str(error))

    def uploaded(given: Mapping[str, Any] | None) -> tuple[Any, str]:
        if given is None:
            return None, hint
        path = Path(str(given.get("path"))).resolve()
        if not (path.is_file() and path.is_relative_to(Path(picture.GRADIO_CACHE).resolve())):
            return None, refusal("The file was not uploaded.")
        return shown(path)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        head = f'<h1>{html.escape(title)}</h1><p class="about">{html.escape(about)}</p>'
        gr.HTML(f'<div class="conr">{head}</div>')
        with gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(
                    label="Image", sources=["upload", "clipboard"], buttons=[], height=320, elem_id="picture"
                )
                choice = gr.Dataset(
                    components=[picture],
                    samples=[[path] for path in examples],
                    type="index",
                    label=f"Examples ({credit})" if credit else "Examples",
                    visible=bool(examples),
                    elem_id="examples",
                )
            with gr.Column(min_width=300):
                said = gr.HTML(hint, elem_id="answer")
        # Not preprocessed, as gradio would open the file itself: with no word on what is wrong, and 16 bits clipped.
        picture.input(uploaded, picture, [picture, said], preprocess=False, api_name="predict")
        choice.click(lambda index: shown(examples[index]), choice, [picture, said], api_visibility="private")
    return blocks


def refusal(sentence: str) -> str:
    """The HTML of why there is no answer."""
    return f'<div class="conr"><p class="refusal" role="alert">{html.escape(sentence)}</p></div>'


def style() -> dict[str, Any]:
    """What `launch` takes to make a page of [`page`] look as it should, with fonts of the reader's system."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return {"theme": theme, "css": CSS, "footer_links": [], "ssr_mode": False}


def number(value: float, span: float) -> str:
    """A label as people read it, to at least a hundredth of the `span` of the labels; a whole one without decimals."""
    decimals = max(0, 2 - math.floor(math.log10(span))) if span > 0 else 2
    if value == round(value):
        decimals = 0
    return f"{value:,.{min(decimals, 9)}f}"


def shot_of(count: int) -> str:
    """What a bin with so many training samples is: `"few"`, `"median"` or `"many"` shot."""
    return "few" if count < FEW else "many" if count > MANY else "median"


def _section(target: Target, prediction: float, nearest: Sequence[float]) -> Iterator[str]:
    unit = f" {html.escape(target.unit)}" if target.unit else ""
    span = target.edges[-1] - target.edges[0] if target.edges else abs(prediction)
    yield f"<section><h2>{html.escape(target.name)}</h2>"
    yield f'<p class="value">{number(prediction, span)}<small>{unit}</small></p>'
    interval = target.interval(prediction)
    if interval is not None:
        low, high = (number(end, span) for end in interval)
        yield f"<p>{100 * target.coverage:g} % of labels like this lie between {low} and {high}{unit}.</p>"
    if target.edges:
        count, where = _place(target, prediction, unit, span)
        shot = shot_of(count)
        yield f'<p class="shot {shot}">{shot.capitalize()}-shot region: {where}.</p>'
    if nearest:
        labels = ", ".join(number(label, span) for label in nearest)
        yield f"<p>The most similar training images are labelled {labels}{unit}.</p>"
    if target.edges:
        yield _picture(target, prediction, interval, span)
    yield "</section>"


def _place(target: Target, prediction: float, unit: str, span: float) -> tuple[int, str]:
    """How many training samples are in a prediction's bin, and the same in words."""
    place = target.bin(prediction)
    if place is None:
        ends = f"{number(target.edges[0], span)} to {number(target.edges[-1], span)}{unit}"
        return 0, f"outside the bins of the training labels, which are from {ends}"
    low, high = target.edges[place], target.edges[place + 1]
    fine = min(span, 100 * (high - low))
    count = target.train_counts[place]
    samples = f"{count:,} training sample{'s' * (count != 1)}" if count else "no training sample"
    return count, f"{samples} from {number(low, fine)} to {number(high, fine)}{unit}"


def _picture(target: Target, prediction: float, interval: tuple[float, float] | None, span: float) -> str:
    """Training labels per bin on a logarithmic axis, coloured by shot, and where the prediction is among them."""
    start, end = min(target.edges[0], prediction), max(target.edges[-1], prediction)
    top = 1.6 * max(*target.train_counts, MANY)

    def x(value: float) -> float:
        return round(LEFT + (min(max(value, start), end) - start) / (end - start) * (RIGHT - LEFT), 1)

    def y(count: float) -> float:
        return round(BOTTOM - math.log(count / 0.6) / math.log(top / 0.6) * (BOTTOM - TOP), 1)

    def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
        return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'

    def text(words: str, at: float, above: float, anchor: str = "middle", kind: str = "") -> str:
        return f'<text class="{kind}" x="{at}" y="{above}" text-anchor="{anchor}">{html.escape(words)}</text>'

    name = f"{target.name} ({target.unit})" if target.unit else target.name
    parts = [text("training samples per bin", 0, 9, "start")]
    for power in range(math.floor(math.log10(top)) + 1):
        height = y(10**power)
        parts += [line("grid", LEFT, height, RIGHT, height), text(f"{10**power:,}", LEFT - 4, height + 4, "end")]
    if interval is not None:
        low, high = x(interval[0]), x(interval[1])
        parts.append(f'<rect class="band" x="{low}" y="{TOP}" width="{high - low:.1f}" height="{BOTTOM - TOP}"/>')
    bars: dict[int, tuple[int, str]] = {}  # one for each pixel: more would not be seen
    for low, high, count in zip(target.edges, target.edges[1:], target.train_counts, strict=False):
        left, width = x(low), max(x(high) - x(low), 0.6)
        if count > bars.get(int(left), (0, ""))[0]:
            size = f'width="{0.9 * width:.1f}" height="{BOTTOM - y(count):.1f}"'
            bar = f'<rect class="{shot_of(count)}" x="{left + 0.05 * width:.1f}" y="{y(count)}" {size}/>'
            bars[int(left)] = count, bar
    parts += [bar for _, bar in bars.values()]
    for limit in (FEW, MANY):
        parts += [
            line("limit", LEFT, y(limit), RIGHT, y(limit)),
            text(f"{limit}", RIGHT + 3, y(limit) + 3, "start", "limit-name"),
        ]
    for tick in _ticks(start, end):
        parts += [line("grid", x(tick), BOTTOM, x(tick), BOTTOM + 4), text(number(tick, span), x(tick), BOTTOM + 17)]
    here = x(prediction)
    anchor = "start" if here < LEFT + 30 else "end" if here > RIGHT - 30 else "middle"
    parts += [
        text(name if len(name) <= 50 else f"{name[:49]}…", (LEFT + RIGHT) / 2, BOTTOM + 36),
        line("grid", LEFT, BOTTOM, RIGHT, BOTTOM),
        line("here", here, TOP - 6, here, BOTTOM),
        text(number(prediction, span), here, TOP - 9, anchor, "here-name"),
    ]
    label = html.escape(f"Training labels of {name} per bin; the prediction is {number(prediction, span)}")
    kinds = (("few", f"few (< {FEW})"), ("median", f"median ({FEW} to {MANY})"), ("many", f"many (> {MANY})"))
    legend = "".join(f'<span class="shot {kind}">{html.escape(words)}</span>' for kind, words in kinds)
    drawn = f'<svg viewBox="0 0 340 206" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'{drawn}<div class="legend">{legend}</div>'


def _ticks(start: float, end: float) -> list[float]:
    """Round numbers from `start` to `end`, about six."""
    rough = (end - start) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * i for i in range(math.ceil(start / step), math.floor(end / step) + 1)]
