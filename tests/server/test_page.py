"""The page for browsers, and the figures that it draws."""

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from moerun.experts.counters import StreamingSample
from tests.server.fakes import FakeLoader, FakeRunner, serving
from tests.streaming_samples import a_sample

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


def drawn(url: str, folder: Path) -> str:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed; `apt install chromium` lets this run")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
            f"--user-data-dir={folder}", "--virtual-time-budget=5000", url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def test_the_page_draws_in_a_browser(server, tmp_path):
    httpx.post(f"{server.url}/api/generate", json={"model": "alpha"})
    page = drawn(server.url, tmp_path)
    assert "alpha:latest" in page
    assert "RAM 100 B" in page


class StreamingRunner(FakeRunner):
    """A runner whose experts stream."""

    def streaming(self) -> StreamingSample:
        return a_sample()


class StreamingLoader(FakeLoader):
    """Loads runners whose experts stream."""

    runner = StreamingRunner


def test_the_page_draws_what_experts_do(tmp_path):
    with serving(loader=StreamingLoader()) as server:
        httpx.post(f"{server.url}/api/generate", json={"model": "alpha"})
        (model,) = httpx.get(f"{server.url}/api/moerun/status").json()["models"]
        page = drawn(server.url, tmp_path)
    told, heat = model["streaming"], model["streaming"]["heat"]
    assert "hit rate" in page
    assert f'<canvas width="{len(heat[0]["uses"])}" height="{len(heat)}"' in page
    assert [tier["tier"] for tier in model["tiers"]] == ["ram", "ssd"]
    assert told["expert_bytes"] >= told["held_bytes"]
