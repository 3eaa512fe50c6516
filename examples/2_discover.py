"""Step 2: categories of reasoning, found without supervision in the residual stream."""

import torch

from howwhen import Taxonomy
from howwhen.collect.rollouts import collect_rollouts
from howwhen.discover.activations import sentence_means
from howwhen.discover.reader_inputs import own_tokens
from howwhen.discover.sae import Shape, evaluate, train_grid
from howwhen.discover.taxonomy import compare_with_truth
from howwhen.discover.titles import CategorisedSentences, name_by_words
from howwhen.probes import normalise
from howwhen.settings import CollectSettings, DiscoverSettings
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.tally import tally_problems, tally_truth

LAYER = 2


def main() -> None:
    """Train four autoencoders at once and print the categories of one."""
    thinking = find_pair("tally-rl").thinking
    problems = tally_problems(150, seed=0)
    rollouts = collect_rollouts(thinking, problems, CollectSettings(max_new_tokens=160))
    reader_inputs = [
        own_tokens(
            thinking, rollout, thinking.prompt_ids(problem.question), [True] * len(rollout.spans)
        )
        for problem, rollout in zip(problems, rollouts, strict=True)
    ]
    settings = DiscoverSettings(steps=300, sentences_per_step=512)
    activations = sentence_means(thinking, reader_inputs, [LAYER], settings)[LAYER]
    mean = activations.mean(0)
    inputs = normalise(activations, mean)

    shapes = [Shape(size=size, k=k) for size in (5, 10) for k in (1, 3)]
    saes = train_grid(inputs, shapes, settings, seed=0)
    for shape, sae in zip(shapes, saes, strict=True):
        print(f"{shape}: {evaluate(sae, inputs)}")

    sae = saes[shapes.index(Shape(size=10, k=1))]
    taxonomy = Taxonomy(thinking.name, LAYER, mean, sae, ("",) * len(sae.encoder))
    scores, categories = taxonomy.scores(activations).max(1)
    texts = [sentence for rollout in rollouts for sentence in rollout.sentences()]
    assigned = CategorisedSentences(texts, categories.tolist(), scores.tolist(), taxonomy.size, ())
    counts = torch.bincount(categories, minlength=taxonomy.size).tolist()
    for name, count in zip(name_by_words(assigned).names, counts, strict=True):
        print(f"{count:5}  {name.title:45} {name.typical[:1]}")
    for level, agreement in compare_with_truth(categories.tolist(), tally_truth(texts)).items():
        print(f"against the true {level} of every sentence: {agreement}")


if __name__ == "__main__":
    main()
