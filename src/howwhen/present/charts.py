"""Charts of a run, drawn with matplotlib if it is installed.

Lines and letters are black, so that a page can replace black with its own text colour.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any

from howwhen.records import Interval, KnockOut, Measurement

if TYPE_CHECKING:
    from howwhen.elicit.report import ElicitReport

DROP, ALONE = "#d55e00", "#0072b2"
"""From the colour-blind safe palette of Okabe and Ito."""
HYBRID, CONTROL, CEILING = "#0072b2", "#d55e00", "#8a8a8a"
"""Colours of the rungs that steer as trained, of the controls, and of the ceilings."""
_AS_TRAINED = ("hybrid", "self-gate")
_STYLE: Any = {"svg.hashsalt": "howwhen", "svg.fonttype": "none", "font.family": "sans-serif"}
"""Letters stay text, in the reader's font."""
_SEED_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_ladder(measurement: Measurement) -> str:
    """The share of the gap that each rung recovers, with its interval, as an SVG.

    Without a gap, the chart shows accuracies instead.
    """
    import matplotlib.pyplot as plt

    rungs = {
        name: rung
        for name, rung in measurement.rungs.items()
        if name not in ("base", "thinking") or rung.gap_recovered is None
    }
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(rungs)))
        for row, (name, rung) in enumerate(reversed(rungs.items())):
            value, interval = rung.gap_recovered, rung.gap_recovered_ci
            if value is None or interval is None:
                value, interval = rung.accuracy, rung.accuracy_ci
            colour = CEILING if name in ("takeover", "base", "thinking") else CONTROL
            colour = HYBRID if name in _AS_TRAINED else colour
            marker = "o" if name in _AS_TRAINED else "D" if colour == CONTROL else "s"
            axes.hlines(row, interval.low, interval.high, color=colour, linewidth=2.5)
            axes.plot(value, row, marker, color=colour, markersize=8)
            axes.annotate(
                f"{value:.0%}", (interval.high, row), (9, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        axes.set_yticks(range(len(rungs)), list(reversed(rungs)), fontsize=9)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.tick_params(axis="x", labelsize=9)
        has_gap = measurement.rungs["hybrid"].gap_recovered is not None
        axes.set_xlabel("share of the gap recovered" if has_gap else "accuracy", fontsize=9)
        for share in (0, 1) if has_gap else ():
            axes.axvline(share, color="black", linewidth=0.8, linestyle=":", zorder=0)
        return _finish(figure, axes)


def draw_losses(training: "ElicitReport") -> str:
    """The validation loss of each training, one panel per kind of vectors, as an SVG.

    Args:
        training: report of the elicit step.
    """
    import matplotlib.pyplot as plt

    trainings = training.trainings
    with plt.rc_context(_STYLE):
        figure, panels = plt.subplots(
            1, len(trainings), figsize=(8, 2.6), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (name, summary) in zip(panels[0], trainings.items(), strict=True):
            for number, notes in enumerate(summary.seeds):
                colour = _SEED_COLOURS[number % len(_SEED_COLOURS)]
                losses = notes.validation_losses
                interval = notes.steps / max(1, len(losses) - 1)
                steps = [interval * evaluation for evaluation in range(len(losses))]
                axes.plot(steps, losses, color=colour, label=f"seed {notes.seed}")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("steps", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0][0].set_ylabel("validation loss in nats", fontsize=9)
        panels[0][0].legend(fontsize=8, frameon=False)
        return _as_svg(figure)


def draw_knock_outs(knock_outs: Sequence[KnockOut]) -> str:
    """What each category contributes, as an SVG: two bars per category, with intervals.

    Args:
        knock_outs: their shares must be defined, so the gap must not be zero.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 1 + 0.6 * len(knock_outs)))
        for row, knock_out in enumerate(reversed(knock_outs)):
            _bar(axes, row + 0.2, knock_out.drop, knock_out.drop_ci, DROP)
            _bar(axes, row - 0.2, knock_out.alone, knock_out.alone_ci, ALONE)
        titles = [f"{knock_out.category}: {knock_out.title}" for knock_out in reversed(knock_outs)]
        axes.set_yticks(range(len(knock_outs)), titles, fontsize=8, parse_math=False)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set_xlabel("share of the gap", fontsize=8)
        handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in (DROP, ALONE)]
        labels = ["lost without it", "recovered by it alone"]
        axes.legend(
            handles,
            labels,
            fontsize=8,
            ncols=2,
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            frameon=False,
        )
        return _finish(figure, axes)


def _finish(figure: Any, axes: Any) -> str:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return _as_svg(figure)


def _as_svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    return text.getvalue()


def _bar(axes: object, row: float, value: float | None, ci: Interval | None, colour: str) -> None:
    from matplotlib.axes import Axes

    if not isinstance(axes, Axes) or value is None or ci is None:
        raise ValueError("a knock-out without a defined share cannot be drawn")
    axes.barh(row, value, color=colour, height=0.36)
    axes.errorbar(value, row, xerr=[[value - ci.low], [ci.high - value]], color="black", capsize=2)
