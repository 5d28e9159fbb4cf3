"""Pictures of Dagster's pages as a browser shows them; for the tests, and for the documentation.

``python -m abo_pipeline_tests.e2e.screenshots docs/`` runs the pipeline over a drawn archive and writes the pictures
that the documentation shows.
"""

import argparse
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from abo_pipeline.sample import draw_sample
from abo_pipeline.store.database import embedded_server
from abo_pipeline_tests.e2e.harness import running_dagster
from abo_pipeline_tests.e2e.pipeline import EMBEDDINGS, Pipeline

WIDTH, HEIGHT = 1400, 900
GROUPS = ("archive", "catalogue", "embeddings", "search")
PATIENCE = 60_000
"""Milliseconds that a page may take: its data come in several requests, and the machine may be busy."""

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def chromium() -> str | None:
    """The browser's path: ``CHROMIUM``, or where the system has it; None if there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser(url: str) -> Iterator["Pages"]:
    """A browser that looks at one webserver.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    program = chromium()
    if program is None:
        raise FileNotFoundError("Chromium is needed: install the package chromium, or name one in CHROMIUM.")
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            page = window.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.set_default_timeout(PATIENCE)
            yield Pages(page, url)
        finally:
            window.close()


class Pages:
    """Dagster's pages about this pipeline, each opened and waited for until what matters on it is there."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url

    def asset_graph(self) -> Locator:
        """The whole graph, its groups opened; gives the node of the embeddings."""
        groups = ",".join(f"global@global:{group}" for group in GROUPS)
        node = self.page.get_by_text(EMBEDDINGS).first
        path = f"/asset-groups?expanded={groups}"
        self._open(path, node)
        # Without the bar beside it, which stays away once it has been hidden, the nodes are larger.
        bar = self.page.get_by_role("button", name="Hide navigation")
        if bar.is_visible():
            bar.click()
        return self._open(path, node)

    def partition(self, key: str) -> Locator:
        """A partition of the embeddings with the numbers of its last run; gives one of them."""
        return self._open(
            f"/assets/{EMBEDDINGS}?view=partitions&partition={key}", self.page.get_by_text("images_per_second").first
        )

    def checks(self, asset: str, check: str) -> Locator:
        """The checks of an asset; gives the name of one."""
        return self._open(f"/assets/{asset}?view=checks", self.page.get_by_text(check).first)

    def overview(self, asset: str) -> Locator:
        """An asset's first page; gives its name."""
        return self._open(f"/assets/{asset}?view=overview", self.page.get_by_text(asset).first)

    def report(self, query: str) -> Locator:
        """The page of the report with the grid of a query opened; gives the picture."""
        row = self.page.get_by_role("row").filter(has_text=f"grid: {query}")
        self._open("/assets/search_report?view=overview", row)
        row.get_by_text("[Show Markdown]").click()
        picture = self.page.locator("img[src^='data:image/']")
        picture.wait_for()
        return picture

    def run(self, run_id: str) -> Locator:
        """The page of a run; gives its log."""
        return self._open(f"/runs/{run_id}", self.page.get_by_text("RUN_SUCCESS").first)

    def shoot(self, path: Path) -> None:
        """Write what is seen, with few colours: pages are mostly flat."""
        picture = Image.open(io.BytesIO(self.page.screenshot(animations="disabled"))).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)

    def _open(self, path: str, awaited: Locator) -> Locator:
        self.page.goto(f"{self._url}{path}")
        expect(awaited).to_be_visible(timeout=PATIENCE)
        # What is still loading shows bars that move.
        self.page.wait_for_load_state("networkidle", timeout=PATIENCE)
        return awaited


def main() -> None:
    """Write the documentation's pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--images", type=int, default=1200, help="size of the drawn archive")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = draw_sample(folder / "sample", images=arguments.images)
        pipeline = Pipeline.over(
            sample,
            folder,
            database_url="",
            sizes="100,300,1000",
            partitions="8",
            batch_size="64",
            report_k="5",
            queries="red leather office chair;a pair of brown boots;blue mug;like:",
        )
        try:
            with running_dagster(folder / "home", pipeline.environment) as dagster:
                done = dagster.wait_for_backfill(dagster.launch_backfill(dagster.assets()), seconds=1800)
                if done.status != "COMPLETED_SUCCESS":
                    raise SystemExit(f"The pipeline did not succeed: {done}")
                with browser(dagster.url) as pages:
                    pages.asset_graph()
                    pages.shoot(arguments.folder / "asset-graph.png")
                    pages.partition("03of8")
                    pages.shoot(arguments.folder / "partition-page.png")
                    pages.report("red leather office chair")
                    pages.shoot(arguments.folder / "report-asset.png")
        finally:
            embedded_server(pipeline.settings).stop()


if __name__ == "__main__":
    main()
