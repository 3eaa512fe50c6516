"""What a taxonomy page is made of, with text that tries to break it, and a reader of its tags."""

from dataclasses import fields
from html.parser import HTMLParser

from howwhen.discover.categories import CategorySummary, SentenceExample
from howwhen.discover.report import DiscoverCounts, GridRow
from howwhen.discover.sae import SaeMetrics
from howwhen.discover.taxonomy import CellScores
from howwhen.discover.validate import OfflineScores

HOSTILE = 'wait <script>alert("1")</script> & {{ 7 * 7 }}'


class Tags(HTMLParser):
    """Every tag with its attributes, and whether all that were opened were closed in order."""

    VOID = ("meta", "rect", "br", "link", "img", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def cell(layer: int, size: int, score: float, *, chosen: bool = False, k: int = 1) -> GridRow:
    parts = {field.name: 0.25 for field in fields(OfflineScores)}
    offline = OfflineScores(**{**parts, "score": score})
    metrics = SaeMetrics(fvu=0.4, l0=float(k), dead=0)
    return GridRow(CellScores(layer, "sae", size, k, offline, 0, metrics), chosen)


def counts() -> DiscoverCounts:
    return DiscoverCounts(
        sentences=1234, sentences_trained_on=1000, sentences_too_short=234,
        sentences_per_category=(700, 534), cells=3, choice="because", judge="none asked",
        unparsable_names=0, unparsable_scores=None, named_without_judge=(),
    )  # fmt: skip


def summary(category: int, title: str) -> CategorySummary:
    example = SentenceExample(HOSTILE, "p", 1.0, 1 - category, 0.1)
    positions = (3, 1) + (0,) * 8
    return CategorySummary(category, title, "", "words", 4, 0.5, (example,), (example,), positions)
