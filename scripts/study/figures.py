"""The figures of measurements; scripts.study.pictures has those of images.

A function that takes `axes` draws one plot into them:

    figure = draw("43 labeled images", box_plot, scores, methods, 43)
    save_figure(folder / "box_plot", figure)    # box_plot.png and box_plot.pdf

`rows` and `scores` are those of scripts.study.tables; Dice, surface Dice and estimates are in percent.
"""
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.study.tables import Scores, correlate, mean_over_seeds
from utils.files import atomic_path

if TYPE_CHECKING:  # imported where a figure is made: they take seconds
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999999")  # Okabe and Ito's
LINES, HATCHES = ("-", "--", ":"), ("", "///", "...")  # tell methods of one color apart
Z95 = 1.96  # standard errors on both sides of a mean that hold it in 95 % of cases
BINS = np.arange(0, 101, 5)  # of estimates, in percent


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure that makes room for everything in it; width and height in inches."""
    from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def draw(title: str, plot: Callable[..., None], *arguments: Any, width: float = 7) -> "Figure":
    """A figure of one plot, `plot(axes, *arguments)`; its width in inches."""
    figure = new_figure(width, 4.5)
    axes = figure.add_subplot()
    plot(axes, *arguments)
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.3)
    return figure


def save_figure(path: Path, figure: "Figure") -> None:
    """As `path`.png and `path`.pdf, whose text stays text."""
    import matplotlib
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for suffix in (".png", ".pdf"):
            with atomic_path(path.with_name(path.name + suffix)) as temporary:
                figure.savefig(temporary, dpi=200)


def styles(methods: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Method -> color, line and hatch that tell it from all others, of which there are at most 24."""
    rounds = [divmod(index, len(COLORS)) for index in range(len(methods))]
    return {method: (COLORS[color], LINES[turn], HATCHES[turn])
            for method, (turn, color) in zip(methods, rounds, strict=True)}


def methods_of(keys: Mapping[tuple[str, Hashable], Any]) -> list[str]:
    """The methods of (method, ...) -> value, each once, in their order."""
    return list(dict.fromkeys(method for method, _ in keys))


def dice_over_n(axes: "Axes", scores: Scores) -> None:
    """Mean over images and seeds, with the band that holds it in 95 % of cases; there an image counts once."""
    for method, (color, line, _) in styles(methods_of(scores)).items():
        numbers = sorted(n for other, n in scores if other == method)
        mean = np.array([np.mean(list(scores[method, n].values())) for n in numbers])
        images = [list(mean_over_seeds(scores[method, n]).values()) for n in numbers]
        band = np.array([Z95 * np.std(dice, ddof=1) / len(dice) ** 0.5 if len(dice) > 1 else 0 for dice in images])
        axes.plot(numbers, mean, "o" + line, color=color, label=method)
        axes.fill_between(numbers, mean - band, mean + band, color=color, alpha=0.15)
    axes.set(xlabel="labeled images", ylabel="Dice in %")
    _legend_below(axes)


def box_plot(axes: "Axes", scores: Scores, methods: Sequence[str], n: int) -> None:
    """Median, quartiles, and whiskers of at most 1.5 times their distance; a point is one image and seed."""
    boxes = axes.boxplot([list(scores[method, n].values()) for method in methods], patch_artist=True,
                         medianprops={"color": "black"})
    for box, (color, _, hatch) in zip(boxes["boxes"], styles(methods).values(), strict=True):
        box.set(facecolor=color, hatch=hatch, alpha=0.5)
    axes.set_xticks(range(1, len(methods) + 1), methods, rotation=20, ha="right")
    axes.set(ylabel="Dice in %")


def box_plot_over_n(axes: "Axes", scores: Scores) -> None:
    """The boxes of all methods at every n, as in `box_plot`, and a line through the means of each method."""
    numbers = sorted({n for _, n in scores})
    values = {key: list(images.values()) for key, images in scores.items()}
    for method, positions in _draw_grouped_boxes(axes, values, numbers).items():
        color, line, _ = styles(methods_of(scores))[method]
        means = [np.mean(values.get((method, n)) or np.nan) for n in numbers]
        axes.plot(positions, means, "o" + line, color=color, markersize=4, linewidth=1)
    axes.set(xlabel="labeled images", ylabel="Dice in %")


def cumulative(axes: "Axes", scores: Scores, methods: Sequence[str], n: int) -> None:
    """Share of images up to each Dice; a line further to the right is better."""
    for method, (color, line, _) in styles(methods).items():
        axes.ecdf(list(scores[method, n].values()), color=color, linestyle=line, label=method)
    axes.set(xlabel="Dice in %", ylabel="share of images up to it")
    _legend_below(axes)


def per_class(axes: "Axes", rows: Sequence[Mapping[str, str]], methods: Sequence[str]) -> None:
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
    _legend_below(axes)


def estimated_dice(axes: "Axes", rows: Sequence[Mapping[str, str]]) -> None:
    """The estimated Dice over the true one, a point a mask; with the correlation."""
    axes.plot([0, 100], [0, 100], color="grey", linewidth=1)
    rows = _with_estimate(rows)
    for method, (color, _, _) in styles(list(dict.fromkeys(row["method"] for row in rows))).items():
        pairs = np.array([(float(row["dice"]), float(row["estimated_dice"])) for row in rows
                          if row["method"] == method])
        axes.plot(*pairs.T, ".", color=color, alpha=0.3, markersize=3,
                  label=f"{method}, {len(pairs)} masks, r = {correlate(pairs):.2f}")
    axes.set(xlabel="true Dice in %", ylabel="estimated Dice in %", xlim=(-2, 102), ylim=(-2, 102))
    for handle in _legend_below(axes).legend_handles:
        handle.set(alpha=1, markersize=6)


def estimate_error(axes: "Axes", rows: Sequence[Mapping[str, str]]) -> None:
    """The estimated minus the true Dice, in points, of the masks of each class: above 0 the estimate is too high."""
    errors = defaultdict(list)
    for row in _with_estimate(rows):
        errors[row["method"], row["class"]].append(float(row["estimated_dice"]) - float(row["dice"]))
    classes = list(dict.fromkeys(label for _, label in errors))
    _draw_grouped_boxes(axes, errors, classes)
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set(ylabel="estimated minus true Dice, in points")


def estimate_histogram(axes: "Axes", estimates: Mapping[str, Sequence[float]]) -> None:
    """How often masks are thought how good.

    Args:
        estimates: method -> its masks' estimated Dice in percent, NaN where SAM was not asked
    """
    for method, (color, line, _) in styles(list(estimates)).items():
        values = np.asarray(estimates[method], dtype=float)
        values = values[~np.isnan(values)]
        axes.hist(values, BINS, weights=np.full(len(values), 100 / max(1, len(values))), histtype="step", color=color,
                  linestyle=line, linewidth=1.5, label=f"{method}, {len(values)} masks")
    axes.set(xlabel="estimated Dice in %", ylabel="share of masks in %")
    _legend_below(axes)


def agreement_curve(axes: "Axes", agreements: Sequence[float], threshold: float | None = None) -> None:
    """The images sorted by SAM's agreement with their masks.

    Args:
        agreements: of each image, a Dice in [0, 1]; NaN (no class was asked for) is left out
        threshold: of the images that are taken, in [0, 1]
    """
    values = np.sort(np.asarray(agreements, dtype=float))  # NaN at the end
    values = values[~np.isnan(values)]
    axes.plot(np.linspace(0, 1, len(values)), values, color=COLORS[4], label=f"{len(values)} images")
    if threshold is not None:
        count = np.count_nonzero(values >= threshold)
        axes.axhline(threshold, color=COLORS[5], linestyle="--", label=f"{count} images at {threshold:g} or above")
    axes.set(xlabel="share of images", ylabel="SAM's agreement (Dice)", ylim=(0, 1))
    _legend_below(axes)


def search_figures(study: "optuna.Study", objective: str = "gain of Dice in points") -> "dict[str, Figure]":
    """Name -> figure of a search with at least two options: its history, the objective (of that name) over each option
    (slices) and over each two of them (contours, interpolated between trials)."""
    import warnings

    import matplotlib
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization.matplotlib import plot_contour, plot_optimization_history, plot_slice
    plots = {"history": plot_optimization_history, "slices": plot_slice, "contours": plot_contour}
    options = len({name for trial in study.trials for name in trial.params})
    sizes = {"history": (8, 4.5), "slices": (3.4 * options + 1, 5), "contours": (3.4 * options + 1, 3 * options)}
    figures = {}
    for name, plot in plots.items():
        with matplotlib.rc_context(), warnings.catch_warnings():  # Optuna sets a style
            warnings.simplefilter("ignore", ExperimentalWarning)
            figure = np.ravel(plot(study, target_name=objective))[0].figure
            figure.set_size_inches(sizes[name])
            figure.set_layout_engine("constrained")
            for axes in figure.axes if name != "history" else ():
                axes.tick_params("x", labelrotation=30)
        pyplot.close(figure)  # pyplot would keep it
        figures[f"search_{name}"] = figure
    return figures


def _with_estimate(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [row for row in rows if row["estimated_dice"]]


def _draw_grouped_boxes(axes: "Axes", values: Mapping[tuple[str, Hashable], Sequence[float]], groups: Sequence[Hashable]
                        ) -> dict[str, np.ndarray]:
    """Boxes of (method, group) -> values, the methods side by side in each group, and a legend; returns where each
    method's boxes stand on the x axis, (groups,)."""
    looks = styles(methods_of(values))
    width, positions = 0.8 / len(looks), {}
    for index, (method, (color, _, hatch)) in enumerate(looks.items()):
        positions[method] = np.arange(len(groups)) + (index - (len(looks) - 1) / 2) * width
        axes.boxplot([values.get((method, group), []) for group in groups], positions=positions[method], label=method,
                     widths=0.85 * width, patch_artist=True, manage_ticks=False, flierprops={"markersize": 2},
                     medianprops={"color": "black"}, boxprops={"facecolor": color, "hatch": hatch, "alpha": 0.5})
    axes.set_xticks(range(len(groups)), [str(group) for group in groups])
    _legend_below(axes)
    return positions


def legend_columns(width: float, labels: Sequence[str]) -> int:
    """How many columns of a legend in small letters fit into a width in inches."""
    return max(1, int(width / (0.6 + 0.055 * max(map(len, labels), default=0))))


def _legend_below(axes: "Axes") -> "Legend":
    handles, labels = axes.get_legend_handles_labels()
    columns = legend_columns(axes.figure.get_figwidth(), labels)
    return axes.figure.legend(handles, labels, ncols=columns, fontsize="small", loc="outside lower center")
