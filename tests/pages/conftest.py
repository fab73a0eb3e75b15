"""The browser of the tests of pages: one headless Chromium for all of them."""

from collections.abc import Iterator

import pytest
from benchmarks.browser import Page, chromium, find_chromium

ALLOWED = ("file:", "http://127.0.0.1:", "data:", "blob:", "about:blank")


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    if find_chromium() is None:
        pytest.skip("there is no chromium on this machine")
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The one page, as new: whatever a test does, it must not leave this machine nor complain."""
    browser.size(1280, 800)
    browser.dark(False)
    browser.errors.clear()
    browser.requests.clear()
    yield browser
    browser.call("Runtime.evaluate", expression="try { localStorage.clear() } catch {}")
    assert browser.errors == []
    assert browser.requests and all(each.startswith(ALLOWED) for each in browser.requests)
