from __future__ import annotations

import csv
import html.parser
import pathlib
import random
import sys
from typing import Any

import numpy as np
import pytest
import tomllib

from eclosion.testing import Outcome, TaskFailed, run_flow

FOLDER = pathlib.Path(__file__).parents[1] / "flows" / "automl"
FLOW = FOLDER / "flow.toml"
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Checks that elements nest and close; collects what they are and refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(autouse=True)
def fewer_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the flow and not the models."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    import candidates

    monkeypatch.setattr(candidates, "TREES", 10)


def page_of(outcome: Outcome) -> Page:
    page = Page(outcome.value["report"].read_text())
    assert page.links == []
    assert "script" not in page.tags
    return page


@pytest.mark.parametrize(
    ("data", "metric", "shows"),
    [("breast_cancer", "ROC AUC", "ROC"), ("wine", "accuracy", "Confusion"), ("diabetes", "R²", "Predictions")],
)
def test_the_flow_ranks_three_candidates_and_writes_a_page(data: str, metric: str, shows: str) -> None:
    outcome = run_flow(FLOW, data=data)
    board = outcome.value["leaderboard"]
    assert [row["rank"] for row in board] == [1, 2, 3]
    assert {row["metric"] for row in board} == {metric}
    assert board[0]["cv_mean"] >= board[1]["cv_mean"] >= board[2]["cv_mean"]
    assert outcome.value["best"] == board[0]["model"]
    page = page_of(outcome)
    assert page.tags.count("section") == page.tags.count("h2") >= 3
    assert shows in page.text
    assert all(row["model"] in page.text for row in board)


def test_every_candidate_reports_progress_to_the_end_and_a_score_for_each_fold() -> None:
    reports = run_flow(FLOW, data="iris").reports
    for n in range(3):
        progress = [r for r in reports[f"train[{n}]"] if r["tag"] == "progress"]
        scores = [r for r in reports[f"train[{n}]"] if r["tag"] == "metric" and r["name"] == "score"]
        assert progress[-1]["done"] == progress[-1]["total"]
        assert [r["step"] for r in scores] == [0, 1, 2, 3, 4]


def test_the_same_seed_gives_the_same_page_and_another_seed_another() -> None:
    first, again, other = (run_flow(FLOW, data="iris", seed=seed).value for seed in (7, 7, 8))
    assert first["leaderboard"] == again["leaderboard"]
    assert first["report"].read_bytes() == again["report"].read_bytes()
    assert first["report"].read_bytes() != other["report"].read_bytes()


def table(path: pathlib.Path, target: str, kind: str) -> str:
    """A CSV with numbers, gaps, categories, a useless name and text that HTML must escape."""
    chance = random.Random(1)
    rows: list[list[Any]] = []
    for n in range(120):
        size, color = chance.random(), chance.choice(["red", "blue <b>"])
        y: Any = 3 * size + (color == "red") + chance.gauss(0, 0.1)
        value = y if kind == "regression" else ("a&b" if y > 2 else "c")
        rows.append(["" if n % 7 == 0 else size, color, f"name {n}", value])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["size", "color", "who", target], *rows])
    return str(path)


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_a_csv_file_with_gaps_and_categories_is_learned_from(tmp_path: pathlib.Path, kind: str) -> None:
    data = table(tmp_path / "mine.csv", "price", kind)
    outcome = run_flow(FLOW, data=data, target="price")
    loaded = outcome.outputs["load"]
    assert loaded["kind"] == kind
    assert loaded["columns"] == ["size", "color = blue <b>", "color = red"]
    assert np.isnan(loaded["x"]).any()
    assert outcome.value["leaderboard"][0]["held_out"] > 0.7
    page = page_of(outcome)
    assert "column `who` was left out" in page.text
    assert "blue <b>" in page.text


@pytest.mark.parametrize(
    ("parameters", "message", "help_text"),
    [
        ({"data": "brest_cancer"}, "no data set and no file", "did you mean `breast_cancer`?"),
        ({"data": "/nowhere/x.csv"}, "no data set and no file", "the absolute path of a CSV file"),
        ({"data": "CSV", "target": "prise"}, "has no column `prise`", "did you mean `price`? columns: size, color"),
        ({"data": "CSV"}, "has no column `target`", "columns: size, color, who, price"),
        ({"data": "CSV", "target": "who"}, "120 distinct texts", "at most 20 classes"),
        ({"data": "iris", "target": "price"}, "has no target `price`", "its target is `species`"),
        ({"data": "RAGGED"}, "row 3 of", "quote fields"),
        ({"data": "BINARY"}, "cannot be read as CSV", "UTF-8"),
        ({"data": "EMPTY"}, "is empty", "header"),
        ({"data": "SHORT"}, "has 2 rows", "at least 20"),
    ],
)
def test_wrong_data_is_refused_with_a_way_out_and_never_retried(
    tmp_path: pathlib.Path, parameters: dict[str, str], message: str, help_text: str
) -> None:
    contents = {
        "RAGGED": b"a,target\n1,2\n1,2,3\n",
        "BINARY": b"\xff\xfe\x00",
        "EMPTY": b"",
        "SHORT": b"a,target\n1,2\n2,1\n",
    }
    data = parameters["data"]
    if data == "CSV":
        parameters = {**parameters, "data": table(tmp_path / "mine.csv", "price", "regression")}
    elif data in contents:
        (tmp_path / "mine.csv").write_bytes(contents[data])
        parameters = {**parameters, "data": str(tmp_path / "mine.csv")}
    with pytest.raises(TaskFailed) as caught:
        run_flow(FLOW, **parameters)
    error = caught.value.error
    assert caught.value.task == "load"
    assert message in error.get("message", "")
    assert help_text in error.get("help", "")
    assert error.get("retry") == {"policy": "never"}


def test_its_requirements_are_those_that_are_tested() -> None:
    pinned = (FOLDER.parents[1] / "requirements-test.txt").read_text().split()
    assert set(tomllib.loads(FLOW.read_text())["environment"]["requirements"]) <= set(pinned)
    assert sys.version_info >= (3, 11)
