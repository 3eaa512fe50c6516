"""Draws the figures of the docs from finished runs: `python docs/figures.py runs/NAME ...`.

One panel per run, one bar per rung: the share of the gap recovered with its interval.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
COLOURS = {"hybrid": "#0072b2", "self-gate": "#009e73"}
CEILING, CONTROL = "#999999", "#d55e00"
LEFT_OUT = ("base", "thinking")


def draw(axes: Axes, folder: Path) -> None:
    """One run's ladder as horizontal bars."""
    rungs = json.loads((folder / "5-measure" / "measurement.json").read_text())["rungs"]
    shown = {name: rung for name, rung in rungs.items() if name not in LEFT_OUT}
    for row, (name, rung) in enumerate(reversed(shown.items())):
        value, (low, high) = rung["gap_recovered"], rung["gap_recovered_ci"]
        colour = COLOURS.get(name, CEILING if name == "takeover" else CONTROL)
        axes.barh(row, value, color=colour, height=0.7)
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], color="black", capsize=2)
        axes.text(1.06, row, f"{value:.0%}", va="center", ha="left", fontsize=8)
    axes.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=8)
    axes.set_xlim(-0.35, 1.05)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"], fontsize=8)
    axes.set_title(
        f"{folder.name} ({rungs['hybrid']['steered_fraction']:.0%} steered)", fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)


def main(folders: list[Path]) -> None:
    """Write `two-methods.svg`."""
    figure, grid = plt.subplots(-(-len(folders) // 2), 2, figsize=(10, 3.4 * -(-len(folders) // 2)))
    for axes, folder in zip(grid.flat, folders, strict=True):
        draw(axes, folder)
    figure.suptitle("Share of the gap recovered, by rung (95 % intervals)", fontsize=11)
    figure.tight_layout(w_pad=3)
    figure.savefig(HERE / "two-methods.svg", metadata={"Date": None})


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "howwhen"
    main([Path(name) for name in sys.argv[1:]])
