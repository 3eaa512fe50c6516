"""Step 1: the thinking model answers problems, and its answers are cut into sentences."""

from howwhen.collect.rollouts import collect_rollouts
from howwhen.settings import CollectSettings
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.tally import tally_problems


def main() -> None:
    """Print four problems, and the sentences of the answers."""
    pair, problems = find_pair("tally-rl"), tally_problems(4, seed=0)
    settings = CollectSettings(max_new_tokens=160, temperature=0.0)
    rollouts = collect_rollouts(pair.thinking, problems, settings)
    for problem, rollout in zip(problems, rollouts, strict=True):
        print(f"\n{problem.question} ({problem.answer})")
        for span in rollout.spans:  # offsets: the text itself is never altered
            sentence = rollout.text[span.start_char : span.end_char]
            print(f"  tokens {span.start_token:3} to {span.end_token:3}: {sentence.strip()}")


if __name__ == "__main__":
    main()
