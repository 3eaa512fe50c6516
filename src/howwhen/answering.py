"""A rung made ready for questions of one's own: in a chat, a harness or a server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from howwhen.alignment import ModelPair
from howwhen.errors import SettingsError
from howwhen.hybrid.choice import Choice, SelfGated, Steer
from howwhen.hybrid.decoder import decode, stream
from howwhen.hybrid.strength import fixed
from howwhen.pipeline import Pipeline
from howwhen.progress import Reporter
from howwhen.records import Gate, HybridToken, HybridTrace, LadderRung, Problem
from howwhen.settings import PRESETS, HybridSettings, Preset, make_settings
from howwhen.steps.rungs import Rungs
from howwhen.store import RunFolder, open_run
from howwhen.zoo.pairs import Pair, find_pair

USUAL_RATE = 0.05
"""Share of tokens steered by the rung `random-positions` where no hybrid has been run."""
LONGEST_ANSWER = 512
"""Tokens of an answer where nothing else is asked for."""


@dataclass(frozen=True)
class ReadyRung:
    """Both models and a rung of a finished run. Made by `open_rung`."""

    pair: Pair
    models: ModelPair
    choice: Choice
    gate: Gate
    settings: HybridSettings

    def answer(
        self, questions: Sequence[str], settings: HybridSettings | None = None
    ) -> list[HybridTrace]:
        """Answer questions in batches of `settings.batch_size`, in order.

        Raises:
            InputError: an empty question, or one too long for a model's context.
        """
        how = settings or self.settings
        problems = [Problem(str(n), question, "unknown") for n, question in enumerate(questions)]
        starts = range(0, len(problems), how.batch_size)
        return [
            trace
            for start in starts
            for trace in decode(
                self.models, problems[start : start + how.batch_size], self.choice, how
            )
        ]

    def stream(
        self, question: str, settings: HybridSettings | None = None
    ) -> Iterator[HybridToken]:
        """Answer one question token by token."""
        problem = Problem("0", question, "unknown")
        return stream(self.models, problem, self.choice, settings or self.settings)

    def at_strength(self, strength: float) -> "ReadyRung":
        """The same rung at another strength.

        Raises:
            SettingsError: a rung that does not steer.
        """
        if not isinstance(self.choice, Steer | SelfGated):
            name = self.choice.name
            raise SettingsError(f"the rung {name} does not steer, so it has no strength")
        return replace(self, choice=replace(self.choice, strength=fixed(strength)))


def open_rung(
    pair_name: str,
    out: Path | None = None,
    rung: LadderRung = "hybrid",
    preset: Preset = "small",
    reporter: Reporter | None = None,
) -> ReadyRung:
    """A rung of a run folder; its first three steps are run where it has no vectors.

    Args:
        pair_name: a pair of `howwhen zoo list`.
        out: run folder, `runs/PAIR` where absent.
        rung: which rung answers.
        preset: sizes of the first three steps, where they are run.
        reporter: told of them.

    Raises:
        PairError: no such pair.
        SettingsError: this run has no such rung.
        StoreError: a damaged run, or one in use.
    """
    pair = find_pair(pair_name)
    with open_run(out or Path("runs") / pair.name) as folder:
        choice, gate = _find_rung(pair, folder, preset, rung, reporter or Reporter())
    settings = HybridSettings(max_new_tokens=_room(pair))
    return ReadyRung(pair, pair.models(), choice, gate, settings)


def _find_rung(
    pair: Pair, folder: RunFolder, preset: Preset, rung: LadderRung, reporter: Reporter
) -> tuple[Choice, Gate]:
    elicited = folder.step("elicit")
    settings = make_settings(PRESETS[preset], pair.overrides)
    if elicited.digest is None:
        for name in ("collect", "discover", "elicit"):
            Pipeline(pair, settings, folder, reporter).do(name)
    elicited.check()
    method = elicited.read_json("settings.json")["method"]
    settings = make_settings(settings.model_dump(), {"elicit": {"method": method}})
    rungs = Rungs.read(pair, elicited, settings)
    every = [rungs.full, *(run.choice for run in rungs.controls(USUAL_RATE))]
    for choice in every:
        if choice.name == rung:
            return choice, rungs.gate
    names = ", ".join(sorted({choice.name for choice in every}))
    raise SettingsError(f"the run {folder.root} has no rung {rung!r}; expected one of {names}")


def _room(pair: Pair) -> int:
    """Longest answer: what most contexts hold beside the question."""
    contexts = [model.context or LONGEST_ANSWER for model in (pair.base, pair.thinking)]
    return min(LONGEST_ANSWER, *(context * 5 // 8 for context in contexts))
