"""A substitute for gcloud: `python fake_gcloud.py compute tpus ...` runs remote commands here, each worker in its own home.

FLEET names a folder: `calls` (one JSON list a line), `state` (of the queued resource; absent without the file), and
`worker-N` as homes. The number of workers is that of the file `workers`, two without it.

`trouble` has what goes wrong: a JSON list a line, [words of the call, standard error], each once, at the first call with all of
these words. `made` has the time when the machines were made.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FLEET = Path(os.environ.get("FLEET", "."))
STATE = FLEET / "state"


def main(words: list[str]) -> int:
    with (FLEET / "calls").open("a") as calls:
        calls.write(json.dumps(["gcloud", *words]) + "\n")
    if (message := trouble(words)) is not None:
        print(message, file=sys.stderr)
        return 1
    if words[:2] == ["storage", "ls"]:
        return 0
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
        made = FLEET / "made"
        when = made.read_text() if made.exists() else time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime())
        print(json.dumps({"name": name, "state": "READY", "acceleratorType": "v5litepod-16", "createTime": when}))
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


def trouble(words: list[str]) -> str | None:
    """The message of the first trouble that is meant for this call, which is then over."""
    file = FLEET / "trouble"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for number, (among, message) in enumerate(lines):
        if set(among) <= set(words):
            rest = lines[:number] + lines[number + 1 :]
            file.write_text("".join(json.dumps(line) + "\n" for line in rest))
            return message
    return None


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
