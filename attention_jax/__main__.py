"""Runs the command line by `python -m attention_jax`."""

import sys

from attention_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
