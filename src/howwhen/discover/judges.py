"""Opens the judge that the settings of the step ask for."""

from collections.abc import Callable
from pathlib import Path

from howwhen.discover.local_judge import LocalJudge
from howwhen.judging import Judge, open_endpoint
from howwhen.models import load_model
from howwhen.settings import DiscoverSettings


def make_judge(
    settings: DiscoverSettings, cache: Path | None, say: Callable[[str], None]
) -> Judge | None:
    """A model on this machine, or one behind an endpoint; None where the settings name neither.

    Args:
        settings: of the step.
        cache: folder of an endpoint's replies; None keeps none.
        say: told about damaged cache files.

    Raises:
        SettingsError: an address or key that cannot work.
        MissingExtraError: an endpoint without the packages of `howwhen[judge]`.
        ModelError: a local model that cannot be loaded.
    """
    if settings.judge_local is not None:
        return LocalJudge(load_model(settings.judge_local))
    return open_endpoint(settings, cache, say)
