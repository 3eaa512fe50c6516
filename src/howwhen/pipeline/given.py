"""Taxonomies and vectors that exist already, in place of those that a run would find and train.

Each is named by the folder of another run (also one that `howwhen convert --to run` wrote) or by a
single file of howwhen. Nothing here needs torch.
"""

from collections.abc import Sequence
from pathlib import Path

from howwhen.errors import SettingsError
from howwhen.formats.files import Json
from howwhen.pipeline.files import StepName, content_hash
from howwhen.pipeline.folders import RunFiles
from howwhen.records import Problem, Split
from howwhen.settings import RunSettings

TAXONOMY = "taxonomy.safetensors"
"""File of the step discover."""
GATE, VECTORS, SHARED, SELF_GATE = (
    f"{name}.safetensors" for name in ("gate", "vectors", "shared", "self_gate")
)
"""Files of the step elicit."""
TRAINING = "training.json"
"""File of the step elicit with its report."""


def taxonomy_file(source: str) -> Path:
    """The taxonomy that `discover.taxonomy` names.

    Raises:
        SettingsError: there is none.
    """
    path = Path(source).expanduser()
    own = RunFiles(path).step_path("discover")
    places = [own / TAXONOMY, path / TAXONOMY] if path.is_dir() else [path]
    return _existing(places, "--discover.taxonomy", source)


def vector_files(source: str) -> dict[str, Path]:
    """The files that `elicit.vectors` names, by their names in the step elicit.

    Of a folder: the vectors, and whatever else of the step there is. A file holds the vectors; the
    gate is the one beside it, if there is one.

    Raises:
        SettingsError: there are none.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        found = {VECTORS: _existing([path], "--elicit.vectors", source)}
        gate = path.with_name(GATE)
        return {**found, GATE: gate} if gate.is_file() else found
    places = [RunFiles(path).step_path("elicit") / VECTORS, path / VECTORS]
    folder = _existing(places, "--elicit.vectors", source).parent
    names = (VECTORS, GATE, SHARED, SELF_GATE, TRAINING)
    return {name: folder / name for name in names if (folder / name).exists()}


def refuse_trained(settings: RunSettings, problems: Sequence[Problem]) -> None:
    """Refuse to test on problems that another run found its taxonomy or trained its vectors with.

    Raises:
        SettingsError: some test problems are among its training or selection problems.
    """
    for source in dict.fromkeys((settings.discover.taxonomy, settings.elicit.vectors)):
        step = RunFiles(Path(source or "").expanduser()).step("collect")
        if source is None or not (step.path / "problems.jsonl").exists():
            continue
        others = step.read_records("problems.jsonl", Problem)
        trained = {one.question for one in others if one.split is not Split.TEST}
        both = [one for one in problems if one.split is Split.TEST and one.question in trained]
        if both:
            raise SettingsError(
                f"{len(both)} test problems were trained on in {source} (such as "
                f"{both[0].question[:60]!r}); expected others: leave --limit and "
                "--collect.seed as they were there, or give --collect.test-problems"
            )


def _existing(places: list[Path], flag: str, source: str) -> Path:
    for place in places:
        if place.is_file():
            return place
    raise SettingsError(
        f"{flag} {source}: there is no {' and no '.join(map(str, places))}; expected the folder of "
        "a run, or a .safetensors file that howwhen wrote (`howwhen convert` makes one of "
        "published files)"
    )


def given_digests(settings: RunSettings, step: StepName) -> Json:
    """Hashes of the files that this step takes as they are, by what they hold.

    Raises:
        SettingsError: a file that is named and not there.
    """
    files: dict[str, Path] = {}
    kind = {"discover": "taxonomy", "elicit": "vectors"}.get(step)
    if step == "discover" and settings.discover.taxonomy is not None:
        files = {TAXONOMY: taxonomy_file(settings.discover.taxonomy)}
    if step == "elicit" and settings.elicit.vectors is not None:
        files = vector_files(settings.elicit.vectors)
    if kind is None or not files:
        return {}
    return {kind: {name: content_hash(file) for name, file in files.items()}}
