"""`python -m attention_jax.doors tpu | slurm ...`, as launch.sh calls it."""

import sys

from attention_jax.doors import slurm, tpu
from attention_jax.doors.shared import DoorError

DOORS = {"slurm": slurm.main, "tpu": tpu.main}

if __name__ == "__main__":
    try:
        sys.exit(DOORS[sys.argv[1]](sys.argv[2:]))
    except DoorError as error:
        print(f"error: {sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(2)
    except tpu.Unreachable as error:
        print(f"error: {sys.argv[1]}: {error}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
