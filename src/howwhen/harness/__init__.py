"""A rung of the ladder as a model of evaluation harnesses: one file each, and what both share."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from howwhen.errors import SettingsError
from howwhen.hybrid.decoder import asked_models
from howwhen.lm.generate import check_lengths
from howwhen.pipeline.live import LoadedRung, open_rung
from howwhen.records import LadderRungName
from howwhen.settings import Count, HybridSettings, Preset, make_settings


class RungArguments(BaseModel):
    """Which rung answers, as typed behind `--model_args` or `-M`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    pair: str
    """A pair of `howwhen zoo list`."""
    out: Path | None = None
    """Run folder, `runs/PAIR` where absent."""
    rung: LadderRungName = "hybrid"
    """Which rung answers."""
    strength: float | None = None
    """Multiple of what the vectors add; their own coefficient where absent."""
    preset: Preset = "small"
    """Sizes of the first three steps, where the run folder lacks them."""
    batch_size: Count = HybridSettings().batch_size
    """Questions decoded at a time."""

    @classmethod
    def read(cls, arguments: Mapping[str, object]) -> "RungArguments":
        """Check what was typed.

        Raises:
            SettingsError: an unknown argument or an impossible value.
        """
        try:
            return cls.model_validate(arguments)
        except ValidationError as error:
            clauses = (
                f"model argument {'.'.join(map(str, one['loc']))}: {one['msg']}, "
                f"found {one['input']!r}"
                for one in error.errors()
            )
            known = ", ".join(cls.model_fields)
            raise SettingsError(f"{'; '.join(clauses)}. The arguments are {known}") from error

    def prepare(self) -> LoadedRung:
        """Load both models and the rung; the first three steps are run where they are missing.

        Raises:
            PairError: no such pair.
            SettingsError: this run has no such rung, or one that has no strength.
            StoreError: a damaged run, or one in use.
        """
        ready = open_rung(self.pair, self.out, self.rung, self.preset)
        if self.strength is not None:
            ready = ready.at_strength(self.strength)
        return replace(ready, settings=changed(ready.settings, batch_size=self.batch_size))


def changed(settings: HybridSettings, **changes: object) -> HybridSettings:
    """The same settings but for the changes that are not None.

    Raises:
        SettingsError: an impossible value.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    return make_settings({"hybrid": {**settings.model_dump(), **given}}).hybrid


def fit(ready: LoadedRung, question: str, asked: int | None = None) -> tuple[int, int]:
    """Tokens of the base's prompt, and of the longest answer to it.

    Args:
        ready: the rung that is to answer.
        question: what both models are asked, each in its own prompt.
        asked: longest answer wanted, the rung's own where None; what does not fit in a context
            beside the prompt is taken off.

    Raises:
        InputError: an empty prompt, or one that leaves no room for an answer.
    """
    models = asked_models(ready.models, ready.rung)
    prompts = [model.prompt_ids(question) for model in models]
    longest = ready.settings.max_new_tokens if asked is None else asked
    for model, prompt in zip(models, prompts, strict=True):
        check_lengths(model, [prompt], 1)
        if model.context is not None:
            longest = min(longest, model.context - len(prompt))
    return len(prompts[0]), longest


def cut(text: str, stops: Iterable[str]) -> str:
    """The text up to the first stop; empty stops are none."""
    found = (text.find(stop) for stop in stops if stop)
    return text[: min((place for place in found if place >= 0), default=len(text))]
