"""The page: what it says, and that nothing of a run ever becomes markup or code."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from drift_ray.errors import StageError
from drift_ray.report import charts, render
from drift_ray.report.charts import weight_chart
from drift_ray.report.facts import duration, percent
from drift_ray.report.render import try_report, write_report
from drift_ray.report.results import read_results
from tests.unit.report_cases import claimed, finished_run, group

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028{{ 7*7 }}"


class Document(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a run whose every text is hostile."""
    groups = [group(f"p{number}{HOSTILE}", question=HOSTILE, gold="1") for number in range(3)]
    hostile = "training.trackers=[]", f"task.environment.feedback={HOSTILE!r}"
    store = finished_run(tmp_path_factory.mktemp("run"), groups, *hostile)
    written = write_report(store.url)
    assert written.num_bytes == Path(store.path("report.html")).stat().st_size
    return Path(store.path("report.html")).read_text(encoding="utf-8")


def test_nothing_of_a_run_becomes_an_element(page: str) -> None:
    document = Document(page)
    scripts = [attributes for tag, attributes in document.tags if tag == "script"]
    assert [each.get("id") for each in scripts] == ["data-columns", "data-tokens", None]
    assert "img" not in {tag for tag, _ in document.tags}
    assert not [a for _, attributes in document.tags for a in attributes if a.startswith("on")]
    assert "alert(1)" in document.text  # the failure's prompt and the configuration, as text
    assert "<b>raised</b>" in document.text
    assert "{{ 7*7 }}" in document.text


def test_only_the_code_of_the_page_may_run_and_nothing_may_be_loaded(page: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    code = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not re.findall(r'(?:src|href)="(?!#|data:,")[^"]*"', page)
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert name not in code


def test_the_page_says_what_the_run_came_to(page: str) -> None:
    text = re.sub(r"\s+", " ", Document(page).text)
    assert "solved within 3 turns 0.0 %→100.0 %" in text
    assert "+100.0 points" in text
    assert "3 held-out prompts" in text
    assert "1 trajectories are missing" in text
    assert "grader" in text
    assert page.count("<svg") == 9
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.findall(r"#0[1-6]fe0[1-6]", page)  # every placeholder colour was replaced


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as all the rest."""
    monkeypatch.setattr(charts, "svg", lambda *_: "<svg></svg>")


@pytest.mark.usefixtures("without_plots")
def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a")])
    results = read_results(store.url)
    assert render.render(store, results) == render.render(store, results)


@pytest.mark.usefixtures("without_plots")
def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    store, _ = claimed(tmp_path)
    text = render.render(store, read_results(store.url))
    for said in ("No model was evaluated yet", "Not weighed yet", "Not trained yet"):
        assert said in text


def test_rounds_are_drawn_and_counted(tmp_path: Path) -> None:
    store, _ = claimed(tmp_path)
    success = [{"k": k, "estimate": k / 4} for k in (1, 2, 3)]
    counts = {"num_trajectories": 8, "num_turns": 12, "num_sampled_tokens": 60, "sampling_s": 2.0}
    store.append_metrics(
        [
            {"stage": "round", "round": number, "success_at": success, "mean_return": 0.5, **counts}
            for number in (1, 2, 3, 3)  # the last one was told twice
        ]
    )
    text = render.render(store, read_results(store.url))
    for said in ("Solved by the samples of a round", "Weighed round by round", "within 3 turns"):
        assert said in text
    assert re.search(r"sampling, 3 rounds.*?24.*?36.*?180.*?>30<", text, re.DOTALL)


@pytest.mark.usefixtures("without_plots")
def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group(f"p{number}") for number in range(8)])
    text = render.render(store, read_results(store.url), max_trajectories=9)
    assert "Of rollouts, 8 of 32 trajectories are in this page" in text


def test_a_report_that_fails_fails_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = claimed(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(StageError, match=r"matplotlib.*\n.*drift-ray\[report\]"):
        write_report(store.url)
    assert "matplotlib" in try_report(store.url)
    monkeypatch.setattr(render, "read_results", lambda _: 1 / 0)
    assert try_report(store.url) == "no report was written: division by zero"


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1e-9, 3.0, -1e9]], ids=str)
def test_any_weights_can_be_drawn_and_always_alike(weights: list[float]) -> None:
    chart = weight_chart(np.array(weights))
    assert chart.svg.startswith("<svg viewBox=")
    assert chart == weight_chart(np.array(weights))


def test_numbers_are_put_as_people_say_them() -> None:
    assert [percent(None), percent(0.1234)] == ["–", "12.3 %"]
    assert [duration(each) for each in (None, 3.21, 600.0, 10_000.0)] == [
        "–", "3.2 s", "10 min", "2 h 47 min",
    ]  # fmt: skip
