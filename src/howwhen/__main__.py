"""`python -m howwhen` is the command line."""

from howwhen.cli import main

main()
