"""The page for browsers, and the figures that it draws."""

import re
import shutil
import subprocess

import httpx
import pytest

from tests.server.fakes import serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def test_browsers_get_the_page_and_everyone_else_the_text(server):
    page = httpx.get(server.url, headers=BROWSER)
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>moerun</title>" in page.text
    assert httpx.get(server.url).text == "Ollama is running"


def test_the_page_loads_nothing_from_elsewhere(server):
    page = httpx.get(server.url, headers=BROWSER)
    assert not re.findall(r"https?://|src=|@import|url\(", page.text)
    assert "innerHTML" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_the_figures_are_of_the_models_in_memory(server):
    httpx.post(f"{server.url}/api/generate", json={"model": "alpha"})
    status = httpx.get(f"{server.url}/api/moerun/status").json()
    assert [model["name"] for model in status["models"]] == ["alpha:latest"]
    assert status["models"][0]["tiers"] == [{"tier": "ram", "name": "RAM", "bytes": 100}]


def test_the_page_draws_in_a_browser(server, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed; `apt install chromium` lets this run")
    httpx.post(f"{server.url}/api/generate", json={"model": "alpha"})
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", server.url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "alpha:latest" in done.stdout
    assert "RAM 100 B" in done.stdout
