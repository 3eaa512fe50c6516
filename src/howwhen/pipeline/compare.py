"""Two rungs compared, of one run or of two runs over the same problems."""

from dataclasses import dataclass
from pathlib import Path

from howwhen.errors import SettingsError
from howwhen.measure.ladder import GradedTrace, find_outcomes
from howwhen.measure.recovery import Bootstrap
from howwhen.pipeline.files import grades_file
from howwhen.pipeline.store import RunFolder
from howwhen.records import BUDGETS, KNOCK_OUTS, LADDER, PAPER_RUNGS, Comparison
from howwhen.settings import MeasureSettings


@dataclass(frozen=True)
class Compared:
    """Two rungs with their names, their accuracies and how they differ."""

    first: str
    second: str
    n: int
    """Problems."""
    accuracies: tuple[float, float]
    comparison: Comparison

    def __str__(self) -> str:
        first, second = self.accuracies
        comparison = self.comparison
        low, high = comparison.difference_ci
        return (
            f"{self.first} {first:.1%}, {self.second} {second:.1%} of {self.n} problems: "
            f"difference {comparison.difference:+.1%} (interval {low * 100:+.1f} to "
            f"{high * 100:+.1f} %). Only {self.first} right: {comparison.only_first}; only "
            f"{self.second}: {comparison.only_second}; McNemar's exact p = "
            f"{comparison.p_value:.3g}."
        )


def compare(first: str, second: str, out: Path, settings: MeasureSettings) -> Compared:
    """Compare two measured rungs on the same problems.

    Args:
        first: a rung of `out`, or `FOLDER:RUNG` for another run.
        second: the same.
        out: run folder of rungs named without one.
        settings: mode and bootstrap.

    Raises:
        SettingsError: a rung was not measured, or the two answered different problems.
        StoreError: a run is not measured, or damaged.
    """
    graded = [_read(name, out) for name in (first, second)]
    problems = [sorted({trace.problem_id for trace in traces}) for traces in graded]
    if problems[0] != problems[1]:
        common = len(set(problems[0]) & set(problems[1]))
        raise SettingsError(
            f"{first} and {second} answered different problems ({len(problems[0])} and "
            f"{len(problems[1])}, {common} in common); compare runs made with the same problems, "
            "--limit and seed"
        )
    ours, theirs = (
        find_outcomes(name, traces, problems[0], settings.mode)
        for name, traces in zip((first, second), graded, strict=True)
    )
    bootstrap = Bootstrap.draw(len(problems[0]), settings)
    accuracies = float(ours.mean()), float(theirs.mean())
    return Compared(first, second, len(problems[0]), accuracies, bootstrap.compare(ours, theirs))


def _read(name: str, out: Path) -> list[GradedTrace]:
    folder, _, rung = name.rpartition(":")
    if rung in (*KNOCK_OUTS, *BUDGETS):
        raise SettingsError(
            f"{rung!r} is a pass for every category or budget, and the report has each of them; "
            f"expected a rung of the ladder ({', '.join(LADDER)})"
        )
    step = RunFolder(Path(folder) if folder else out).step("measure")
    step.check()
    if not (step.path / grades_file(rung)).exists():
        files = (path.stem for path in (step.path / "grades").glob("*.jsonl"))
        measured = sorted(set(files) - {*KNOCK_OUTS, *BUDGETS})
        what = "was not measured there" if rung in (*LADDER, *PAPER_RUNGS) else "is no rung"
        raise SettingsError(f"{rung!r} {what}; expected one of {', '.join(measured)}")
    return step.read_records(grades_file(rung), GradedTrace)
