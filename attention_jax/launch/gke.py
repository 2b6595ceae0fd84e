"""`./launch.sh gke FILE.yaml`: checks the command of a manifest like docs/gke_jobset.yaml, then `kubectl apply`."""

from __future__ import annotations  # for Python 3.9

import json
import re
from collections.abc import Sequence
from pathlib import Path

from attention_jax.errors import UserError
from attention_jax.launch import shared

READ = """
import json, sys, yaml
try:
    job = yaml.safe_load(open(sys.argv[1]))["spec"]["replicatedJobs"][0]["template"]["spec"]
    print(json.dumps(job["template"]["spec"]["containers"][0]["command"]))
except (OSError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
    sys.exit(f"{sys.argv[1]}: this is no manifest like docs/gke_jobset.yaml ({type(error).__name__}: {error})")
"""


def main(arguments: Sequence[str]) -> int:
    """Checks and applies; returns the exit code."""
    parser = shared.Parser("gke", description=__doc__)
    parser.add_argument("file", metavar="FILE.yaml", help="the manifest, with your names in it")
    parser.add_argument("--commit", metavar="REV", help="of the image; default the newest, of a checkout without other changes")
    shared.add_check_option(parser)
    options = parser.parse_args(arguments)
    if options.check:
        shared.require_environment()
        _, *command = json.loads(shared.run_program([shared.LAUNCH, "python", "-c", READ, options.file]))
        body = re.sub(r"#.*", "", Path(options.file).read_text(encoding="utf-8"))
        if left := re.findall(r"\b(?:SERVICE_ACCOUNT|IMAGE|BUCKET|RUN)\b", body):
            raise UserError(f"{options.file} still has {', '.join(dict.fromkeys(left))}: put your own names there.")
        shared.check_command(command)
        shared.check_inputs(command, shared.find_commit(options.commit, command))
    print(shared.run_program(["kubectl", "apply", "-f", options.file]), end="")
    return 0
