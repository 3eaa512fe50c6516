"""Reads what a run has finished: no lock is taken, nothing is changed, no model is loaded.

Only finished steps are read, so a run that another process is working on can be read too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howwhen.elicit.report import ElicitReport
from howwhen.errors import SettingsError, StoreError
from howwhen.pipeline.files import STEPS, StepFiles, StepName
from howwhen.pipeline.folders import Owner, RunFiles
from howwhen.pipeline.given import GATE, TRAINING, VECTORS
from howwhen.records import Annotation, HybridTrace, Measurement, Problem, Rollout, Split
from howwhen.settings import RunSettings, make_settings
from howwhen.zoo.pairs import Pair, find_pair, list_pairs, own_pair

if TYPE_CHECKING:
    from howwhen.discover.categories import CategorySummary
    from howwhen.measure.ladder import GradedTrace
    from howwhen.pipeline.store import RunFolder
    from howwhen.probes import Taxonomy
    from howwhen.vectors import VectorSet

_TRACES_FILE = re.compile(
    r"traces/(?P<rung>.+?)-\d+(?:-sample\d+)?(?:-category\d+)?(?:-budget[\d.]+)?\.jsonl"
)


@dataclass(frozen=True)
class RunReader:
    """The finished steps of a run."""

    files: RunFiles
    pair: Pair

    @property
    def root(self) -> Path:
        """The run's folder."""
        return self.files.root

    @cached_property
    def settings(self) -> RunSettings:
        """The settings that the steps were run with; defaults for steps that were not run."""
        sections: dict[str, Any] = {}
        for name in STEPS:
            step = self.files.step(name)
            if (step.path / "settings.json").exists():
                kept = step.read_object("settings.json")
                known = type(getattr(RunSettings(), name)).model_fields
                sections[name] = {key: value for key, value in kept.items() if key in known}
        return make_settings(sections)

    def finished_steps(self) -> list[StepName]:
        """The steps that are finished and were made from those before them, in order."""
        return [name for name in STEPS if self._is_current(name)]

    def _is_current(self, name: StepName) -> bool:
        before = self._digests_before(name)
        return self.files.step(name).is_made_from(before)

    def _digests_before(self, name: StepName) -> dict[str, str | None]:
        return {earlier: self.files.step(earlier).digest for earlier in STEPS[: STEPS.index(name)]}

    @cached_property
    def _whole(self) -> set[tuple[StepName, str]]:
        """Steps whose files were compared with their hashes, with their digests."""
        return set()

    def finished(self, name: StepName) -> StepFiles:
        """The files of a finished step.

        Raises:
            StoreError: it is not finished, out of date or damaged; the message says what to type.
        """
        step = self.files.step(name)
        if step.digest is None:
            raise StoreError(
                f"the step {name} of {self.root} is not finished; type {self.how_to_go_on()}"
            )
        step.check_upstream(self._digests_before(name))
        if (name, step.digest) not in self._whole:
            step.check()
            self._whole.add((name, step.digest))
        return step

    def how_to_go_on(self) -> str:
        """What to type to finish the run."""
        name = self.pair.name
        if name in _names_of_pairs():
            return f"`howwhen run {name} --out {self.root}` or hw.run({name!r}, out='{self.root}')"
        models = self.pair.base_source, self.pair.thinking_source
        return f"`howwhen run --base {models[0]} --thinking {models[1]} --out {self.root}`"

    def problems(self, *splits: Split) -> list[Problem]:
        """The run's problems of these splits, in order."""
        problems = self.finished("collect").read_records("problems.jsonl", Problem)
        return [problem for problem in problems if problem.split in splits]

    def rollouts(self) -> list[Rollout]:
        """The thinking model's answers."""
        return self.finished("collect").read_records("rollouts.jsonl", Rollout)

    def annotations(self) -> list[Annotation]:
        """The category of every sentence of every rollout, in order."""
        return self.finished("discover").read_records("annotations.jsonl", Annotation)

    def categories(self) -> "list[CategorySummary]":
        """What each category of the taxonomy looks like."""
        from howwhen.discover.categories import CategorySummary

        return self.finished("discover").read_records("categories.jsonl", CategorySummary)

    def taxonomy(self) -> "Taxonomy":
        """The chosen taxonomy."""
        self.finished("discover")
        return self._folder.step("discover").read_taxonomy()

    def vectors(self) -> "VectorSet":
        """The steering vectors, one per category."""
        self.finished("elicit")
        return self._folder.step("elicit").read_vectors(VECTORS)

    def titles(self) -> tuple[str, ...]:
        """Titles of the categories that the hybrid steers with."""
        self.finished("elicit")
        return self._folder.step("elicit").read_gate(GATE).titles

    def decisions_per_category(self) -> list[int] | None:
        """Disagreements that each vector was trained for; None where that is not known."""
        report = self.finished("elicit").read_record(TRAINING, ElicitReport)
        counts = report.decisions_per_category
        return None if counts is None else list(counts)

    def rungs(self) -> list[str]:
        """The rungs that were decoded, in that order."""
        passes = self.finished("hybrid").read_json("passes.json")
        return list(dict.fromkeys(map(rung_of, passes)))

    def check_rung(self, rung: str) -> None:
        """Refuse a rung that was not decoded.

        Raises:
            SettingsError: with those that were.
        """
        if rung not in self.rungs():
            raise SettingsError(
                f"the rung {rung!r} was not run in {self.root}; expected one of "
                f"{', '.join(self.rungs())}"
            )

    def passes(self, rung: str | None = None) -> Iterator[list[HybridTrace]]:
        """The answers to the test problems, one pass over the problems at a time.

        Args:
            rung: keep only passes of this rung.
        """
        decoded = self.finished("hybrid")
        for name in decoded.read_json("passes.json"):
            if rung is None or rung_of(name) == rung:
                yield decoded.read_records(name, HybridTrace)

    def grades(self, rung: str) -> "list[GradedTrace]":
        """The graded answers of a rung."""
        from howwhen.measure.ladder import GradedTrace
        from howwhen.pipeline.files import grades_file

        return self.finished("measure").read_records(grades_file(rung), GradedTrace)

    def measurement(self) -> Measurement:
        """The measurement."""
        return self.finished("measure").read_record("measurement.json", Measurement)

    @property
    def _folder(self) -> "RunFolder":
        """The same folder, for reading tensors."""
        from howwhen.pipeline.store import RunFolder

        return RunFolder(self.root)


def read_run(root: Path, pair: Pair | None = None) -> RunReader:
    """A reader of a run folder.

    Args:
        root: the folder.
        pair: that the run is of; found from what the folder says by default.

    Raises:
        StoreError: there is no run in the folder, or another version of howwhen wrote it.
    """
    files = RunFiles(root)
    owner = files.owner()
    if owner is None:
        raise StoreError(
            f"there is no run in {root}; expected the folder of a run, such as runs/tally-rl; type "
            f"`howwhen run tally-rl --out {root}` to make one"
        )
    return RunReader(files, pair or _find_owner(files, owner))


def rung_of(name: str) -> str:
    """The rung whose answers a file of traces holds.

    Raises:
        StoreError: a name that no file of traces has.
    """
    match = _TRACES_FILE.fullmatch(name)
    if match is None:
        raise StoreError(
            f"{name!r} in passes.json is no file of traces; run `howwhen hybrid` again"
        )
    return match["rung"]


def _names_of_pairs() -> list[str]:
    return [pair.name for pair in list_pairs()]


def _find_owner(files: RunFiles, owner: Owner) -> Pair:
    """The pair of a run, asked as the finished steps asked it."""
    is_named = owner.pair in _names_of_pairs()
    pair = find_pair(owner.pair) if is_named else own_pair(owner.base, owner.thinking)
    models: dict[str, Any] = {}
    for name in STEPS:
        if (files.step(name).path / "started.json").exists():
            models = {**files.step(name).read_object("started.json")["models"], **models}
    base, thinking = models.get("base", {}), models.get("thinking", {})
    tags = thinking.get("think_tags")
    return pair.asked(
        base.get("prompt"),
        thinking.get("prompt"),
        None if tags is None else (tags[0], tags[1]),
        base.get("template"),
        thinking.get("template"),
    )
