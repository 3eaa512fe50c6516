"""Step 4: the hybrid, and a custom rung: steer only where the base is unsure."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from howwhen import Grade, Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.hybrid.choice import Base, Steer, Thinking
from howwhen.hybrid.context import DecisionContext
from howwhen.hybrid.decoder import decode
from howwhen.measure.grade import grade_answers
from howwhen.settings import PRESETS, read_config
from howwhen.zoo.tally import tally_problems

SETTINGS = Path(__file__).with_name("settings.yaml")


@dataclass(frozen=True)
class WhereUnsure(Steer):
    """The hybrid, but only where the base's two likeliest tokens are close."""

    margin: float = 1.0
    """Difference of their log-probabilities, in nats."""

    def choose_where(self, context: DecisionContext) -> Bool[Tensor, " n"]:
        """Disagreements at which the base hardly prefers its own token."""
        best = context.base.scores.topk(2, dim=1).values
        return context.is_decision & (best[:, 0] - best[:, 1] < self.margin)


def main() -> None:
    """Answer sixty new problems on five rungs."""
    pair = find_pair("tally-rl")
    settings = make_settings(PRESETS["smoke"], pair.overrides, read_config(SETTINGS))
    with open_run(Path("runs/examples")) as folder:
        pipeline = Pipeline(pair, settings, folder, Reporter())
        for step in ("collect", "discover", "elicit"):  # kept from one example to the next
            pipeline.do(step)
        elicited = folder.step("elicit")
        gate = elicited.read_gate("gate.safetensors")
        vectors = elicited.read_vectors("vectors.safetensors")

    problems, models = tally_problems(60, seed=123), pair.models()
    rungs = {
        "base": Base(),
        "hybrid where unsure by 0.5 nats": WhereUnsure(gate, vectors, margin=0.5),
        "hybrid where unsure by 2 nats": WhereUnsure(gate, vectors, margin=2.0),
        "hybrid": Steer(gate, vectors),
        "thinking": Thinking(),
    }
    for name, rung in rungs.items():
        traces = decode(models, problems, rung, settings.hybrid)
        answers = [(t.text, p.answer, p.dataset) for t, p in zip(traces, problems, strict=True)]
        right = sum(grade is Grade.CORRECT for grade in grade_answers(answers))
        steered = sum(token.category is not None for trace in traces for token in trace.tokens)
        tokens = sum(len(trace.tokens) for trace in traces)
        print(f"{name:33} {right} of 60 right, {steered} of {tokens} tokens steered")


if __name__ == "__main__":
    main()
