"""Take the picture of the demo that stands in the README: `python docs/draw_demo.py [--example 0] [--out demo.png]`.

Needs Playwright and a chromium. It asks what the example chart's own question is, and waits for the heat map.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
PORT = 7861
LONGEST_WAIT_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--example", type=int, default=0, help="which of the example charts, from 0")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "demo.png")
    arguments = parser.parse_args()
    size = {"width": 390, "height": 844} if arguments.phone else {"width": 1280, "height": 900}
    url = f"http://127.0.0.1:{PORT}"
    with (
        subprocess.Popen([sys.executable, "app.py", "--port", str(PORT)], cwd=ROOT) as demo,
        sync_playwright() as driver,
    ):
        try:
            wait_for(url)
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            scheme = "dark" if arguments.dark else "light"
            page = browser.new_page(viewport=size, is_mobile=arguments.phone, color_scheme=scheme)
            page.set_default_timeout(1000 * LONGEST_WAIT_S)
            page.goto(url)
            page.locator("#examples button").nth(arguments.example).click()
            page.wait_for_function("document.querySelector('#question textarea').value.endsWith('?')")
            page.wait_for_selector("#pictures .thumbnail-item img")
            page.wait_for_timeout(1000)
            page.locator("#question textarea").press("Enter")
            page.wait_for_selector("#heat img")
            page.wait_for_timeout(1000)
            page.mouse.move(0, 0)
            page.screenshot(path=arguments.out, full_page=True)
        finally:
            demo.terminate()


def wait_for(url: str) -> None:
    """Return once the demo answers."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    while True:
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    main()
