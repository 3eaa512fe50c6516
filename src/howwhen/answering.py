"""A rung made ready for questions of one's own: in a chat, a server or a harness."""

from dataclasses import replace

from howwhen.errors import SettingsError
from howwhen.hybrid.choice import Choice, SelfGated, Steer
from howwhen.hybrid.strength import fixed
from howwhen.pipeline import Pipeline
from howwhen.progress import Reporter
from howwhen.records import Gate, Rung
from howwhen.settings import PRESETS, Preset, make_settings
from howwhen.steps.rungs import Rungs
from howwhen.store import RunFolder
from howwhen.zoo.pairs import Pair

USUAL_RATE = 0.05
"""Share of tokens steered by the rung `random-positions` where no hybrid has been run."""


def ready_rung(
    pair: Pair, folder: RunFolder, preset: Preset, rung: Rung, reporter: Reporter
) -> tuple[Choice, Gate]:
    """A rung of a run folder, for answering questions of one's own.

    Where the folder has no vectors, its first three steps are run.

    Raises:
        SettingsError: this run has no such rung.
        SteeringError: the run is another pair's.
    """
    elicited = folder.step("elicit")
    settings = make_settings(PRESETS[preset], pair.overrides)
    if elicited.digest is None:
        for name in ("collect", "discover", "elicit"):
            Pipeline(pair, settings, folder, reporter).do(name)
    elicited.check()
    method = elicited.read_json("settings.json")["method"]
    settings = make_settings(settings.model_dump(), {"elicit": {"method": method}})
    rungs = Rungs.read(pair, elicited, settings)
    every = [rungs.full, *(choice for choice, _ in rungs.controls(USUAL_RATE))]
    for choice in every:
        if choice.name == rung:
            return choice, rungs.gate
    names = ", ".join(sorted({choice.name for choice in every}))
    raise SettingsError(f"the run {folder.root} has no rung {rung!r}; expected one of {names}")


def with_strength(choice: Choice, strength: float) -> Choice:
    """The same rung at another strength.

    Raises:
        SettingsError: a rung that does not steer.
    """
    if not isinstance(choice, Steer | SelfGated):
        raise SettingsError(f"the rung {choice.name} does not steer, so it has no strength")
    return replace(choice, strength=fixed(strength))
