"""Makes one HTML file of the results of scripts.run_pipeline or scripts.run_study, to look at and to hand on.

    python -m scripts.report --results_dir results/demo_seed42
    python -m scripts.report --results_dir results/phantom_study --images 60 --out study.html

The file opens in any browser, without a server, the network or other files. It shows how the results were made, the
training curves, the tables, Dice per class, and a gallery: of each image the masks of every stage, SAM's prompts and
the ground truth, as far as they are there. Of many images the worst, the median and the best ones are shown.

Reads   what the other command wrote into --results_dir, and for the gallery the models, saved masks and images that it
        came from; what is gone is left out, and the page says so
Writes  report.html in --results_dir, or --out
"""
import argparse
import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from scripts.report_page.outlines import FINER
from scripts.report_page.places import Places
from utils.cli import run_stage, select_device, stage_parser
from utils.errors import InputError
from utils.files import atomic_path, write_png
from utils.options import add_options, option, options_from, positive_int
from utils.overlay import class_colors
from utils.paths import RESULTS
from utils.tables import BEST, best_median_worst

if TYPE_CHECKING:
    from scripts.report_page.chapters import Chapter
    from scripts.report_page.gallery import Choice, Gallery, Picture

TEMPLATES = Path(__file__).parent / "report_page"


@dataclass(frozen=True)
class ReportOptions:
    """How much is shown."""

    images: int = option(40, "how many images the gallery shows, the worst, the median and the best ones",
                         type=positive_int)
    pixels: int = option(640, "longer side of a picture", type=positive_int)


def get_args_parser() -> argparse.ArgumentParser:
    parser = stage_parser("scripts.report", __doc__)
    parser.add_argument("--results_dir", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--out", type=Path, help="the file that is written (left out: <results_dir>/report.html)")
    add_options(parser, ReportOptions)
    parser.add_argument("--data_dir", type=Path, help="folder of all data sets (left out: as it was)")
    parser.add_argument("--derived_dir", type=Path, help="folder of the masks (left out: as it was, or <data_dir>)")
    parser.add_argument("--gpu_id", type=int, help="GPU to use (left out: the first one, or the CPU)")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Returns the file."""
    places = Places(select_device(args.gpu_id), args.data_dir, args.derived_dir)
    return write_report(args.results_dir, options_from(ReportOptions, args), places, args.out)


class Shown(NamedTuple):
    """A gallery as the page shows it."""

    gallery: "Gallery"
    choice: "Choice"
    pictures: "list[Picture]"

    @property
    def has_prompts(self) -> bool:
        return any(panel.prompts for picture in self.pictures for panel in picture.panels)

    @property
    def has_truth(self) -> bool:
        return any(picture.panels[-1].is_truth for picture in self.pictures)


def write_report(results_dir: Path, options: ReportOptions, places: Places, out: Path | None = None,
                 masks_dir: Path | None = None) -> Path:
    """Writes the page; returns its file.

    Args:
        masks_dir: where the worst, median and best image of each split is written, too
    Raises:
        InputError: there are no results, or they are damaged.
    """
    from scripts.report_page.chapters import read_pipeline, read_study
    readers = {"results.json": read_pipeline, "manifest.json": read_study}
    chapters = [read(results_dir, places) for name, read in readers.items() if (results_dir / name).is_file()]
    if not chapters:
        raise InputError(f"{results_dir}: holds no results (results.json or manifest.json); run scripts.run_pipeline "
                         "or scripts.run_study, or name their folder with --results_dir")
    count = sum(len(chapter.galleries) for chapter in chapters)
    share = max(1, options.images // max(1, count))
    shown = [draw_galleries(chapter, options, share, masks_dir if chapter is chapters[0] else None)
             for chapter in chapters]
    out = out or results_dir / "report.html"
    page = render(results_dir.resolve().name, list(zip(chapters, shown, strict=True)))
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"report: {out}")
    return out


def draw_galleries(chapter: "Chapter", options: ReportOptions, share: int, masks_dir: Path | None) -> list[Shown]:
    """The galleries of a chapter, each with its share of all images, and what others leave of theirs; one whose files
    are gone is told."""
    galleries = [gallery for gallery in chapter.galleries if gallery.stems]
    left, shown = share * len(galleries), []
    for number, gallery in enumerate(sorted(galleries, key=lambda gallery: len(gallery.stems))):
        choice = gallery.choose(left // (len(galleries) - number))
        kept = {}
        if masks_dir is not None:
            names = best_median_worst(dict(zip(choice.stems, range(len(choice.stems)), strict=True)))
            kept = {name: stem for name, stem in names.items() if choice.by}
        try:
            pictures = gallery.draw(choice.stems, options.pixels, kept.values())
        except InputError as error:
            chapter.missing.append(f"No {gallery.split} images are shown: {error}")
            continue
        left -= len(pictures)
        overlays = {picture.stem: picture.overlay for picture in pictures}
        for name, stem in kept.items():
            write_png(masks_dir / f"{gallery.split}_{name}.png", overlays[stem])
        shown.append(Shown(gallery, choice, pictures))
    return sorted(shown, key=lambda each: galleries.index(each.gallery))


def render(name: str, chapters: "Sequence[tuple[Chapter, list[Shown]]]") -> str:
    """The page as text; whatever comes from outside is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # not needed to show the help
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"mark_best": mark_best, "value": describe_value, "crosses": draw_crosses,
                            "dots": draw_dots}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    colors = [[f"#{bytes(color.tolist()).hex()}" for color in class_colors(len(chapter.labels))]
              for chapter, _ in chapters]
    return environment.get_template("page.html").render(
        name=name, chapters=chapters, colors=colors, style=style, script=script, script_digest=digest, finer=FINER)


def describe_value(value: Any) -> str:
    """An argument as one types it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not given" if value is None else str(value)


def mark_best(cell: str) -> Markup | str:
    """A cell of a table; what stands out is bold."""
    return Markup("<b>{}</b>").format(cell.removesuffix(BEST)) if cell.endswith(BEST) else cell


def draw_dots(points: "Sequence[tuple[float, float]]") -> str:
    """Points as the attribute `d` of a path whose line's ends are round."""
    return "".join(f"M{x:g},{y:g}h0" for x, y in points)


def draw_crosses(points: "Sequence[tuple[float, float]]", arm: float) -> str:
    """Points as crosses with arms of that length, as the attribute `d` of a path."""
    return "".join(f"M{x - arm:g},{y - arm:g}l{2 * arm:g},{2 * arm:g}m0,{-2 * arm:g}l{-2 * arm:g},{2 * arm:g}"
                   for x, y in points)


if __name__ == "__main__":
    run_stage(main, get_args_parser())
