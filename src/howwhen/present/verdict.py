"""What explains a recovery: when, which or what, as far as the controls can tell.

A control is *as good* as the hybrid if the interval of their paired difference lies above minus a
tenth of the gap (it is not inferior), else *below* it if the interval lies below 0, and otherwise
one *cannot tell*.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from howwhen.present.tables import interval_text
from howwhen.records import Flips, Gains, Interval, Measurement, RungMeasurement, RungName

MARGIN = 0.1
"""Share of the gap by which a control that is as good as the hybrid may be worse."""
LITTLE = 0.2
"""A recovery whose interval lies below this share is little or nothing."""
ENOUGH = 0.8
"""A recovery of this share is called enough."""
Cause = Literal["no gap", "nothing", "part", "when", "which", "cannot tell"]
"""What explains the recovery: nothing is recovered by steering; a part, by any vectors; the moment
is enough; the category is needed as well; the controls do not decide."""
Standing = Literal["below", "as good", "cannot tell", "not run"]


@dataclass(frozen=True)
class Explanation:
    """The cause, and the sentences that reason for it."""

    cause: Cause
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """In one paragraph."""
        return " ".join(self.sentences)


def explain(measurement: Measurement) -> Explanation:
    """Reason from the controls to what the base lacks on this pair."""
    hybrid = measurement.rungs["hybrid"]
    interval = hybrid.gap_recovered_ci
    if interval is None or measurement.gap <= 0:
        return Explanation("no gap", ())
    if interval.high < LITTLE:
        return Explanation("nothing", tuple(_nothing(measurement, hybrid)))
    if interval.low <= 0:
        said = f"Whether steering recovers anything cannot be told ({_share(hybrid)})."
        return Explanation("cannot tell", (said,))
    cause = _cause(measurement)
    return Explanation(cause, tuple(_sentences(measurement, cause)))


def _cause(measurement: Measurement) -> Cause:
    """Of a recovery that is above 0."""
    shared = standing(measurement, "shared-vector")
    if shared == "below" and standing(measurement, "random-category") != "as good":
        return "which"
    if shared != "as good" or standing(measurement, "random-positions") == "as good":
        return "cannot tell"
    recovered = measurement.rungs["shared-vector"].gap_recovered or 0.0
    return "when" if recovered >= ENOUGH else "part"


def standing(measurement: Measurement, name: RungName) -> Standing:
    """How a control compares with the hybrid."""
    rung = measurement.rungs.get(name)
    if rung is None or rung.against_hybrid is None:
        return "not run"
    low, high = rung.against_hybrid.difference_ci
    if low > -MARGIN * abs(measurement.gap):
        return "as good"
    return "below" if high < 0 else "cannot tell"


def _nothing(measurement: Measurement, hybrid: RungMeasurement) -> Iterator[str]:
    yield (
        f"Steering recovers little or nothing ({_share(hybrid)}): these vectors do not bring the "
        "base to do what the thinking model does, even at the right moments."
    )
    guardrail = measurement.rungs.get("guardrail-only")
    if guardrail is not None and guardrail.gap_recovered_ci is not None:
        if guardrail.gap_recovered_ci.low > LITTLE:
            yield (
                "Its tokens are among the base's likeliest ones, however: there the thinking "
                f"model's pick recovers {_share(guardrail)}."
            )
        elif guardrail.gap_recovered_ci.high < 0.5:
            yield (
                "Nor are its tokens among the base's likeliest ones: there the thinking model's "
                f"pick recovers {_share(guardrail)}. *How* is missing, not only *when*."
            )


def _sentences(measurement: Measurement, cause: Cause) -> Iterator[str]:
    rungs = measurement.rungs
    if cause == "when":
        yield (
            "*When* is enough: one vector for all categories, at the same moments, does as well "
            f"({_share(rungs['shared-vector'])})."
        )
    elif cause == "which":
        yield (
            "*Which* is needed: one vector for all categories, at the same moments, recovers only "
            f"{_share(rungs['shared-vector'])}."
        )
    elif cause == "part":
        yield (
            "These vectors do a part only, one for all categories "
            f"({_share(rungs['shared-vector'])}) as much as one for each. Either *how* is missing, "
            "or the gate does not tell apart what is due."
        )
    elif standing(measurement, "shared-vector") == "below":
        yield (
            "Categories drawn at random do as well as the gate's "
            f"({_share(rungs['random-category'])}): what several vectors add is not the category."
        )
    elif standing(measurement, "shared-vector") == "cannot tell":
        yield (
            "Whether the category is needed cannot be told: the interval of one vector for all "
            f"categories ({_share(rungs['shared-vector'])}) reaches from worse to as good."
        )
    yield from _control(
        measurement,
        "random-positions",
        "The moment matters: the same vectors at random places recover {share}.",
        "The moment does not matter: the same vectors at random places do as well ({share}).",
        "Whether the moment matters cannot be told (random places: {share}).",
    )
    yield from _control(
        measurement,
        "random-vectors",
        "The direction matters: random ones of the same norms recover {share}.",
        "The direction does not matter: random ones of the same norms do as well ({share}).",
        "Whether the direction matters cannot be told (random ones: {share}).",
    )
    yield from _control(
        measurement,
        "guardrail-only",
        "Vectors do more than the thinking model's pick among the base's likeliest tokens "
        "({share}).",
        "No vector is needed if the thinking model says *what*: its pick among the base's "
        "likeliest tokens recovers {share}.",
        "",
    )
    yield from _control(
        measurement,
        "self-gate",
        "The base alone does not know well enough when, or which, as far as a probe can read it "
        "({share}).",
        "The thinking model need not run: a probe on the base alone recovers {share}.",
        "",
    )


def _control(
    measurement: Measurement, name: RungName, below: str, as_good: str, open_: str
) -> Iterator[str]:
    texts: dict[Standing, str] = {"below": below, "as good": as_good, "cannot tell": open_}
    if text := texts.get(standing(measurement, name), ""):
        yield text.format(share=_share(measurement.rungs[name]))


def _share(rung: RungMeasurement) -> str:
    """A recovered share with its interval."""
    interval = rung.gap_recovered_ci or Interval(0.0, 0.0)
    low, high = round(100 * interval.low), round(100 * interval.high)
    return f"{rung.gap_recovered or 0.0:.0%}, {low} to {high} %"


def verdict(measurement: Measurement) -> str:
    """The answer, what explains it as far as the controls can tell, and how problems change."""
    hybrid = measurement.rungs["hybrid"]
    if hybrid.gap_recovered is None:
        return (
            f"No gap to recover: thinking minus base is {measurement.gap:+.1%} with interval "
            f"{interval_text(measurement.gap_ci)}, which contains 0 (n = {measurement.n})."
        )
    comparisons = gains_text(hybrid.gains) + flips_text(hybrid.flips) + ties_text(hybrid)
    reasons = "".join(f" {one}" for one in explain(measurement).sentences).replace("*", "")
    return (
        f"The hybrid recovers {hybrid.gap_recovered:.0%} of a gap of {measurement.gap:.1%} "
        f"(interval {interval_text(hybrid.gap_recovered_ci)}) with {hybrid.steered_fraction:.1%} "
        f"of tokens steered (n = {measurement.n}).{reasons}{comparisons}"
    )


def gains_text(gains: Gains | None) -> str:
    """Whether the hybrid is right where the thinking model is; empty where that is unknown."""
    if gains is None:
        return ""
    others = "" if gains.elsewhere is None else f", of the others {gains.elsewhere:.0%}"
    return (
        f" Of the {gains.problems} problems that the thinking model gets right and the base does "
        f"not, the hybrid gets {gains.shared:.0%}{others}."
    )


def flips_text(flips: Flips | None) -> str:
    """How the hybrid changes single problems of the base; empty where that is unknown."""
    if flips is None:
        return ""
    return (
        f" Against the base it turns {flips.gained} problems from wrong to right and {flips.lost} "
        "from right to wrong."
    )


def ties_text(rung: RungMeasurement) -> str:
    """How many disagreements may be none; empty if there is no such one."""
    if not rung.tie_fraction:
        return ""
    share = rung.tie_fraction / rung.steered_fraction
    return (
        f" At {share:.1%} of the steered tokens one of the models was undecided: its first two "
        "choices were closer than the rounding of its numbers (ties)."
    )
