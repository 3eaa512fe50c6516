"""smol: a small real language model before and after reinforcement on word problems."""

SMOLLM2 = "smollm2"
"""Name of SmolLM2-135M-Instruct, whose weights come from the package index."""
