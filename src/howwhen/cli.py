"""The command line: one command per step, `run` for all six, and the zoo.

Flags are made from the settings classes. Precedence, low to high: defaults, `--preset`, what the
pair sets itself, `--config FILE.yaml`, flags. Bad input ends with one paragraph and exit code 2.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from howwhen.errors import HowwhenError, SettingsError
from howwhen.models import CHAT, PLAIN
from howwhen.pipeline import Pipeline, check_inputs
from howwhen.present.report import header, ladder_rows, verdict
from howwhen.progress import Reporter
from howwhen.records import Measurement
from howwhen.settings import (
    PRESETS,
    Overrides,
    Preset,
    RunSettings,
    explain,
    make_settings,
    merge,
    read_config,
)
from howwhen.store import STEPS, Step, open_run
from howwhen.zoo.pairs import Pair, find_pair, list_pairs, own_pair
from howwhen.zoo.smol.weights import SMOLLM2, smollm2_folder

MALLOC_BYTES = str(4 * 2**30)
"""glibc gives freed tensors back to the kernel and faults them in again unless told not to."""

app = App(
    name="howwhen",
    help="How much of a thinking model's ability is in its base, waiting for the right moment?",
    help_format="markdown",
)
zoo = App(name="zoo", help="Pairs that have a name: list them, show one, build its weights.")
app.command(zoo)


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """Two models of your own, instead of a pair with a name."""

    base: str | None = None
    """Base model of your own: a folder or hub id (with --thinking, instead of PAIR)."""
    thinking: str | None = None
    """Thinking model of your own: a folder or hub id."""
    base_prompt: str = PLAIN
    """How --base is asked: `chat`, or a text with {question}."""
    thinking_prompt: str = CHAT
    """How --thinking is asked: `chat`, or a text with {question}."""

    def pair(self, name: str | None) -> Pair:
        """The pair meant by a name or by two models."""
        if name is not None and self.base is None and self.thinking is None:
            return find_pair(name)
        if name is None and self.base is not None and self.thinking is not None:
            return own_pair(self.base, self.thinking, self.base_prompt, self.thinking_prompt)
        raise SettingsError(
            f"found PAIR {name!r}, --base {self.base!r} and --thinking {self.thinking!r}; expected "
            "either the name of a pair (`howwhen zoo list`) or both --base and --thinking"
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Shortcuts:
    """Short flags for what is set most often."""

    problems: Path | None = None
    """Short for --collect.problems."""
    limit: int | None = None
    """Short for --collect.limit."""
    max_new_tokens: int | None = None
    """Short for --collect.max-new-tokens and --hybrid.max-new-tokens."""

    def overrides(self) -> Overrides:
        """The settings they stand for."""
        tokens: Overrides = {"max_new_tokens": self.max_new_tokens}
        collect: Overrides = {"problems": self.problems, "limit": self.limit, **tokens}
        sections: dict[str, Overrides] = {"collect": collect, "hybrid": tokens}
        return {
            name: {key: value for key, value in section.items() if value is not None}
            for name, section in sections.items()
        }


def _make_command(step: Step | Literal["run"]) -> Callable[..., None]:
    def command(
        pair: str | None = None,
        /,
        *,
        out: Path | None = None,
        preset: Preset = "small",
        config: Path | None = None,
        source: Source = Source(),
        shortcuts: Shortcuts = Shortcuts(),
        settings: Annotated[RunSettings, Parameter(name="*")] = RunSettings(),  # noqa: B008
    ) -> None:
        flags: Overrides = merge(shortcuts.overrides(), settings.model_dump(exclude_unset=True))
        file = read_config(config) if config else {}
        what = source.pair(pair)
        chosen = make_settings(PRESETS[preset], what.overrides, file, flags)
        is_first = step in ("run", "collect")
        if is_first:
            check_inputs(what, chosen)
        with open_run(out or Path("runs") / what.name, is_new=is_first) as folder:
            pipeline = Pipeline(what, chosen, folder, Reporter())
            for name in STEPS if step == "run" else (step,):
                pipeline.do(name)
            if step == "run":
                print_measurement(pipeline.measurement(), chosen.measure.confidence)
                print(f"Report: {folder.step('present').path / 'report.md'}")

    return command


def print_measurement(measurement: Measurement, confidence: float) -> None:
    """Print the ladder and its verdict on standard output."""
    table = Table(title=f"{measurement.n} problems", title_justify="left")
    for index, column in enumerate(header(confidence)):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in ladder_rows(measurement):
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(table)
    console.print(verdict(measurement), soft_wrap=True)


@zoo.command(name="list")
def zoo_list() -> None:
    """List every pair that has a name."""
    table = Table("pair", "base", "thinking model", "what it is")
    for pair in list_pairs():
        table.add_row(pair.name, pair.base_source, pair.thinking_source, pair.summary)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


@zoo.command(name="show")
def zoo_show(name: str) -> None:
    """Show everything known about one pair.

    Parameters
    ----------
    name:
        A pair of `howwhen zoo list`.
    """
    pair = find_pair(name)
    for key in (
        "name",
        "summary",
        "base_source",
        "base_prompt",
        "thinking_source",
        "thinking_prompt",
        "steer_layer",
        "taxonomy_layers",
        "taxonomy_sizes",
    ):
        value = getattr(pair, key)
        print(f"{key:16} {'chosen at run time' if value is None else value!r}")
    print(f"{'problems':16} {'its own' if pair.draw_problems else 'give --problems FILE.jsonl'}")
    print(f"{'truth':16} {'known' if pair.truth else 'unknown'}")


@zoo.command(name="build")
def zoo_build(name: str, *, out: Path | None = None, seed: int = 0) -> None:
    """Build embedded weights again: `tally` (trains, about an hour) or `smollm2` (converts).

    Parameters
    ----------
    name:
        `tally` or `smollm2`.
    out:
        Folder for tally's three models; a killed build goes on where it stopped.
    seed:
        Seed of tally's training; the weights in the package are of seed 0.
    """
    from howwhen.zoo.tally.train import BuildSettings, build

    if name == SMOLLM2:
        print(f"{SMOLLM2}: {smollm2_folder()}")
    elif name == "tally":
        folder = out or Path("runs") / "zoo-tally"
        build(folder, BuildSettings(seed=seed), Reporter().say)
        print(f"tally: {folder}")
    else:
        raise SettingsError(f"there is nothing to build for {name!r}; expected tally or {SMOLLM2}")


_COMMANDS: dict[Step | Literal["run"], str] = {
    "run": "Do all six steps and print the table.",
    "collect": "Step 1: let the thinking model answer problems, and cut sentences.",
    "discover": "Step 2: find categories of sentences without supervision.",
    "elicit": "Step 3: train steering vectors in the base model.",
    "hybrid": "Step 4: decode the test problems on every rung of the ladder.",
    "measure": "Step 5: grade and compare the rungs.",
    "present": "Step 6: write the report.",
}
for _step, _help in _COMMANDS.items():
    app.command(_make_command(_step), name=_step, help=_help)


def main() -> None:
    """Entry point: run a command, and turn every expected error into a paragraph and code 2."""
    _keep_freed_memory()
    disable_progress_bar()  # of transformers' loading; howwhen has its own
    console = Console(stderr=True, highlight=False)
    try:
        app(exit_on_error=False, print_error=False)
    except (HowwhenError, CycloptsError) as error:
        cause = error.__cause__
        message = explain(cause) if isinstance(cause, ValidationError) else str(error)
        console.print(f"howwhen: {' '.join(message.split())}", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("howwhen: interrupted; the same command goes on from here")
        sys.exit(130)


def _keep_freed_memory() -> None:
    """Start once more with glibc told to keep freed memory: it reads that only at the start."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    if sys.platform == "linux" and not any(name in os.environ for name in names):
        os.environ.update(dict.fromkeys(names, MALLOC_BYTES))
        os.execv(sys.executable, [sys.executable, "-m", "howwhen", *sys.argv[1:]])


if __name__ == "__main__":
    main()
