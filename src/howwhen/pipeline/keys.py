"""What the output of each step depends on: settings, models, and the steps before it."""

from dataclasses import asdict

from howwhen.collect.rollouts import rollout_sampling
from howwhen.formats.files import Json
from howwhen.lm.models import LanguageModel
from howwhen.lm.placement import Role
from howwhen.pipeline.context import Run
from howwhen.pipeline.files import STEPS, Key, StepName
from howwhen.pipeline.given import given_digests
from howwhen.pipeline.plan import problems_digest, step_settings

GRADING = 4
"""Raised when the same answer may be graded otherwise, so that runs are measured again."""
MODELS_USED: dict[StepName, tuple[Role, ...]] = {
    "collect": ("thinking",),
    "discover": ("thinking",),
    "elicit": ("base", "thinking"),
    "hybrid": ("base", "thinking"),
}


def step_key(run: Run, name: StepName) -> Key:
    """The key under which a step of this run is done.

    Raises:
        StoreError: an earlier step is missing, damaged or out of date.
    """
    upstream: Json = {}
    for earlier in STEPS[: STEPS.index(name)]:
        folder = run.folder.step(earlier)
        folder.check()
        folder.check_upstream(upstream)
        upstream[earlier] = folder.digest
    if name == "collect":
        upstream["problems"] = problems_digest(run.pair, run.settings)
    upstream |= given_digests(run.settings, name)
    settings, additive = step_settings(run.pair, run.settings, name)
    outlines = {"base": run.pair.base_outline, "thinking": run.pair.thinking_outline}
    models: Json = {role: describe_model(outlines[role]) for role in MODELS_USED.get(name, ())}
    reader = run.settings.discover.reader
    if name == "discover" and not run.pair.is_own_reader(reader):
        models["reader"] = describe_model(run.pair.reader_outline(reader))
    return Key({**settings, **_beside_settings(run, name)}, models, upstream, additive)


def describe_model(model: LanguageModel) -> Json:
    """Everything about a model that its output depends on."""
    names = ("name", "revision", "fingerprint", "prompt", "think_tags")
    asked = {"template": dict(model.template)} if model.template else {}
    return {**{name: getattr(model, name) for name in names}, **asked, **model.numerics}


def _beside_settings(run: Run, name: StepName) -> Json:
    if name == "measure":
        return {"grading": GRADING}
    if name == "collect" and run.settings.collect.temperature == "model":
        return {
            "sampler": asdict(rollout_sampling(run.pair.thinking_outline, run.settings.collect))
        }
    if name == "discover" and run.settings.discover.taxonomy is None:
        return {"layers": list(run.taxonomy_layers)}
    return {"layer": run.steer_layer} if name == "elicit" else {}
