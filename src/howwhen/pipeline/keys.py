"""What the output of each step depends on: settings, models, and the steps before it."""

import hashlib
from pathlib import Path

from howwhen.formats.safetensors import Json
from howwhen.lm.models import LanguageModel
from howwhen.pipeline.context import Run
from howwhen.pipeline.store import STEPS, Key, StepName
from howwhen.settings import DiscoverSettings

RESULT_NEUTRAL = ("judge_key_variable", "judge_prices", "judge_threads", "judge_timeout_seconds")
"""Settings that change no result."""
ADDITIVE: dict[StepName, tuple[str, ...]] = {
    "discover": tuple(
        name
        for name in DiscoverSettings.model_fields
        if name.startswith(("chosen_", "judge_")) and name not in RESULT_NEUTRAL
    ),
    "hybrid": ("rungs", "random_seeds", "samples", "knock_outs"),
}
"""Settings that say how much a step does, or which of its results it takes: what is there stays."""


def step_key(run: Run, name: StepName) -> Key:
    """The key under which a step of this run is done.

    Raises:
        StoreError: an earlier step is missing, damaged or out of date.
    """
    uses = {"collect": ("thinking",), "discover": ("thinking",)}
    models = uses.get(name, ("base", "thinking") if name in ("elicit", "hybrid") else ())
    upstream: Json = {}
    for earlier in STEPS[: STEPS.index(name)]:
        folder = run.folder.step(earlier)
        folder.check()
        folder.check_upstream(upstream)
        upstream[earlier] = folder.digest
    if name == "collect":
        upstream["problems"] = _problems_digest(run)
    own: Json = getattr(run.settings, name).model_dump(mode="json", exclude=set(RESULT_NEUTRAL))
    additive = {key: own.pop(key) for key in ADDITIVE.get(name, ())}
    described = {role: _describe(getattr(run.pair, role)) for role in models}
    if name == "discover" and run.reader is not run.pair.thinking:
        described["reader"] = _describe(run.reader)
    return Key(
        settings={**own, "pair": run.pair.name, **_layers(run, name)},
        models=described,
        upstream=upstream,
        additive=additive,
    )


def _describe(model: LanguageModel) -> Json:
    names = ("name", "revision", "fingerprint", "prompt", "think_tags")
    return {name: getattr(model, name) for name in names}


def _layers(run: Run, name: StepName) -> Json:
    if name == "discover":
        return {"layers": list(run.taxonomy_layers)}
    if name == "elicit":
        return {"layer": run.steer_layer, **_hybrid_settings_used(run)}
    return {}


def _hybrid_settings_used(run: Run) -> Json:
    """What the elicit step reads of the hybrid's settings."""
    hybrid = run.settings.hybrid
    used: Json = {"one_sided_tokens": hybrid.one_sided_tokens}
    if run.settings.elicit.on_policy_rounds:
        used["on_policy"] = hybrid.model_dump(mode="json")
    return used


def _problems_digest(run: Run) -> str:
    """Of the content of all problem and trace files; what is no file stands for itself."""
    chosen = run.settings.collect
    given = (chosen.problems, *(chosen.traces or ()), chosen.test_problems)
    sources = [one for one in given if one is not None]
    parts = [Path(one).read_bytes() if Path(one).exists() else one.encode() for one in sources]
    return hashlib.sha256(b"\0".join(parts)).hexdigest() if parts else run.pair.name
