"""The command line: one command per step, `run` for all six, and the zoo.

Flags are made from the settings classes. Precedence, low to high: defaults, `--preset`, what the
pair sets itself, `--config FILE.yaml`, flags. Bad input ends with one paragraph and exit code 2.
Heavy libraries are imported by the command that needs them, so help and refusals come at once.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm
from rich.table import Table

from howwhen.errors import HowwhenError, RedoError, SettingsError
from howwhen.lm.prompts import ThinkTags
from howwhen.pipeline.files import STEPS, StepName
from howwhen.pipeline.folders import RunFiles, locked
from howwhen.records import LadderRungName, Measurement
from howwhen.settings import (
    PRESETS,
    AskedRung,
    Attention,
    ConvertFormat,
    ExportFormat,
    Overrides,
    Precision,
    Preset,
    RunSettings,
    explain,
    make_settings,
    merge,
    read_config,
    read_template_arguments,
)
from howwhen.zoo.smol import SMOLLM2

if TYPE_CHECKING:
    from howwhen.measure.audit import Audit
    from howwhen.zoo.pairs import Pair

app = App(
    name="howwhen",
    help="How much of a thinking model's ability is in its base, waiting for the right moment?",
    help_format="markdown",
    default_parameter=Parameter(consume_multiple=True),
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
app.register_install_completion_command(help="Install completion for your shell.")
zoo = App(name="zoo", help="Pairs that have a name: list them, show one, build its weights.")
app.command(zoo)

RENAMED_FLAGS = {
    "--collect.cutter": "--collect.segmenter",
    "--elicit.practice-rounds": "--elicit.on-policy-rounds",
}
"""Flags of settings that had another name; the old one still works."""


@Parameter(name="*")
@dataclass(frozen=True)
class PairOptions:
    """Two models of your own, instead of a pair with a name, and how models are asked."""

    base: str | None = None
    """Base model of your own: a folder or hub id (with --thinking, instead of PAIR)."""
    thinking: str | None = None
    """Thinking model of your own: a folder or hub id. Either may be a LoRA adapter (PEFT) on the
    other's weights."""
    base_prompt: str | None = None
    """How the base is asked: `chat` (its chat template), a text with {question}, or a message of a
    chat ('chat:{question} Think step by step.'); @FILE reads it from a file. Defaults to the pair's
    own, or to `Question: {question}` and `Answer:` for --base."""
    thinking_prompt: str | None = None
    """The same for the thinking model. Defaults to the pair's own, or to `chat` for --thinking."""
    base_template: str | None = None
    """Arguments of the base's chat template: JSON such as '{"enable_thinking": false}', or
    @FILE.json."""
    thinking_template: str | None = None
    """The same for the thinking model."""
    think_tags: Annotated[
        ThinkTags | None, Parameter(name=["--think-tags", "--thinking-markers"])
    ] = None
    """The texts that open and close the thinking in the thinking model's answers. Defaults to the
    pair's own, or to <think> </think>."""

    def pair(self, name: str | None) -> "Pair":
        """The pair meant by a name or by two models."""
        from howwhen.zoo.pairs import find_pair, own_pair

        if name is not None and self.base is None and self.thinking is None:
            return self._asked(find_pair(name))
        if name is None and self.base is not None and self.thinking is not None:
            return self._asked(own_pair(self.base, self.thinking))
        raise SettingsError(
            f"found PAIR {name!r}, --base {self.base!r} and --thinking {self.thinking!r}; expected "
            "either the name of a pair (`howwhen zoo list`) or both --base and --thinking"
        )

    def _asked(self, pair: "Pair") -> "Pair":
        templates = (
            None if value is None else read_template_arguments(value)
            for value in (self.base_template, self.thinking_template)
        )
        return pair.asked(self.base_prompt, self.thinking_prompt, self.think_tags, *templates)


@Parameter(name="*")
@dataclass(frozen=True)
class PlacingOptions:
    """Where the models are put; the names are those of the settings section `models`."""

    base_device: str | None = None
    """Device of the base, such as cuda:0 or cpu. Defaults to the first GPU, or the CPU."""
    thinking_device: str | None = None
    """Device of the thinking model."""
    device_map: Literal["auto"] | None = None
    """Spread each model over all GPUs."""
    dtype: Precision | None = None
    """Precision. By default the checkpoint's own on a GPU, and float32 on a CPU."""
    attention: Attention | None = None
    """Implementation of attention."""

    def place(self, name: str) -> "Pair":
        """The pair of that name with its models put there."""
        from howwhen.zoo.pairs import find_pair

        given = {key: value for key, value in vars(self).items() if value is not None}
        return find_pair(name).placed(make_settings({"models": given}).models)


@Parameter(name="*")
@dataclass(frozen=True)
class Shortcuts:
    """Short flags for what is set most often."""

    problems: tuple[str, ...] | None = None
    """Short for --collect.problems."""
    traces: tuple[str, ...] | None = None
    """Short for --collect.traces."""
    from_run: str | None = None
    """Short for --discover.taxonomy and --elicit.vectors: take both from another run's folder, and
    train nothing."""
    limit: int | None = None
    """Short for --collect.limit."""
    max_new_tokens: int | None = None
    """Short for --collect.max-new-tokens and --hybrid.max-new-tokens."""
    rungs: tuple[AskedRung, ...] | None = None
    """Short for --hybrid.rungs."""
    knock_outs: bool | None = None
    """Short for --hybrid.knock-outs."""
    budgets: bool | None = None
    """Short for --hybrid.budgets."""
    audit: bool | None = None
    """Short for --measure.audit: read every answer twice, and show where the readers differ."""
    placing: PlacingOptions = PlacingOptions()

    def overrides(self) -> Overrides:
        """The settings they are short for."""
        tokens: Overrides = {"max_new_tokens": self.max_new_tokens}
        collect: Overrides = {
            "problems": self.problems,
            "traces": self.traces,
            "limit": self.limit,
            **tokens,
        }
        hybrid: Overrides = {
            "rungs": self.rungs,
            "knock_outs": self.knock_outs,
            "budgets": self.budgets,
            **tokens,
        }
        sections = {
            "collect": collect,
            "discover": {"taxonomy": self.from_run},
            "elicit": {"vectors": self.from_run},
            "hybrid": hybrid,
            "measure": {"audit": self.audit},
            "models": vars(self.placing),
        }
        return {
            name: {key: value for key, value in section.items() if value is not None}
            for name, section in sections.items()
        }


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """Where a run is, and its settings."""

    out: Path | None = None
    """Run folder; runs/PAIR by default."""
    preset: Preset = "small"
    """Sizes of everything that is not set otherwise."""
    config: Path | None = None
    """YAML file of settings."""
    redo: bool = False
    """Run steps again that hold work made with other settings. That work is kept aside, as
    N-STEP.replaced in the run folder, until the step is replaced once more."""
    pair_options: PairOptions = PairOptions()
    shortcuts: Shortcuts = Shortcuts()
    settings: Annotated[RunSettings, Parameter(name="*")] = RunSettings()  # noqa: RUF009

    def do(self, name: str | None, *steps: StepName) -> None:
        """Do some steps of a pair's run, and print the ladder after all six."""
        pair = self.pair(name)
        settings = self.choose(pair)
        redo = self._check(pair, settings, steps)
        from howwhen.pipeline.pipeline import Pipeline, check_inputs
        from howwhen.pipeline.store import open_run
        from howwhen.progress import Reporter

        is_first = steps[0] == "collect"
        if is_first:
            check_inputs(pair, settings, steps)
        with open_run(self.folder(pair), is_new=is_first) as folder:
            pipeline = Pipeline(pair, settings, folder, Reporter(), redo)
            for step in steps:
                pipeline.do(step)
            if steps == STEPS:
                print_measurement(pipeline.measurement(), settings.measure.confidence)
                print(f"Report: {pipeline.report}")
            if "measure" in steps and settings.measure.reads_twice:
                from howwhen.measure.audit import Audit
                from howwhen.pipeline.measure import AUDIT

                print_audit(folder.step("measure").read_record(AUDIT, Audit))

    def _check(self, pair: "Pair", settings: RunSettings, steps: Sequence[StepName]) -> bool:
        """Refuse what cannot work before anything heavy is loaded.

        Returns:
            Whether steps that hold work made with other settings may run again.
        """
        from howwhen.pipeline.plan import check_plan, check_redo, owner_of

        root, is_first, redo = self.folder(pair), steps[0] == "collect", self.redo
        if root.exists() or not is_first:
            with locked(root, is_new=is_first):
                RunFiles(root).check_owner(owner_of(pair))
                try:
                    if not redo:
                        check_redo(pair, settings, RunFiles(root), steps)
                except RedoError as error:
                    redo = _may_redo(error)
                    if not redo:
                        raise
        check_plan(pair, settings, steps)
        return redo

    def pair(self, name: str | None) -> "Pair":
        """The pair that is meant."""
        return self.pair_options.pair(name)

    def flags(self) -> dict[str, Any]:
        """The settings that were typed, by section."""
        return merge(self.shortcuts.overrides(), self.settings.model_dump(exclude_unset=True))

    def choose(self, pair: "Pair") -> RunSettings:
        """The settings in force."""
        file = read_config(self.config) if self.config else {}
        return make_settings(PRESETS[self.preset], pair.overrides, file, self.flags())

    def measurement(self, pair: "Pair") -> Measurement:
        """The finished measurement."""
        step = RunFiles(self.folder(pair)).step("measure")
        return step.read_record("measurement.json", Measurement)

    def folder(self, pair: "Pair") -> Path:
        """The run folder."""
        return self.out or Path("runs") / pair.name


def _may_redo(error: RedoError) -> bool:
    """Ask on a terminal; elsewhere nobody can answer, so it is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    console = Console(stderr=True, highlight=False)
    console.print(str(error), markup=False, soft_wrap=True)
    try:
        return Confirm.ask("Redo these steps?", default=False, console=console)
    except EOFError:
        return False


def _make_command(*steps: StepName) -> Callable[..., None]:
    def command(pair: str | None = None, /, *, run: RunOptions = RunOptions()) -> None:
        run.do(pair, *steps)

    return command


@app.command
def discover(
    pair: str | None = None,
    /,
    *,
    report: bool = False,
    run: RunOptions = RunOptions(),
) -> None:
    """Step 2: find categories of sentences without supervision.

    Parameters
    ----------
    pair:
        A pair of `howwhen zoo list`.
    report:
        Print where the page about the taxonomy is: the grid, the categories, what follows what.
    run:
        Where the run is, and its settings.
    """
    run.do(pair, "discover")
    if report:
        from howwhen.pipeline.discover import PAGE

        folder = RunFiles(run.folder(run.pair(pair)))
        print(f"Page: {folder.step('discover').path / PAGE}")


@app.command
def measure(
    pair: str | None = None,
    /,
    *,
    compare: tuple[str, str] | None = None,
    published: bool = False,
    files: tuple[Path, ...] = (),
    run: RunOptions = RunOptions(),
) -> None:
    """Step 5: grade the answers and compare the rungs.

    Parameters
    ----------
    pair:
        A pair of `howwhen zoo list`.
    compare:
        Two rungs of the run (or FOLDER:RUNG of another): difference, interval and McNemar's test.
    published:
        Print the paper's figures next to this run's.
    files:
        With --audit and no pair: JSONL files of problems, as --problems takes them (their gold
        answers are graded against themselves), or of answers of any origin (`text`, `gold`, maybe
        `question`, `role`, `dataset`, `finish`), which are read twice.
    run:
        Where the run is, and its settings.
    """
    if files:
        measure_files(files, pair, run)
        return
    if compare is not None:
        from howwhen.pipeline.compare import compare as compare_rungs
        from howwhen.pipeline.plan import owner_of

        chosen = run.pair(pair)
        RunFiles(run.folder(chosen)).check_owner(owner_of(chosen))
        print(compare_rungs(*compare, run.folder(chosen), run.choose(chosen).measure))
        return
    run.do(pair, "measure")
    if published:
        print_published(run.measurement(run.pair(pair)))


def measure_files(files: Sequence[Path], pair: str | None, run: RunOptions) -> None:
    """Print the audit of files of problems or answers."""
    given = run.flags()
    measure = given.pop("measure", {})
    is_audit, deadline = measure.pop("audit", False), measure.pop("deadline_seconds", None)
    others = [f"PAIR {pair!r}"] if pair is not None else []
    others += [f"--measure.{name.replace('_', '-')}" for name in measure]
    others += [f"settings of {name}" for name, values in given.items() if values]
    plain = RunOptions(shortcuts=run.shortcuts, settings=run.settings)
    if not is_audit or others or run != plain:
        raise SettingsError(
            f"found --files with {', '.join(others) or 'flags of a run'}; expected --audit --files "
            "FILE ... with at most --measure.deadline-seconds, and without a pair"
        )
    from howwhen.pipeline.audit import audit_files

    checked, audit = audit_files(files, deadline or run.settings.measure.deadline_seconds)
    table = Table("file", "gold answers", "right against themselves")
    for file in checked:
        right = file.golds - len(file.unequal)
        table.add_row(file.name, f"{file.golds:,}", f"{right / max(1, file.golds):.1%}")
    _print_table(table)
    for file in checked:
        if file.unequal:
            print(f"{file.name}: not right against themselves: {', '.join(file.unequal[:10])}")
    if audit.rungs:
        print_audit(audit)


def print_audit(audit: "Audit") -> None:
    """Print what two readers make of the answers."""
    from howwhen.present.audit import AUDIT_TEXT, audit_table, disputed_table, golds_text

    print(f"{AUDIT_TEXT}\n{golds_text(audit)}")
    for found, is_long in ((audit_table(audit), False), (disputed_table(audit), True)):
        if not found.rows:
            continue
        table = Table(show_lines=is_long)
        for column in found.columns:
            table.add_column(column, overflow="fold")
        for row in found.rows:
            table.add_row(*map(escape, row))
        _print_table(table)


def print_published(measurement: Measurement) -> None:
    """Print the paper's figures next to those of a run's hybrid."""
    from howwhen.measure.published import read_published
    from howwhen.present.tables import published_table

    ours = published_table(measurement)
    table = Table(*ours.columns)
    for row in ours.rows:
        table.add_row(*row)
    _print_table(table)
    table = Table("paper", "pairs", "what", "paper's", "this run's", "source")
    hybrid = measurement.rungs["hybrid"]
    for figure in read_published():
        cells = (figure.pairs, figure.what, figure.shown(), figure.measured(hybrid), figure.source)
        table.add_row(f"version {figure.version}", *cells)
    _print_table(table)


def print_measurement(measurement: Measurement, confidence: float) -> None:
    """Print the ladder and its verdict on standard output."""
    from howwhen.present.tables import ladder_table
    from howwhen.present.texts import left_out_text
    from howwhen.present.verdict import verdict

    table = Table(title=f"{measurement.n} problems", title_justify="left")
    ladder = ladder_table(measurement, confidence)
    for index, column in enumerate(ladder.columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in ladder.rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    console.print(verdict(measurement), soft_wrap=True)
    if left_out := left_out_text(measurement):
        console.print(left_out, soft_wrap=True)


def _print_table(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


@app.command
def chat(
    question: str | None = None,
    /,
    *,
    pair: str = "tally-rl",
    out: Path | None = None,
    rung: LadderRungName = "hybrid",
    why: bool = False,
    strength: Annotated[float | None, Parameter(name=["--strength", "--coefficient"])] = None,
    preset: Preset = "small",
    placing: PlacingOptions = PlacingOptions(),
) -> None:
    """Answer a question with a live hybrid, tokens coloured by category.

    Parameters
    ----------
    question:
        A problem. Without one, problems are read from standard input, one a line.
    pair:
        A pair of `howwhen zoo list`.
    out:
        Run folder with its vectors, `runs/PAIR` by default; the first three steps are run if it has
        none.
    rung:
        Which rung of the ladder answers.
    why:
        Show every disagreement: what each model wanted, what was written, and why.
    strength:
        Coefficient (alpha): multiply what the vectors add by this.
    preset:
        Sizes of the first three steps, if they are run.
    placing:
        Where the models are put.
    """
    _check_live(pair, out)
    from howwhen.pipeline.live import open_rung
    from howwhen.present.terminal import Painter, show

    loaded = open_rung(placing.place(pair), out, rung, preset)
    if strength is not None:
        loaded = loaded.at_strength(strength)
    console = Console(highlight=False)
    painter = Painter(loaded.pair.tokenizer, loaded.titles, loaded.models.end_ids)
    for text in [question] if question else _questions(console, loaded.pair):
        show(console, painter, loaded.stream(text), why)


def _check_live(pair_name: str, out: Path | None) -> None:
    """Refuse an unknown pair, or a run folder of another one, before anything heavy is loaded."""
    from howwhen.pipeline.plan import owner_of
    from howwhen.zoo.pairs import find_pair

    pair = find_pair(pair_name)
    RunFiles(out or Path("runs") / pair.name).check_owner(owner_of(pair))


def _questions(console: Console, pair: "Pair") -> Iterator[str]:
    """Lines of standard input, with an example if the pair has problems of its own."""
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
    placing: PlacingOptions = PlacingOptions(),
) -> None:
    """Serve every rung of a run with the OpenAI API, and a playground at the address itself.

    Parameters
    ----------
    pair:
        A pair of `howwhen zoo list`.
    out:
        Run folder with its vectors, `runs/PAIR` by default; the first three steps are run if it has
        none.
    host:
        Address to listen at. Any but this machine's own needs a key.
    port:
        Port to listen at.
    key_variable:
        Environment variable that holds the key that every request must bring, if it is set.
    preset:
        Sizes of the first three steps, if they are run.
    placing:
        Where the models are put.
    """
    from howwhen.serve.launch import check_address, check_packages, make_service, run_server

    key = os.environ.get(key_variable) or None
    check_packages()
    check_address(host, key, key_variable)
    _check_live(pair, out)
    from howwhen.pipeline.live import open_rungs

    loaded = open_rungs(placing.place(pair), out, preset)
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"{pair}: rungs {', '.join(loaded.rungs)} at {place}", file=sys.stderr)
    run_server(make_service(loaded), host, port, key)


@app.command
def export(run: Path, /, *, to: ExportFormat = "parquet", out: Path | None = None) -> None:
    """Write a run's tokens, disagreements, sentences, grades and ladder as tables.

    Parameters
    ----------
    run:
        A run's folder.
    to:
        `parquet`, `arrow` (Arrow's file format, also called Feather) or `csv`.
    out:
        Folder to write, RUN/tables by default.
    """
    from howwhen.pipeline.export import export_run

    print("\n".join(map(str, export_run(run, to, out))))


@app.command
def doctor(
    run: Path | None = None,
    /,
    *,
    load: bool = False,
    pair: str | None = None,
    placing: PlacingOptions = PlacingOptions(),
) -> None:
    """Look at what this machine has for howwhen or, given a run's folder, whether that is whole.

    Ends with exit code 1 if something is broken.

    Parameters
    ----------
    run:
        A run's folder. What its steps wrote is read and compared with their provenance.
    load:
        Also load the embedded pairs, and check that they align and can be steered.
    pair:
        Also say what the models of this pair take in memory. Their files are fetched if needed.
    placing:
        Where the models of the pair would be put.
    """
    from howwhen.pipeline.doctor import examine_machine, examine_run
    from howwhen.pipeline.hardware import examine_need

    findings = examine_machine(load) if run is None else examine_run(run)
    if pair is not None:
        findings += examine_need(placing.place(pair))
    table = Table("what", "found", "type")
    for finding in findings:
        shown = f"BROKEN: {finding.found}" if finding.is_broken else finding.found
        table.add_row(*map(escape, (finding.what, shown, finding.advice)))
    _print_table(table)
    if any(finding.is_broken for finding in findings):
        sys.exit(1)


@app.command
def convert(
    *paths: Path,
    out: Path,
    model: str | None = None,
    layer: int | None = None,
    titles: Path | None = None,
    mean: Path | None = None,
    to: ConvertFormat = "safetensors",
    pair: str | None = None,
) -> None:
    """Convert vectors or a taxonomy: published `.pt` files, SAELens folders, files of howwhen.

    Parameters
    ----------
    paths:
        `.pt` files or folders of them (vectors under `bias`, `idx0`, `idx1`, ..., or one SAE), one
        SAELens folder, or one `.safetensors` of howwhen. With `--to run` an SAE and its vectors;
        with `--to published` the folder of a run.
    out:
        File to write; for all other formats than safetensors a folder.
    model:
        Model that the vectors steer, or whose residuals the SAE reads.
    layer:
        0-based block they steer or it reads. By default it is read from the files next to them, or
        from a file's name.
    titles:
        JSON with one title per latent of an SAE: a list, or an object with `final_titles`.
    mean:
        Safetensors file with the corpus mean of an SAE's training sentences, under `mean`.
    to:
        Format to write; `gguf` takes vectors, `saelens` a taxonomy. `run` makes a folder that
        `howwhen run PAIR --from-run FOLDER --elicit.method span` decodes with at once, `published`
        the `.pt` files of the paper's first version.
    pair:
        With `--to run`: the pair of `howwhen zoo list` that SAE and vectors are of.
    """
    from howwhen.formats.convert import FileInfo, read_any, write_any

    info = FileInfo(model, layer, titles, mean)
    if to not in ("run", "published") and pair is None:
        print("\n".join(write_any(out, read_any(paths, info), to)))
        return
    from howwhen.pipeline.bundles import convert_bundle
    from howwhen.zoo.pairs import find_pair

    found = None if pair is None else find_pair(pair)
    names = None if found is None else (found.base_source, found.thinking_source)
    print("\n".join(convert_bundle(paths, out, info, to, names)))


@zoo.command(name="list")
def zoo_list() -> None:
    """List every pair that has a name."""
    from howwhen.zoo.pairs import list_pairs

    table = Table("pair", "base", "thinking model", "what it is")
    for pair in list_pairs():
        table.add_row(pair.name, pair.base_source, pair.thinking_source, pair.summary)
    _print_table(table)


@zoo.command(name="show")
def zoo_show(name: str) -> None:
    """Show everything known about one pair.

    Parameters
    ----------
    name:
        A pair of `howwhen zoo list`.
    """
    from howwhen.zoo.pairs import find_pair

    pair = find_pair(name)
    for key in (
        "name",
        "summary",
        "base_source",
        "base_prompt",
        "thinking_source",
        "thinking_prompt",
        "base_template",
        "thinking_template",
        "think_tags",
        "step_by_step_prompt",
        "steer_layer",
        "taxonomy_layers",
        "taxonomy_sizes",
        "gate",
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
    """Build weights again: `tally`, `tally-which`, `tally-small`, `smol` (they train) or `smollm2`.

    Parameters
    ----------
    name:
        `tally` (an hour), `tally-which`, `tally-small`, `smol` (a night) or `smollm2` (converts).
    out:
        Folder of what is trained, runs/zoo-NAME by default. A killed build resumes.
    seed:
        Seed of the training. The weights in the package are of seed 0.
    hours:
        Stop training after this time. The round of sampling that is under way, some minutes, is
        finished first. The same command resumes the training.
    """
    names = ("tally", "tally-which", "tally-small", "smol", SMOLLM2)
    if name not in names:
        raise SettingsError(
            f"there is nothing to build for {name!r}; expected one of {', '.join(names)}"
        )
    from howwhen.progress import Reporter

    folder, say = out or Path("runs") / f"zoo-{name}", Reporter().say
    deadline = time.monotonic() + 3600 * hours
    if name == SMOLLM2:
        from howwhen.zoo.smol.weights import smollm2_folder

        folder = smollm2_folder()
    elif name.startswith("tally"):
        from howwhen.zoo.tally import train as tally

        organisms = {"tally": tally.TALLY, "tally-which": tally.WHICH, "tally-small": tally.SMALL}
        organism = organisms[name]
        settings = tally.BuildSettings(seed=seed, **organism.sizes)
        tally.build(folder, settings, say, deadline, organism)
    else:
        from howwhen.zoo.smol import train as smol

        smol.build(folder, smol.BuildSettings(seed=seed), say, deadline)
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
    """Entry point: run a command. Every expected error becomes a paragraph and exit code 2."""
    console = Console(stderr=True, highlight=False)
    try:
        app(_with_new_flags(sys.argv[1:]), exit_on_error=False, print_error=False)
    except (HowwhenError, CycloptsError) as error:
        cause = error.__cause__ if isinstance(error, CycloptsError) else None
        message = explain(cause) if isinstance(cause, ValidationError) else str(error)
        console.print(f"howwhen: {' '.join(message.split())}", markup=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        reason = error.strerror or error
        console.print(f"howwhen: cannot use{place}: {reason}", markup=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        console.print(f"howwhen: {_too_little_memory(error)}", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("howwhen: interrupted; the same command resumes from here")
        sys.exit(130)


def _too_little_memory(error: Exception) -> str:
    """What to do when a GPU's memory is full. The class is torch's, which is not imported here."""
    reason = str(error).partition(". ")[0]
    return (
        f"{reason}. What is finished is kept, and the same command resumes from here. Lower the "
        "budgets of the step: --collect.batch-size, --discover.batch-tokens, "
        "--elicit.positions-per-pass, --elicit.activations-gib, --elicit.logits-gib, "
        "--hybrid.batch-size. `howwhen doctor --pair PAIR` says what a pair takes"
    )


def _with_new_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments, with flags that were renamed under their new names."""
    renamed = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        renamed.append(f"{RENAMED_FLAGS.get(flag, flag)}{equals}{value}")
    return renamed


if __name__ == "__main__":
    main()
