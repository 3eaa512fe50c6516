"""The six steps over a run folder, in order.

A finished step is skipped; a changed setting, model or problem file runs exactly what depends on it
again. What each step does stands in `steps`.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from howwhen.lm.alignment import ModelPair
from howwhen.formats.safetensors import Json
from howwhen.collect.segmenters import find_cutter
from howwhen.discover import activations
from howwhen.elicit.gates import check_gate
from howwhen.lm.models import LanguageModel
from howwhen.progress import Reporter
from howwhen.records import Annotation, Measurement, Problem, Rollout, Split
from howwhen.probes import Taxonomy
from howwhen.lm.residual import check_layer
from howwhen.settings import DiscoverSettings, RunSettings
from howwhen.pipeline.collect import check_test_problems, collect, draw_split
from howwhen.pipeline.discover import discover
from howwhen.pipeline.elicit import elicit
from howwhen.pipeline.hybrid import hybrid
from howwhen.pipeline.measure import measure
from howwhen.pipeline.present import present
from howwhen.pipeline.store import STEPS, Key, RunFolder, Step, StepFolder
from howwhen.zoo.pairs import Pair

BODIES: dict[Step, Callable[["Pipeline", StepFolder], Json]] = {
    "collect": collect,
    "discover": discover,
    "elicit": elicit,
    "hybrid": hybrid,
    "measure": measure,
    "present": present,
}
"""What each step does."""

IDLE = ("judge_key_variable", "judge_prices", "judge_threads", "judge_timeout_seconds")
"""Settings that change no result."""
EXTENT: dict[Step, tuple[str, ...]] = {
    "discover": tuple(
        name
        for name in DiscoverSettings.model_fields
        if name.startswith(("chosen_", "judge_")) and name not in IDLE
    ),
    "hybrid": ("rungs", "random_seeds", "samples", "knock_outs"),
}
"""Settings that say how much a step does, or which of its results it takes: what is there stays."""

SPARED: dict[Step, tuple[str, ...]] = {"discover": (activations.FOLDER,)}
"""Folders of a step that know themselves whether they fit."""


def check_inputs(pair: Pair, settings: RunSettings, steps: Sequence[Step] = STEPS) -> None:
    """Load the pair and the problems, and refuse now what would fail later; writes nothing.

    Args:
        pair: the pair.
        settings: of the run.
        steps: those that will be done.

    Raises:
        InputError: models, layers or problems that cannot be used.
    """
    problems = draw_split(pair, settings)
    if "hybrid" in steps:
        check_test_problems(problems)
    find_cutter(settings.collect)
    pair.check()
    reader = pair.reader(settings.discover.reader)
    for layer in pair.reading_layers(reader, settings.discover.layers):
        check_layer(reader.model, layer)
    if "elicit" in steps:
        check_gate(settings.elicit.gate, reader.name, pair.thinking.name)
    if settings.elicit.layer is not None:
        pair.base.check_steering(settings.elicit.layer)


@dataclass(frozen=True)
class Pipeline:
    """One pair's run in one folder."""

    pair: Pair
    settings: RunSettings
    folder: RunFolder
    reporter: Reporter

    def run(self) -> None:
        """Do every step; finished ones are kept."""
        check_inputs(self.pair, self.settings)
        for name in STEPS:
            self.do(name)

    def do(self, name: Step) -> None:
        """Do one step, unless it is done already with these settings and models.

        Raises:
            StoreError: an earlier step is missing or damaged.
        """
        step, key = self.folder.step(name), self._key(name)
        number = f"{STEPS.index(name) + 1}/{len(STEPS)} {name}"
        if step.digest == key.digest:
            step.check()
            self.reporter.say(f"{number}: already done")
            return
        if step.begin(key, SPARED.get(name, ())):
            self.reporter.say(f"{number}: settings or input changed, so it runs again")
        else:
            self.reporter.say(number)
        started = time.monotonic()
        counts = BODIES[name](self, step)
        step.finish(key, counts)
        self.reporter.say(f"  done in {time.monotonic() - started:.0f} s")

    def problems(self, *splits: Split) -> list[Problem]:
        """The run's problems of these splits, in order."""
        everything = self.folder.step("collect").read_records("problems.jsonl", Problem)
        return [problem for problem in everything if problem.split in splits]

    def rollouts(self) -> list[Rollout]:
        """The collected rollouts."""
        return self.folder.step("collect").read_records("rollouts.jsonl", Rollout)

    def taxonomy(self) -> Taxonomy:
        """The chosen taxonomy."""
        return self.folder.step("discover").read_taxonomy()

    def annotations(self) -> list[Annotation]:
        """Category of every sentence of every rollout, in order."""
        return self.folder.step("discover").read_records("annotations.jsonl", Annotation)

    def rollouts_with_questions(self) -> tuple[list[Rollout], list[str]]:
        """The collected rollouts, and the question that each answers."""
        question = {problem.id: problem.question for problem in self.problems(*Split)}
        rollouts = self.rollouts()
        return rollouts, [question[rollout.problem_id] for rollout in rollouts]

    def models(self) -> ModelPair:
        """Both models, under the run's policy for tokens that only one of them knows."""
        return self.pair.models(self.settings.hybrid.one_sided_tokens)

    @cached_property
    def reader(self) -> LanguageModel:
        """The model whose activations the taxonomy is found in."""
        return self.pair.reader(self.settings.discover.reader)

    @property
    def taxonomy_layers(self) -> tuple[int, ...]:
        """The blocks of the reader that are read."""
        return self.pair.reading_layers(self.reader, self.settings.discover.layers)

    @property
    def gate_layer(self) -> int:
        """The block of the thinking model that gates read.

        The taxonomy's own; where another model read the sentences, the middle one of those that
        would be read in the thinking model.
        """
        taxonomy, layers = self.taxonomy(), self.pair.chosen_taxonomy_layers
        is_own = taxonomy.model == self.pair.thinking.name
        return taxonomy.layer if is_own else layers[len(layers) // 2]

    @property
    def steer_layer(self) -> int:
        """The block whose output is steered."""
        chosen = self.settings.elicit.layer
        return self.pair.chosen_steer_layer if chosen is None else chosen

    def measurement(self) -> Measurement:
        """The finished measurement."""
        step = self.folder.step("measure")
        return TypeAdapter(Measurement).validate_python(step.read_json("measurement.json"))

    def _key(self, name: Step) -> Key:
        uses = {"collect": ("thinking",), "discover": ("thinking",)}
        models = uses.get(name, ("base", "thinking") if name in ("elicit", "hybrid") else ())
        upstream: Json = {}
        for earlier in STEPS[: STEPS.index(name)]:
            folder = self.folder.step(earlier)
            folder.check()
            folder.check_upstream(upstream)
            upstream[earlier] = folder.digest
        if name == "collect":
            upstream["problems"] = self._problems_digest()
        own: Json = getattr(self.settings, name).model_dump(mode="json", exclude=set(IDLE))
        extent = {key: own.pop(key) for key in EXTENT.get(name, ())}
        described = {role: self._describe(getattr(self.pair, role)) for role in models}
        if name == "discover" and self.reader is not self.pair.thinking:
            described["reader"] = self._describe(self.reader)
        return Key(
            settings={**own, "pair": self.pair.name, **self._layers(name)},
            models=described,
            upstream=upstream,
            extent=extent,
        )

    def _describe(self, model: LanguageModel) -> Json:
        names = ("name", "revision", "fingerprint", "prompt", "markers")
        return {name: getattr(model, name) for name in names}

    def _layers(self, name: Step) -> Json:
        if name == "discover":
            return {"layers": list(self.taxonomy_layers)}
        if name == "elicit":
            return {"layer": self.steer_layer, **self._hybrid_settings_used()}
        return {}

    def _hybrid_settings_used(self) -> Json:
        """What the elicit step reads of the hybrid's settings."""
        hybrid = self.settings.hybrid
        used: Json = {"one_sided_tokens": hybrid.one_sided_tokens}
        if self.settings.elicit.practice_rounds:
            used["practice"] = hybrid.model_dump(mode="json")
        return used

    def _problems_digest(self) -> str:
        """Of the content of all problem and trace files; what is no file stands for itself."""
        chosen = self.settings.collect
        given = (chosen.problems, *(chosen.traces or ()), chosen.test_problems)
        sources = [one for one in given if one is not None]
        parts = [Path(one).read_bytes() if Path(one).exists() else one.encode() for one in sources]
        return hashlib.sha256(b"\0".join(parts)).hexdigest() if parts else self.pair.name
