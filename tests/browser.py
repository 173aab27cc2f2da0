"""Opens a self-contained HTML page in a real headless browser, and watches what it does there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

# Names on PATH, as `make env-test` looks for them.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Root needs --no-sandbox; the rest keeps the browser itself from calling home.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def opened(
    path: str | Path, width: int, height: int, colour_scheme: str = "light"
) -> Iterator[Page]:
    """A local page in a window of this size; afterwards it must have been silent and alone.

    Fails for errors and warnings in the console, uncaught errors, failed requests, and requests for
    anything but the file itself and data URLs. That is checked when the block ends, also when it
    raises: the page's own complaint often is the reason.

    Args:
        path: the HTML file.
        width: of the viewport in CSS pixels.
        height: of the viewport.
        colour_scheme: what ``prefers-color-scheme`` says, "light" or "dark".
    """
    executable = _executable()
    # A browser for each page: Playwright's event loop runs as long as it does, and would be in the
    # way of other tests' loops.
    url = Path(path).resolve(strict=True).as_uri()
    problems: list[str] = []

    def check(request: Request) -> None:
        address = request.url.partition("#")[0]
        if address != url and not address.startswith("data:"):
            problems.append(f"request for {address}")

    with _playwright() as playwright:
        with playwright.chromium.launch(executable_path=executable, args=FLAGS) as browser:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=colour_scheme,
                offline=True,  # what a page asks for is counted, and fetched nowhere
            )
            context.on("request", check)
            context.on(
                "requestfailed",
                lambda request: problems.append(f"failed: {request.url[:200]} ({request.failure})"),
            )
            context.on("weberror", lambda error: problems.append(f"uncaught: {error.error}"))
            context.on(
                "console",
                lambda message: (
                    message.type in ("error", "warning", "assert")
                    and problems.append(f"console {message.type}: {message.text}")
                ),
            )
            page = context.new_page()
            page.on("websocket", lambda socket: problems.append(f"request for {socket.url}"))
            try:
                page.goto(url)
                yield page
                # What the page's last turn reported arrives before the answer to this.
                page.evaluate("() => new Promise(done => setTimeout(done))")
            finally:
                assert not problems, f"{Path(path).name} in the browser: " + "; ".join(problems)


def assert_pictures_load(page: Page) -> None:
    """There are pictures, and each one decodes to something."""
    pictures = page.evaluate(
        """async () => {
            const images = [...document.images];
            for (const image of images) image.loading = "eager";  // else some wait for the scroll
            await Promise.allSettled(images.map(image => image.decode()));
            return images.map(image => [image.naturalWidth, image.alt || image.src.slice(0, 80)]);
        }"""
    )
    assert pictures, "the page has no picture"
    broken = [name for width, name in pictures if not width]
    assert not broken, f"pictures that do not load: {broken}"


def assert_fits(page: Page) -> None:
    """The page is not wider than the window; parts of it may scroll by themselves."""
    widths = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    culprits = page.evaluate(
        """() => [...document.body.querySelectorAll("*")].filter(element => {
            const right = node => node.getBoundingClientRect().right + scrollX;
            const parent = element.parentElement;
            return right(element) > innerWidth && right(parent) <= innerWidth
                && getComputedStyle(parent).overflowX === "visible";
        }).slice(0, 5).map(element => element.outerHTML.slice(0, 80))"""
    )
    assert widths[0] <= widths[1], f"{widths[0]} pixels in a window of {widths[1]}: {culprits}"


def _playwright():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("Playwright, which drives the browser, is not installed: run `make env-test`.")
    return sync_playwright()


def _executable() -> str:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.fail("the reports are tested in a browser and none is here: run `make env-test`.")
    return browser
