"""Charts of a measurement, drawn with matplotlib where it is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from io import StringIO

from howwhen.records import Interval, KnockOut

DROP, ALONE = "#d55e00", "#0072b2"
"""From the colour-blind safe palette of Okabe and Ito."""


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_knock_outs(knock_outs: Sequence[KnockOut]) -> str:
    """What each category carries, as an SVG: two bars per category, with intervals.

    Args:
        knock_outs: with defined shares; the gap must not be zero.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    with plt.rc_context({"svg.hashsalt": "howwhen"}):
        figure, axes = plt.subplots(figsize=(8, 1 + 0.6 * len(knock_outs)))
        for row, one in enumerate(reversed(knock_outs)):
            _bar(axes, row + 0.2, one.drop, one.drop_ci, DROP)
            _bar(axes, row - 0.2, one.alone, one.alone_ci, ALONE)
        titles = [f"{one.category}: {one.title}" for one in reversed(knock_outs)]
        axes.set_yticks(range(len(knock_outs)), titles, fontsize=8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set_xlabel("share of the gap", fontsize=8)
        handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in (DROP, ALONE)]
        words = ["lost without it", "recovered by it alone"]
        axes.legend(
            handles, words, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1)
        )
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
    return text.getvalue()


def _bar(axes: object, row: float, value: float | None, ci: Interval | None, colour: str) -> None:
    from matplotlib.axes import Axes

    if not isinstance(axes, Axes) or value is None or ci is None:
        raise ValueError("a knock-out without a defined share cannot be drawn")
    axes.barh(row, value, color=colour, height=0.36)
    axes.errorbar(value, row, xerr=[[value - ci.low], [ci.high - value]], color="black", capsize=2)
