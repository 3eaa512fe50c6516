"""The command line: one command per step, `run` for all six, and the zoo.

Flags are made from the settings classes. Precedence, low to high: defaults, `--preset`, what the
pair sets itself, `--config FILE.yaml`, flags. Bad input ends with one paragraph and exit code 2.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from howwhen.errors import HowwhenError, SettingsError
from howwhen.formats.published import FileInfo, Format, read_any, write_any
from howwhen.lm.memory import keep_freed_memory
from howwhen.lm.prompts import CHAT, PLAIN, THINK_TAGS, ThinkTags
from howwhen.measure.published import read_published
from howwhen.pipeline.compare import compare as compare_rungs
from howwhen.pipeline.discover import PAGE
from howwhen.pipeline.doctor import examine_machine, examine_run
from howwhen.pipeline.live import open_rung, open_rungs
from howwhen.pipeline.pipeline import Pipeline, check_inputs
from howwhen.pipeline.present import REPORT
from howwhen.pipeline.store import STEPS, RunFolder, StepName, open_run
from howwhen.present.report import verdict
from howwhen.present.tables import ladder_table
from howwhen.present.terminal import Painter, show
from howwhen.progress import Reporter
from howwhen.records import LadderRungName, Measurement
from howwhen.serve.launch import check_address, check_packages, make_service, run_server
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
from howwhen.zoo.pairs import Pair, find_pair, list_pairs, own_pair
from howwhen.zoo.smol.weights import SMOLLM2, smollm2_folder

app = App(
    name="howwhen",
    help="How much of a thinking model's ability is in its base, waiting for the right moment?",
    help_format="markdown",
    default_parameter=Parameter(consume_multiple=True),
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
    think_tags: ThinkTags = THINK_TAGS
    """What opens and what closes the thinking in the answers of --thinking."""

    def pair(self, name: str | None) -> Pair:
        """The pair meant by a name or by two models."""
        if name is not None and self.base is None and self.thinking is None:
            return find_pair(name)
        if name is None and self.base is not None and self.thinking is not None:
            prompts = (self.base_prompt, self.thinking_prompt)
            return own_pair(self.base, self.thinking, *prompts, self.think_tags)
        raise SettingsError(
            f"found PAIR {name!r}, --base {self.base!r} and --thinking {self.thinking!r}; expected "
            "either the name of a pair (`howwhen zoo list`) or both --base and --thinking"
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Shortcuts:
    """Short flags for what is set most often."""

    problems: str | None = None
    """Short for --collect.problems."""
    traces: tuple[str, ...] | None = None
    """Short for --collect.traces."""
    limit: int | None = None
    """Short for --collect.limit."""
    max_new_tokens: int | None = None
    """Short for --collect.max-new-tokens and --hybrid.max-new-tokens."""
    rungs: tuple[LadderRungName, ...] | None = None
    """Short for --hybrid.rungs."""
    knock_outs: bool | None = None
    """Short for --hybrid.knock-outs."""

    def overrides(self) -> Overrides:
        """The settings they stand for."""
        tokens: Overrides = {"max_new_tokens": self.max_new_tokens}
        collect: Overrides = {
            "problems": self.problems,
            "traces": self.traces,
            "limit": self.limit,
            **tokens,
        }
        hybrid: Overrides = {"rungs": self.rungs, "knock_outs": self.knock_outs, **tokens}
        sections: dict[str, Overrides] = {"collect": collect, "hybrid": hybrid}
        return {
            name: {key: value for key, value in section.items() if value is not None}
            for name, section in sections.items()
        }


@Parameter(name="*")
@dataclass(frozen=True)
class Run:
    """Where a run is, and its settings."""

    out: Path | None = None
    """Run folder; runs/PAIR by default."""
    preset: Preset = "small"
    """Sizes of everything that is not set otherwise."""
    config: Path | None = None
    """YAML file of settings."""
    source: Source = Source()
    shortcuts: Shortcuts = Shortcuts()
    settings: Annotated[RunSettings, Parameter(name="*")] = RunSettings()  # noqa: RUF009

    def do(self, name: str | None, *steps: StepName) -> None:
        """Do some steps of a pair's run, and print the ladder after all six."""
        what, chosen = self.source.pair(name), self.choose(name)
        is_first = steps[0] == "collect"
        if is_first:
            check_inputs(what, chosen, steps)
        with open_run(self.folder(what), is_new=is_first) as folder:
            pipeline = Pipeline(what, chosen, folder, Reporter())
            for step in steps:
                pipeline.do(step)
            if steps == STEPS:
                print_measurement(pipeline.measurement(), chosen.measure.confidence)
                print(f"Report: {folder.step('present').path / REPORT}")

    def choose(self, name: str | None) -> RunSettings:
        """The settings in force."""
        flags: Overrides = merge(
            self.shortcuts.overrides(), self.settings.model_dump(exclude_unset=True)
        )
        file = read_config(self.config) if self.config else {}
        return make_settings(PRESETS[self.preset], self.source.pair(name).overrides, file, flags)

    def measurement(self, name: str | None) -> Measurement:
        """The finished measurement."""
        what = self.source.pair(name)
        with open_run(self.folder(what), is_new=False) as folder:
            return Pipeline(what, self.choose(name), folder, Reporter()).measurement()

    def folder(self, what: Pair) -> Path:
        """The run folder."""
        return self.out or Path("runs") / what.name


def _make_command(*steps: StepName) -> Callable[..., None]:
    def command(pair: str | None = None, /, *, run: Run = Run()) -> None:
        run.do(pair, *steps)

    return command


@app.command
def discover(
    pair: str | None = None,
    /,
    *,
    report: bool = False,
    run: Run = Run(),
) -> None:
    """Step 2: find categories of sentences without supervision.

    Parameters
    ----------
    pair:
        A pair of `howwhen zoo list`.
    report:
        Say where the page about the taxonomy is: the grid, the categories, what leads to what.
    run:
        Where the run is, and its settings.
    """
    run.do(pair, "discover")
    if report:
        folder = RunFolder(run.folder(run.source.pair(pair)))
        print(f"Page: {folder.step('discover').path / PAGE}")


@app.command
def measure(
    pair: str | None = None,
    /,
    *,
    compare: tuple[str, str] | None = None,
    published: bool = False,
    run: Run = Run(),
) -> None:
    """Step 5: grade and compare the rungs.

    Parameters
    ----------
    pair:
        A pair of `howwhen zoo list`.
    compare:
        Two rungs of the run (or FOLDER:RUNG of others): difference, interval and McNemar's test.
    published:
        Print the paper's own figures beside this run's.
    run:
        Where the run is, and its settings.
    """
    if compare is not None:
        out = run.folder(run.source.pair(pair))
        print(compare_rungs(*compare, out, run.choose(pair).measure))
        return
    run.do(pair, "measure")
    if published:
        print_published(run.measurement(pair))


def print_published(measurement: Measurement) -> None:
    """Print the paper's own figures beside a run's hybrid."""
    table = Table("paper", "pairs", "what", "paper's", "this run's", "source")
    hybrid = measurement.rungs["hybrid"]
    for figure in read_published():
        ours = figure.beside(hybrid)
        cells = (figure.pairs, figure.what, figure.shown(), ours, figure.source)
        table.add_row(f"version {figure.version}", *cells)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def print_measurement(measurement: Measurement, confidence: float) -> None:
    """Print the ladder and its verdict on standard output."""
    table = Table(title=f"{measurement.n} problems", title_justify="left")
    ladder = ladder_table(measurement, confidence)
    for index, column in enumerate(ladder.columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in ladder.rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(table)
    console.print(verdict(measurement), soft_wrap=True)


@app.command
def chat(
    question: str | None = None,
    /,
    *,
    pair: str = "tally-rl",
    out: Path | None = None,
    rung: LadderRungName = "hybrid",
    why: bool = False,
    strength: float | None = None,
    preset: Preset = "small",
) -> None:
    """Answer a question with a live hybrid, tokens coloured by category; without one, ask for some.

    Parameters
    ----------
    question:
        A problem; read from standard input, line by line, where absent.
    pair:
        A pair of `howwhen zoo list`.
    out:
        Run folder with its vectors, `runs/PAIR` by default; the first three steps are run where it
        has none.
    rung:
        Which rung of the ladder answers.
    why:
        Show every decision: what was written instead of what, and on whose word.
    strength:
        Steer with this multiple of what the vectors add.
    preset:
        Sizes of the first three steps, where they are run.
    """
    ready = open_rung(pair, out, rung, preset)
    if strength is not None:
        ready = ready.at_strength(strength)
    console = Console(highlight=False)
    painter = Painter(ready.pair.base.tokenizer, ready.titles, ready.models.end_ids)
    for text in [question] if question else _questions(console, ready.pair):
        show(console, painter, ready.stream(text), why)


def _questions(console: Console, pair: Pair) -> Iterator[str]:
    """Lines of standard input, with an example where the pair has problems of its own."""
    if sys.stdin.isatty():
        hint = f"A question per line; end with Ctrl-D. For example: {pair.example}"
        console.print(hint, style="dim")
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


@app.command
def serve(
    *,
    pair: str = "tally-rl",
    out: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_variable: str = "HOWWHEN_KEY",
    preset: Preset = "small",
) -> None:
    """Serve every rung of a run with the OpenAI API, and a playground at the address itself.

    Parameters
    ----------
    pair:
        A pair of `howwhen zoo list`.
    out:
        Run folder with its vectors, `runs/PAIR` by default; the first three steps are run where it
        has none.
    host:
        Address to listen at; any but this machine's own needs a key.
    port:
        Port to listen at.
    key_variable:
        Environment variable that holds the key which every request must bring, if anything.
    preset:
        Sizes of the first three steps, where they are run.
    """
    key = os.environ.get(key_variable) or None
    check_packages()
    check_address(host, key, key_variable)
    ready = open_rungs(pair, out, preset)
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"{pair}: rungs {', '.join(ready.rungs)} at {place}", file=sys.stderr)
    run_server(make_service(ready), host, port, key)


@app.command
def doctor(run: Path | None = None, /) -> None:
    """Look at what this machine has for howwhen or, with a run's folder, whether that is whole.

    Ends with exit code 1 if something is broken.

    Parameters
    ----------
    run:
        A run's folder; what its steps wrote is read and held against their provenance.
    """
    findings = examine_machine() if run is None else examine_run(run)
    table = Table("what", "found", "type")
    for one in findings:
        found = f"BROKEN: {one.found}" if one.is_broken else one.found
        table.add_row(*map(escape, (one.what, found, one.advice)))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    if any(one.is_broken for one in findings):
        sys.exit(1)


@app.command
def convert(
    *paths: Path,
    out: Path,
    model: str | None = None,
    layer: int | None = None,
    titles: Path | None = None,
    mean: Path | None = None,
    to: Format = "safetensors",
) -> None:
    """Convert vectors or a taxonomy: published `.pt` files, SAELens folders, files of howwhen.

    Parameters
    ----------
    paths:
        `.pt` files or folders of them (vectors under `bias`, `idx0`, `idx1`, ..., or one SAE), one
        SAELens folder, or one `.safetensors` of howwhen.
    out:
        File to write; for GGUF and SAELens a folder.
    model:
        Model that the vectors steer, or whose residuals the SAE reads.
    layer:
        0-based block they steer or it reads; by default the one that files beside or a name tell.
    titles:
        JSON with one title per latent of an SAE: a list, or an object with `final_titles`.
    mean:
        Safetensors file with the corpus mean of an SAE's training sentences, under `mean`.
    to:
        Format to write; `gguf` takes vectors, `saelens` a taxonomy.
    """
    found = read_any(paths, FileInfo(model, layer, titles, mean))
    print("\n".join(write_any(out, found, to)))


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
        "thinking_markers",
        "step_by_step_prompt",
        "steer_layer",
        "taxonomy_layers",
        "taxonomy_sizes",
    ):
        value = getattr(pair, key)
        print(f"{key:20} {'chosen at run time' if value is None else value!r}")
    print(f"{'problems':20} {'its own' if pair.draw_problems else 'give --problems FILE.jsonl'}")
    apart = "its own, apart" if pair.draw_test_problems else "a share of the problems"
    print(f"{'test problems':20} {apart}")
    print(f"{'truth':20} {'known' if pair.truth else 'unknown'}")


@zoo.command(name="build")
def zoo_build(
    name: str, *, out: Path | None = None, seed: int = 0, hours: float = math.inf
) -> None:
    """Build weights again: `tally`, `smol` (both train, for hours) or `smollm2` (converts).

    Parameters
    ----------
    name:
        `tally`, `smol` or `smollm2`.
    out:
        Folder of what is trained, runs/zoo-NAME by default; a killed build goes on where it
        stopped.
    seed:
        Seed of the training; what comes with the package is of seed 0.
    hours:
        Stop training after this time (a round of sampling, some minutes, is ended first); the same
        command goes on from there (`smol` only).
    """
    from howwhen.zoo.smol import train as smol
    from howwhen.zoo.tally import train as tally

    folder, say = out or Path("runs") / f"zoo-{name}", Reporter().say
    if name == SMOLLM2:
        folder = smollm2_folder()
    elif name == "tally":
        tally.build(folder, tally.BuildSettings(seed=seed), say)
    elif name == "smol":
        deadline = time.monotonic() + 3600 * hours
        smol.build(folder, smol.BuildSettings(seed=seed), say, deadline)
    else:
        raise SettingsError(
            f"there is nothing to build for {name!r}; expected tally, smol or {SMOLLM2}"
        )
    print(f"{name}: {folder}")


_COMMANDS: dict[str, tuple[tuple[StepName, ...], str]] = {
    "run": (STEPS, "Do all six steps and print the table."),
    "collect": (("collect",), "Step 1: let the thinking model answer problems, cut sentences."),
    "elicit": (("elicit",), "Step 3: train steering vectors in the base model."),
    "hybrid": (("hybrid",), "Step 4: decode the test problems on every rung of the ladder."),
    "present": (("present",), "Step 6: write the report."),
}
for _name, (_steps, _help) in _COMMANDS.items():
    app.command(_make_command(*_steps), name=_name, help=_help)


def main() -> None:
    """Entry point: run a command, and turn every expected error into a paragraph and code 2."""
    keep_freed_memory()
    disable_progress_bar()  # of transformers' loading; howwhen has its own
    console = Console(stderr=True, highlight=False)
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (HowwhenError, CycloptsError) as error:
        cause = error.__cause__ if isinstance(error, CycloptsError) else None
        message = explain(cause) if isinstance(cause, ValidationError) else str(error)
        console.print(f"howwhen: {' '.join(message.split())}", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("howwhen: interrupted; the same command goes on from here")
        sys.exit(130)


if __name__ == "__main__":
    main()
