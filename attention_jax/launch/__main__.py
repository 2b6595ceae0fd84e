"""`python -m attention_jax.launch gke | local | slurm | tpu ...`, as launch.sh calls it."""

import os
import sys

from attention_jax.errors import UserError
from attention_jax.launch import gke, local, slurm, tpu

LAUNCHERS = {"gke": gke.main, "local": local.main, "slurm": slurm.main, "tpu": tpu.main}

if __name__ == "__main__":
    try:
        code = LAUNCHERS[sys.argv[1]](sys.argv[2:])
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it does not fail
        sys.exit(141)
    except UserError as error:
        print(f"error: {sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
