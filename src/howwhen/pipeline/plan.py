"""What a command is about to do, checked before anything heavy is imported or loaded.

Flags, YAML, file names and configs say much about a run before a model is loaded. What they say is
refused here: a run folder that belongs to another pair, finished steps whose settings would change,
problem files, layers that a model does not have, packages and keys that are missing.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from howwhen.collect.problems import PUBLISHED, sliced
from howwhen.errors import MissingExtraError, ModelError, RedoError, SettingsError, SteeringError
from howwhen.formats.files import Json
from howwhen.pipeline.files import STEPS, StepName, settings_changes
from howwhen.pipeline.folders import Owner, RunFiles
from howwhen.pipeline.given import given_digests, taxonomy_file, vector_files
from howwhen.pipeline.problems import FileState, check_test_problems, draw_split, file_state
from howwhen.settings import DiscoverSettings, JudgeSettings, RunSettings
from howwhen.zoo.pairs import Pair, local_folder

RESULT_NEUTRAL = ("judge_key_variable", "judge_prices", "judge_threads", "judge_timeout_seconds")
"""Settings that change no result."""
ADDITIVE: dict[StepName, tuple[str, ...]] = {
    "discover": tuple(
        name
        for name in DiscoverSettings.model_fields
        if name.startswith(("chosen_", "judge_")) and name not in RESULT_NEUTRAL
    ),
    "hybrid": (
        "rungs",
        "random_seeds",
        "samples",
        "thinking_samples",
        "knock_outs",
        "budgets",
    ),
}
"""Settings that say how much a step does, or which of its results it takes. What is there stays."""
OF_CONTROLS = ("guardrail_top_k", "logit_alpha")
"""Settings of the hybrid's step that change neither the hybrid nor either model alone."""
OF_THINKING = ("thinking_temperature", "thinking_top_p")
"""Settings that change the rung `thinking` alone."""
RECOMPUTED: tuple[StepName, ...] = ("measure", "present")
"""Steps made in seconds from what the others keep. They are redone without a question."""


def owner_of(pair: Pair) -> Owner:
    """Who a run folder of this pair belongs to."""
    return Owner(pair.name, pair.base_source, pair.thinking_source)


def step_settings(pair: Pair, settings: RunSettings, step: StepName) -> tuple[Json, Json]:
    """The settings that a step's output depends on, and the additive ones among them."""
    own: Json = getattr(settings, step).model_dump(mode="json", exclude=set(RESULT_NEUTRAL))
    additive = {name: own.pop(name) for name in ADDITIVE.get(step, ())}
    # Of what is taken from elsewhere the content counts, and not its place.
    for name in ("taxonomy", "vectors"):
        if own.get(name) is not None:
            own[name] = "given"
    if step == "collect":
        own["only_tests"] = None if settings.trains else True
    if step == "elicit":
        own |= _hybrid_settings_used(settings)
    return {**own, "pair": pair.name}, additive


def _hybrid_settings_used(settings: RunSettings) -> Json:
    """What the elicit step reads of the hybrid's settings."""
    used: Json = {"one_sided_tokens": settings.hybrid.one_sided_tokens}
    if settings.elicit.on_policy_rounds:
        unused = {*ADDITIVE["hybrid"], *OF_CONTROLS, *OF_THINKING}
        used["on_policy"] = settings.hybrid.model_dump(mode="json", exclude=unused)
    if settings.elicit.choose_by == "gap":
        unused = {*ADDITIVE["hybrid"], *OF_CONTROLS}
        used["selection"] = settings.hybrid.model_dump(mode="json", exclude=unused)
    return used


def find_changes(pair: Pair, settings: RunSettings, folder: RunFiles) -> dict[StepName, list[str]]:
    """Steps that hold work made with other settings, and how those differ.

    What follows from the models (their weights, the layers chosen for them) is compared later,
    when they are loaded.
    """
    changes: dict[StepName, list[str]] = {}
    asked: dict[str, Json] = {
        "base": {"prompt": pair.base_prompt, "template": dict(pair.base_template)},
        "thinking": {
            "prompt": pair.thinking_prompt,
            "think_tags": list(pair.think_tags),
            "template": dict(pair.thinking_template),
        },
    }
    for name in STEPS:
        step = folder.step(name)
        if name in RECOMPUTED or not (step.path / "settings.json").exists():
            continue
        content, _ = step_settings(pair, settings, name)
        derived = {key for key in ("layers", "layer") if content.get(key) is None}
        compared = {key: value for key, value in content.items() if key not in derived}
        differences = settings_changes(name, step.read_object("settings.json"), compared)
        differences += step.model_changes(asked)
        if name == "collect":
            differences += step.upstream_changes({"problems": problems_digest(pair, settings)})
        differences += step.upstream_changes(given_digests(settings, name))
        if differences:
            changes[name] = differences
    return changes


def problems_digest(pair: Pair, settings: RunSettings) -> str:
    """Hash of the content of all problem and trace files. A named set is hashed by its name."""
    collect = settings.collect
    sources = (
        *(collect.problems or ()),
        *(collect.traces or ()),
        *(collect.selection_problems or ()),
        *(collect.test_problems or ()),
    )
    if not settings.trains and collect.test_problems is not None:
        sources = collect.test_problems
    if not sources:
        return pair.name
    return _content_digest(sources, tuple(file_state(sliced(source)[0]) for source in sources))


@lru_cache(maxsize=4)
def _content_digest(sources: tuple[str, ...], _states: tuple[FileState | None, ...]) -> str:
    parts = []
    for source in sources:
        path, first, last = sliced(source)
        is_file = Path(path).exists()
        parts.append(Path(path).read_bytes() if is_file else source.encode())
        if is_file and path != source:
            parts.append(f"[{first}:{last}]".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def redo_message(root: Path, changes: Sequence[str], steps: Sequence[StepName]) -> str:
    """What would be lost, how to keep it, and how to go on all the same."""
    names = ", ".join(f"{STEPS.index(step) + 1}-{step}" for step in steps)
    folders = [RunFiles(root).step(step) for step in steps]
    interrupted = [step for step in folders if step.digest is None and step.aside_digest]
    where = interrupted[0].unfinished if interrupted else folders[0].aside
    told = "".join(
        f". A finished step is in {step.aside}; with its settings, --redo takes it back"
        for step in interrupted
    )
    likewise = ", the other steps likewise" if len(steps) > 1 else ""
    return (
        f"{root} holds work made with other settings or input ({names}): {'; '.join(changes)}. To "
        "keep it, leave the change out or choose another --out. To redo it, add --redo: what is "
        f"there is kept aside as {shlex.quote(str(where))}{likewise}{told}"
    )


def check_redo(
    pair: Pair, settings: RunSettings, folder: RunFiles, steps: Sequence[StepName]
) -> None:
    """Refuse to run steps that hold work made with other settings.

    Raises:
        RedoError: with which settings differ.
    """
    changes = {
        step: differences
        for step, differences in find_changes(pair, settings, folder).items()
        if step in steps
    }
    if changes:
        lines = [line for differences in changes.values() for line in differences]
        first = min(map(STEPS.index, changes))
        affected = [
            step
            for step in steps
            if step in changes or (step in STEPS[first:] and folder.step(step).digest is not None)
        ]
        kept = [step for step in affected if step not in RECOMPUTED]
        raise RedoError(redo_message(folder.root, lines, kept))


def check_plan(pair: Pair, settings: RunSettings, steps: Sequence[StepName] = STEPS) -> None:
    """Refuse what flags, files and configs show to be impossible. No model is loaded.

    Args:
        pair: the pair.
        settings: of the run.
        steps: those that will be done.

    Raises:
        InputError: problems, models, layers or gates that cannot be used.
        MissingExtraError: a package that a step needs is not installed.
    """
    if settings.discover.taxonomy is not None:
        taxonomy_file(settings.discover.taxonomy)
    if settings.elicit.vectors is not None:
        vector_files(settings.elicit.vectors)
    _check_problems(pair, settings, steps)
    _check_packages(settings, steps)
    _check_judges(settings, steps)
    reader = settings.discover.reader or pair.thinking_source
    draft = [source for source in (settings.hybrid.draft_model,) if source is not None]
    for source in dict.fromkeys((pair.base_source, pair.thinking_source, reader, *draft)):
        local_folder(source)
    _check_gate(settings, reader, pair.thinking_source, steps)
    _check_layers("--discover.layers", settings.discover.layers or (), reader)
    steered = settings.elicit.layer
    _check_layers("--elicit.layer", () if steered is None else (steered,), pair.base_source)


def _check_problems(pair: Pair, settings: RunSettings, steps: Sequence[StepName]) -> None:
    """Read problems and traces, unless they have to be fetched from the hub."""
    collect = settings.collect
    sources = [
        *(collect.problems or ()),
        *(collect.selection_problems or ()),
        *(collect.test_problems or ()),
    ]
    fetched = [source for source in sources if _is_on_hub(source)]
    if fetched and find_spec("datasets") is None:
        raise MissingExtraError(
            f"{fetched[0]} is read with the library `datasets`; type `pip install 'howwhen[hub]'`, "
            "or give a JSONL file"
        )
    if not fetched:
        problems = draw_split(pair, settings)
        if "hybrid" in steps:
            check_test_problems(problems)


def _is_on_hub(source: str) -> bool:
    source, _, _ = sliced(source)
    return not Path(source).exists() and (source in PUBLISHED or source.startswith("hub:"))


def _check_packages(settings: RunSettings, steps: Sequence[StepName]) -> None:
    if "collect" in steps and settings.collect.segmenter == "sat" and find_spec("wtpsplit") is None:
        raise MissingExtraError(
            f"the segmenter sat runs {settings.collect.sat_model} with the library `wtpsplit`; "
            "type `pip install 'howwhen[sat]'`, or use --collect.segmenter rule"
        )


def _check_judges(settings: RunSettings, steps: Sequence[StepName]) -> None:
    """Refuse judges that the last step could not ask, before the first one runs."""
    for step, judge in (("discover", settings.discover), ("measure", settings.measure)):
        if step in steps and judge.judge_url is not None:
            _check_judge(judge)


def _check_judge(judge: JudgeSettings) -> None:
    missing = [name for name in ("openai", "tenacity") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"a judge needs the packages {' and '.join(missing)}; type: pip install "
            "'howwhen[judge]'"
        )
    variable = judge.judge_key_variable
    if variable is not None and not os.environ.get(variable, "").strip():
        raise SettingsError(
            f"the environment variable {variable} is not set; it should hold the key of "
            f"{judge.judge_url}; type: export {variable}=... (an endpoint without keys: set "
            "judge_key_variable to none)"
        )


def _check_gate(
    settings: RunSettings, reader: str, thinking: str, steps: Sequence[StepName]
) -> None:
    is_asked = "elicit" in steps and settings.elicit.vectors is None
    if is_asked and settings.elicit.gate == "taxonomy" and reader != thinking:
        raise SteeringError(
            f"the taxonomy reads {reader}, but a gate reads {thinking}, the thinking model; type "
            "--elicit.gate probe or --elicit.gate clusters"
        )


def _check_layers(flag: str, layers: Sequence[int], source: str) -> None:
    """Refuse layers that the config of a local model does not have."""
    folder = local_folder(source)
    if not layers or folder is None or not (folder / "config.json").exists():
        return
    count = _block_count(folder / "config.json")
    wrong = [layer for layer in layers if count is not None and not 0 <= layer < count]
    if wrong:
        raise ModelError(
            f"layer {wrong[0]} is out of range: {source} has {count} blocks, so {flag} takes "
            f"layers 0 to {int(count or 0) - 1}"
        )


def _block_count(config: Path) -> int | None:
    """Number of blocks that a model's config names; None if it names none."""
    try:
        content: Any = json.loads(config.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {config}: {error}; expected a folder written by save_pretrained"
        ) from error
    names = ("num_hidden_layers", "n_layer")
    counts = [content.get(name) for name in names] if isinstance(content, dict) else []
    return next((count for count in counts if isinstance(count, int)), None)
