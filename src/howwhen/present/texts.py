"""The words of the report: what its numbers mean and what each rung is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from howwhen.judge.endpoint import usage_line
from howwhen.records import LADDER, Concentration, Measurement, RungName

if TYPE_CHECKING:
    from howwhen.measure.judge import JudgeReport

LADDER_TEXT = (
    "A rung is a condition: the hybrid, a control or a ceiling. Gap recovered (recovery) is "
    "(rung - base) / (thinking - base), signed; its intervals are paired bootstraps over problems. "
    "Steered (the budget): tokens at which the rung intervened. Changed: tokens that differ from "
    "the unsteered base's token at that position. Bits: what the thinking model tells per answer."
)
BITS_TEXT = (
    "What the thinking model tells the base, in bits per answer: the length of a code for when the "
    "rung intervenes, which category it steers with, and what token is written where the "
    "thinking model chooses it. The code is that of a coder who sees only the base (its next-token "
    "distribution, and its residual through the self-gate's probe), fitted on answers to other "
    "problems. It is an upper bound: a better coder needs fewer bits, and few answers to learn "
    "from cost more. Tokens are coded at interventions or all along, whichever is shorter. What "
    "random rungs and thresholds take from the hybrid's run (how many places) is not counted. "
    "Numbers fitted: vectors, coefficient network, gate and probe, and their share of the base's "
    "parameters."
)
BUDGET_TEXT = (
    "Rungs that intervene only where it matters most: hybrid and takeover at disagreements where "
    "the Jensen-Shannon divergence of the two next-token distributions reaches the threshold (in "
    "bits, 0 to 1), the self-gate where its log-odds do. The threshold is made for a share of the "
    "full rung's interventions; since the text changes, the share of the tokens that are steered "
    "in the end may be another."
)
PUBLISHED_TEXT = (
    "The paper's code reckons a gap as max(0, (rung - min(base, thinking)) / |thinking - base|), "
    "which hides losses, has no upper limit, and is printed whatever the interval of the gap. Its "
    "first version gives the steered share as a mean over answers, so that short answers weigh as "
    "much as long ones; *steered* is over all tokens."
)
COST_TEXT = (
    "The least number of tokens per answer that each model has to read, without the prompt. "
    "Drafted blocks that are rejected cost more tokens, but save forward passes. Work is "
    "parameters times tokens read; a steered pass only runs the blocks above the steered one."
)
RUNG_NOTES: Mapping[RungName, str] = {
    "base": "the base model alone",
    "base-step-by-step": "the base model alone, prompted to think step by step",
    "guardrail-only": "the base's top tokens (5 by default) reranked by the thinking model at each "
    "disagreement, no vectors",
    "logit-difference": "no vectors: a share (half by default) of the difference between the two "
    "models' logits is added to the base's at each disagreement",
    "bias-only": "one trained bias vector, without categories",
    "shared-vector": "one trained vector for all categories, K = 1",
    "magnitude-only": "the mean direction of the hybrid's vectors, at their norms and coefficients",
    "random-category": "the hybrid's vectors, category drawn at random",
    "random-positions": "the hybrid's vectors, at random positions: as many per answer as the "
    "hybrid steers, starts of sentences for starts of sentences",
    "random-positions-anywhere": "the same, at positions of any kind",
    "random-vectors": "random vectors with the hybrid's norms",
    "entropy-gate": "the hybrid's vectors where the base is unsure: its entropy is above a "
    "threshold that steers as often as the hybrid; the thinking model names the category",
    "early-only": "the hybrid at the first half of its disagreements in each answer",
    "hybrid": "the base, steered with the category's vector at each disagreement",
    "self-gate": "probe gate: a probe on the base's residual stream decides when and with which "
    "category to steer, without the thinking model",
    "reverse-takeover": "the thinking model, with the base's own token at its first disagreements, "
    "as many as the hybrid steers",
    "takeover": "one-token takeover: the thinking model's own token at each disagreement",
    "thinking": "the thinking model alone",
    "random-guardrail": "the hybrid's candidates, one taken at random",
    "base-guardrail": "the hybrid's candidates, picked by the base instead of the thinking model",
    "random-unit-vectors": "random vectors of norm 1 on top of the bias vector, as in the paper's "
    "first version",
    "random-category-not-top-3": "the hybrid's vectors, category drawn at random outside the three "
    "that the gate scores highest",
    "least-similar-category": "the vector with the lowest cosine to the category's own",
    "random-vectors-and-category": "random vectors with the hybrid's norms, category drawn at "
    'random ("MLP only" of the paper)',
    "random-positions-at-rate": "the hybrid's vectors, at every token with the hybrid's rate as "
    "probability",
}
"""What each rung is, in the terms of the literature."""
READING_TEXT = (
    "What the flexible mode read, by rule: the share of each rung's answers. An answer loops if it "
    "ends in the same words four times and for 200 characters. Shares that differ much between "
    "base, hybrid and thinking model mean that their accuracies are not read alike."
)
KNOCK_OUT_TEXT = (
    "The gap recovered by the hybrid without one category, the loss against the full hybrid, and "
    "the gap recovered with that category alone."
)


def rungs_text(measurement: Measurement) -> str:
    """What each rung of this run is."""
    notes = [f"`{name}`: {RUNG_NOTES[name]}" for name in measurement.rungs if name in RUNG_NOTES]
    return f"{'. '.join(notes)}. {left_out_text(measurement)}".rstrip()


def left_out_text(measurement: Measurement) -> str:
    """Which rungs were not run; empty if none was left out."""
    own = ("base-step-by-step", "bias-only")  # not every pair or method has them
    missing = [name for name in LADDER if name not in (*measurement.rungs, *own)]
    return f"Left out: {', '.join(missing)} (--rungs all)." if missing else ""


def grading_text(measurement: Measurement) -> str:
    """What the grading modes and the columns mean."""
    return (
        f"Accuracies above are by the {measurement.mode} mode. `strict` takes only an answer that "
        "is marked as one (boxed, after `####`, or a short `the answer is`); `flexible` also reads "
        "the concluding sentence. Answers that cannot be read are counted separately, not as "
        "wrong. Gains shared: a rung's accuracy on the problems that the thinking model gets right "
        "and the base does not. Right elsewhere: its accuracy on all others, as a rung can get as "
        "many right without getting the same ones. Wrong to right and right to wrong (flips) count "
        "the problems on which it differs from the base, net the first minus the second. The last "
        "three columns compare each rung with the hybrid on the same problems (McNemar's exact "
        "test)."
    )


def concentration_text(concentration: Concentration) -> str:
    """How concentrated the models' difference is, and what the tables under it show."""
    return (
        f"Jensen-Shannon divergence of the two next-token distributions in the answers of "
        f"`{concentration.rung}`, per token: {concentration.mean:.3f} bits on average over "
        f"{concentration.tokens:,} tokens, Gini index {concentration.gini:.2f}. Words are the "
        "tokens that the thinking model wants at disagreements, against what it wants elsewhere. "
        "Categories are those that the hybrid steers with, against those of the thinking model's "
        "sentences."
    )


def sample_text(measurement: Measurement) -> str:
    """What accuracy means if answers are sampled."""
    samples = next(rung.samples for rung in measurement.rungs.values() if rung.pass_at_k)
    return (
        f"{samples} samples per problem. The accuracy is mean@{samples}; pass@k is the probability "
        "that at least one of k samples is right:"
    )


def judge_text(judge: "JudgeReport") -> str:
    """Who judged, and how many replies could not be read."""
    used = usage_line(judge.model, judge.usage)
    where = ""
    if judge.disputed is not None:
        raw = judge.disputed.raw
        share = "" if raw is None else f" (on {raw:.0%} of the disputed ones)"
        where = f", on a random sample of {judge.sample}{share}"
    return (
        f"Majority of {judge.repeats} verdicts of the {used}; {judge.unparsable} "
        "replies could not be parsed. Agreement of the grading rules and the judge on correct "
        f"answers{where}:"
    )
