"""What `hw.run`, `hw.load` and `hw.answer` return: a run's results, and one answer.

Both show themselves as HTML in a notebook and as one line elsewhere. Reading them takes no lock,
changes nothing and loads no model. pandas and pyarrow are imported when a table is asked for.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from howwhen.errors import SettingsError
from howwhen.pipeline.files import STEPS
from howwhen.pipeline.frames import RunTables
from howwhen.pipeline.reader import RunReader
from howwhen.records import HybridTrace, Measurement, Problem, Split, titles_of
from howwhen.settings import RunSettings
from howwhen.zoo.pairs import Pair

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from howwhen.measure.ladder import GradedTrace
    from howwhen.pipeline.shown import RunTaxonomy, RunVectors


@dataclass(frozen=True)
class Answer:
    """One answer of a rung, which a notebook shows token by token."""

    problem: Problem
    trace: HybridTrace
    pair: Pair = field(repr=False)
    titles: tuple[str, ...] = field(repr=False)
    """Of the categories that the rung steers with."""
    graded: "GradedTrace | None" = None
    """None for a question without a gold answer, and until the step measure is done."""

    @property
    def text(self) -> str:
        """The answer."""
        return self.trace.text

    def __repr__(self) -> str:
        grade = "" if self.graded is None else f", {self.graded.flexible.value}"
        return (
            f"<{self.trace.rung} on {self.problem.id}: {len(self.trace.tokens)} tokens, "
            f"{self.trace.decisions} steered, {self.trace.changed} changed{grade}>"
        )

    def _repr_html_(self) -> str:
        from howwhen.present.cards import trace_card

        return trace_card(self.trace, self.pair.tokenizer, self.titles, self.problem, self.graded)


@dataclass(frozen=True)
class RunResults:
    """A run: its verdict, its tables, its answers, its taxonomy and its vectors."""

    reader: RunReader

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.reader.root

    @property
    def pair(self) -> Pair:
        """The two models; each is loaded when it is first asked for."""
        return self.reader.pair

    @property
    def settings(self) -> RunSettings:
        """The settings that the steps were run with; defaults for steps that were not run."""
        return self.reader.settings

    @cached_property
    def measurement(self) -> Measurement:
        """What each rung recovers of the gap.

        Raises:
            StoreError: the run is not measured yet.
        """
        return self.reader.measurement()

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two, controls included."""
        from howwhen.present.verdict import verdict

        return verdict(self.measurement)

    @cached_property
    def ladder(self) -> "pd.DataFrame":
        """What every rung achieved, by rung; the columns are those of `rows.LadderRow`."""
        return self._tables.frame("ladder")

    @cached_property
    def grades(self) -> "pd.DataFrame":
        """Every graded answer; the columns are those of `rows.GradeRow`."""
        return self._tables.frame("grades")

    @cached_property
    def tokens(self) -> "pd.DataFrame":
        """Every token of every answer; the columns are those of `rows.TokenRow`."""
        return self._tables.frame("tokens")

    @cached_property
    def decisions(self) -> "pd.DataFrame":
        """The tokens at which a rung intervened; the columns are those of `rows.TokenRow`."""
        return self._tables.frame("decisions")

    @cached_property
    def sentences(self) -> "pd.DataFrame":
        """Every sentence of the thinking model; the columns are those of `rows.SentenceRow`."""
        return self._tables.frame("sentences")

    @cached_property
    def problems(self) -> "pd.DataFrame":
        """Every problem; the columns are those of `rows.ProblemRow`."""
        return self._tables.frame("problems")

    def table(self, name: str, rung: str | None = None) -> "pa.Table":
        """A table of pyarrow, which polars and DuckDB read too.

        Args:
            name: `ladder`, `grades`, `tokens`, `decisions`, `sentences` or `problems`.
            rung: keep only rows of this rung.

        Raises:
            SettingsError: no such table or rung.
            StoreError: the step that makes the table is not finished.
            MissingExtraError: pyarrow is not installed.
        """
        return self._tables.arrow(name, rung)

    def export(self, to: str, out: str | Path | None = None) -> list[Path]:
        """Write every table as a file, as `howwhen export` does.

        Args:
            to: `parquet`, `arrow` or `csv`; CSV needs no extra package.
            out: folder of the files; `tables` in the run's folder by default.

        Returns:
            The files written, one per table.

        Raises:
            SettingsError: no such format.
            StoreError: the step collect is not finished, or the folder cannot be written.
            MissingExtraError: pyarrow is not installed.
        """
        from howwhen.pipeline.export import export_run

        return export_run(self.folder, to, None if out is None else Path(out))

    def trace(self, rung: str, problem: int | str, seed: int = 0, sample: int = 0) -> Answer:
        """One answer to a test problem.

        Args:
            rung: such as `hybrid`.
            problem: its 0-based number among the test problems, or its id.
            seed: of a random rung.
            sample: number of the sampled answer.

        Raises:
            SettingsError: no such rung, problem, seed or sample.
            StoreError: the step hybrid is not finished.
        """
        chosen = self._find_problem(problem)
        self.reader.check_rung(rung)
        for traces in self.reader.passes(rung):
            for trace in traces:
                if (trace.problem_id, trace.seed, trace.sample) == (chosen.id, seed, sample):
                    titles = titles_of(rung, self.reader.titles())
                    return Answer(chosen, trace, self.pair, titles, self._grade(trace))
        raise SettingsError(
            f"{rung} has no answer to {chosen.id} with seed {seed} and sample {sample}; leave seed "
            "and sample out for the first answer"
        )

    @cached_property
    def taxonomy(self) -> "RunTaxonomy":
        """The chosen taxonomy, with what its categories look like in this run."""
        from howwhen.pipeline.shown import RunTaxonomy

        taxonomy = self.reader.taxonomy()
        return RunTaxonomy(**vars(taxonomy), categories=tuple(self.reader.categories()))

    @cached_property
    def vectors(self) -> "RunVectors":
        """The steering vectors, with the titles of their categories."""
        from howwhen.pipeline.shown import RunVectors

        counts = tuple(self.reader.decisions_per_category() or ())
        return RunVectors(**vars(self.reader.vectors()), titles=self.reader.titles(), counts=counts)

    @property
    def report(self) -> Path:
        """The report, a page to open in a browser.

        Raises:
            StoreError: it is not written yet.
        """
        from howwhen.pipeline.context import REPORT

        return self.reader.finished("present").path / REPORT

    @property
    def _tables(self) -> RunTables:
        return RunTables(self.reader)

    def _find_problem(self, wanted: int | str) -> Problem:
        problems = self.reader.problems(Split.TEST)
        if isinstance(wanted, str):
            problem = next((problem for problem in problems if problem.id == wanted), None)
        else:
            problem = problems[wanted] if 0 <= wanted < len(problems) else None
        if problem is None:
            raise SettingsError(
                f"there is no test problem {wanted!r}; expected 0 to {len(problems) - 1}, or an id "
                f"such as {problems[0].id!r}"
            )
        return problem

    def _grade(self, trace: HybridTrace) -> "GradedTrace | None":
        if "measure" not in self.reader.finished_steps():
            return None

        def key(one: "HybridTrace | GradedTrace") -> tuple[object, ...]:
            return one.problem_id, one.seed, one.sample, one.category, one.budget

        for graded in self.reader.grades(trace.rung):
            if key(graded) == key(trace):
                return graded
        return None

    def __repr__(self) -> str:
        finished = self.reader.finished_steps()
        if "measure" not in finished:
            done = ", ".join(finished) or "nothing"
            return f"<run of {self.pair.title} in {self.folder}: finished {done}>"
        hybrid = self.measurement.rungs["hybrid"].gap_recovered
        share = "no gap" if hybrid is None else f"hybrid recovers {hybrid:.0%} of the gap"
        n = self.measurement.n
        return f"<run of {self.pair.title} in {self.folder}: {share}, {n} problems>"

    def _repr_html_(self) -> str:
        from howwhen.present.cells import Heading, run_cell, unfinished_cell

        pair, finished = self.pair, self.reader.finished_steps()
        heading = Heading(pair.title, pair.base_source, pair.thinking_source, str(self.folder))
        if "measure" not in finished:
            missing = [name for name in STEPS if name not in finished]
            return unfinished_cell(heading, finished, missing, self.reader.how_to_go_on())
        return run_cell(heading, self.measurement, self.settings.measure.confidence)
