"""The report's page against the tables and records that it is made of, and in a browser."""
import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import lxml.html
import msgspec
import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from PIL import Image

from scripts import plot_results, report, run_pipeline, run_study
from scripts.report import ReportOptions, Shown, render
from scripts.report_page.chapters import Chapter, class_means
from scripts.report_page.charts import nice_ticks
from scripts.report_page.curves import read_curves
from scripts.report_page.gallery import (
    Choice,
    Column,
    Gallery,
    Panel,
    Picture,
    Shape,
    make_shapes,
    mark_prompts,
    prompting_of,
)
from scripts.report_page.outlines import FINER, svg_path
from scripts.report_page.places import Places
from segment_anything.refinement.prompts import extract_prompts
from segment_anything.refinement.recommended import Calibration, Estimate, prompt_calibrated
from segment_anything.refinement.refine import RefinementOptions, clean_and_prompt
from tests.browser import start_browser
from tests.stage_runs import SMALL, N, run
from utils.errors import InputError
from utils.mask_store import MaskStore, MaskWriter
from utils.overlay import class_colors
from utils.records import read_record, write_record
from utils.tracking.models import fetch_model

LABELS = ("lung", "<script>alert(1)</script>")
ARGUMENTS = (*N, *SMALL, "--seed", "5")


@pytest.fixture(scope="module")
def results(phantom_data_dir, tmp_path_factory):
    """The results of a small pipeline: their folder, and that of the data."""
    folder = tmp_path_factory.mktemp("report")
    data_dir = shutil.copytree(phantom_data_dir, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAM_BURDEN_RUNS", str(folder / "runs"))
        run(run_pipeline, data_dir, *ARGUMENTS, "--results_dir", str(folder / "results"))
        yield folder / "results", data_dir


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def parse(path: Path) -> lxml.html.HtmlElement:
    return lxml.html.fromstring(path.read_text(encoding="utf-8"), parser=lxml.html.HTMLParser(encoding="utf-8"))


def find(element: lxml.html.HtmlElement, path: str) -> list:
    """By XPath, in which `.name` stands for an element of that class."""
    return element.xpath(re.sub(r"\.(\w+)", r"*[contains(concat(' ', @class, ' '), ' \1 ')]", path))


@pytest.mark.slow
def test_the_page_says_what_the_tables_say(results):
    folder, _ = results
    page = parse(folder / "report.html")
    rows = [[cell.text_content() for cell in row] for row in page.xpath("(//table)[1]/tbody/tr")]
    assert [[f"{float(row['dice_mean']):.2f}", f"{float(row['dice_std']):.2f}", row["false_positives"]]
            for row in read(folder / "table.csv")] == [row[2:] for row in rows]
    checks = page.xpath("(//table)[2]/tbody/tr")
    assert [row[2].text_content() for row in checks] == [row["label"] for row in read(folder / "refinement_check.csv")]
    assert [row[0] for row in rows] == ["initial U-Net", "raw pseudo labels", "refined pseudo labels", "final U-Net"]
    record = read_record(folder / "results.json", dict)
    assert page.xpath("//pre")[0].text == record["run"]["command"]
    assert record["run"]["commit"] in page.text_content() and record["run"]["versions"]["torch"] in page.text_content()
    for row in record["rows"]:
        table = read(folder / "phantom" / row["model_id"] / f"{row['split']}_{row['masks']}" / "dice.csv")
        gallery = page.xpath(f"//section[h2='{row['split'].capitalize()} images']")[0]
        shown = {each.get("data-stem"): json.loads(each.get("data-values")) for each in find(gallery, ".//.row")}
        assert len(shown) == len(table) == {"test": 10, "unlabeled": 12}[row["split"]]
        for line in table:
            assert shown[line["stem"]][f"Dice: {row['title']}"] == pytest.approx(float(line["mean"]), abs=1e-6)
        radius = np.mean([float(line["Radius"]) for line in table if line["Radius"]])
        assert f"Radius: {row['title']}, {radius:.2f} %" in page.xpath("//*[local-name()='circle']/title/text()")
    captions = [[each.get("data-title") for each in find(find(page, f"//section[h2='{split} images']//.row")[0],
                                                          ".//.panel")] for split in ("Test", "Unlabeled")]
    assert captions == [
        ["image", "initial U-Net", "final U-Net", "ground truth"],
        ["image", "raw pseudo labels", "prompts of refined pseudo labels", "refined pseudo labels", "final U-Net",
         "ground truth"]]
    assert not page.xpath("//link | //iframe | //script[@src] | //img[not(starts-with(@src, 'data:'))]")


@pytest.mark.slow
def test_curves_are_those_of_the_trainings(results):
    folder, _ = results
    for row in read_record(folder / "results.json", dict)["rows"]:
        curves = read_curves(fetch_model(row["model_id"]).task_id)
        assert set(curves["loss"]) == {"train", "validation"} and list(curves["loss"]["train"]) == [0, 1]
    assert len(find(parse(folder / "report.html"), "//section[h2='Training curves']//.chart")) == 2 * 2
    assert read_curves("offline-none") == {}


@pytest.mark.slow
def test_masks_are_drawn_beside_it_and_a_rerun_draws_nothing(results, capsys):
    folder, data_dir = results
    names = sorted(path.name for path in (folder / "masks").iterdir())
    assert names == [f"{split}_{which}.png" for split in ("test", "unlabeled") for which in ("best", "median", "worst")]
    picture = cv2.imread(str(folder / "masks" / "test_best.png"))[..., ::-1]
    colors = class_colors(17)
    assert all((picture[:, -250:] == color).all(axis=-1).sum() > 90 for color in colors)  # the legend
    before = (folder / "report.html").stat().st_mtime_ns
    run(run_pipeline, data_dir, *ARGUMENTS, "--results_dir", str(folder))
    assert (folder / "report.html").stat().st_mtime_ns == before
    assert f"report, table and masks: {folder}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_of_fewer_images_holds_the_worst_median_and_best(results, tmp_path):
    folder, _ = results
    made = report.main(report.get_args_parser().parse_args(
        ["--results_dir", str(folder), "--images", "12", "--out", str(tmp_path / "few.html"), "--pixels", "64"]))
    gallery = parse(made).xpath("//section[h2='Test images']")[0]
    final = next(row for row in read_record(folder / "results.json", dict)["rows"] if row["what"] == "final")
    table = read(folder / "phantom" / final["model_id"] / "test_raw" / "dice.csv")
    ranked = [line["stem"] for line in sorted(table, key=lambda line: float(line["mean"]))]
    assert [row.get("data-stem") for row in find(gallery, ".//.row")] == [*ranked[:2], *ranked[4:6], *ranked[-2:]]
    said = " ".join(find(gallery, "./.said")[0].text_content().split())
    assert said.startswith("6 of 10 images: the 2 worst, 2 around the median and the 2 best, by Dice: final U-Net")
    assert made.stat().st_size < 1_000_000


@pytest.mark.slow
def test_what_is_gone_is_told(results, tmp_path):
    folder, _ = results
    arguments = ["--results_dir", str(folder), "--data_dir", str(tmp_path), "--out", str(tmp_path / "gone.html")]
    page = parse(report.main(report.get_args_parser().parse_args(arguments)))
    assert not find(page, "//.row") and page.xpath("//table")
    assert any("No images are shown" in each.text_content() for each in find(page, "//.notice"))
    with pytest.raises(InputError, match=r"run scripts\.run_pipeline"):
        report.write_report(tmp_path, ReportOptions(), Places(torch.device("cpu")))


@pytest.mark.slow
def test_a_study_has_its_page_and_pictures(results, tmp_path):
    _, data_dir = results
    arguments = [argument for argument in ARGUMENTS if argument not in ("--seed", "5")]
    run(run_study, data_dir, *arguments, "--seeds", "5", "--methods", "initial", "sam", "recommended_twice",
        "--results_dir", str(tmp_path))
    page = parse(report.main(report.get_args_parser().parse_args(["--results_dir", str(tmp_path)])))
    rows = {row[0].text_content(): row[1].text_content() for row in page.xpath("(//table)[1]/tbody/tr")}
    study = read(tmp_path / "study.csv")
    for method, title in (("initial", "U-Net"), ("sam", "SAM's pseudo labels")):
        images: dict[str, list[float]] = {}
        for row in study:
            if row["method"] == method:
                images.setdefault(row["image"], []).append(float(row["dice"]))
        means = {stem: np.mean(values) for stem, values in images.items()}
        assert rows[title].startswith(f"{np.mean(list(means.values())):.2f} ±")
        for each in find(page, "//section[h2='Test images']//.row"):
            values = json.loads(each.get("data-values"))
            assert values[f"Dice: {title}"] == pytest.approx(means[each.get("data-stem")], abs=1e-6)
    panels = find(find(page, "//section[h2='Unlabeled images']//.row")[0], ".//.panel")
    assert [panel.get("data-title") for panel in panels] == [
        "image", "prompts of SAM's pseudo labels", "SAM's pseudo labels", "prompts of Recommended, two rounds",
        "Recommended, two rounds", "ground truth"]
    twice = next(each for each in read_record(tmp_path / "manifest.json", dict)["results"]
                 if each["method"] == "recommended_twice")
    labeler = fetch_model(twice["labeler_id"])  # the final network of the first round
    assert labeler.parameters["stage"] == "final" and labeler.id != twice["model_id"]
    assert {row["model_id"] for row in read(tmp_path / "pseudo_labels.csv")
            if row["method"] == "recommended_twice"} == {labeler.id}
    plot_results.main(plot_results.get_args_parser().parse_args(["--results_dir", str(tmp_path)]))
    for name in ("overlays.pdf", "overlays.png", "pseudo_label_table.tex"):
        assert (tmp_path / name).stat().st_size > 200


@pytest.mark.slow
def test_filter_sort_and_keys_work_in_a_browser(results, tmp_path):
    folder, _ = results
    with start_browser(tmp_path / "profile") as browser:
        browser.open(folder / "report.html")
        gallery = "document.querySelector('.gallery')"
        stems = (f"[...{gallery}.querySelectorAll('.row')].filter(row => row.checkVisibility())"
                 ".map(row => row.dataset.stem)")

        def enter(name: str, value: str) -> None:
            browser.run(f"{{ const box = {gallery}.querySelector('.{name}'); box.value = {value!r};"
                        " box.dispatchEvent(new Event('input', {bubbles: true})) }")

        initial = read_record(folder / "results.json", dict)["rows"][0]
        table = read(folder / "phantom" / initial["model_id"] / "test_raw" / "dice.csv")
        dice = {line["stem"]: float(line["mean"]) for line in table}
        enter("key", "Dice: initial U-Net")
        assert browser.run(stems) == sorted(dice, key=dice.get)
        browser.run(f"{gallery}.querySelector('.falling').click()")
        assert browser.run(stems) == sorted(dice, key=dice.get, reverse=True)
        middle = sorted(dice.values())[4]
        enter("low", str(middle))
        assert set(browser.run(stems)) == {stem for stem, value in dice.items() if value >= middle}
        enter("low", "")
        browser.press("/")
        for letter in "0057":
            browser.press(letter)
        assert browser.run(stems) == [stem for stem in dice if "0057" in stem]
        browser.press("Escape")
        assert len(browser.run(stems)) == 10
        browser.press("ArrowDown")
        browser.press("ArrowDown")
        second = sorted(dice, key=dice.get, reverse=True)[1]
        assert browser.run("document.activeElement.dataset.stem") == second
        browser.press("Enter")
        title = "document.querySelector('dialog[open] .bar p').textContent"
        assert browser.run(title).startswith(f"{second} · initial U-Net")
        browser.press("ArrowRight")
        assert "final U-Net" in browser.run(title)
        display = "getComputedStyle(document.querySelector('.stage .masks')).display"
        assert browser.run(display) == "inline"
        browser.press(" ")
        assert browser.run(display) == "none"
        browser.press("Escape")
        assert not browser.run("document.querySelector('dialog').open")
        browser.run(f"{gallery}.querySelector('.legend [data-class=\"16\"]').click()")
        drawn = (f"[...{gallery}.querySelectorAll('.masks > .k')].filter(path => getComputedStyle(path).display != "
                 "'none').map(path => path.getAttribute('class'))")
        assert set(browser.run(drawn)) == {"k c16"}
        browser.open(folder / "report.html", width=390, height=844, dark=True)
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        assert browser.errors == []


def test_text_of_users_is_no_code(tmp_path):
    hostile = "\"><img src=x onerror=alert(2)>'"
    masks = Panel(hostile, (4, 6), [Shape(1, "M0 0l2 0 0 2z", "", 12.3, None)], [], hostile, 12.3, None)
    picture = Picture(hostile, 40, 60, "", [Panel("image", (40, 60), [], []), masks])
    chapter = Chapter(hostile, {"command": hostile, "arguments": {"dataset": hostile}, "versions": {}, "commit": "",
                                "threads": 1}, tables=[(hostile, [["", hostile], [hostile, hostile]])], labels=LABELS,
                      notices=[hostile], missing=[hostile])
    shown = Shown(Gallery(None, "test", [hostile], []), Choice(f"Dice: {hostile}", [hostile]), [picture])
    path = tmp_path / "page.html"
    path.write_text(render(hostile, [(chapter, [shown])]), encoding="utf-8")
    page = parse(path)
    assert len(page.xpath("//script")) == 1 and not page.xpath("//img") and not page.xpath("//@onerror")
    assert [button.text_content() for button in find(page, "//.legend//button")] == ["all classes", *LABELS]
    assert page.xpath("//h1")[0].text == hostile
    assert json.loads(find(page, "//.row")[0].get("data-values")) == {f"Dice: {hostile}": 12.3}
    with start_browser(tmp_path / "profile") as browser:
        browser.open(path)
        assert browser.run("document.scripts.length") == 1
        assert browser.run("document.querySelectorAll('.row')[0].dataset.stem") == hostile
        assert browser.errors == []


def test_outlines_fill_what_the_mask_fills():
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = cv2.GaussianBlur(rng.normal(size=(47, 70)), (0, 0), 4) > 0.02
        mask[10:20, 12:30] = True
        mask[13:16, 15:19] = False  # a hole
        x, y = np.meshgrid(np.arange(70) + 0.5, np.arange(47) + 0.5)
        drawn = np.zeros((47, 70), bool)
        for outline in re.findall(r"M([^z]+)z", svg_path(mask)):
            steps = np.array(re.findall(r"-?\d+", outline), int).reshape(-1, 2)
            points = (np.cumsum(steps, axis=0) + 0.5) / FINER
            if len(points) > 2:
                drawn ^= Outline(points).contains_points(np.stack([x, y], -1).reshape(-1, 2)).reshape(47, 70)
        assert 2 * (drawn & mask).sum() / (drawn.sum() + mask.sum()) > 0.97
        assert drawn[12, 20] and not drawn[14, 17]
    assert svg_path(np.zeros((4, 6), bool)) == ""


def test_speckles_are_an_image_in_the_color_of_the_class():
    speckles = np.random.default_rng(0).random((40, 61)) > 0.5
    shape, = make_shapes(np.stack([np.zeros_like(speckles), speckles]))
    assert (shape.channel, shape.path) == (1, "")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape.png))).convert("RGBA"))
    np.testing.assert_array_equal(pixels[..., 3] > 0, speckles)
    assert (pixels[speckles][:, :3] == class_colors(2)[1]).all()


def test_prompts_lie_where_the_masks_are():
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:6, 3:12], masks[2, 10:19, 20:25] = True, True
    marks = mark_prompts(extract_prompts(masks), ("box", "pos_points", "neg_points"), (40, 90))
    assert [mark.channel for mark in marks] == [0, 2]
    assert marks[0].box == (9, 4, 27, 8)  # x, y, width, height in a picture of twice the height, thrice the width
    assert marks[0].positive == [((7 + 0.5) * 3, (4 + 0.5) * 2)]  # the middles, 7 and 3.5, in whole pixels
    assert marks[0].negative == marks[1].positive and marks[1].negative == marks[0].positive
    assert mark_prompts(extract_prompts(masks), ("box",), (20, 30))[1] == (2, (20, 10, 5, 9), [], [])


def test_prompts_are_taken_as_the_masks_were_made(tmp_path):
    rng = np.random.default_rng(1)
    probabilities = cv2.GaussianBlur(rng.random((40, 60, 2)).astype(np.float32), (0, 0), 2).transpose(2, 0, 1)
    options = RefinementOptions(prompt1st=("box", "mask"), prompt2nd=(), ccl_selection="largest", morphology="paper",
                                morphology_radius=1)
    calibration = Calibration((0.1, -0.1), ("box",), (0.5, 0.5), (0.0, 0.0), "largest", Estimate((), (), (), ()),
                              (0.5, 0.6))
    paper = {**msgspec.to_builtins(options), "sam_type": "demo"}
    ways = {"paper": (paper, clean_and_prompt(probabilities, options)[1]),
            "recommended": ({"name": "x"}, prompt_calibrated(probabilities, calibration))}
    write_record(tmp_path / "recommended.json", {"attributes": {}, "calibration": msgspec.to_builtins(calibration)})
    for name, (parameters, expected) in ways.items():
        path = tmp_path / f"{name}.h5"
        with MaskWriter(path, LABELS, {"refine_params": json.dumps(parameters)}) as writer:
            writer.write("a", probabilities > 0.5)
        prompting = prompting_of(MaskStore(path, LABELS))
        prompts = prompting.extract(probabilities)
        np.testing.assert_array_equal(prompts.masks, expected.masks)
        np.testing.assert_array_equal(prompts.boxes, expected.boxes)
    assert prompting.passes == (("box",),)


def test_images_without_a_value_count_as_worst():
    values = {f"{number}": {"mean": float(number)} for number in range(9)}
    gallery = Gallery(None, "test", [*values, "none"], [Column("a", None, values)])
    assert gallery.choose(4) == ("Dice: a", ["none", "0", "3", "8"], (2, 1, 1))
    assert gallery.choose(10).stems == ["none", *values] and gallery.choose(10).counts is None
    assert gallery.choose(1).stems == ["none"]
    assert Gallery(None, "test", ["b", "a"], []).choose(1) == ("", ["b"], None)


def test_means_of_classes_are_over_the_images_that_show_them():
    assert class_means({"a": {"mean": 30, "x": 20.0, "y": 40.0}, "b": {"mean": 60, "x": 60.0}}) == {"x": 40, "y": 40}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0031), (1, 350), (-2, 97), (0, 0)])
def test_ticks_are_few_and_around_all_values(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8 and ticks[0] <= low and ticks[-1] >= high
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
