"""A rung of the ladder as a model for evaluation harnesses: shared code; one module per harness."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from howwhen.errors import SettingsError
from howwhen.records import LadderRungName
from howwhen.settings import (
    Attention,
    Count,
    Device,
    HybridSettings,
    ModelSettings,
    Precision,
    Preset,
    make_settings,
)
from howwhen.zoo.pairs import find_pair

if TYPE_CHECKING:
    from howwhen.pipeline.live import LoadedRung


class RungArguments(BaseModel):
    """Which rung answers, as typed after `--model_args` or `-M`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    pair: str
    """A pair of `howwhen zoo list`."""
    out: Path | None = None
    """Run folder; defaults to `runs/PAIR`."""
    rung: LadderRungName = "hybrid"
    """Which rung answers."""
    strength: float | None = None
    """Coefficient (alpha) that multiplies what the vectors add; defaults to that of the run."""
    preset: Preset = "small"
    """Sizes of the first three steps, used only if they have to be run."""
    batch_size: Count = HybridSettings().batch_size
    """Questions decoded together."""
    base_device: Device | None = None
    """Device of the base, such as cuda:0; defaults to the first GPU, or the CPU."""
    thinking_device: Device | None = None
    """The same for the thinking model."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads each model over all GPUs."""
    dtype: Precision = "auto"
    """Precision; by default the checkpoint's own on a GPU, and float32 on a CPU."""
    attention: Attention | None = None
    """Implementation of attention; defaults to the library's choice."""

    @classmethod
    def read(cls, arguments: Mapping[str, object]) -> "RungArguments":
        """Check the arguments.

        Raises:
            SettingsError: an unknown argument or an impossible value.
        """
        try:
            return cls.model_validate(arguments)
        except ValidationError as error:
            clauses = (
                f"model argument {'.'.join(map(str, detail['loc']))}: {detail['msg']}, "
                f"found {detail['input']!r}"
                for detail in error.errors()
            )
            known = ", ".join(cls.model_fields)
            raise SettingsError(f"{'; '.join(clauses)}. The arguments are {known}") from error

    def prepare(self) -> "LoadedRung":
        """Load both models and the rung. Any of the first three steps that is missing is run.

        Raises:
            PairError: no such pair.
            SettingsError: the run lacks this rung, or a strength was given for a rung that does
                not steer.
            StoreError: a damaged run, or one in use.
        """
        from howwhen.pipeline.live import open_rung

        names = ("base_device", "thinking_device", "device_map", "dtype", "attention")
        placing = ModelSettings(**{name: getattr(self, name) for name in names})
        pair = find_pair(self.pair).placed(placing)
        ready = open_rung(pair, self.out, self.rung, self.preset)
        if self.strength is not None:
            ready = ready.at_strength(self.strength)
        return replace(ready, settings=changed(ready.settings, batch_size=self.batch_size))


def changed(settings: HybridSettings, **changes: object) -> HybridSettings:
    """The settings with all changes applied that are not None.

    Raises:
        SettingsError: an impossible value.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    return make_settings({"hybrid": {**settings.model_dump(), **given}}).hybrid


def fit(ready: "LoadedRung", question: str, asked: int | None = None) -> tuple[int, int]:
    """Number of tokens in the base's prompt, and in the longest answer that fits.

    Args:
        ready: the rung that will answer.
        question: put to both models, each in its own prompt.
        asked: longest answer wanted, in tokens; None for the limit in the rung's settings. It is
            reduced to what the context holds after the prompt.

    Raises:
        InputError: an empty prompt, or one that leaves no room for an answer.
    """
    from howwhen.hybrid.opening import asked_models
    from howwhen.lm.generate import check_lengths

    models = asked_models(ready.models, ready.rung)
    prompts = [model.prompt_ids(question) for model in models]
    longest = ready.settings.max_new_tokens if asked is None else asked
    for model, prompt in zip(models, prompts, strict=True):
        check_lengths(model, [prompt], 1)
        if model.context is not None:
            longest = min(longest, model.context - len(prompt))
    return len(prompts[0]), longest


def cut(text: str, stops: Iterable[str]) -> str:
    """The text up to the first stop. Empty stops are ignored."""
    places = (text.find(stop) for stop in stops if stop)
    return text[: min((place for place in places if place >= 0), default=len(text))]
