"""The report's page in a true browser: clicks sort, typing filters, pointing shows options, and nothing is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moco.report.__main__ import main
from tests.report import browser
from tests.report.browser import Browser
from tests.report.made_runs import run, sweep, write

NAMES = "[...document.querySelectorAll('#encoders tbody tr:not([hidden]) th')].map(cell => cell.textContent)"
HOSTILE = "<script>window.caught = 1</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sweep with a collapsed, an unfinished and a failed element, and of a run with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    elements: dict[str, dict[str, Any]] = {
        "five": {"probe": 75.0, "alignment": 0.5, "moco_t": 0.5, "knn": 60.0},
        "nine": {"probe": 9.5, "alignment": 0.9, "moco_t": 0.05},
        "ten": {"probe": 80.0, "alignment": 0.1, "uniformity": -3.0, "moco_t": 0.1},
        "fallen": {"probe": 10.0, "alignment": 0.0, "uniformity": 0.0},
        "half": {"epochs": 1, "row": False},
        "broken": {"row": False},
    }
    made = sweep(folder / "s", elements)
    write(made / "elements" / "broken" / "failed.json", {"error": HOSTILE})
    hostile = run(folder / HOSTILE.replace("/", "\u2215"), arch="timm:\"'><img src=x>")
    assert main([str(made), str(hostile), "--output", str(folder / "out")]) == 0
    return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if browser.program() is None:
        reason = "the report's page was NOT TESTED in a browser: no Chromium (apt-get install chromium)"
        # `make test` installs it where it can; where it can and did not, this must not pass silently
        pytest.fail(reason) if os.environ.get("MOCO_TEST_BROWSER") == "required" else pytest.skip(f"*** {reason} ***")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def shown(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The page on a desktop; afterwards: nobody complained, and nothing was asked for but the file itself."""
    chromium.requests.clear()
    chromium.errors.clear()
    chromium.open(page)
    yield chromium
    assert chromium.errors == []
    assert {request.partition(":")[0] for request in chromium.requests} == {"file"}
    assert all(request.endswith("/index.html") for request in chromium.requests)
    assert chromium.run("window.caught") is None


def head(browser: Browser, name: str) -> str:
    """The selector of a column's button."""
    heads = browser.run("[...document.querySelectorAll('#encoders thead th')].map(head => head.textContent)")
    return f"#encoders thead th:nth-child({heads.index(name) + 1}) button"


def test_a_click_on_a_header_sorts(shown: Browser) -> None:
    by_accuracy = head(shown, "linear top-1 [%]")
    shown.click(by_accuracy)
    assert shown.run(NAMES)[:4] == ["nine", "fallen", "five", "ten"]  # 9.5 before 10: numbers, not text
    assert shown.run("document.querySelector('[aria-sort=ascending]').textContent") == "linear top-1 [%]"
    shown.click(by_accuracy)
    assert shown.run(NAMES)[:4] == ["ten", "five", "fallen", "nine"]
    last = set(shown.run(NAMES)[4:])
    assert {"half", "broken"} <= last  # what has no number stays last either way
    shown.click(head(shown, "uniformity"))
    assert shown.run(NAMES)[0] == "ten"  # the proper minus of the text is no number
    shown.click(head(shown, "encoder"))
    assert shown.run("document.querySelectorAll('[aria-sort=ascending], [aria-sort=descending]').length") == 1


def test_the_most_accurate_run_is_first(shown: Browser) -> None:
    """By kNN, which most of these runs have; the linear probe measured fewer."""
    column = (
        "[...document.querySelectorAll('#encoders thead th')].findIndex(head => head.textContent.startsWith('kNN'))"
    )
    cells = f"[...document.querySelectorAll('#encoders tbody tr')].map(row => row.cells[{column}].textContent)"
    values = [float(text) for text in shown.run(cells) if text != "–"]
    assert len(values) > 3 and len(set(values)) > 1
    assert values == sorted(values, reverse=True)
    assert shown.run(cells)[len(values) :] == ["–"] * (len(shown.run(cells)) - len(values))


def test_the_keyboard_sorts_too(shown: Browser) -> None:
    shown.run(f"document.querySelector({head(shown, 'alignment')!r}).focus()")
    shown.press("Enter")
    assert shown.run(NAMES)[:2] == ["fallen", "ten"]


def test_typing_filters_rows_and_fades_their_dots(shown: Browser) -> None:
    assert shown.run("document.getElementById('count').textContent") == "7 of 7"
    shown.click("#filter")
    shown.type("NI ne")  # words in any order, whatever their case
    assert shown.run(NAMES) == ["nine"]
    assert shown.run("document.getElementById('count').textContent") == "1 of 7"
    kept = "[...document.querySelectorAll('.dot:not(.out)')].map(dot => dot.dataset.name)"
    assert shown.run(kept) == ["nine"]
    assert set(shown.run(kept.replace("dot", "run"))) == {"nine"}  # and their curves


def test_pointing_at_a_dot_shows_its_options_and_lights_its_row(shown: Browser) -> None:
    assert shown.run("document.getElementById('tip').hidden")
    shown.point(".dot[data-name=nine]")
    shown.until("!document.getElementById('tip').hidden")
    text = shown.run("document.getElementById('tip').textContent")
    assert text.startswith("nine\n") and "linear top-1 [%]: 9.5" in text
    assert "--moco-t 0.05" in text and "--dataset digits" in text and "moco-unif-t" not in text
    assert shown.run("document.querySelector('tr.lit').dataset.name") == "nine"
    box = shown.run("(r => [r.left, r.top, r.right, r.bottom])(document.getElementById('tip').getBoundingClientRect())")
    assert 0 <= box[0] < box[2] <= 1280 and 0 <= box[1] < box[3] <= 900
    shown.press("Escape")
    assert shown.run("document.getElementById('tip').hidden")


def test_pointing_at_a_curve_names_its_run(shown: Browser) -> None:
    shown.point(".run[data-name=five]")
    shown.until("!document.getElementById('tip').hidden")
    assert shown.run("document.getElementById('tip').textContent") == "five"
    assert shown.run("document.querySelector('tr.lit').dataset.name") == "five"


def test_the_keyboard_reaches_a_dot_and_its_row(shown: Browser) -> None:
    shown.run("document.querySelector('.dot').focus()")
    shown.press("Tab")
    focused = "document.activeElement.dataset.name"
    assert shown.run(f"document.activeElement.matches('.dot') && {focused}") == "nine"
    assert shown.run("document.getElementById('tip').textContent").startswith("nine\n")
    shown.run("scrollBy(0, 40)")
    shown.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert not shown.run("document.getElementById('tip').hidden")  # it goes along with what has the focus
    shown.run("document.querySelector('.scroll').style.maxHeight = '80px'")
    shown.press("Enter")
    inside = """(() => {
      const row = document.querySelector('tr[data-name=nine]').getBoundingClientRect();
      const box = document.querySelector('.scroll').getBoundingClientRect();
      return row.bottom > box.top && row.top < box.bottom;
    })()"""
    assert shown.run(inside)


def test_rows_without_numbers_are_marked(shown: Browser) -> None:
    marked = "[...document.querySelectorAll('tr.marked')].map(row => row.dataset.name)"
    assert shown.run(marked) == ["fallen", "half", "broken"]
    row = "document.querySelector('tr[data-name=broken]').innerText"
    assert HOSTILE in shown.run(row)  # as text
    assert shown.run("[...document.querySelectorAll('.dot')].map(dot => dot.dataset.name)")[:4] == [
        "five", "nine", "ten", "fallen",
    ]  # fmt: skip
    assert shown.run("document.querySelectorAll('.dot').length") == 5  # neither half nor broken


def test_each_run_has_a_link_of_its_own(shown: Browser, page: Path) -> None:
    shown.click("tr[data-name=ten] th a")
    assert shown.run("location.hash") == "#run-ten"
    assert shown.run("document.querySelector('tr:target').dataset.name") == "ten"
    links = "[...document.querySelectorAll('tbody th a')]"
    found = f"{links}.every(a => document.getElementById(decodeURIComponent(a.hash.slice(1))) === a.closest('tr'))"
    assert shown.run(found) and shown.run(f"{links}.length") == 7  # the hostile name too


def test_the_wide_page_has_no_empty_half(shown: Browser, page: Path) -> None:
    shown.open(page, 1300)
    right = """[...document.querySelectorAll('section')].map(section => Math.max(
      ...[...section.querySelectorAll('figure, table')].map(part => part.getBoundingClientRect().right)))"""
    assert min(shown.run(right)) > 0.9 * 1300


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, False), (360, True)])
def test_it_fits_and_follows_the_scheme(shown: Browser, page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    shown.open(page, width, 740, dark=dark)
    assert shown.run("document.documentElement.scrollWidth") == width  # nothing sticks out sideways
    with Image.open(shown.screenshot(tmp_path / "page.png")) as picture:
        grey = np.asarray(picture.convert("L"), int)
    assert len(grey) > 1000
    assert grey[3, 3] < 60 if dark else grey[3, 3] > 240
    assert grey.max() - grey.min() > 180  # there is text on it
    size = "parseFloat(getComputedStyle(document.querySelector('td')).fontSize)"
    assert shown.run(size) >= 13
    contrast = """(() => {
      const light = c => c.match(/\\d+/g).slice(0, 3)
        .map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll('body, header p, svg text')].map(element => {
        const style = getComputedStyle(element);
        const ink = light(element.tagName === 'text' ? style.fill : style.color);
        return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
      });
    })()"""
    assert min(shown.run(contrast)) >= 4.5  # WCAG AA
