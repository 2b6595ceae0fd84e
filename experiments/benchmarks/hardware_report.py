"""The hardware report: one device, its driver and versions, and measurements with units, in a format that can be checked.

    ./launch.sh python experiments/benchmarks/on_device.py --check FILE.json ...

`on_device.py` writes it as JSON, beside a page for readers. A report that someone sends is checked before it is believed: what
is missing, of the wrong type, without a known unit or beyond what the chip can do is named.
"""

import json
import math
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FORMAT = "attention_jax hardware report 1"
UNITS = ("s", "ms", "TFLOP/s", "GB/s", "images/s", "ratio", "loss", "cores")
STATES = ("answered", "failed", "not run")
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-nccl-cu12",
)
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "AJ_KERNELS", "AJ_XLA_FLAGS", "JAX_PLATFORMS")
_TEXT, _NUMBER = (str,), (int, float)
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "": {
        **dict.fromkeys(("format", "commit", "date", "command"), _TEXT),
        **dict.fromkeys(("device", "driver", "versions", "environment"), (dict,)),
        **{"changed": (bool,), "quick": (bool,), "seconds": _NUMBER, "questions": (list,)},
    },
    "device": {"kind": _TEXT, "platform": _TEXT, "count": (int,), "processes": (int,), "cores": (int,), "load": _NUMBER},
    "driver": {"name": _TEXT, "version": _TEXT},
    "questions": {"question": _TEXT, "answer": _TEXT, "verdict": _TEXT, "state": _TEXT, "measurements": (list,)},
    "measurements": {"name": _TEXT, "value": _NUMBER, "unit": _TEXT},
}


def describe_machine(quick: bool, command: str) -> dict[str, Any]:
    """Returns a report without its questions and seconds."""
    import jax

    device = jax.devices()[0]
    return {
        "format": FORMAT,
        "commit": _run("git", "-C", str(ROOT), "rev-parse", "HEAD") or "unknown",
        "changed": bool(_run("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "quick": quick,
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "cores": os.cpu_count() or 0,
            "load": round(os.getloadavg()[0], 1),
        },
        "driver": _find_driver(device.platform),
        "versions": {"python": platform.python_version(), **_versions()},
        "environment": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
    }


def _find_driver(kind: str) -> dict[str, str]:
    if kind == "gpu":
        found = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
        return {"name": "NVIDIA", "version": found[0].strip() if found else "unknown"}
    if kind == "tpu":
        return {"name": "libtpu", "version": _versions().get("libtpu", "unknown")}
    return {"name": "Linux" if platform.system() == "Linux" else platform.system(), "version": platform.release()}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _run(*words: str) -> str:
    """Returns what a program prints; "" if it is not here or fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def find_mistakes(report: Any) -> list[str]:
    """Returns a sentence for everything that is wrong with a report."""
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        return [f"format: expected {FORMAT!r}: write the report with experiments/on_device.sh --output=FILE.md"]
    found = _compare(report, "", "")
    if found:
        return found
    found += [*_compare(report["device"], "device", "device."), *_compare(report["driver"], "driver", "driver.")]
    if not re.fullmatch(r"[0-9a-f]{40}", report["commit"]):
        found.append(f"commit: {report['commit']!r} is no commit: run it from a git checkout")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report["date"]):
        found.append(f"date: {report['date']!r} is no time such as 2026-11-30T12:00:00Z")
    found += [f"versions.{name}: missing" for name in ("python", "jax", "jaxlib", "flax") if name not in report["versions"]]
    if not report["questions"]:
        found.append("questions: there are none")
    for number, question in enumerate(report["questions"]):
        where = f"questions[{number}]"
        found += (wrong := _compare(question, "questions", f"{where}.")) or _judge(question, where)
        if not wrong:
            peaks = {one.get("name"): one.get("value") for one in question["measurements"] if isinstance(one, dict)}
            found += _exceeds(report["device"].get("kind"), peaks, where)
    return found


def _compare(values: Any, kind: str, prefix: str) -> list[str]:
    """Compares the fields of a record with those that it must have."""
    if not isinstance(values, dict):
        return [f"{prefix.rstrip('.')}: expected fields, found {type(values).__name__}"]
    fields = _FIELDS[kind]
    found = [f"{prefix}{name}: unknown field" for name in values.keys() - fields.keys()]
    for name, types in fields.items():
        if name not in values:
            found.append(f"{prefix}{name}: missing")
        elif not isinstance(values[name], types) or (isinstance(values[name], bool) and bool not in types):
            found.append(f"{prefix}{name}: expected {' or '.join(t.__name__ for t in types)}, found {values[name]!r}"[:200])
    return sorted(found)


def _judge(question: dict[str, Any], where: str) -> list[str]:
    found = []
    if question["state"] not in STATES:
        found.append(f"{where}.state: {question['state']!r} is none of {', '.join(STATES)}")
    if (question["state"] == "answered") != bool(question["measurements"]):
        found.append(f"{where}.measurements: an answered question has some, another none")
    for number, one in enumerate(question["measurements"]):
        here = f"{where}.measurements[{number}]"
        if wrong := _compare(one, "measurements", f"{here}."):
            found += wrong
        elif one["unit"] not in UNITS:
            found.append(f"{here}.unit: {one['unit']!r} is none of {', '.join(UNITS)}")
        elif not math.isfinite(one["value"]) or one["value"] < 0:
            found.append(f"{here}.value: {one['value']!r} is no number from 0")
    return found


def _exceeds(kind: Any, values: dict[Any, Any], where: str) -> list[str]:
    """Names the peaks that are higher than the chip's published ones, by more than a clock could explain."""
    from attention_jax.preflight.chips import CHIPS, DEVICE_KINDS

    chip = CHIPS.get(DEVICE_KINDS.get(str(kind), ""))
    if chip is None:
        return []
    published = {"peak of products": chip.flops / 1e12 / chip.devices, "peak of copies": chip.bandwidth / 1e9 / chip.devices}
    return [
        f"{where}: {name} {values[name]:g} is more than the published {most:g} of a {chip.name}"
        for name, most in published.items()
        if isinstance(values.get(name), (int, float)) and values[name] > 1.1 * most
    ]


def check_files(files: list[str]) -> int:
    """Prints what is wrong with each report; returns 0 if nothing is, else 1."""
    code = 0
    for file in files:
        try:
            mistakes = find_mistakes(json.loads(Path(file).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            mistakes = [f"not read: {error}"]
        print(*[f"{file}: {mistake}" for mistake in mistakes] or [f"{file}: a complete report"], sep="\n")
        code = max(code, int(bool(mistakes)))
    return code
