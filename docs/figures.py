"""Draw the figures of the docs from finished runs: `python docs/figures.py NAME RUN ...`.

A run is a run folder, or a copy of its `measurement.json` like those in `docs/measurements`.
Writes `docs/NAME.svg` with a panel per run and a bar per rung (the share of the gap recovered, with
its interval), and prints the same ladders as a Markdown table.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from pydantic import TypeAdapter

from howwhen.present.tables import interval_text
from howwhen.records import LADDER, Measurement, RungMeasurement, RungName

HERE = Path(__file__).parent
COLOURS = {"hybrid": "#0072b2", "self-gate": "#009e73"}
CEILING, CONTROL = "#999999", "#d55e00"
ENDS = ("base", "thinking")


def read(run: Path) -> Measurement:
    """Read the measurement of a run."""
    file = run / "5-measure" / "measurement.json" if run.is_dir() else run
    return TypeAdapter(Measurement).validate_json(file.read_bytes())


def draw(axes: Axes, name: str, measurement: Measurement) -> None:
    """Draw one run's ladder as horizontal bars."""
    rungs = measurement.rungs
    shown = {rung: measured for rung, measured in rungs.items() if rung not in ENDS}
    for row, (rung, measured) in enumerate(reversed(shown.items())):
        value, interval = measured.gap_recovered, measured.gap_recovered_ci
        if value is None or interval is None:
            raise SystemExit(f"{name} has no gap to recover, so there is nothing to draw")
        colour = COLOURS.get(rung, CEILING if rung == "takeover" else CONTROL)
        axes.barh(row, value, color=colour, height=0.7)
        errors = [[value - interval.low], [interval.high - value]]
        axes.errorbar(value, row, xerr=errors, color="black", capsize=2)
        label = f"  {value:.0%}"
        axes.text(max(1.05, interval.high), row, label, va="center", ha="left", fontsize=8)
    axes.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"], fontsize=8)
    axes.set_title(f"{name} ({rungs['hybrid'].steered_fraction:.1%} steered)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def x_limits(measurements: Iterable[Measurement]) -> tuple[float, float]:
    """One range of shares for all panels, with room for the labels."""
    intervals = [
        rung.gap_recovered_ci
        for measurement in measurements
        for rung in measurement.rungs.values()
        if rung.gap_recovered_ci is not None
    ]
    left = min(-0.35, *(interval.low - 0.05 for interval in intervals))
    return left, max(1.05, *(interval.high for interval in intervals)) + 0.3


def table(measurements: Mapping[str, Measurement]) -> str:
    """The ladders side by side, in Markdown."""
    ladders = [measurement.rungs for measurement in measurements.values()]
    rungs = [rung for rung in LADDER if any(rung in ladder for ladder in ladders)]
    rows = [("rung", *measurements), ("---",) * (1 + len(measurements))]
    rows += [(rung, *(_cell(rung, ladder.get(rung)) for ladder in ladders)) for rung in rungs]
    for name in ("steered", "changed"):
        shares = (getattr(ladder["hybrid"], f"{name}_fraction") for ladder in ladders)
        rows.append((f"*tokens {name} by the hybrid*", *(f"{share:.1%}" for share in shares)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(rung: RungName, measured: RungMeasurement | None) -> str:
    if measured is None:
        return ""
    right = f"{measured.accuracy:.1%} right"
    if rung in ENDS or measured.gap_recovered is None:
        return f"{right} ({interval_text(measured.accuracy_ci)})"
    gained = f", {measured.gains.shared:.0%} of gains" if measured.gains else ""
    interval = interval_text(measured.gap_recovered_ci)
    return f"{measured.gap_recovered:.0%} ({interval}); {right}{gained}"


def brief_table(measurements: Mapping[str, Measurement]) -> str:
    """The gap recovered on every rung, in Markdown, without accuracies and gains."""
    ladders = [measurement.rungs for measurement in measurements.values()]
    rungs = [rung for rung in LADDER if any(rung in ladder for ladder in ladders)]
    rows = [("rung", *measurements), ("---",) * (1 + len(measurements))]
    rows += [(rung, *(_brief(rung, ladder.get(rung)) for ladder in ladders)) for rung in rungs]
    steered = (f"{ladder['hybrid'].steered_fraction:.1%}" for ladder in ladders)
    rows.append(("*tokens steered by the hybrid*", *steered))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _brief(rung: RungName, measured: RungMeasurement | None) -> str:
    if measured is None:
        return ""
    if rung in ENDS or measured.gap_recovered is None:
        return f"{measured.accuracy:.1%} right"
    interval = interval_text(measured.gap_recovered_ci).removesuffix(" %")
    return f"{measured.gap_recovered:.0%} ({interval})"


def main(name: str, runs: Sequence[Path]) -> None:
    """Write the figure and print the table."""
    measurements = {run.stem: read(run) for run in runs}
    height = -(-len(runs) // 2)
    figure, grid = plt.subplots(height, 2, figsize=(10, 3.4 * height), squeeze=False)
    for axes in grid.flat[len(runs) :]:
        axes.axis("off")
    for axes, (run, measurement) in zip(grid.flat, measurements.items(), strict=False):
        draw(axes, run, measurement)
        axes.set_xlim(*x_limits(measurements.values()))
    figure.suptitle("Share of the gap recovered, by rung (95 % intervals)", fontsize=11)
    figure.tight_layout(w_pad=3)
    figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
    print(table(measurements), brief_table(measurements), sep="\n\n")


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "howwhen"
    main(sys.argv[1], [Path(run) for run in sys.argv[2:]])
