"""The steps of the AutoML flow; ``flow.toml`` wires them. Deterministic for a seed: one thread, no clock in any result.

Tables travel between steps as arrays, which the next step maps; models do not travel: a candidate brings its scores and
its predictions for the held-out rows, which is all that the report needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import candidates as models
import page
import tables
from eclosion import current, task

if TYPE_CHECKING:
    import pathlib


@task
def load(data: str, target: str = "") -> dict[str, Any]:
    """Reads a data set of scikit-learn, or a CSV file."""
    table = tables.load(data, target)
    print(f"{table['name']}: {len(table['y'])} rows, {len(table['columns'])} columns, {table['kind']}")
    return table


@task
def split(table: dict[str, Any], seed: int) -> dict[str, Any]:
    """Holds a quarter of the rows out, with every class in both parts."""
    return tables.split(table, seed)


@task(retries=1)
def train(table: dict[str, Any], parts: dict[str, Any], model: str, seed: int) -> dict[str, Any]:
    """Cross-validates one candidate, then judges it on the held-out rows."""
    attempt = current()
    folds = models.folds_of(table, parts, seed)
    steps = len(folds) + 1
    scores: list[float] = []
    for n, (fit_rows, check_rows) in enumerate(folds):
        attempt.progress(n, steps, f"fold {n + 1} of {len(folds)}")
        scores.append(models.score_fold(model, table, fit_rows, check_rows, seed))
        attempt.metric("score", scores[-1], step=n)
    attempt.progress(len(folds), steps, "held-out rows")
    result = models.judge(model, table, parts, seed)
    attempt.metric("held_out", result["held_out"])
    attempt.progress(steps, steps, "done")
    return {"model": model, "label": models.label(model, table["kind"]), "scores": scores, **result}


@task
def select(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """Ranks the candidates by their mean score over the folds."""
    return models.rank(candidates)


@task
def report(
    table: dict[str, Any],
    parts: dict[str, Any],
    candidates: list[dict[str, Any]],
    selection: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Writes the page, and hands the leaderboard on."""
    path: pathlib.Path = current().scratch / f"{table['name']}.html"
    path.write_text(page.render(table, parts, candidates, selection, seed), encoding="utf-8")
    return {"leaderboard": selection["leaderboard"], "best": selection["best"], "report": path}
