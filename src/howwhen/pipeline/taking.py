"""Taking vectors that exist: those of another run with its gate and probe, or those of a file."""

from dataclasses import dataclass, replace
from pathlib import Path

from howwhen.elicit.report import ElicitReport
from howwhen.errors import SettingsError
from howwhen.pipeline.context import Run
from howwhen.pipeline.files import StepFiles
from howwhen.pipeline.given import GATE, TRAINING, VECTORS, vector_files
from howwhen.pipeline.store import StepFolder


@dataclass(frozen=True)
class TakenCounts:
    """What the step notes where it trained nothing."""

    given: str
    """What `elicit.vectors` named."""
    files: tuple[str, ...]
    """Files taken from there."""


def take_vectors(run: Run, step: StepFolder, source: str) -> TakenCounts:
    """Put vectors, gate and probe that exist into the folder of the step elicit.

    Where there is no gate, the run's taxonomy is the gate, as in both versions of the paper.

    Args:
        run: the run.
        step: its step elicit.
        source: what `elicit.vectors` names.

    Raises:
        SettingsError: vectors of another model, layer, method or number of categories.
        StoreError: a damaged file.
    """
    files = vector_files(source)
    _check_method(run, files[VECTORS].parent)
    for name, file in files.items():
        step.take(name, file)
    if GATE not in files:
        if run.settings.discover.taxonomy is None:
            raise SettingsError(
                f"the vectors {source} come without a gate, so the taxonomy they were trained with "
                "is needed to name categories; type --discover.taxonomy with a file or a run"
            )
        step.write_gate(GATE, run.taxonomy().gate())
    _check(run, step, source)
    report = ElicitReport(None, None, {}, None, None)
    if TRAINING in files:
        report = step.read_record(TRAINING, ElicitReport)
    step.write_record(TRAINING, replace(report, given=source))
    run.reporter.say(f"  taken from {source}: {', '.join(files)}")
    return TakenCounts(source, tuple(files))


def _check_method(run: Run, folder: Path) -> None:
    """Refuse to use vectors of a run in another way than they were trained for."""
    if not (folder / "settings.json").exists():
        return
    trained = StepFiles(folder, "elicit").read_object("settings.json").get("method")
    chosen = run.settings.elicit.method
    if trained not in (None, chosen):
        raise SettingsError(
            f"the vectors in {folder} were trained by method {trained}, but this run uses "
            f"{chosen}; type --elicit.method {trained}"
        )


def _check(run: Run, step: StepFolder, source: str) -> None:
    """Refuse vectors and gates that do not fit this run's models."""
    vectors, gate = step.read_vectors(VECTORS), step.read_gate(GATE)
    base, thinking = run.pair.base_outline, run.pair.thinking_outline
    width, count = base.model.config.hidden_size, base.layer_count
    rows, own = vectors.vectors.shape
    if own != width or vectors.layer >= count:
        raise SettingsError(
            f"the vectors {source} are of width {own} for layer {vectors.layer} of "
            f"{vectors.model}; expected width {width} and a layer below {count}, those of "
            f"{base.name}"
        )
    if rows != gate.size:
        raise SettingsError(
            f"{source} has {rows} vectors, but the gate {gate.size} categories; expected a vector "
            "for every category. --discover.taxonomy names the taxonomy they were trained with"
        )
    taxonomy = run.taxonomy()
    is_other = gate.kind != "clusters" and gate.titles != taxonomy.titles
    if gate.size != taxonomy.size or is_other:
        raise SettingsError(
            f"the gate of {source} names other categories than this run's taxonomy; --from-run "
            "takes both from one run"
        )
    if vectors.bias is not None and run.settings.elicit.method == "decision":
        raise SettingsError(
            f"the vectors {source} hold a bias vector, as those of the paper's first version do; "
            "type --elicit.method span"
        )
    if len(gate.mean) != thinking.model.config.hidden_size or gate.model != thinking.name:
        raise SettingsError(
            f"the gate of {source} reads {gate.model} (width {len(gate.mean)}); expected one of "
            f"{thinking.name} (width {thinking.model.config.hidden_size})"
        )
    if vectors.model != base.name:
        raise SettingsError(
            f"the vectors {source} were trained in {vectors.model}, but the base is {base.name}; "
            "expected one name for one model (`howwhen convert --pair` or --model gives it)"
        )
