"""What a results folder says: a chapter of what scripts.run_pipeline wrote, and one of what scripts.run_study did."""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from scripts.plot_results import TITLES, make_tables, of_n, read_manifest, restore_arguments, tables_of_n
from scripts.report_page.charts import class_chart, curve_chart
from scripts.report_page.curves import read_curves
from scripts.report_page.gallery import (
    MEAN,
    Column,
    Gallery,
    Prompting,
    Values,
    predicted,
    prompting_of,
    saved,
    saved_estimates,
)
from scripts.report_page.places import Places
from scripts.run_study import COLUMNS
from scripts.study.methods import Setting
from scripts.study.refinement_check import LabelCheck
from scripts.study.tables import rename_methods
from segment_anything.registry import SAM_TYPES
from unet_training.models import TrainedModel
from unet_training.saved_masks import masks_of
from utils.datasets.annotated import AnnotatedImages
from utils.errors import InputError
from utils.mask_store import MaskStore
from utils.paths import mask_file
from utils.records import read_record
from utils.tables import read_rows
from utils.tracking.models import Model, fetch_model

Table = tuple[str, Sequence[Sequence[str]]]  # caption, rows, of which the first is the header
SHOWN_CURVES = ("loss", "Dice in %")  # as trainings report them
MASKS_OF_ABSENT = "masks of labels that their image doesn't show, which the Dice doesn't count"
FALSE = "false_positives"  # a column of tables: masks of labels that their image doesn't show
SETTINGS = {"dataset": "data set", "preset": "preset", "num_train_samples": "labeled images", "seed": "seed",
            "seeds": "seeds", "input_size": "input size", "epochs": "epochs", "lr": "learning rate",
            "batch_size": "batch size", "base_width": "width of the U-Net", "sam_type": "SAM",
            "refinement": "refinement", "training": "training", "recommended": "recommended way with",
            "rounds": "rounds"}  # the arguments that are named first


@dataclass
class Chapter:
    """What is shown of one run or study.

    Attributes:
        run: as `utils.provenance.describe_run`
        models: title -> the model
        charts: (title, plot)
        missing: why something isn't shown, a sentence each
        notices: what must be said of the masks
    """

    title: str
    run: Mapping[str, Any]
    models: dict[str, Model] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    charts: list[tuple[str, Markup]] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    labels: Sequence[str] = ()
    missing: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def settings(self) -> list[tuple[str, Any]]:
        """The arguments that tell most."""
        arguments = self.run.get("arguments", {})
        return [(title, arguments[name]) for name, title in SETTINGS.items()
                if arguments.get(name) not in (None, "")]

    def curves(self) -> Iterator[tuple[str, list[tuple[str, Markup]]]]:
        """Yields the title of each model whose training is kept here, with (what, plot)."""
        for title, model in self.models.items():
            curves = read_curves(model.task_id)
            plots = [(name, curve_chart(curves[name], name)) for name in SHOWN_CURVES if curves.get(name)]
            if plots:
                yield title, plots

    def find_model(self, title: str, model_id: str) -> None:
        """Enters a model, once, with the labels; one that is gone is told."""
        if model_id in {model.id for model in self.models.values()}:
            return
        try:
            self.models[title] = fetch_model(model_id)
            self.labels = self.models[title].labels
        except InputError as error:
            self.missing.append(str(error))

    def chart_classes(self, title: str, means: Mapping[str, Mapping[str, float]]) -> None:
        """Enters the plot of Dice per class, series -> label -> percent, if there is any."""
        means = {series: values for series, values in means.items() if values}
        shown = {label for values in means.values() for label in values}
        if shown:
            labels = [label for label in self.labels if label in shown] or sorted(shown)
            self.charts.append((title, class_chart(means, labels)))


def read_pipeline(folder: Path, places: Places) -> Chapter:
    """Of results.json, table.csv and the evaluations.

    Raises:
        InputError: one of them is missing or damaged.
    """
    record = read_record(folder / "results.json", dict[str, Any])
    if not {"rows", "data"} <= record.keys():
        raise InputError(f"{folder / 'results.json'}: is of an older version; run scripts.run_pipeline again")
    chapter, rows = Chapter("Pipeline", record["run"]), record["rows"]
    dataset = record["data"]["dataset"]
    for row in rows:
        if row["split"] == "test":
            chapter.find_model(row["title"], row["model_id"])
    titles = {row["what"]: row["title"] for row in rows}
    table = read_rows(folder / "table.csv", ("what", "split", "dice_mean", "dice_std", "n_images", FALSE))
    chapter.tables.append((f"Dice in %, mean and standard deviation over images, and {MASKS_OF_ABSENT}", [
        ["", "images", "mean", "std", "absent"],
        *([titles.get(row["what"], row["what"]), f"{row['n_images']} {row['split']}",
           *(f"{float(row[name]):.2f}" for name in ("dice_mean", "dice_std")), row[FALSE]] for row in table)]))
    if (folder / "refinement_check.csv").is_file():
        chapter.tables.append(read_checks(folder / "refinement_check.csv", titles))
    measured = {row["what"]: read_values(folder / dataset / row["model_id"] / f"{row['split']}_{row['masks']}")
                for row in rows}
    for split in ("test", "unlabeled"):
        chapter.chart_classes(f"Dice of each class, {split} images", {
            row["title"]: class_means(measured[row["what"]][0]) for row in rows if row["split"] == split})
    chapter.notices += [f"{row['title']}: {row['notice']}" for row in rows if row["notice"]]
    try:
        chapter.galleries += pipeline_galleries(rows, measured, places.open(record["data"]), places.device)
    except InputError as error:
        chapter.missing.append(f"No images are shown: {error}")
    return chapter


def read_checks(path: Path, titles: Mapping[str, str]) -> Table:
    """What the refinement made of the labeled validation images before anything was trained on it, a row a label."""
    rows = read_rows(path, ("refinement", "round", *LabelCheck._fields))
    return (f"Labeled validation images before and after the refinement: Dice in %, and {MASKS_OF_ABSENT}", [
        ["", "round", "label", "images", "found", "drawn", "Dice before", "after", "absent before", "after"],
        *([titles.get(row["refinement"], row["refinement"]), row["round"], row["label"], row["shown"], row["found"],
           row["drawn"], *(cell and f"{float(cell):.1f}" for cell in (row["dice_before"], row["dice_after"])),
           row["false_before"], row["false_after"]] for row in rows)])


def pipeline_galleries(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, tuple[Values, Values]],
                       data: AnnotatedImages, device: torch.device) -> list[Gallery]:
    """Of the test images the networks' masks; of the unlabeled ones the raw and refined masks with their prompts, and
    what the networks make of these images that were trained on them.

    Args:
        rows: of results.json
        measured: what -> Dice and estimates
    Raises:
        InputError: an image, a model or saved masks are gone.
    """
    models: dict[str, TrainedModel] = {}
    for row in rows:
        if row["model_id"] not in models:
            models[row["model_id"]] = TrainedModel.load(fetch_model(row["model_id"]), data, device)
    on_test = [Column(row["title"], predicted(models[row["model_id"]]), *measured[row["what"]])
               for row in rows if row["split"] == "test"]
    unlabeled, stems = [], []
    known = {(row["model_id"], row["masks"]) for row in rows if row["split"] == "unlabeled"}
    for row in rows:
        model = models[row["model_id"]]
        if row["split"] == "unlabeled":
            store = MaskStore(mask_file(model.data.derived_dir, model.id, row["masks"]), data.description.labels)
            stems = store.stems if not stems else [stem for stem in stems if stem in store]
            dice, estimates = measured[row["what"]]
            estimates = estimates or saved_estimates(store, store.stems, data.description.labels)
            unlabeled += saved_columns(row["title"], store, model, dice, estimates)
        elif (row["model_id"], row["masks"]) not in known:
            unlabeled.append(Column(row["title"], predicted(model)))
    seen = next(iter(models.values())).data
    return [Gallery(seen, "test", data.stems("test"), on_test), Gallery(seen, "unlabeled", stems, unlabeled)]


def saved_columns(title: str, store: MaskStore, model: TrainedModel, dice: Values, estimates: Values) -> list[Column]:
    """The masks of a file that were made from a model, after their prompts where SAM was given some."""
    prompting: Prompting | None = prompting_of(store)
    prompts = [] if prompting is None else [Column(f"prompts of {title}", saved(store), prompting=(prompting, model))]
    return [*prompts, Column(title, saved(store), dice, estimates)]


def read_study(folder: Path, places: Places) -> Chapter:
    """Of study.csv, pseudo_labels.csv and manifest.json, for the largest number of labeled images and its first seed
    where images are shown.

    Raises:
        InputError: one of them is missing or damaged.
    """
    manifest = read_manifest(folder / "manifest.json")
    all_rows = {name: rename_methods(read_rows(folder / f"{name}.csv", COLUMNS), TITLES)
                for name in ("study", "pseudo_labels")}
    rows = all_rows["study"]
    if not rows:
        raise InputError(f"{folder / 'study.csv'}: holds no results; run scripts.run_study again")
    numbers = sorted({int(row["n"]) for row in rows})
    n = numbers[-1]
    seed = next(row["seed"] for row in rows if int(row["n"]) == n)
    of_largest = {name: of_n(each, n) for name, each in all_rows.items()}
    chapter = Chapter("Study", {**manifest["results"][-1]["run"], "arguments": manifest["arguments"]})
    what = f"data set {rows[0]['dataset']}, SAM type {manifest['sam_type']}"
    tables = {**make_tables(rows, numbers, what),
              **tables_of_n(of_largest["study"], of_largest["pseudo_labels"], f"{what}, {n} labeled images")}
    chapter.tables += tables.values()
    results = [each for each in manifest["results"] if (each["n"], str(each["seed"])) == (n, seed)]
    for result in results:
        chapter.find_model(f"{TITLES[result['method']]}, n = {n}, seed {seed}", result["model_id"])
    for name, where in (("study", "test images"), ("pseudo_labels", "pseudo labels")):
        chapter.chart_classes(f"Dice of each class, {where}, n = {n}", {
            method: class_means(values_of_rows(of_largest[name], "dice", method))
            for method in dict.fromkeys(row["method"] for row in of_largest[name])})
    if notice := SAM_TYPES[manifest["sam_type"]].notice:
        chapter.notices.append(f"Refined masks: {notice}")
    try:
        arguments = restore_arguments(places.moved(manifest["arguments"]))
        setting = Setting.from_args(arguments, num_train_samples=n, seed=int(seed))
        of_seed = {name: [row for row in each if row["seed"] == seed] for name, each in of_largest.items()}
        chapter.galleries += study_galleries(setting, results, of_seed["study"], of_seed["pseudo_labels"])
    except InputError as error:
        chapter.missing.append(f"No images are shown: {error}")
    return chapter


def study_galleries(setting: Setting, results: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, str]],
                    pseudo_label_rows: Sequence[Mapping[str, str]]) -> list[Gallery]:
    """Of the test images every method's masks; of the unlabeled ones the pseudo labels that are saved, with their
    prompts.

    Args:
        results: of the manifest, of one number of labeled images and seed
        rows, pseudo_label_rows: of the same, with the methods' titles
    Raises:
        InputError: an image, a model or saved masks are gone.
    """
    on_test, on_unlabeled, stems = [], [], []
    initial = setting.load(results[0]["initial_model_id"])
    for result in results:
        title, model = TITLES[result["method"]], setting.load(result["model_id"])
        labels = setting.labels[result["masks"]]
        values = [values_of_rows(rows, measure, title) for measure in ("dice", "estimated_dice")]
        on_test.append(Column(title, lambda stems, labels=labels, model=model: masks_of(labels, model, stems), *values))
        if "pseudo_labels" not in result:
            continue
        path = mask_file(setting.data.derived_dir, result["labeler_id"], result["pseudo_labels"])
        if path.is_file():
            store = MaskStore(path, setting.data.description.labels)
            stems = store.stems if not stems else [stem for stem in stems if stem in store]
            values = [values_of_rows(pseudo_label_rows, measure, title) for measure in ("dice", "estimated_dice")]
            values[1] = values[1] or saved_estimates(store, store.stems, setting.data.description.labels)
            on_unlabeled += saved_columns(title, store, setting.load(result["labeler_id"]), *values)
    galleries = [Gallery(initial.data, "test", setting.data.stems("test"), on_test)]
    return galleries + ([Gallery(initial.data, "unlabeled", stems, on_unlabeled)] if stems else [])


def read_values(folder: Path) -> tuple[Values, Values]:
    """Dice and estimates of an evaluation; {} of what wasn't measured."""
    return tuple(_read_table(folder / name) if (folder / name).is_file() else {}
                 for name in ("dice.csv", "estimated_dice.csv"))


def _read_table(path: Path) -> Values:
    return {row.pop("stem"): {label: float(cell) for label, cell in row.items() if cell and label != FALSE}
            for row in read_rows(path, ["stem", MEAN])}


def values_of_rows(rows: Sequence[Mapping[str, str]], measure: str, method: str) -> Values:
    """Of a study's rows of one number of labeled images; the mean over seeds where there are several."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["method"] == method and row[measure]:
            found.setdefault(row["image"], {}).setdefault(row["class"], []).append(float(row[measure]))
    values = {stem: {label: float(np.mean(each)) for label, each in classes.items()} for stem, classes in found.items()}
    return {stem: {MEAN: float(np.mean(list(classes.values()))), **classes} for stem, classes in values.items()}


def class_means(values: Values) -> dict[str, float]:
    """Label -> mean over the images that show it."""
    found: dict[str, list[float]] = {}
    for of_image in values.values():
        for label, value in of_image.items():
            if label != MEAN:
                found.setdefault(label, []).append(value)
    return {label: float(np.mean(each)) for label, each in found.items()}
