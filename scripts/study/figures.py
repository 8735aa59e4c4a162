"""The figures of a study (paper, the comparison); scripts.plot_results makes them."""
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from utils.files import atomic_path
from utils.overlay import class_colors

COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")  # Okabe and Ito's
LINES, HATCHES = ("-", "--"), ("", "///")  # tell two methods of one color apart
Z95 = 1.96  # standard errors on both sides of a mean that hold it in 95 % of cases
Scores = Mapping[tuple[str, int], Mapping[tuple[str, str], float]]  # (method, n) -> (seed, image) -> Dice in percent


def draw(title: str, fill: Callable[[Axes], None], width: float = 7) -> Figure:
    """A figure of one plot; its width in inches."""
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.add_subplot()
    fill(axes)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """As `path`.png and `path`.pdf, whose text stays text."""
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for suffix in (".png", ".pdf"):
            with atomic_path(path.with_suffix(suffix)) as temporary:
                figure.savefig(temporary, dpi=200)


def styles(methods: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Method -> color, line and hatch that tell it from all others."""
    return {method: (COLORS[index % len(COLORS)], LINES[index // len(COLORS)], HATCHES[index // len(COLORS)])
            for index, method in enumerate(methods)}


def over_seeds(values: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """(seed, image) -> value as image -> mean: what several trainings make of an image isn't independent."""
    of_image = defaultdict(list)
    for (_, image), value in values.items():
        of_image[image].append(value)
    return {image: float(np.mean(each)) for image, each in of_image.items()}


def dice_over_n(axes: Axes, scores: Scores) -> None:
    """Mean over images and seeds, with the band that holds it in 95 % of cases; there an image counts once."""
    methods = list(dict.fromkeys(method for method, _ in scores))
    for method, (color, line, _) in styles(methods).items():
        numbers = sorted(n for other, n in scores if other == method)
        dice = [list(scores[method, n].values()) for n in numbers]
        mean = np.array([np.mean(each) for each in dice])
        means = [list(over_seeds(scores[method, n]).values()) for n in numbers]
        band = np.array([Z95 * np.std(each, ddof=1) / len(each) ** 0.5 if len(each) > 1 else 0 for each in means])
        axes.plot(numbers, mean, "o" + line, color=color, label=method)
        axes.fill_between(numbers, mean - band, mean + band, color=color, alpha=0.15)
    axes.set(xlabel="labeled images", ylabel="Dice in %")
    axes.legend()


def box_plot(axes: Axes, scores: Scores, methods: list[str], n: int) -> None:
    """Median, quartiles, and whiskers of at most 1.5 times their distance; a point is one image and seed."""
    boxes = axes.boxplot([list(scores[method, n].values()) for method in methods], patch_artist=True,
                         medianprops={"color": "black"})
    for box, (color, _, hatch) in zip(boxes["boxes"], styles(methods).values(), strict=True):
        box.set(facecolor=color, hatch=hatch, alpha=0.5)
    axes.set_xticks(range(1, len(methods) + 1), methods, rotation=20, ha="right")
    axes.set(ylabel="Dice in %")


def cumulative(axes: Axes, scores: Scores, methods: list[str], n: int) -> None:
    """Share of images up to each Dice; a line further to the right is better."""
    for method, (color, line, _) in styles(methods).items():
        axes.ecdf(list(scores[method, n].values()), color=color, linestyle=line, label=method)
    axes.set(xlabel="Dice in %", ylabel="share of images up to it")
    axes.legend()


def per_class(axes: Axes, rows: list[dict[str, str]], methods: list[str]) -> None:
    """Mean Dice of each class over the images that show it, and over seeds; `rows` of one n."""
    dice = defaultdict(list)
    for row in rows:
        dice[row["method"], row["class"]].append(float(row["dice"]))
    classes = list(dict.fromkeys(label for _, label in dice))
    width = 0.8 / len(methods)
    for index, (method, (color, _, hatch)) in enumerate(styles(methods).items()):
        axes.bar(np.arange(len(classes)) + (index - (len(methods) - 1) / 2) * width,
                 [np.mean(dice[method, label] or np.nan) for label in classes], width, color=color, hatch=hatch,
                 edgecolor="white", linewidth=0, label=method)  # the edge's color is the hatch's
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set(ylabel="Dice in %")
    axes.figure.legend(ncols=6, fontsize="small", loc="outside lower center")


def estimated_dice(axes: Axes, rows: list[dict[str, str]]) -> None:
    """What SAM thinks of its masks over what they are worth, a point a mask; with the correlation."""
    axes.plot([0, 100], [0, 100], color="grey", linewidth=1)
    for method, (color, _, _) in styles(list(dict.fromkeys(row["method"] for row in rows))).items():
        true, estimated = np.array([(float(row["dice"]), float(row["estimated_dice"])) for row in rows
                                    if row["method"] == method]).T
        axes.plot(true, estimated, ".", color=color, alpha=0.3, markersize=3,
                  label=f"{method}, {len(true)} masks, r = {np.corrcoef(true, estimated)[0, 1]:.2f}")
    axes.set(xlabel="true Dice in %", ylabel="Dice in % by SAM's estimate", xlim=(-2, 102), ylim=(-2, 102))
    axes.legend()


def overlays(pictures: Mapping[str, Sequence[tuple[str, np.ndarray]]], labels: Sequence[str], title: str) -> Figure:
    """A row of captioned RGB pictures for each image, and a legend of the classes' colors.

    Args:
        pictures: name of the row -> (caption, uint8 (H, W, 3)), the same number in each row
    """
    columns = len(next(iter(pictures.values())))
    height, width, _ = next(iter(pictures.values()))[0][1].shape
    figure = Figure(figsize=(1.8 * columns, 0.8 + len(pictures) * (0.3 + 1.8 * height / width)), layout="constrained")
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for axes, (name, row) in zip(grid, pictures.items(), strict=True):
        axes[0].set_ylabel(name)
        for each, (caption, picture) in zip(axes, row, strict=True):
            each.imshow(picture)
            each.set_title(caption, fontsize="small")
            each.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize="medium")
    patches = [Patch(color=color / 255, label=label) for label, color in
               zip(labels, class_colors(len(labels)), strict=True)]
    figure.legend(handles=patches, ncols=max(1, 9 * columns // 8), fontsize="x-small", loc="outside lower center")
    return figure
