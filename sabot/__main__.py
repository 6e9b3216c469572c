"""`python -m sabot`: the command line."""

from sabot.cli import main

main()
