"""A substitute for gcloud: `python fake_gcloud.py compute tpus ...` runs remote commands here, each worker in its own home.

FLEET names a folder: `calls` (one JSON list a line), `state` (of the queued resource; absent without the file), and
`worker-N` as homes. The number of workers is that of the file `workers`, two without it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

FLEET = Path(os.environ.get("FLEET", "."))
STATE = FLEET / "state"


def main(words: list[str]) -> int:
    with (FLEET / "calls").open("a") as calls:
        calls.write(json.dumps(["gcloud", *words]) + "\n")
    assert words[:2] == ["compute", "tpus"], words
    kind, action, name, *rest = words[2:]
    options = dict(word.split("=", 1) if "=" in word else (word, "") for word in rest if word.startswith("--"))
    if (kind, action) == ("queued-resources", "create"):
        STATE.write_text("ACTIVE")
        for home in homes():
            home.mkdir()
    elif action == "describe" and not STATE.exists():
        print("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found.", file=sys.stderr)
        return 1
    elif (kind, action) == ("queued-resources", "describe"):
        print(json.dumps({"name": name, "state": {"state": STATE.read_text()}}))
    elif (kind, action) == ("tpu-vm", "describe"):
        print(json.dumps({"name": name, "state": "READY"}))
    elif (kind, action) == ("queued-resources", "delete"):
        STATE.unlink()
        end(FLEET)
        for home in homes():
            shutil.rmtree(home)
    elif (kind, action) == ("tpu-vm", "scp"):
        source = Path(words[5] if words[5] != "--recurse" else words[6])
        for home in homes():
            shutil.copytree(source, home / source.name, dirs_exist_ok=True)
    elif (kind, action) == ("tpu-vm", "ssh"):
        chosen = homes() if options["--worker"] == "all" else [homes()[int(options["--worker"])]]
        command = " ".join(options["--command"].split(" "))  # as gcloud and ssh take it apart and join it
        environments = [{**os.environ, "HOME": str(home), "AJ_PROCESS": home.name[-1]} for home in chosen]
        codes = [
            subprocess.run(["bash", "-c", command], cwd=env["HOME"], env=env, check=False).returncode for env in environments
        ]
        return max(codes)
    else:
        raise AssertionError(words)
    return 0


def end(fleet: Path) -> None:
    """Ends what runs on the workers, as machines that are switched off do."""
    for pid in fleet.glob("worker-*/attention_jax/run/pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def homes() -> list[Path]:
    count = int((FLEET / "workers").read_text()) if (FLEET / "workers").exists() else 2
    return [FLEET / f"worker-{number}" for number in range(count)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
