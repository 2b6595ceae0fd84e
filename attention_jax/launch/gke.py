"""`./launch.sh gke --type=v5e:4x4 --image=IMAGE … -- COMMAND ...`, or `./launch.sh gke FILE.yaml`.

The first form writes the manifest of a JobSet, as JSON, for TPU slices (v4 to TPU7x) or, with --gpus, for GPU nodes, and
starts it with `kubectl apply`; the second starts a manifest of your own, like docs/gke_jobset.yaml. Both check the command.
"""

from __future__ import annotations  # for Python 3.9

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from attention_jax.errors import UserError
from attention_jax.launch import jobset, shared
from attention_jax.launch.data_address import check_addresses

READ = """
import json, sys, yaml
try:
    job = yaml.safe_load(open(sys.argv[1]))["spec"]["replicatedJobs"][0]["template"]["spec"]
    print(json.dumps(job["template"]["spec"]["containers"][0]["command"]))
except (OSError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
    sys.exit(f"{sys.argv[1]}: this is no manifest like docs/gke_jobset.yaml ({type(error).__name__}: {error})")
"""


def main(arguments: Sequence[str]) -> int:
    """Checks, and applies or prints; returns the exit code."""
    own, command = shared.split_arguments(arguments)
    options = _parser().parse_args(own)
    if options.file:
        if command:
            raise UserError("give either FILE.yaml or a command after ' -- '.")
        text = Path(options.file).read_text(encoding="utf-8") if Path(options.file).exists() else ""
        command = _read_command(options.file, text) if options.check else []
    else:
        shared.check_command(command)
        text = json.dumps(_manifest(options, command), indent=2) + "\n"  # kubectl reads JSON too
    if options.check and not options.dry_run:
        check_addresses(shared.check_inputs(command, shared.find_commit(options.commit, command)))
    if options.dry_run:
        print(text, end="")
        return 0
    if not shutil.which("kubectl"):
        raise UserError(
            "kubectl is not installed here: --dry-run prints the manifest, for kubectl apply -f on another machine."
        )
    print(shared.run_program(["kubectl", "apply", "-f", options.file or "-"], None if options.file else text), end="")
    return 0


def _parser() -> shared.Parser:
    parser = shared.Parser("gke", description=__doc__)
    parser.add_argument("file", nargs="?", metavar="FILE.yaml", help="a manifest, with your names in it")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest, and contact nothing")
    parser.add_argument("--name", default="attention-jax", help="of the JobSet; default attention-jax")
    parser.add_argument("--namespace", help="default that of kubectl")
    parser.add_argument("--image", help="docs/gke.Dockerfile of a commit, in a registry that the cluster reads")
    parser.add_argument("--service-account", metavar="NAME", help="of the cluster; it may write to the bucket")
    parser.add_argument("--type", metavar="TYPE", help="TPU slice: v5e:4x4, v6e-16, v5p:2x2x2, tpu7x:2x2x2, …")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="number of slices; default 1")
    parser.add_argument("--gpus", type=int, metavar="N", help="cards of a node, instead of --type")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="with --gpus; default 1")
    parser.add_argument("--gpu-type", metavar="LABEL", help="with --gpus, GKE's label: nvidia-h100-80gb, …")
    parser.add_argument("--spot", action="store_true", help="nodes of a spot pool")
    parser.add_argument("--max-restarts", type=int, default=3, metavar="N", help="after failures, not lost hosts; default 3")
    parser.add_argument(
        "--data-cache", metavar="SIZE", help=f"of a volume at {jobset.CACHE} for data.cache_dir: 200Gi, or memory:100Gi"
    )
    parser.add_argument("--commit", metavar="REV", help="of the image; default the newest, of a checkout without other changes")
    shared.add_check_option(parser)
    return parser


def _manifest(options: argparse.Namespace, command: list[str]) -> dict:
    """Returns the JobSet of the options; adds data.cache_dir to the command."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
        raise UserError(f"--name={options.name}: give at most 40 small letters, digits and hyphens, a letter first.")
    if not options.image:
        raise UserError("--image is missing: the image of a commit, which docs/gke.Dockerfile makes.")
    if bool(options.type) == (options.gpus is not None):
        raise UserError(
            "give --type for TPU slices, such as --type=v5e:4x4, or --gpus for GPU nodes, such as --gpus=8 --nodes=2."
        )
    sizes = {"slices": options.slices, "nodes": options.nodes, "gpus": 1 if options.gpus is None else options.gpus}
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"--{name}={size}: must be at least 1.")
    idle = [
        name
        for name, size in (("nodes", options.nodes), ("gpu-type", options.gpu_type))
        if options.type and size not in (1, None)
    ]
    idle += ["slices"] if options.slices != 1 and not options.type else []
    if idle:
        raise UserError(f"--{idle[0]} is not for {'TPU slices' if options.type else 'GPU nodes'}: leave it out.")
    if options.data_cache is not None:
        if not re.fullmatch(r"(memory:)?\d+(Ki|Mi|Gi|Ti|K|M|G|T)", options.data_cache):
            raise UserError(f"--data-cache={options.data_cache}: give a size such as 200Gi, or memory:100Gi.")
        if command[0] == "train" and not any(word.startswith("--config.data.cache_dir") for word in command):
            command.append(f"--config.data.cache_dir={jobset.CACHE}")
    pool = (
        jobset.tpu_pool(options.type, options.slices)
        if options.type
        else jobset.gpu_pool(options.gpus, options.nodes, options.gpu_type)
    )
    kept = ("name", "image", "namespace", "service_account", "max_restarts", "spot", "data_cache")
    return jobset.make_manifest(pool, command, **{name: getattr(options, name) for name in kept})


def _read_command(file: str, text: str) -> list[str]:
    """Returns the command of a manifest of the user's, in which every name is their own."""
    shared.require_environment()
    _, *command = json.loads(shared.run_program([shared.LAUNCH, "python", "-c", READ, file]))
    if left := re.findall(r"\b(?:SERVICE_ACCOUNT|IMAGE|BUCKET|RUN)\b", re.sub(r"#.*", "", text)):
        raise UserError(f"{file} still has {', '.join(dict.fromkeys(left))}: put your own names there.")
    shared.check_command(command)
    return command
