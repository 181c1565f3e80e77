"""The report: one HTML page that needs nothing beside itself, in light and dark, on paper and on a phone."""

from __future__ import annotations

import html
from typing import Any

import lightgbm
import numpy as np
import sklearn
from sklearn.metrics import confusion_matrix, roc_curve

import candidates as models
import charts

IMPORTANCES_SHOWN = 10

KINDS = {"binary": "Binary classification", "multiclass": "Classification", "regression": "Regression"}

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --ink: #16181d; --soft: #5c6270; --line: #e3e4e0;
  --accent: #2a6fdb; --quiet: #9aa1ad; --held: #d9772b; --on-accent: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #121418; --card: #1b1e24; --ink: #eceef2; --soft: #a0a7b4;
  --line: #2d323b; --accent: #5b9bff; --quiet: #6d7584; --held: #f0a060; --on-accent: #0c1220; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 56px; }
header p { margin: 0 0 4px; color: var(--soft); }
h1 { margin: 0 0 6px; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0; font-size: 16px; }
section p { margin: 2px 0 14px; color: var(--soft); font-size: 13.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 26px 0 16px; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 18px; }
.tile span { display: block; color: var(--soft); font-size: 13px; }
.tile b { display: block; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px; }
section { padding: 20px 22px; min-width: 0; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 9px 8px; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; }
tr.best td { font-weight: 600; }
tr.best td:first-child { color: var(--accent); }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; margin: 0 auto; font-size: 13px; }
svg text { fill: var(--ink); }
svg text.axis { fill: var(--soft); font-size: 12px; }
svg text.name { text-anchor: end; }
svg text.count { text-anchor: middle; font-variant-numeric: tabular-nums; }
svg text.count.strong { fill: var(--on-accent); font-weight: 600; }
.grid { stroke: var(--line); fill: none; }
.accent { --tone: var(--accent); } .quiet { --tone: var(--quiet); }
.accent .name { font-weight: 600; }
.bar { stroke: var(--tone); stroke-width: 2; fill: none; }
.dot { fill: var(--tone); fill-opacity: 0.45; }
.mean { fill: var(--tone); stroke: var(--card); stroke-width: 2; }
.held { fill: var(--held); stroke: var(--card); stroke-width: 2; }
.curve { stroke: var(--tone); fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve.accent, .accent .curve { stroke-width: 2.5; }
.chance { stroke: var(--quiet); stroke-dasharray: 4 4; fill: none; }
.cell, .fill { fill: var(--accent); }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0 0; color: var(--soft); font-size: 13px; }
.key svg { display: inline-block; width: 16px; height: 16px; margin: 0 6px 0 0; vertical-align: -3px; }
footer { margin-top: 22px; color: var(--soft); font-size: 13px; }
@media print { body { background: none; } section, .tile { break-inside: avoid; } }
"""

KEY = """<div class="key accent">
<span><svg viewBox="0 0 16 16"><circle class="dot" cx="8" cy="8" r="4"/></svg>one fold</span>
<span><svg viewBox="0 0 16 16"><path class="bar" d="M1 8h14"/><circle class="mean" cx="8" cy="8" r="5"/></svg>mean ± one
standard deviation</span>
<span><svg viewBox="0 0 16 16"><path class="held" d="M8 1l7 7l-7 7l-7-7z"/></svg>held-out rows</span></div>"""


def render(
    table: dict[str, Any],
    parts: dict[str, Any],
    candidates: list[dict[str, Any]],
    selection: dict[str, Any],
    seed: int,
) -> str:
    """The page as text."""
    board = selection["leaderboard"]
    order = {row["model"]: n for n, row in enumerate(board)}
    candidates = sorted(candidates, key=lambda candidate: order[candidate["label"]])
    metric = models.METRICS[table["kind"]]
    cards = [
        _card(
            "Leaderboard",
            f"Ranked by the mean {metric} over {len(candidates[0]['scores'])} folds.",
            _board(board),
        ),
        _card("Scores", f"{metric}, higher is better.", charts.scores(candidates, selection["best"]) + KEY),
        _held_out_card(table, parts, candidates, selection["best"]),
    ]
    entries = [entry for entry in candidates[0]["importances"] if entry["importance"] > 0][:IMPORTANCES_SHOWN]
    if entries:
        text = f"How much the {metric} of {candidates[0]['label']} falls when a column is shuffled."
        cards.append(_card("What matters", text, charts.importances(entries)))
    title = f"{table['name']}: {selection['best']}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<p>{KINDS[table["kind"]]} of <b>{html.escape(table["target"])}</b></p>
<h1>{html.escape(table["name"])}</h1>
</header>
{_tiles(table, parts, board[0])}
<div class="cards">
{"".join(cards)}
</div>
{_footer(table, seed)}
</main>
</body>
</html>
"""


def _tiles(table: dict[str, Any], parts: dict[str, Any], best: dict[str, Any]) -> str:
    metric = best["metric"][0].upper() + best["metric"][1:]
    tiles = [
        ("Best model", best["model"]),
        (f"{metric}, cross-validated", f"{best['cv_mean']:.3f} ± {best['cv_std']:.3f}"),
        (f"{metric}, held out", f"{best['held_out']:.3f}"),
        ("Rows to fit, held out", f"{len(parts['train'])}, {len(parts['held_out'])}"),
        ("Columns", str(len(table["columns"]))),
    ]
    inner = "".join(f'<div class="tile"><span>{html.escape(k)}</span><b>{html.escape(v)}</b></div>' for k, v in tiles)
    return f'<div class="tiles">{inner}</div>'


def _board(board: list[dict[str, Any]]) -> str:
    head = "".join(f'<th class="number">{name}</th>' for name in ("mean", "std", "held out"))
    rows = "".join(
        f'<tr class="{"best" if row["rank"] == 1 else ""}"><td>{row["rank"]}</td><td>{html.escape(row["model"])}</td>'
        + "".join(f'<td class="number">{row[key]:.4f}</td>' for key in ("cv_mean", "cv_std", "held_out"))
        + "</tr>"
        for row in board
    )
    head = f"<thead><tr><th></th><th>model</th>{head}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _held_out_card(table: dict[str, Any], parts: dict[str, Any], candidates: list[dict[str, Any]], best: str) -> str:
    truth = table["y"][parts["held_out"]]
    winner = candidates[0]
    if table["kind"] == "regression":
        chart = charts.scatter([float(v) for v in truth], [float(v) for v in winner["predictions"]], table["target"])
        return _card("Predictions", f"{winner['label']} on the {len(truth)} held-out rows.", chart)
    if table["kind"] == "multiclass":
        predicted = winner["predictions"].argmax(axis=1)
        matrix = confusion_matrix(truth, predicted, labels=np.arange(len(table["classes"])))
        chart = charts.confusion([[int(n) for n in row] for row in matrix], table["classes"])
        return _card(
            "Confusion",
            f"{winner['label']} on the {len(truth)} held-out rows; true classes on the left.",
            chart,
        )
    curves: list[tuple[str, list[tuple[float, float]], float]] = []
    for candidate in candidates:
        x, y, _ = roc_curve(truth, candidate["predictions"][:, 1])
        points = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        curves.append((candidate["label"], points, candidate["held_out"]))
    return _card("ROC", f"On the {len(truth)} held-out rows; the area is beside each name.", charts.roc(curves, best))


def _card(title: str, text: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{content}</section>\n"


def _footer(table: dict[str, Any], seed: int) -> str:
    notes = "".join(f"<br/>{html.escape(note)}" for note in table["notes"])
    versions = f"scikit-learn {sklearn.__version__}, LightGBM {lightgbm.__version__}, numpy {np.__version__}"
    return f"<footer>Seed {seed}. Every figure is the same for the same seed. {html.escape(versions)}.{notes}</footer>"
