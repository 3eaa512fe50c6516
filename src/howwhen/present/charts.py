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
            colour, marker = _look(name)
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


def draw_bits(measurement: Measurement) -> str:
    """The share of the gap that each rung recovers against what the thinking model tells, an SVG.

    Both with their intervals. Empty where either is unknown for the hybrid.
    """
    import matplotlib.pyplot as plt

    shown = [
        (name, rung.gap_recovered, rung.gap_recovered_ci, rung.bits.total, rung.bits_ci)
        for name, rung in measurement.rungs.items()
        if rung.bits and rung.bits_ci and rung.gap_recovered_ci and rung.gap_recovered is not None
    ]
    if "hybrid" not in {name for name, *_ in shown}:
        return ""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.8))
        for name, share, share_ci, bits, bits_ci in shown:
            colour, marker = _look(name)
            axes.hlines(share, bits_ci.low, bits_ci.high, color=colour, linewidth=1.5, alpha=0.6)
            axes.vlines(bits, share_ci.low, share_ci.high, color=colour, linewidth=1.5, alpha=0.6)
            axes.plot(bits, share, marker, color=colour, markersize=7)
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set_xlim(-0.15, 1.6 * max(one[4].high for one in shown))
        axes.xaxis.set_major_formatter(lambda bits, _: f"{bits:g}")
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.tick_params(labelsize=9)
        axes.set_xlabel("bits per answer that the thinking model tells (at most)", fontsize=9)
        axes.set_ylabel("share of the gap recovered", fontsize=9)
        for share in (0, 1):
            axes.axhline(share, color="black", linewidth=0.8, linestyle=":", zorder=0)
        _label(axes, [(name, bits, share) for name, share, _, bits, _ in shown])
        return _finish(figure, axes)


def draw_budgets(measurement: Measurement) -> str:
    """The share of the gap that is recovered with smaller budgets, with intervals, as an SVG.

    Empty without budgets or without a gap.
    """
    import matplotlib.pyplot as plt

    points = [point for point in measurement.budgets if point.gap_recovered_ci is not None]
    if not points:
        return ""
    names = list(dict.fromkeys(point.rung for point in points))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 4))
        for number, name in enumerate(names):
            own = [point for point in points if point.rung == name]
            shares = [100 * point.steered_fraction for point in own]
            values = [point.gap_recovered or 0.0 for point in own]
            ends = [point.gap_recovered_ci or Interval(0.0, 0.0) for point in own]
            colour = _SEED_COLOURS[number % len(_SEED_COLOURS)]
            axes.plot(shares, values, "o-", color=colour, label=name, markersize=5)
            lows, highs = zip(*ends, strict=True)
            axes.fill_between(shares, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.tick_params(labelsize=9)
        axes.set_xlabel("tokens at which the rung intervenes, in %", fontsize=9)
        axes.set_ylabel("share of the gap recovered", fontsize=9)
        for share in (0, 1):
            axes.axhline(share, color="black", linewidth=0.8, linestyle=":", zorder=0)
        axes.legend(fontsize=9, frameon=False)
        return _finish(figure, axes)


def _look(name: str) -> tuple[str, str]:
    """Colour and marker of a rung."""
    if name in _AS_TRAINED:
        return HYBRID, "o"
    return (CEILING, "s") if name in ("takeover", "base", "thinking") else (CONTROL, "D")


def _label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Name every point, where its name covers no other one."""
    figure = axes.figure
    figure.canvas.draw()
    taken = [axes.transData.transform((x, y)).tolist() for _, x, y in points]
    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y in taken]
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        across, up = axes.transData.transform((x, y)).tolist()
        width, height = 7.2 * len(name), 15.0
        places = [
            (dx, dy)
            for dy in (0, 16, -16, 32, -32, 48, -48, 64, -64, 80, -80)
            for dx in (12, -12 - width)
        ]
        for dx, dy in places:
            left, middle = across + dx, up + dy
            box = (left, middle - height / 2, left + width, middle + height / 2)
            if left > 0 and not any(_overlap(box, other) for other in boxes):
                break
        boxes.append(box)
        scale = 72 / figure.dpi
        line = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.5} if dy else None
        axes.annotate(
            name, (x, y), (dx * scale, dy * scale), textcoords="offset points",
            va="center", fontsize=9, arrowprops=line,
        )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_losses(training: "ElicitReport") -> str:
    """The validation loss of each training, one panel per kind of vectors, as an SVG.

    Args:
        training: report of the elicit step.

    Returns:
        Nothing where nothing is known of a training.
    """
    trainings = training.trainings
    if not trainings:
        return ""
    import matplotlib.pyplot as plt

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
