"""The three candidates, how they are scored, and how they are ranked. Higher scores are better everywhere."""

from __future__ import annotations

import warnings
from typing import Any

import lightgbm
import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

METRICS = {"binary": "ROC AUC", "multiclass": "accuracy", "regression": "R²"}
FOLDS_MAX = 5
TREES = 200
# Columns whose importance is measured: each costs three predictions, and a reader looks at ten.
IMPORTANCES_MAX = 100
REPEATS = 3

Table = dict[str, Any]


def label(model: str, kind: str) -> str:
    """What people call it."""
    linear = "Ridge regression" if kind == "regression" else "Logistic regression"
    return {"linear": linear, "forest": "Random forest", "lightgbm": "LightGBM"}[model]


def folds_of(table: Table, parts: dict[str, Any], seed: int) -> list[tuple[Any, Any]]:
    """Row numbers to fit and to check, the same for every candidate."""
    rows = parts["train"]
    y = table["y"][rows]
    if table["kind"] == "regression":
        splitter: Any = KFold(FOLDS_MAX, shuffle=True, random_state=seed)
    else:
        smallest = int(np.unique(y, return_counts=True)[1].min())
        splitter = StratifiedKFold(max(2, min(FOLDS_MAX, smallest)), shuffle=True, random_state=seed)
    return [(rows[fit], rows[check]) for fit, check in splitter.split(rows, y)]


def score_fold(model: str, table: Table, fit_rows: Any, check_rows: Any, seed: int) -> float:
    """Fits on some rows and scores on others."""
    fitted = _fit(model, table, fit_rows, seed)
    return _score(table, table["y"][check_rows], _predict(fitted, table, check_rows))


def judge(model: str, table: Table, parts: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fits on all training rows; score, predictions and importances on those that were held out."""
    fitted = _fit(model, table, parts["train"], seed)
    rows = parts["held_out"]
    predictions = _predict(fitted, table, rows)
    return {
        "metric": METRICS[table["kind"]],
        "held_out": _score(table, table["y"][rows], predictions),
        "predictions": predictions,
        "importances": _importances(fitted, table, rows, seed),
    }


def rank(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """The leaderboard, best first. Equal means are ordered by name, so that the order is the same each time."""
    ordered = sorted(candidates, key=lambda c: (-float(np.mean(c["scores"])), c["model"]))
    rows = [
        {
            "rank": n,
            "model": candidate["label"],
            "metric": candidate["metric"],
            "cv_mean": round(float(np.mean(candidate["scores"])), 4),
            "cv_std": round(float(np.std(candidate["scores"])), 4),
            "held_out": round(candidate["held_out"], 4),
        }
        for n, candidate in enumerate(ordered, start=1)
    ]
    return {"leaderboard": rows, "best": rows[0]["model"]}


def _fit(model: str, table: Table, rows: Any, seed: int) -> Any:
    estimator = _estimator(model, table["kind"], seed)
    with warnings.catch_warnings():
        # LightGBM names its columns itself and then misses the names when it predicts.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        return estimator.fit(table["x"][rows], table["y"][rows])


def _estimator(model: str, kind: str, seed: int) -> Any:
    regression = kind == "regression"
    if model == "linear":
        last: Any = Ridge() if regression else LogisticRegression(max_iter=2000)
        return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), last)
    if model == "forest":
        forest: Any = RandomForestRegressor if regression else RandomForestClassifier
        return forest(n_estimators=TREES, random_state=seed, n_jobs=1)
    boosted: Any = lightgbm.LGBMRegressor if regression else lightgbm.LGBMClassifier
    return boosted(
        n_estimators=TREES,
        learning_rate=0.05,
        min_child_samples=5,
        random_state=seed,
        n_jobs=1,
        deterministic=True,
        force_row_wise=True,
        verbosity=-1,
    )


def _predict(fitted: Any, table: Table, rows: Any) -> Any:
    """Probabilities for each class, or numbers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        x = table["x"][rows]
        return fitted.predict(x) if table["kind"] == "regression" else fitted.predict_proba(x)


def _score(table: Table, truth: Any, predictions: Any) -> float:
    if table["kind"] == "regression":
        return float(r2_score(truth, predictions))
    if table["kind"] == "binary":
        return float(roc_auc_score(truth, predictions[:, 1]))
    return float(accuracy_score(truth, predictions.argmax(axis=1)))


def _importances(fitted: Any, table: Table, rows: Any, seed: int) -> list[dict[str, Any]]:
    """How much worse the score becomes when a column is shuffled; the most important first."""
    if len(table["columns"]) > IMPORTANCES_MAX:
        return []

    def scorer(model: Any, x: Any, y: Any) -> float:
        shuffled = {**table, "x": x}
        return _score(table, y, _predict(model, shuffled, slice(None)))

    found: Any = permutation_importance(
        fitted,
        table["x"][rows],
        table["y"][rows],
        scoring=scorer,
        n_repeats=REPEATS,
        random_state=seed,
        n_jobs=1,
    )
    means = found.importances_mean
    order = sorted(range(len(means)), key=lambda n: (-float(means[n]), n))
    return [{"column": table["columns"][n], "importance": float(means[n])} for n in order]
