"""What each of the six steps does in a run folder: read input, call a stage, write output.

What a step computes stands in the step's own package. Here is only what it reads, writes and
counts; `pipeline` knows the order.
"""
