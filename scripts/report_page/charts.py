"""Plots as SVG that take the page's colors, in the light and in the dark."""
import math
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup, escape

from scripts.study.figures import COLORS

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 240, 46, 12, 10, 38
ROW = 22  # pixels of a class
SERIES = COLORS[1:]  # without black, which the dark page hides


def curve_chart(series: Mapping[str, Mapping[int, float]], y_title: str, percent: bool) -> Markup:
    """Values over epochs, a line a series.

    Args:
        series: name -> epoch from 0 -> value
        percent: values are in [0, 1], and shown in percent
    """
    scale = 100 if percent else 1
    values = [scale * value for points in series.values() for value in points.values()]
    last = max((step for points in series.values() for step in points), default=0) + 1
    ticks = nice_ticks(0 if percent else min(0, *values), 100 if percent else max(values))
    low, high = ticks[0], ticks[-1]

    def x(epoch: float) -> float:
        return LEFT + (epoch - 1) / max(1, last - 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid") + _text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end")
             for tick in ticks]
    whole = [tick for tick in nice_ticks(1, last) if tick == int(tick) and 1 <= tick <= last]
    parts += [_text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle") for tick in dict.fromkeys([1, *whole])]
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "epoch", "middle")]
    for (name, points), color in zip(series.items(), _cycle(), strict=False):
        drawn = " ".join(f"{x(step + 1):.1f},{y(scale * value):.1f}" for step, value in points.items())
        parts.append(Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2"><title>{}</title>'
                            "</polyline>").format(drawn, color, name))
    return _svg(WIDTH, HEIGHT, parts, y_title) + legend(list(series))


def class_chart(values: Mapping[str, Mapping[str, float]], labels: Sequence[str]) -> Markup:
    """Dice in percent of each class: a row a class with a point a series, joined by a line.

    Args:
        values: name of the series -> label -> percent; a label without a value is left out
    """
    left = min(190, 14 + 7 * max(map(len, labels), default=0))
    height = TOP + ROW * len(labels) + BOTTOM

    def x(percent: float) -> float:
        return left + percent / 100 * (WIDTH - left - RIGHT)

    parts = [_line(x(tick), TOP, x(tick), height - BOTTOM, "grid") + _text(x(tick), height - BOTTOM + 16, f"{tick}",
                                                                             "middle") for tick in range(0, 101, 20)]
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 4, "Dice in %", "middle"))
    for row, label in enumerate(labels):
        middle = TOP + ROW * (row + 0.5)
        shown = {name: of_label[label] for name, of_label in values.items() if label in of_label}
        parts.append(_text(left - 8, middle + 4, label, "end", longest=left - 10))
        if shown:
            parts.append(_line(x(min(shown.values())), middle, x(max(shown.values())), middle, "span"))
        for (name, of_label), color in zip(values.items(), _cycle(), strict=False):
            if label in of_label:
                point = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" fill="{}"><title>{}</title></circle>')
                told = f"{label}: {name}, {of_label[label]:.2f} %"
                parts.append(point.format(x(of_label[label]), middle, color, told))
    return _svg(WIDTH, height, parts, "Dice of each class") + legend(list(values))


def legend(names: Sequence[str]) -> Markup:
    """The names of series with their colors."""
    entries = [Markup('<li><i style="background:{}"></i>{}</li>').format(color, name)
               for name, color in zip(names, _cycle(), strict=False)]
    return Markup('<ul class="series">{}</ul>').format(Markup("").join(entries))


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`, evenly spaced: at most `most` + 1."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most - 1)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _cycle() -> Iterator[str]:
    while True:
        yield from SERIES


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, Markup("").join(parts))


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> Markup:
    return Markup(f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{escape(kind)}"/>')


def _text(x: float, y: float, text: str, anchor: str, longest: int | None = None) -> Markup:
    """`longest`: in pixels; a longer text is cut, and its end told by a tooltip."""
    most = len(text) if longest is None else int(longest / 6.2)
    shown = text if len(text) <= most else f"{text[:most - 1]}…"
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}<title>{}</title></text>').format(
        x, y, anchor, shown, text)
