"""Step 1: the thinking model answers, or answers already written are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from howwhen.collect.rollouts import collect_rollouts, trace_rollout
from howwhen.collect.segmenters import find_segmenter
from howwhen.collect.traces import Trace, Traces
from howwhen.lm.generate import greedy_warning
from howwhen.lm.models import LanguageModel
from howwhen.pipeline.context import Run
from howwhen.pipeline.given import refuse_trained
from howwhen.pipeline.problems import NO_TEST, draw_split, read_written
from howwhen.pipeline.store import StepFolder
from howwhen.records import Finish, Problem, Rollout, Split


@dataclass(frozen=True)
class TraceCounts:
    """What became of the rows of the trace files."""

    rows: int
    kept: int
    passed_over_by_role: Mapping[str, int]
    """Rows of another role than the thinking model's."""
    beyond_limit: int
    truncated: int
    """Kept answers that were cut off."""


@dataclass(frozen=True)
class CollectCounts:
    """What the step notes about its work."""

    problems: Mapping[Split, int]
    rollouts: int
    rollouts_stopped: int
    """Rollouts that ended by themselves."""
    tokens: int
    sentences: int
    traces: TraceCounts | None
    """None where the thinking model was asked."""


def collect(run: Run, step: StepFolder) -> CollectCounts:
    """The thinking model answers all problems but those for tests, or its answers are read."""
    settings = run.settings.collect
    traces = read_written(settings)
    written = {trace.problem.id: trace for trace in traces.kept} if traces else {}
    if traces:
        run.reporter.say(
            f"  traces: {len(traces.kept)} of {traces.rows} rows; {traces.passed_over.total()} "
            f"have another role, {traces.beyond_limit} are beyond --limit"
        )
    problems = draw_split(run.pair, run.settings)
    refuse_trained(run.settings, problems)
    if not any(problem.split is Split.TEST for problem in problems):
        run.reporter.say(f"  WARNING: {NO_TEST}")
    if not written and settings.temperature == 0 and run.settings.trains:
        warn_if_greedy(run, run.pair.thinking_outline, "--collect.temperature model")
    step.write_records("problems.jsonl", problems)
    wanted = [problem for problem in problems if problem.split is not Split.TEST]
    with run.reporter.task("rollouts", len(wanted)) as advance:
        rollouts = step.grow_records(
            "rollouts.jsonl",
            Rollout,
            wanted,
            settings.batch_size,
            partial(_answer, run, written),
            advance,
        )
    return CollectCounts(
        problems={split: sum(problem.split is split for problem in problems) for split in Split},
        rollouts=len(rollouts),
        rollouts_stopped=sum(rollout.finish is Finish.STOP for rollout in rollouts),
        tokens=sum(len(rollout.ids) for rollout in rollouts),
        sentences=sum(len(rollout.spans) for rollout in rollouts),
        traces=None if traces is None else _count(traces, rollouts),
    )


def warn_if_greedy(run: Run, model: LanguageModel, flag: str) -> None:
    """Say so where a model that is made to be sampled from is decoded greedily."""
    if warning := greedy_warning(model, flag):
        run.reporter.say(f"  WARNING: {warning}")


def _answer(run: Run, written: Mapping[str, Trace], batch: Sequence[Problem]) -> list[Rollout]:
    """The rollouts of one batch of problems, from the thinking model or from the trace files."""
    settings = run.settings.collect
    if not written:
        return collect_rollouts(run.pair.thinking, batch, settings)
    segmenter = find_segmenter(settings)
    outline = run.pair.thinking_outline
    return [trace_rollout(outline, written[problem.id], segmenter) for problem in batch]


def _count(traces: Traces, rollouts: Sequence[Rollout]) -> TraceCounts:
    return TraceCounts(
        rows=traces.rows,
        kept=len(traces.kept),
        passed_over_by_role=traces.passed_over,
        beyond_limit=traces.beyond_limit,
        truncated=sum(rollout.finish is Finish.LENGTH for rollout in rollouts),
    )
