"""What this machine has for howwhen, and whether a run's files are whole: `howwhen doctor`.

It looks, and changes nothing. What is missing comes with what to type; broken is only what keeps
the embedded pairs from running, or a run that is damaged.
"""

import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from howwhen.errors import HowwhenError, StoreError
from howwhen.store import STEPS, RunFolder, StepFolder
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.smol.weights import SMOLLM2, cache_folder

EMBEDDED = ("tally-rl", "tally-sft")
SHOWN = ("torch", "transformers")
"""Packages whose versions matter most to results."""
FOR_DEVELOPERS = "dev"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    advice: str = ""
    """What to type; empty where nothing need be done."""
    is_broken: bool = False


def examine_machine() -> list[Finding]:
    """What every run depends on, and what some do."""
    return [
        Finding("howwhen", f"{version('howwhen')}, Python {platform.python_version()}"),
        *examine_packages(requires("howwhen") or ()),
        _examine_processor(),
        _examine_memory(),
        *map(_examine_pair, EMBEDDED),
        _examine_smollm2(),
        _examine_hub(),
    ]


def examine_packages(requirements: Iterable[str]) -> list[Finding]:
    """The packages that howwhen needs, then those of each extra.

    Args:
        requirements: as a distribution tells them, such as `gguf>=0.10; extra == "smol"`.
    """
    by_extra: dict[str, list[Requirement]] = {"": []}
    for one in map(Requirement, requirements):
        told = re.search('extra == "([^"]+)"', str(one.marker))
        by_extra.setdefault(told[1] if told else "", []).append(one)
    needed = _missing(by_extra.pop(""))
    versions = ", ".join(f"{name} {_version(name)}" for name in SHOWN)
    found = f"missing: {', '.join(needed)}" if needed else f"all there ({versions})"
    advice = "pip install howwhen" if needed else ""
    findings = [Finding("packages", found, advice, bool(needed))]
    for extra, own in by_extra.items():
        if extra == FOR_DEVELOPERS:
            continue
        missing = _missing(own)
        found = f"missing: {', '.join(missing)}" if missing else "all there"
        advice = f"pip install 'howwhen[{extra}]'" if missing else ""
        findings.append(Finding(f"extra {extra}", found, advice))
    return findings


def _missing(requirements: Iterable[Requirement]) -> list[str]:
    """Those that are not installed, or in another version."""
    versions = {one: _version(one.name) for one in requirements}
    return [
        f"{one.name}{one.specifier}"
        for one, found in versions.items()
        if found is None or not one.specifier.contains(found, prereleases=True)
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _examine_processor() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    unused = "; the GPU is not used" if torch.cuda.is_available() else ""
    return Finding(
        "processor",
        f"{cores} cores, torch uses {torch.get_num_threads()} threads in float32{unused}",
    )


def _examine_memory() -> Finding:
    total, free = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf(name) / 2**30
        for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")
    )
    return Finding(
        "memory",
        f"{total:.0f} GiB, {free:.0f} free; two models of 1 billion parameters take 8",
    )


def _examine_pair(name: str) -> Finding:
    try:
        find_pair(name).check()
    except HowwhenError as error:
        return Finding(name, str(error), "pip install --force-reinstall --no-deps howwhen", True)
    return Finding(name, "loads, aligns and can be steered")


def _examine_smollm2() -> Finding:
    folder = cache_folder() / SMOLLM2
    if folder.is_dir():
        return Finding(SMOLLM2, f"converted, in {folder}")
    return Finding(SMOLLM2, "not converted yet; smol needs it", "howwhen zoo build smollm2")


def _examine_hub() -> Finding:
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "HF_HUB_OFFLINE is set, so nothing is fetched")
    return Finding("hub", f"models that are not folders are kept in {constants.HF_HUB_CACHE}")


def examine_run(folder: RunFolder) -> list[Finding]:
    """The steps of a run: each not done, whole, damaged, or made from others than there are."""
    findings: list[Finding] = []
    digests: dict[str, str | None] = {}
    for name in STEPS:
        step = folder.step(name)
        findings.append(_examine_step(step, digests))
        digests[name] = step.digest
    return findings


def _examine_step(step: StepFolder, earlier: Mapping[str, str | None]) -> Finding:
    if step.digest is None:
        advice = f"howwhen {step.name} PAIR --out {step.path.parent}"
        return Finding(step.name, "not done yet", advice)
    try:
        step.check()
        step.check_upstream(earlier)
    except StoreError as error:
        return Finding(step.name, str(error), is_broken=True)
    outputs = step.read_json("provenance.json")["outputs"]
    return Finding(step.name, f"whole ({len(outputs)} files)")
