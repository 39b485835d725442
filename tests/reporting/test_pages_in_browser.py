"""Pages in headless Chromium: values on hover, sorting, filters, highlights, small screens, accessibility."""

import re
from pathlib import Path

import pytest

from reporting.sample_pages import write_all

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next((p for p in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"))
                 if p.exists()), None)  # fmt: skip
KINDS = ("runs", "study", "comparison", "reproduction", "data")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium at /usr/bin/chromium")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("pages"))


# In milliseconds: long enough for a busy machine, short enough to end a page that never loads.
PATIENCE = 600_000


@pytest.fixture(scope="module")
def browser():
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(files, browser):
    """Return a function that opens a page; errors and warnings in the console fail the test at its end."""
    problems, contexts = [], []

    def opened(kind, *, width=1300, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))
        page.goto(files[kind].as_uri())
        page.evaluate("document.querySelectorAll('details.section').forEach((each) => (each.open = true))")
        sync_api.expect(page.locator(".plot:not(:has(svg))")).to_have_count(0)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.parametrize("kind", KINDS)
def test_charts_fit_a_phone_and_the_answer_comes_first(show, files, kind):
    assert files[kind].stat().st_size < 3_000_000
    page = show(kind, width=420, scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    widths = page.evaluate(
        "[...document.querySelectorAll('.plot svg')].map((e) => e.getBoundingClientRect().right)"
    )
    assert widths
    assert max(widths) <= 424
    headline = page.locator(".headline").bounding_box()
    assert headline["y"] + headline["height"] < 450, "visible without scrolling"
    # Cells are stacked, so that no column is outside the screen.
    rights = page.evaluate("[...document.querySelectorAll('td')].map((e) => e.getBoundingClientRect().right)")
    assert max(rights) <= 420
    colors = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert [sum(map(int, re.findall(r"\d+", color)[:3])) > 380 for color in colors] == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_no_serious_problem(show, kind):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    found = axe.run(show(kind)).response["violations"]
    serious = [
        (v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_hover_shows_the_values_of_a_curve(show):
    page = show("runs")
    point = page.locator("#curves .plot path[aria-roledescription='point']").first
    page.locator("#curves").scroll_into_view_if_needed()
    point.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    text = tooltip.inner_text()
    assert "score" in text
    assert re.search(r"0\.\d\d\d", text)


def test_highlight_fades_other_runs_in_charts_and_tables(show):
    page = show("runs")

    def visible():
        page.wait_for_timeout(100)
        lines = page.locator("#curves .plot path[aria-roledescription='line mark']")
        return [lines.nth(k).get_attribute("stroke-opacity") or lines.nth(k).get_attribute("opacity") or "1"
                for k in range(lines.count())]  # fmt: skip

    assert set(visible()) == {"1"}
    button = page.locator(".methods button", has_text="irm")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert sorted(visible()).count("1") == 3, "the run's line in each of the three environments"
    assert page.locator("#scores tbody tr.faded").count() == 3
    page.locator("#shift .plot .role-legend-symbol").first.click(force=True)
    page.wait_for_timeout(100)
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator(".methods button", has_text="erm").get_attribute("aria-pressed") == "true"
    page.locator(".methods button", has_text="erm").click()
    assert set(visible()) == {"1"}


def test_tables_are_sorted_and_filtered(show):
    page = show("runs")
    rows = page.locator("#scores tbody tr")
    page.locator("#scores thead button", has_text="flip-0.9").click()
    assert rows.first.locator("th").inner_text() == "erm"
    page.locator("#scores thead button", has_text="flip-0.9").click()
    assert rows.first.locator("th").inner_text() == "vrex"
    page = show("reproduction")
    page.locator("#first input[type=search]").last.fill("m7")
    shown = [row for row in page.locator("#first .content > .scroll tbody tr").all() if row.is_visible()]
    assert [row.locator("th").inner_text() for row in shown] == ["m7"]


def test_commands_are_copied_and_data_are_downloaded(show):
    page = show("runs")
    page.locator("#machine .command button").first.click()
    page.locator("#machine .command button", has_text="Copied").first.wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "envariant train --algorithm erm"
    page.locator("#curves details.data summary").click()
    with page.expect_download() as download:
        page.locator("#curves a[download]").click()
    assert (
        download.value.path()
        .read_text(encoding="utf-8")
        .startswith("name,panel,role,step,score,low,high\nerm,")
    )


def test_page_can_be_read_without_javascript(files, browser):
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(files["runs"].as_uri())
    assert page.locator(".headline").is_visible()
    assert "Charts need JavaScript" in page.locator(".plot").first.inner_text()
    page.locator("details.data summary").first.click()
    assert page.locator("details.data td").first.is_visible()
    context.close()
