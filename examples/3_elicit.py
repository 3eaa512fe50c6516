"""Step 3: a steering vector per category, trained where the two models disagree."""

from pathlib import Path

from torch.nn.functional import cosine_similarity

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.elicit.decisions import find_decisions
from howwhen.elicit.states import PrefixCache
from howwhen.elicit.training import new_vectors, split_examples, train_vectors
from howwhen.settings import PRESETS, read_config

SETTINGS = Path(__file__).with_name("settings.yaml")


def main() -> None:
    """Train vectors for the taxonomy of a small run, and print their cosines."""
    pair = find_pair("tally-rl")
    settings = make_settings(PRESETS["smoke"], pair.overrides, read_config(SETTINGS))
    with open_run(Path("runs/examples")) as folder:
        pipeline = Pipeline(pair, settings, folder, Reporter())
        pipeline.do("collect")  # kept from one example to the next
        pipeline.do("discover")
        gate = pipeline.taxonomy().gate()
        rollouts, questions = pipeline.rollouts_with_questions()
        decisions = find_decisions(pair.models(), gate.layer, rollouts, questions, settings.elicit)

    tokens = sum(len(rollout.ids) for rollout in rollouts)
    count = sum(len(answer.positions) for answer in decisions)
    print(f"\n{count} disagreements among {tokens} tokens")

    examples = [answer.example(gate) for answer in decisions]
    data = split_examples(examples[20:], examples[:20], settings.elicit)
    states = PrefixCache(pair.base, pair.chosen_steer_layer)
    width = pair.base.model.config.hidden_size
    start = new_vectors(
        pair.base.name, states.layer, width, gate.size, "network", settings.elicit, seed=0
    )
    training = train_vectors(start, data, states, settings.elicit, 0, lambda step: None)
    evaluations = training.validation_losses
    print(f"cross-entropy at disagreements: {evaluations[0]:.2f} -> {min(evaluations):.2f} nats\n")

    vectors = training.vectors.vectors
    used = training.vectors.nonzero_categories().tolist()
    print("cosines between the vectors of the categories that have disagreements:")
    for row in used:
        cosines = cosine_similarity(vectors[row][None], vectors[used])
        print(f"{gate.titles[row]:45}", *(f"{cosine:6.2f}" for cosine in cosines.tolist()))


if __name__ == "__main__":
    main()
