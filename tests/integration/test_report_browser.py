"""The report in a headless Chromium: it loads, filters, and runs nothing that models wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from drift_ray.report.render import write_report
from drift_ray.schema import CONTENT_KEY, WEIGHT_SCHEMA, content_hash, trajectory_table
from drift_ray.store import RunStore
from tests.chromium import NAMES, Chromium, find_chromium
from tests.unit.report_cases import PART, claimed, finished_run, group, played, weigh

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason=f"no Chromium here (looked for {', '.join(NAMES)})"
)

MANY = 10_000
SCRIPT = "</script><script>window.stolen = 1</script>"
IMAGE = '<img src=x onerror="window.stolen = 2"><svg onload="window.stolen = 3">'
CHOOSE = """(() => {
  const form = document.getElementById("filters");
  form.elements[%r].value = %r;
  form.elements[%r].dispatchEvent(new Event("input", { bubbles: true }));
  return document.getElementById("count").textContent;
})()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        browser.emulate(width=1280, height=900)
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """Three prompts of four trajectories; one of them does its worst."""
    hostile = [
        played("evil", index, [IMAGE, SCRIPT], question=SCRIPT + IMAGE, gold=SCRIPT)
        for index in range(4)
    ]
    folder = tmp_path_factory.mktemp("run")
    store = finished_run(folder, [group("a"), group("b", question="why b?"), hostile])
    write_report(store.url)
    return store


def choose(chromium: Chromium, name: str, value: str) -> str:
    """Set a filter; returns how many are left of how many."""
    return str(chromium.evaluate(CHOOSE % (name, value, name)))


def shown(chromium: Chromium, element: str = "detail") -> str:
    return str(chromium.evaluate(f"document.getElementById({element!r}).innerText"))


def open_report(chromium: Chromium, store: RunStore) -> None:
    page = Path(store.path("report.html"))
    chromium.open(page)
    assert chromium.problems == []
    assert chromium.requests == [page.as_uri()]


def test_filters_find_what_they_say(chromium: Chromium, run: RunStore) -> None:
    open_report(chromium, run)
    assert choose(chromium, "text", "") == "12 of 12"
    assert choose(chromium, "text", "WHY b") == "4 of 12"
    assert choose(chromium, "outcome", "failed") == "1 of 12"
    assert choose(chromium, "outcome", "solved") == "3 of 12"
    assert choose(chromium, "turn", "2") == "1 of 12"
    assert choose(chromium, "turn", "0") == "0 of 12"
    assert "Nothing fits" in shown(chromium)
    for name in ("turn", "outcome", "text"):
        choose(chromium, name, "")
    assert choose(chromium, "low", "1.5") == "2 of 12"
    assert choose(chromium, "high", "1.6") == "0 of 12"
    assert chromium.problems == []


def test_the_arithmetic_leads_to_the_stored_weight(chromium: Chromium, run: RunStore) -> None:
    open_report(chromium, run)
    choose(chromium, "text", "a?")
    choose(chromium, "turn", "2")
    told = shown(chromium)
    for line in ("= 0.91·1 + 0 − 0.5·(1 − 2/2)", "= 0.9", "4 trajectories, β = 0.1"):
        assert line in told
    table = run.read_table("weights/drift/" + PART.split("/")[1], WEIGHT_SCHEMA)
    weight = table["importance_weight"][1].as_py()
    assert f"= {weight:.4g}" in told
    assert "stored:" not in told
    chromium.evaluate("document.querySelectorAll('.group button')[3].click()")
    assert "✗ wrong" in shown(chromium)
    assert "− 0.5·(1 − 1/3)" in shown(chromium)


def test_models_are_side_by_side_on_the_same_prompt(chromium: Chromium, run: RunStore) -> None:
    open_report(chromium, run)
    assert choose(chromium, "mode", "1") == "3 of 3"
    assert choose(chromium, "outcome", "won") == "2 of 3"
    assert choose(chromium, "outcome", "lost") == "1 of 3"
    choose(chromium, "outcome", "won")
    sides = chromium.evaluate(
        "[...document.querySelectorAll('.sides > div')].map(e => e.innerText)"
    )
    assert [side.split("\n")[0] for side in sides] == ["reference ✗ 3 turns", "trained ✓ turn 1"]


def test_what_models_write_stays_text(chromium: Chromium, run: RunStore) -> None:
    open_report(chromium, run)
    choose(chromium, "text", "evil")
    told = shown(chromium)
    assert SCRIPT in told
    assert IMAGE in told
    assert "onerror" in shown(chromium, "list")
    assert chromium.evaluate("window.stolen") is None
    assert chromium.evaluate("document.querySelectorAll('#browser img, #browser svg').length") == 0
    assert chromium.problems == []
    assert len(chromium.requests) == 1


def test_tokens_are_coloured_and_say_their_probability(chromium: Chromium, run: RunStore) -> None:
    open_report(chromium, run)
    choose(chromium, "text", "a?")
    titles = chromium.evaluate("[...document.querySelectorAll('.token')].map(e => e.title)")
    assert titles[0] == "probability 100 %, log-probability 0"
    assert titles[1] == "probability 77.9 %, log-probability −0.25"
    assert chromium.evaluate("document.querySelectorAll('.token.h1').length") > 0


def test_the_keyboard_moves_through_the_list(chromium: Chromium, run: RunStore) -> None:
    open_report(chromium, run)
    press = "document.getElementById('list').dispatchEvent(new KeyboardEvent('keydown', {key: %r}))"
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End"):
        chromium.evaluate(press % key)
    selected = "document.querySelector('.row[aria-selected=true]').dataset.index"
    assert chromium.evaluate(selected) == "11"


@pytest.mark.parametrize("width", [390, 1000, 1280])
def test_nothing_is_wider_than_the_window(chromium: Chromium, run: RunStore, width: int) -> None:
    chromium.emulate(width=width, height=844)
    open_report(chromium, run)
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    too_wide = "[...document.querySelectorAll('.big')].some(e => e.scrollWidth > e.clientWidth)"
    assert not chromium.evaluate(too_wide)
    chromium.emulate(width=1280, height=900)


def test_ten_thousand_trajectories_stay_fluid(chromium: Chromium, tmp_path: Path) -> None:
    store, config = claimed(tmp_path)
    rows = group("p", size=8)
    store.write_table(PART, _repeated(trajectory_table(rows), MANY // len(rows)))
    weigh(store, config)
    written = write_report(store.url)
    began = time.monotonic()
    open_report(chromium, store)
    loaded_s = time.monotonic() - began
    count, filter_s = _timed(chromium, "turn", "2")
    rows_drawn = chromium.evaluate("document.querySelectorAll('.row').length")
    scrolled_ms = chromium.evaluate(
        "(async () => { const list = document.getElementById('list'), began = performance.now();"
        "for (let i = 1; i <= 60; i++) { list.scrollTop = i * 7000;"
        "await new Promise(requestAnimationFrame); } return (performance.now() - began) / 60; })()"
    )
    print(
        f"{written.num_bytes / 1e6:.2f} MB, loaded in {loaded_s:.2f} s, filtered in {filter_s:.2f}"
        f" s, {scrolled_ms:.0f} ms a frame while scrolling"
    )
    num_found = sum(row.first_success_turn == 2 for row in rows) * MANY // len(rows)
    assert count == f"{num_found:,} of {MANY:,}"
    assert rows_drawn < 60
    assert loaded_s < 15
    assert filter_s < 2


def _timed(chromium: Chromium, name: str, value: str) -> tuple[str, float]:
    began = time.monotonic()
    return choose(chromium, name, value), time.monotonic() - began


def _repeated(table: pa.Table, times: int) -> pa.Table:
    """The same trajectories again and again, each time of another prompt."""
    ids = pa.array([f"p{number}" for number in range(times) for _ in range(table.num_rows)])
    repeated = pa.concat_tables([table] * times).set_column(0, table.schema.field(0), ids)
    metadata = {**table.schema.metadata, CONTENT_KEY: content_hash(repeated)}
    return repeated.replace_schema_metadata(metadata)
