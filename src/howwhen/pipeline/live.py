"""A rung of a finished run, loaded to answer any question: for a chat, a harness or a server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from howwhen.errors import SettingsError, StoreError
from howwhen.formats.files import Json
from howwhen.hybrid.choice import Rung, SelfGated, Steer
from howwhen.hybrid.decoder import decode, stream
from howwhen.hybrid.guesses import Phrases
from howwhen.hybrid.strength import fixed
from howwhen.lm.alignment import ModelPair
from howwhen.lm.models import LanguageModel
from howwhen.pipeline.context import HYBRID_SUMMARY, phrases_of
from howwhen.pipeline.entropy import ENTROPY_GATE, EntropyThreshold
from howwhen.pipeline.matching import Matched
from howwhen.pipeline.pipeline import Pipeline
from howwhen.pipeline.plan import owner_of
from howwhen.pipeline.rungs import Rungs
from howwhen.pipeline.store import RunFolder, open_run
from howwhen.probes import Gate
from howwhen.progress import Reporter
from howwhen.records import (
    LADDER,
    HybridSummary,
    HybridToken,
    HybridTrace,
    LadderRungName,
    Problem,
    titles_of,
)
from howwhen.settings import PRESETS, HybridSettings, Preset, make_settings
from howwhen.zoo.pairs import Pair, find_pair

DEFAULT_RATE = 0.05
"""Share of tokens steered by the rung `random-positions` in answers to new questions."""
MAX_ANSWER_TOKENS = 512
"""Maximum length of an answer, unless asked for otherwise."""


@dataclass(frozen=True)
class LoadedRung:
    """Both models and a rung of a finished run. `open_rung` makes one."""

    pair: Pair
    models: ModelPair
    rung: Rung
    gate: Gate
    settings: HybridSettings
    phrases: Phrases
    """What the thinking model wrote in the run, to guess how answers go on."""

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles of the categories that it steers with."""
        return titles_of(self.rung.name, self.gate.titles)

    def answer(
        self, questions: Sequence[str], settings: HybridSettings | None = None
    ) -> list[HybridTrace]:
        """Answer questions, `settings.batch_size` side by side, in order.

        Raises:
            InputError: an empty question, or one too long for a model's context.
        """
        chosen = settings or self.settings
        problems = [Problem(str(n), question, "unknown") for n, question in enumerate(questions)]
        return decode(
            self.models,
            problems,
            self.rung,
            chosen,
            phrases=self.phrases,
            slots=chosen.batch_size,
        )

    def stream(
        self, question: str, settings: HybridSettings | None = None
    ) -> Iterator[HybridToken]:
        """Answer one question token by token."""
        problem = Problem("0", question, "unknown")
        chosen = settings or self.settings
        return stream(self.models, problem, self.rung, chosen, phrases=self.phrases)

    def at_strength(self, strength: float) -> "LoadedRung":
        """The same rung with another coefficient.

        Raises:
            SettingsError: a rung that does not steer.
        """
        if not isinstance(self.rung, Steer | SelfGated):
            name = self.rung.name
            raise SettingsError(f"the rung {name} does not steer, so it has no strength")
        return replace(self, rung=replace(self.rung, strength=fixed(strength)))


@dataclass(frozen=True)
class LoadedRungs:
    """Both models and every rung of a finished run. `open_rungs` makes one."""

    pair: Pair
    models: ModelPair
    rungs: Mapping[str, Rung]
    """By name, in the order of the ladder."""
    gate: Gate
    settings: HybridSettings
    root: Path
    """Folder of the run."""
    phrases: Phrases
    """What the thinking model wrote in the run."""

    def rung(self, name: str, strength: float | None = None) -> LoadedRung:
        """One of them, with another coefficient if one is given.

        Raises:
            SettingsError: this run has no such rung, or it has no strength.
        """
        if name not in self.rungs:
            raise SettingsError(
                f"the run {self.root} has no rung {name!r}; expected one of {', '.join(self.rungs)}"
            )
        loaded = LoadedRung(
            self.pair, self.models, self.rungs[name], self.gate, self.settings, self.phrases
        )
        return loaded if strength is None else loaded.at_strength(strength)


def open_rung(
    pair: str | Pair,
    out: Path | None = None,
    rung: LadderRungName = "hybrid",
    preset: Preset = "small",
    reporter: Reporter | None = None,
) -> LoadedRung:
    """One rung of a run folder; see `open_rungs`."""
    return open_rungs(pair, out, preset, reporter).rung(rung)


def open_rungs(
    pair: str | Pair,
    out: Path | None = None,
    preset: Preset = "small",
    reporter: Reporter | None = None,
) -> LoadedRungs:
    """The rungs of a run folder; its first three steps are run where it has no vectors.

    Strength, windows, cache policy and seeds are those of the run's hybrid step, or the pair's
    defaults if that step was not run. Answers are greedy, of any length that leaves room for the
    question, unless asked for otherwise.

    Args:
        pair: a name of `howwhen zoo list`, or a pair.
        out: run folder; defaults to `runs/PAIR`.
        preset: sizes of the first three steps, if they are run.
        reporter: shows their progress.

    Raises:
        PairError: no such pair.
        StoreError: a damaged run, one in use, or one of another pair.
    """
    pair = find_pair(pair) if isinstance(pair, str) else pair
    with open_run(out or Path("runs") / pair.name) as folder:
        folder.check_owner(owner_of(pair))
        rungs = _find_rungs(pair, folder, preset, reporter or Reporter())
        phrases = phrases_of(folder.step("collect"))
        decoded = folder.step("hybrid")
        entropy = mean = None
        if decoded.holds(HYBRID_SUMMARY):
            mean = decoded.read_record(HYBRID_SUMMARY, HybridSummary).steered_per_answer
        if decoded.holds(ENTROPY_GATE):
            entropy = decoded.read_record(ENTROPY_GATE, EntropyThreshold).threshold
    matched = Matched(DEFAULT_RATE, entropy=entropy, mean=mean)
    rungs_of_run = [rungs.full, *(control.rung for control in rungs.controls([matched]))]
    named: dict[str, Rung] = {}
    for rung in rungs_of_run:  # of the random ones the first seed
        named.setdefault(rung.name, rung)
    ladder: dict[str, Rung] = {name: named[name] for name in LADDER if name in named}
    settings = rungs.settings.model_copy(
        update={"max_new_tokens": _max_tokens(pair), "temperature": 0.0}
    )
    models = pair.models(settings.one_sided_tokens, settings.draft_model)
    return LoadedRungs(pair, models, ladder, rungs.gate, settings, folder.root, phrases)


def _find_rungs(pair: Pair, folder: RunFolder, preset: Preset, reporter: Reporter) -> Rungs:
    elicited = folder.step("elicit")
    decoded = folder.step("hybrid")
    stored = decoded.read_object("settings.json") if decoded.digest is not None else {}
    hybrid = {key: stored[key] for key in HybridSettings.model_fields if key in stored}
    hybrid |= {"rungs": ("all",), "samples": 1, "knock_outs": False, "budgets": False}
    settings = make_settings(PRESETS[preset], pair.overrides, {"hybrid": hybrid})
    if elicited.digest is None:
        for name in ("collect", "discover", "elicit"):
            Pipeline(pair, settings, folder, reporter).do(name)
    elicited.check()
    changes = elicited.model_changes(
        {"base": _asked(pair.base_outline), "thinking": _asked(pair.thinking_outline)}
    )
    if changes:
        raise StoreError(
            f"{folder.root} was made with other models or prompts: {'; '.join(changes)}. Give "
            "those it was made with, or choose another run folder"
        )
    method = elicited.read_object("settings.json")["method"]
    settings = make_settings(settings.model_dump(), {"elicit": {"method": method}})
    return Rungs.read(pair, elicited, settings)


def _asked(model: LanguageModel) -> Json:
    """What has to be as it was when the vectors were trained."""
    return {
        "fingerprint": model.fingerprint,
        "prompt": model.prompt,
        "template": dict(model.template),
    }


def _max_tokens(pair: Pair) -> int:
    """Maximum length of an answer that leaves room for most questions."""
    outlines = (pair.base_outline, pair.thinking_outline)
    contexts = [outline.context or MAX_ANSWER_TOKENS for outline in outlines]
    return min(MAX_ANSWER_TOKENS, *(context * 5 // 8 for context in contexts))
