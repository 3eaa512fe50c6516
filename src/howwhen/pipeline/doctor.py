"""What this machine has for howwhen, and whether a run's files are whole: `howwhen doctor`.

The doctor changes nothing, and loads a model only if asked to. What is missing is reported with
what to type. Broken is only what keeps the embedded pairs from running, or a step of a run whose
files are not what it wrote.
"""

import platform
import shlex
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from huggingface_hub import constants
from packaging.requirements import Requirement

from howwhen.errors import HowwhenError, ModelError, StoreError
from howwhen.lm.checkpoint import read_header
from howwhen.pipeline.files import STEPS, StepName
from howwhen.pipeline.folders import RunFiles
from howwhen.pipeline.hardware import Finding, examine_hardware
from howwhen.zoo.pairs import find_pair, local_folder
from howwhen.zoo.smol import SMOLLM2

EMBEDDED = ("tally-rl", "tally-sft")
FOR_DEVELOPERS = "dev"


def examine_machine(load: bool = False) -> list[Finding]:
    """What every run depends on, and what some depend on.

    Args:
        load: whether to load the embedded pairs, which takes seconds, or only check their files.
    """
    extras = metadata("howwhen").get_all("Provides-Extra") or ()
    return [
        Finding("howwhen", f"{version('howwhen')}, Python {platform.python_version()}"),
        *examine_packages(requires("howwhen") or (), extras),
        *examine_hardware(),
        *map(_load_pair if load else _examine_pair, EMBEDDED),
        _examine_smollm2(),
        _examine_hub(),
    ]


def examine_packages(requirements: Iterable[str], extras: Iterable[str]) -> list[Finding]:
    """The versions of the packages that howwhen needs, then of those of each extra.

    Args:
        requirements: as a distribution declares them, for example `gguf>=0.10; extra == "smol"`.
        extras: names of the extras; the developers' extra is skipped.
    """
    declared = [Requirement(line) for line in requirements]
    needed = [requirement for requirement in declared if _applies(requirement, "")]
    findings = [_examine_requirements("packages", needed, "pip install howwhen", is_needed=True)]
    for extra in extras:
        if extra == FOR_DEVELOPERS:
            continue
        added = [item for item in declared if item not in needed and _applies(item, extra)]
        advice = f"pip install 'howwhen[{extra}]'"
        findings.append(_examine_requirements(f"extra {extra}", added, advice))
    return findings


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _examine_requirements(
    what: str, requirements: Iterable[Requirement], advice: str, is_needed: bool = False
) -> Finding:
    wrong = []
    for requirement in requirements:
        name, installed = requirement.name, _version(requirement.name)
        if installed is None:
            wrong.append(f"{name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{name} is {installed}, expected {requirement.specifier}")
    if wrong:
        return Finding(what, "; ".join(wrong), advice, is_needed)
    shown = f"all there (torch {_version('torch')}, transformers {_version('transformers')})"
    return Finding(what, shown if is_needed else "all there")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _examine_pair(name: str) -> Finding:
    pair = find_pair(name)
    try:
        for source in (pair.base_source, pair.thinking_source):
            check_model_files(local_folder(source) or Path(source))
    except HowwhenError as error:
        return Finding(name, str(error), "install howwhen again", is_broken=True)
    return Finding(name, "its files are whole", f"howwhen doctor --load to load {name}")


def check_model_files(folder: Path) -> None:
    """Refuse a model folder that lacks a file, or whose weights are cut off.

    Raises:
        ModelError: with the file and what is wrong with it.
    """
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}")
    read_header(folder / "model.safetensors")


def _load_pair(name: str) -> Finding:
    try:
        _ = find_pair(name).models().alignment
    except HowwhenError as error:
        return Finding(name, str(error), "install howwhen again", is_broken=True)
    return Finding(name, "loads, aligns and can be steered")


def _examine_smollm2() -> Finding:
    from howwhen.cache_folder import cache_folder

    folder = cache_folder() / SMOLLM2
    if folder.is_dir():
        return Finding(SMOLLM2, f"converted, in {folder}")
    return Finding(SMOLLM2, "not converted yet; smol needs it", "howwhen zoo build smollm2")


def _examine_hub() -> Finding:
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "offline by an environment variable, so nothing is fetched")
    return Finding("hub", f"models from the hub are cached in {constants.HF_HUB_CACHE}")


def examine_run(root: Path) -> list[Finding]:
    """The steps of a run: each whole, out of date, not done, waiting for another, or broken.

    Raises:
        StoreError: there is no run in this folder.
    """
    folder = RunFiles(root)
    if not any(folder.step(name).path.is_dir() for name in STEPS):
        expected = folder.step("collect").path
        raise StoreError(f"there is no run in {root}; expected a folder like {expected} in it")
    findings: list[Finding] = []
    digests: dict[str, str | None] = {}
    for name in STEPS:
        try:
            finding, digest = _examine_step(folder, name, digests)
        except (StoreError, OSError) as error:
            finding, digest = Finding(name, str(error), is_broken=True), None
        findings.append(finding)
        digests[name] = digest
    return findings


def _examine_step(
    folder: RunFiles, name: StepName, earlier: Mapping[str, str | None]
) -> tuple[Finding, str | None]:
    """One step, and its digest, or None if later steps have to wait for it.

    Raises:
        StoreError: its files are not what it wrote.
    """
    step, out = folder.step(name), shlex.quote(str(folder.root))
    waits = [other for other, digest in earlier.items() if digest is None]
    digest = step.digest
    if digest is None:
        state = f"waits for {waits[0]}" if waits else "not done yet"
        return Finding(name, state, "" if waits else f"howwhen {name} PAIR --out {out}"), None
    step.check()
    try:
        step.check_upstream(earlier)
    except StoreError:
        state = "whole, but out of date: made from other steps than there are now"
        return Finding(name, state, f"howwhen run PAIR --out {out} --redo"), None
    outputs = step.read_json("provenance.json")["outputs"]
    return Finding(name, f"whole ({len(outputs)} files)"), digest
