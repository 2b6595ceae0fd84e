#!/usr/bin/env bash
# A report of this machine's accelerator in ten minutes: a page and, beside it, JSON that --check understands.
#   experiments/on_device.sh [--quick] [--minutes=10] [--output=FILE.md]
#   experiments/on_device.sh --check FILE.json ...
# Installs what the machine's accelerator needs, unless ATTENTION_JAX_EXTRAS says otherwise. --quick is for a CPU: the same
# questions about tiny networks.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ -z "${ATTENTION_JAX_EXTRAS+set}" ]]; then
  if command -v nvidia-smi >/dev/null; then
    export ATTENTION_JAX_EXTRAS=cuda
  elif compgen -G "/dev/accel*" >/dev/null || compgen -G "/dev/vfio/[0-9]*" >/dev/null; then
    export ATTENTION_JAX_EXTRAS=tpu
  fi
fi
exec "$here/../launch.sh" python "$here/benchmarks/on_device.py" "$@"
