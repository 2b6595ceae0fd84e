"""`python -m attention_jax.launch tpu | slurm ...`, as launch.sh calls it."""

import os
import sys

from attention_jax.launch import slurm, tpu
from attention_jax.launch.shared import DoorError

DOORS = {"slurm": slurm.main, "tpu": tpu.main}

if __name__ == "__main__":
    try:
        code = DOORS[sys.argv[1]](sys.argv[2:])
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it does not fail
        sys.exit(141)
    except DoorError as error:
        print(f"error: {sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(2)
    except tpu.Unreachable as error:
        print(f"error: {sys.argv[1]}: {error}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
