"""The six steps over a run folder, in order.

A finished step is skipped; a changed setting, model or problem file runs exactly what depends on it
again. Each step is a module beside this one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from howwhen.collect.segmenters import find_segmenter
from howwhen.elicit.gates import check_gate
from howwhen.formats.safetensors import Json
from howwhen.lm.residual import check_layer
from howwhen.pipeline import shards
from howwhen.pipeline.collect import check_test_problems, collect, draw_split
from howwhen.pipeline.context import Run
from howwhen.pipeline.discover import discover
from howwhen.pipeline.elicit import elicit
from howwhen.pipeline.hybrid import hybrid
from howwhen.pipeline.keys import step_key
from howwhen.pipeline.measure import measure
from howwhen.pipeline.present import present
from howwhen.pipeline.store import STEPS, StepFolder, StepName
from howwhen.settings import RunSettings
from howwhen.zoo.pairs import Pair

STEP_FUNCTIONS: dict[StepName, Callable[[Run, StepFolder], Json]] = {
    "collect": collect,
    "discover": discover,
    "elicit": elicit,
    "hybrid": hybrid,
    "measure": measure,
    "present": present,
}
"""What each step does."""

PRESERVED_FOLDERS: dict[StepName, tuple[str, ...]] = {"discover": (shards.FOLDER,)}
"""Folders of a step that know themselves whether they fit."""


def check_inputs(pair: Pair, settings: RunSettings, steps: Sequence[StepName] = STEPS) -> None:
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
    find_segmenter(settings.collect)
    pair.check()
    reader = pair.reader(settings.discover.reader)
    for layer in pair.reading_layers(reader, settings.discover.layers):
        check_layer(reader.model, layer)
    if "elicit" in steps:
        check_gate(settings.elicit.gate, reader.name, pair.thinking.name)
    if settings.elicit.layer is not None:
        pair.base.check_steering(settings.elicit.layer)


@dataclass(frozen=True)
class Pipeline(Run):
    """One pair's run in one folder, and the order of its steps."""

    def run(self) -> None:
        """Do every step; finished ones are kept."""
        check_inputs(self.pair, self.settings)
        for name in STEPS:
            self.do(name)

    def do(self, name: StepName) -> None:
        """Do one step, unless it is done already with these settings and models.

        Raises:
            StoreError: an earlier step is missing or damaged.
        """
        step, key = self.folder.step(name), step_key(self, name)
        number = f"{STEPS.index(name) + 1}/{len(STEPS)} {name}"
        if step.digest == key.digest:
            step.check()
            self.reporter.say(f"{number}: already done")
            return
        if step.begin(key, PRESERVED_FOLDERS.get(name, ())):
            self.reporter.say(f"{number}: settings or input changed, so it runs again")
        else:
            self.reporter.say(number)
        started = time.monotonic()
        counts = STEP_FUNCTIONS[name](self, step)
        step.finish(key, counts)
        self.reporter.say(f"  done in {time.monotonic() - started:.0f} s")
