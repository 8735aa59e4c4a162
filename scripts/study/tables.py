"""The numbers of a study: from the Dice of every image and class to the tables.

A row of a study is a dictionary with at least `method`, `n` (labeled images), `seed`, `image`, `class` and the measures
in percent as text, empty where there is none, as scripts.run_study writes them and `utils.tables.read_rows` reads them.
"""
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from utils.tables import BEST

BOOTSTRAPS = 2000
ImageScores = Mapping[tuple[str, str], float]  # (seed, image) -> Dice in percent
Scores = Mapping[tuple[str, int], ImageScores]  # (method, n) -> (seed, image) -> Dice in percent


def rename_methods(rows: Sequence[Mapping[str, str]], titles: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows with each method's title, if it has one, in the place of its key: then all that is made of them says the
    same.

    Raises:
        ValueError: two methods have one title.
    """
    if len(set(titles.values())) < len(titles):
        raise ValueError(f"two methods have one title: {titles}")
    return [{**row, "method": titles.get(row["method"], row["method"])} for row in rows]


def image_scores(rows: Sequence[Mapping[str, str]], measure: str = "dice") -> Scores:
    """Each image's mean over the classes that it shows, methods and n in the order of the rows."""
    classes = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[measure]:
            classes[row["method"], int(row["n"])][row["seed"], row["image"]].append(float(row[measure]))
    return {key: {image: float(np.mean(values)) for image, values in images.items()} for key, images in classes.items()}


def mean_over_seeds(scores: ImageScores) -> dict[str, float]:
    """Image -> mean over seeds: what several trainings make of one image isn't independent."""
    values = defaultdict(list)
    for (_, image), score in scores.items():
        values[image].append(score)
    return {image: float(np.mean(seeds)) for image, seeds in values.items()}


def paper_table(scores: Scores, numbers: Sequence[int], baseline: str | None = None) -> list[list[str]]:
    """The paper's table: a row a method, a column an n with the Dice in percent, mean ± standard deviation over images
    and seeds; the best mean of each n is marked `BEST`, a cell without results is empty.

    Args:
        numbers: the n, such as 5, 20, 43
        baseline: the method against which the p-value of all others is given, in a column after each n
    """
    methods = list(dict.fromkeys(method for method, n in scores if n in numbers))
    columns = [["method", *methods]]
    for n in numbers:
        of_n = {method: scores.get((method, n), {}) for method in methods}
        best = best_methods(of_n)
        cells = {method: " ± ".join(filter(None, mean_and_std(images))) for method, images in of_n.items()}
        columns.append([f"n = {n}", *(cell + BEST * (method in best) for method, cell in cells.items())])
        if baseline is not None:
            columns.append([f"p, n = {n}", *(p_value(of_n.get(baseline, {}), of_n[method]) for method in methods)])
    return [list(row) for row in zip(*columns, strict=True)]


def comparison(rows: Sequence[Mapping[str, str]], baseline: str) -> list[list[str]]:
    """A table in more detail, of rows of one n: method, mean Dice in percent, standard deviation, number of images,
    p-value and gain against the baseline, and where there is a surface Dice its mean and deviation; the best mean is
    marked `BEST`."""
    scores, surface = ({method: images for (method, _), images in image_scores(rows, measure).items()}
                       for measure in ("dice", "surface_dice"))
    best = best_methods(scores)
    table = [["method", "mean", "std", "images", "p", "gain [95 % interval]",
              *(["surface mean", "surface std"] if surface else [])]]
    for method, images in scores.items():
        mean, std = mean_and_std(images)
        table.append([method, mean + BEST * (method in best), std, str(len(images)),
                      p_value(scores.get(baseline, {}), images), gain(scores.get(baseline, {}), images),
                      *(mean_and_std(surface.get(method, {})) if surface else [])])
    return table


def estimates(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """How well the estimated Dice tells the true one, of rows of one n: method, number of masks, the correlation over
    all masks, that over images' means (the mean over seeds), and the mean error, in points, above 0 where the estimate
    is too high. Rows without an estimate don't count; a correlation that isn't defined is empty."""
    rows = [row for row in rows if row["dice"] and row["estimated_dice"]]
    dice, estimated = (image_scores(rows, measure) for measure in ("dice", "estimated_dice"))
    table = [["method", "masks", "r over masks", "r over images", "estimate - Dice"]]
    for method, n in dice:
        masks = np.array([(float(row["dice"]), float(row["estimated_dice"])) for row in rows
                          if row["method"] == method])
        images = defaultdict(list)
        for (seed, image), value in dice[method, n].items():
            images[seed].append((value, estimated[method, n][seed, image]))
        correlations = correlate(masks), np.mean([correlate(np.array(pairs)) for pairs in images.values()])
        table.append([method, str(len(masks)), *("" if np.isnan(value) else f"{value:.2f}" for value in correlations),
                      f"{np.mean(masks[:, 1] - masks[:, 0]):+.2f}"])
    return table


def correlate(pairs: np.ndarray) -> float:
    """Pearson's, of pairs (N, 2); NaN where it isn't defined."""
    return float(np.corrcoef(pairs.T)[0, 1]) if len(pairs) and (np.ptp(pairs, axis=0) > 0).all() else np.nan


def best_methods(scores: Mapping[str, ImageScores]) -> set[str]:
    """Of method -> its images' scores those with the highest mean, several if they are equal."""
    means = {method: np.mean(list(images.values())) for method, images in scores.items() if images}
    return {method for method, mean in means.items() if mean == max(means.values())}


def mean_and_std(scores: ImageScores) -> tuple[str, str]:
    """Mean and sample standard deviation as text, empty where there are too few values."""
    values = list(scores.values())
    return (f"{np.mean(values):.2f}" if values else "", f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def gain(baseline: ImageScores, scores: ImageScores) -> str:
    """The mean gain over the images that both have, with its interval of 95 % by the percentile bootstrap, as text;
    empty where there is nothing to compare.

    Seeds and images are both drawn with replacement, whole rows and columns of the table of gains: what trainings of
    other seeds and other images would give.
    """
    gains = {key: scores[key] - baseline[key] for key in scores if key in baseline}
    if not any(gains.values()):
        return ""
    seeds, images = (sorted({key[axis] for key in gains}) for axis in (0, 1))
    table = np.array([[gains.get((seed, image), np.nan) for image in images] for seed in seeds])
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(size, size=(BOOTSTRAPS, size)) for size in table.shape)
    means = [np.nanmean(table[np.ix_(*chosen)]) for chosen in zip(rows, columns, strict=True)]
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return f"{np.nanmean(table):+.2f} [{low:+.2f}, {high:+.2f}]"


def p_value(baseline: ImageScores, scores: ImageScores) -> str:
    """Of a paired two-sided Wilcoxon signed-rank test over the images that both have, as text; empty where there is
    nothing to compare. An image counts once, with its mean gain over seeds."""
    from scipy.stats import wilcoxon  # takes a second or more
    gains = list(mean_over_seeds({key: scores[key] - baseline[key] for key in scores if key in baseline}).values())
    return f"{wilcoxon(gains).pvalue:.2g}" if any(gains) else ""
