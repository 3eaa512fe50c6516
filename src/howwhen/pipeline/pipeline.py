"""The six steps over a run folder, in order: check, do, run.

A finished step is skipped. A changed setting, model or problem file runs exactly what depends on it
again, and only if `redo` allows it: finished work is never thrown away because a flag changed. Each
step has its own module in this package.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from howwhen.collect.segmenters import find_segmenter
from howwhen.errors import RedoError
from howwhen.lm.alignment import check_pair
from howwhen.lm.residual import check_layer
from howwhen.pipeline import decisions, shards
from howwhen.pipeline.collect import collect
from howwhen.pipeline.context import Run
from howwhen.pipeline.discover import discover
from howwhen.pipeline.elicit import elicit
from howwhen.pipeline.files import STEPS, Key, StepName, StepState
from howwhen.pipeline.hybrid import hybrid
from howwhen.pipeline.keys import MODELS_USED, step_key
from howwhen.pipeline.measure import measure
from howwhen.pipeline.plan import RECOMPUTED, check_plan, owner_of, redo_message
from howwhen.pipeline.present import present
from howwhen.pipeline.problems import check_test_problems, draw_split
from howwhen.pipeline.store import StepFolder
from howwhen.settings import RunSettings
from howwhen.zoo.pairs import Pair

STEP_FUNCTIONS: dict[StepName, Callable[[Run, StepFolder], object]] = {
    "collect": collect,
    "discover": discover,
    "elicit": elicit,
    "hybrid": hybrid,
    "measure": measure,
    "present": present,
}
"""What each step does."""
PRESERVED_FOLDERS: dict[StepName, tuple[str, ...]] = {
    "discover": (shards.FOLDER,),
    "elicit": (decisions.FOLDER,),
}
"""Folders of a step that know themselves whether they fit."""


def check_inputs(pair: Pair, settings: RunSettings, steps: Sequence[StepName] = STEPS) -> None:
    """Read the problems and all that the models' files say, and refuse now what would fail later.

    No weights are loaded, and nothing is written.

    Args:
        pair: the pair.
        settings: of the run.
        steps: those that will be done.

    Raises:
        InputError: models, layers or problems that cannot be used.
        MissingExtraError: a package that a step needs is not installed.
    """
    check_plan(pair, settings, steps)
    problems = draw_split(pair, settings)
    if "hybrid" in steps:
        check_test_problems(problems)
    find_segmenter(settings.collect)
    pair = pair.placed(settings.models)
    pair.check()
    source = settings.discover.reader
    for layer in pair.reading_layers(source, settings.discover.layers):
        check_layer(pair.reader_outline(source).model, layer)
    if settings.elicit.layer is not None:
        check_layer(pair.base_outline.model, settings.elicit.layer)
    if {"elicit", "hybrid"} & {*steps} and settings.hybrid.draft_model is not None:
        check_pair(
            pair.base_outline, pair.draft_outline(settings.hybrid.draft_model), "draft model"
        )


@dataclass(frozen=True)
class Pipeline(Run):
    """One pair's run in one folder, and the order of its steps."""

    redo: bool = False
    """Whether steps that hold work made with other settings run again. What they hold is then kept
    aside, as `N-STEP.replaced`."""

    def run(self) -> None:
        """Do every step; finished ones are kept."""
        check_inputs(self.pair, self.settings)
        for name in STEPS:
            self.do(name)
        self.pair.release()

    def do(self, name: StepName) -> None:
        """Do one step, unless it is done already with these settings and models.

        Raises:
            StoreError: the folder belongs to another pair, or an earlier step is missing or
                damaged.
            RedoError: the step holds work made with other settings, and `redo` is False.
        """
        self.folder.check_owner(owner_of(self.pair))
        step, key = self.folder.step(name), step_key(self, name)
        number = f"{STEPS.index(name) + 1}/{len(STEPS)} {name}"
        state = step.state(key)
        if self._takes_back(step, key, state):
            step.take_back()
            self.reporter.say(f"{number}: taken back from {step.aside}, where it was kept")
            state = "done"
        if state == "done":
            step.check()
            self.reporter.say(f"{number}: already done")
            return
        if state == "other":
            changes = step.changes(key)
            if not (self.redo or name in RECOMPUTED):
                raise RedoError(redo_message(self.folder.root, changes, [name]))
            aside = step.set_aside(PRESERVED_FOLDERS.get(name, ()))
            self.reporter.say(
                f"{number}: settings or input changed ({'; '.join(changes)}), so it runs again; "
                f"the former files are in {aside}"
            )
        else:
            self.reporter.say(number)
        self.folder.claim(owner_of(self.pair))
        step.begin(key)
        started = time.monotonic()
        self.pair.release(*MODELS_USED.get(name, ()))
        counts = STEP_FUNCTIONS[name](self, step)
        step.finish(key, counts)
        self.reporter.say(f"  done in {time.monotonic() - started:.0f} s")

    def _takes_back(self, step: StepFolder, key: Key, state: StepState) -> bool:
        """Whether a finished step with this key is set aside, and no finished one is in its place.

        Such a step is left by a run with `redo` that was interrupted. Unfinished work in its place
        is kept too, but only moved with `redo`.
        """
        is_free = state == "new" or (self.redo and step.digest is None)
        return is_free and step.aside_digest == key.digest
