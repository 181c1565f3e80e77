"""Charts as inline SVG, with no script. Colors are the page's variables, so they follow its light or dark scheme."""

from __future__ import annotations

import html
import math
from typing import Any

WIDTH = 560


def scores(candidates: list[dict[str, Any]], best: str) -> str:
    """Each candidate's folds as dots, its mean with one standard deviation, and its held-out score."""
    values = [value for c in candidates for value in (*c["scores"], c["held_out"])]
    axis = _Axis(min(values), max(values), 150, WIDTH - 24)
    top, row = 14, 48
    bottom = top + row * len(candidates)
    marks = [_grid(axis, top, bottom)]
    for n, c in enumerate(candidates):
        y = top + row * n + row / 2
        mean = sum(c["scores"]) / len(c["scores"])
        spread = math.sqrt(sum((s - mean) ** 2 for s in c["scores"]) / len(c["scores"]))
        tone = "accent" if c["label"] == best else "quiet"
        low, high = axis.at(mean - spread), axis.at(mean + spread)
        marks.append(f'<g class="{tone}"><text x="138" y="{y + 4:.1f}" class="name">{html.escape(c["label"])}</text>')
        marks.append(
            f'<path class="bar" d="M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 7:.1f}v14M{high:.1f} {y - 7:.1f}v14"/>'
        )
        marks += [
            _dot(axis.at(s), y + (13 if k % 2 else -13), f"fold {k + 1}: {s:.4f}") for k, s in enumerate(c["scores"])
        ]
        tip = _tip(f"mean {mean:.4f} ± {spread:.4f}")
        marks.append(f'<circle class="mean" cx="{axis.at(mean):.1f}" cy="{y:.1f}" r="6">{tip}</circle>')
        x = axis.at(c["held_out"])
        tip = _tip(f"held out: {c['held_out']:.4f}")
        marks.append(f'<path class="held" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7-7z">{tip}</path></g>')
    return _svg(bottom + 26, marks, "Scores of the candidates over the folds and on held-out rows")


def roc(curves: list[tuple[str, list[tuple[float, float]], float]], best: str) -> str:
    """One curve for each candidate: ``(label, points, area)``; the best one stands out."""
    size, left, top = 360, 60, 10
    marks = [_square(left, top, size, "false positive rate", "true positive rate")]
    marks.append(f'<path class="chance" d="M{left} {top + size}L{left + size} {top}"/>')
    for name, points, area in sorted(curves, key=lambda curve: curve[0] == best):
        line = "L".join(f"{left + x * size:.1f} {top + (1 - y) * size:.1f}" for x, y in points)
        tone = "accent" if name == best else "quiet"
        marks.append(f'<path class="curve {tone}" d="M{line}">{_tip(f"{name}: area {area:.4f}")}</path>')
    for n, (name, _, area) in enumerate(sorted(curves, key=lambda curve: -curve[2])):
        y = top + size - 62 + 22 * n
        tone = "accent" if name == best else "quiet"
        marks.append(f'<g class="{tone}"><path class="curve" d="M{left + 128} {y}h22"/></g>')
        marks.append(f'<text x="{left + 158}" y="{y + 4}">{html.escape(name)} · {area:.3f}</text>')
    return _svg(top + size + 42, marks, "ROC curves on the held-out rows", width=left + size + 20)


def confusion(matrix: list[list[int]], classes: list[str]) -> str:
    """Rows are the true classes, columns the predicted ones; the shade is the share of the row."""
    count = len(classes)
    size, left, top = 360, 110, 26
    cell = size / count
    marks = [f'<text class="axis" x="{left + size / 2}" y="14" text-anchor="middle">predicted</text>']
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        y = top + i * cell
        name = html.escape(_short(classes[i], 14))
        marks.append(f'<text class="name" x="{left - 10}" y="{y + cell / 2 + 4:.1f}">{name}</text>')
        marks.append(
            f'<text class="axis" x="{left + (i + 0.5) * cell:.1f}" y="{top + size + 18}" text-anchor="middle">'
            f"{html.escape(_short(classes[i], max(2, int(cell / 7))))}</text>"
        )
        for j, n in enumerate(row):
            share = n / total
            tone = " strong" if share > 0.5 else ""
            tip = _tip(f"{classes[i]} predicted as {classes[j]}: {n} of {total}")
            marks.append(
                f'<rect class="cell" x="{left + j * cell + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" '
                f'height="{cell - 2:.1f}" rx="3" fill-opacity="{0.06 + 0.94 * share:.3f}">{tip}</rect>'
                f'<text class="count{tone}" x="{left + (j + 0.5) * cell:.1f}" '
                f'y="{y + cell / 2 + 4:.1f}">{n or ""}</text>'
            )
    return _svg(top + size + 30, marks, "Confusion matrix on the held-out rows", width=left + size + 20)


def scatter(truth: list[float], predicted: list[float], target: str) -> str:
    """Predicted against true values; a perfect model lies on the line."""
    size, left, top = 360, 76, 10
    low, high = min(*truth, *predicted), max(*truth, *predicted)
    axis = _Axis(low, high, 0, size)
    marks = [_square(left, top, size, f"true {target}", f"predicted {target}", axis)]
    marks.append(f'<path class="chance" d="M{left} {top + size}L{left + size} {top}"/><g class="accent">')
    for t, p in zip(truth, predicted, strict=True):
        marks.append(_dot(left + axis.at(t), top + size - axis.at(p), f"true {t:g}, predicted {p:.4g}"))
    return _svg(top + size + 42, [*marks, "</g>"], "Predictions on the held-out rows", width=left + size + 20)


def importances(entries: list[dict[str, Any]]) -> str:
    """The columns whose shuffling costs most."""
    top, row, left = 8, 34, 210
    largest = max(entry["importance"] for entry in entries)
    marks: list[str] = []
    for n, entry in enumerate(entries):
        y = top + n * row
        width = entry["importance"] / largest * (WIDTH - left - 70)
        name = html.escape(_short(entry["column"], 28))
        marks.append(f'<text class="name" x="{left - 12}" y="{y + 16}">{name}{_tip(entry["column"])}</text>')
        marks.append(f'<path class="fill" d="{_bar(left, y + 4, width, 16)}"/>')
        marks.append(f'<text class="axis" x="{left + width + 8:.1f}" y="{y + 16}">{entry["importance"]:.4f}</text>')
    return _svg(top + row * len(entries), marks, "Loss of score when a column is shuffled")


class _Axis:
    """Values along a line, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        span = (high - low) or abs(high) or 1.0
        step = 10 ** math.floor(math.log10(span / 3))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
        self._low, self._high = low - span * 0.06, high + span * 0.06
        self._start, self._end = start, end
        first = math.ceil(self._low / step)
        self.ticks = [n * step for n in range(first, math.floor(self._high / step) + 1)]
        self._digits = max(0, -math.floor(math.log10(step)))

    def at(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)

    def text(self, value: float) -> str:
        return f"{value:.{self._digits}f}"


def _grid(axis: _Axis, top: float, bottom: float) -> str:
    lines = "".join(f"M{axis.at(tick):.1f} {top}V{bottom}" for tick in axis.ticks)
    texts = "".join(
        f'<text class="axis" x="{axis.at(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{axis.text(tick)}</text>'
        for tick in axis.ticks
    )
    return f'<path class="grid" d="{lines}"/>{texts}'


def _square(left: int, top: int, size: int, x_name: str, y_name: str, axis: _Axis | None = None) -> str:
    scale = axis or _Axis(0, 1, 0, size)
    places = (
        [(scale.at(t), scale.text(t)) for t in scale.ticks]
        if axis
        else [(t * size, f"{t:g}") for t in (0, 0.25, 0.5, 0.75, 1)]
    )
    lines = "".join(f"M{left + at:.1f} {top}v{size}M{left} {top + size - at:.1f}h{size}" for at, _ in places)
    texts = "".join(
        f'<text class="axis" x="{left + at:.1f}" y="{top + size + 17}" text-anchor="middle">{text}</text>'
        f'<text class="axis" x="{left - 8}" y="{top + size - at + 4:.1f}" text-anchor="end">{text}</text>'
        for at, text in places
    )
    middle = top + size / 2
    names = (
        f'<text class="axis" x="{left + size / 2}" y="{top + size + 37}" text-anchor="middle">'
        f"{html.escape(x_name)}</text>"
        f'<text class="axis" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
        f"{html.escape(y_name)}</text>"
    )
    return f'<path class="grid" d="{lines}"/>{texts}{names}'


def _bar(x: float, y: float, width: float, height: float) -> str:
    """A bar that is square at its base and round at its end."""
    round_by = min(4.0, width)
    return (
        f"M{x} {y}h{width - round_by:.1f}q{round_by:.1f} 0 {round_by:.1f} {round_by:.1f}"
        f"v{height - 2 * round_by:.1f}q0 {round_by:.1f} -{round_by:.1f} {round_by:.1f}H{x}z"
    )


def _dot(x: float, y: float, tip: str) -> str:
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4">{_tip(tip)}</circle>'


def _tip(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _svg(height: float, marks: list[str], name: str, width: int = WIDTH) -> str:
    # As wide as it is drawn at most, so that texts have the same size in all of them.
    size = f'viewBox="0 0 {width} {height:g}" style="max-width:{width}px"'
    head = f'<svg {size} role="img" aria-label="{html.escape(name)}">'
    return head + "".join(marks) + "</svg>"
