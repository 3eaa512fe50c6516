"""Takes the pictures of the docs: `python docs/screenshots.py RUN [URL]`.

RUN is a finished run of tally-rl, URL a server for it (`howwhen serve --pair tally-rl --out RUN`).
Needs Chromium and the packages that `make test-browser` installs. Writes `docs/report-*.png` and
`docs/playground.png`.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

HERE = Path(__file__).parent
WIDTH, MARGIN = 1180, 16
QUESTION = (
    "Gus has 8 apples. Gus loses 2. Gus buys 2 packs. Gus gets 3 more. Gus buys 4 packs. "
    "How many apples does Gus have?"
)


def save(page: Page, part: str, name: str) -> None:
    """Save a picture of a part of the page, in 256 colours to halve its size."""
    box = page.locator(part).bounding_box()
    if box is None:
        raise SystemExit(f"{part} is not on the page")
    top = max(box["y"] + page.evaluate("scrollY") - MARGIN, 0)
    width = min(WIDTH, box["x"] + box["width"] + MARGIN)
    clip = FloatRect(x=0, y=top, width=width, height=box["height"] + MARGIN)
    picture = page.screenshot(full_page=True, clip=clip)
    image = Image.open(BytesIO(picture)).convert("RGB").quantize()
    image.save(HERE / name, optimize=True)


def shoot_report(page: Page, run: Path) -> None:
    """The ladder of a report, and one of its answers with a disagreement explained."""
    page.goto((run / "6-present" / "report.html").resolve().as_uri())
    page.wait_for_selector("#problems option")
    save(page, "#ladder", "report-ladder.png")
    save(page, "#bits .chart svg", "report-bits.png")
    page.fill("#search", QUESTION[:46])
    page.locator("#pane-third button.token").nth(1).focus()
    save(page, "#answers", "report-answers.png")


def shoot_playground(page: Page, url: str) -> None:
    """Three answers side by side, and a disagreement explained."""
    page.goto(url)
    page.fill("#question", QUESTION)
    page.locator("#ask").press("Enter")
    page.wait_for_selector("#ask:not([disabled])", timeout=120_000)
    page.locator("#pane-third button.token").nth(1).focus()
    save(page, "main", "playground.png")


def main(browser: Browser, run: Path, urls: list[str]) -> None:
    """Take all pictures, or only those of the report if no server is given."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 860}, color_scheme="light")
    shoot_report(page, run)
    for url in urls:
        shoot_playground(page, url)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        main(opened, Path(sys.argv[1]), sys.argv[2:])
