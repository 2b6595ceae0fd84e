#!/usr/bin/env bash
# Makes the environment once, then runs a command in it. Without arguments it lists the commands.
set -euo pipefail

ROOT="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)"
VENV="$ROOT/.venv"
PYTHONS=(python3.13 python3.12 python3.11 python3 python) # what it is made with: the first that works
LEAST=3.11 # the oldest that will do, which uv fetches when none is found
STAMP="$VENV/launch.stamp" # what is installed; "incomplete" while an installation runs; its presence says whose .venv it is

help() {
  cat <<'TEXT'
usage: ./launch.sh COMMAND [ARGUMENTS]

  quickstart [--workdir=DIR]                  the first table, on the embedded digits
  quickstart translation [--workdir=DIR]      the second, on embedded English and Korean
  train --config=FILE --workdir=DIR           train a config; the same command resumes; any field: --config.key=value
  evaluate --workdir=DIR [--predictions=FILE] evaluate the newest checkpoint of a run; FILE.jsonl gets a line an example
  export --workdir=DIR --output=DIR --format=timm|torchvision|native
                                              a run's network as safetensors with a config and a card
  probe --workdir=DIR                         classify by the frozen features of a run
  translate --workdir=DIR                     translate lines of text; --input, --output, --beam, --nbest, --attention
  score --workdir=DIR --source=FILE           how probable translations are: --target=FILE [--per-token]; or rerank --nbest=FILE
  table FILE [--scale=NAME] [--dry-run]       run the rows of a table file and write the table; --dry-run shows their costs
  table all | merge DIR ... | page            all files in experiments/, on one machine or in shards (--shard=i/n) that are
                                              merged, and docs/results.md; page: that alone
  compare --gate=FILE.py:Name [--on=TASK]     your block beside none, controls and published ones: a page with a verdict
  compare-runs RUN RUN ...                    translations of runs, or of files with --reference=FILE, by paired tests
  config FILE [--check] [--config.KEY=VALUE]  print all fields of a config with their meanings; --check only checks it
  completion                                  a script for bash: source <(./launch.sh completion)
  plot DIR ... --output=OUT.png               learning curves of runs
  watch DIR ...                               live curves of runs and tables on the terminal
  report --workdir=DIR                        a page about a run: what it gets wrong, how sure it is, where it looked
  summary MODEL                               parameters and multiply-adds of a network; '*': of every name, with its
                                              published accuracy
  preflight --config=FILE --topology=SLICE    predict memory and time of a train step on a TPU slice, e.g. v5e-16;
                                              preflight all: the committed table; preflight scaling [FILE.py]: bounds on
                                              16 to 1,024 chips (all install the TPU compiler)
  prepare NAME --data_dir=DIR                 fetch sentence pairs (multi30k, multi30k_bpe, tatoeba_ko_en, tldr_ko_en), or
                                              prepare a data set of TensorFlow Datasets (installs TensorFlow)
  local --processes P --devices D -- COMMAND  train, evaluate, table or compare on P processes with D CPU devices each
  tpu ACTION NAME --zone=ZONE ... -- COMMAND  on a TPU slice: create, run, watch, status, logs or stop
  slurm [OPTIONS OF SBATCH] -- COMMAND        on a Slurm cluster: several nodes, --array for the rows of a table
  gke OPTIONS -- COMMAND                      on Kubernetes, TPU slices or GPU nodes: write a manifest and apply it;
                                              FILE.yaml: apply one of your own
  notebook                                    JupyterLab in experiments/notebooks
  docs [--serve]                              build the documentation site in site/; --serve shows it and follows changes
  python [ARGUMENTS]                          the environment's Python
  test [--peers] [--fast] [--newest] [PYTEST ARGUMENTS]
                                              lint and test; --peers also compares with other libraries, --fast leaves slow
                                              tests out, --newest is fast and takes the newest Python, in .venv-newest
  setup [EXTRA ...]                           only make the environment; extras such as cuda, tpu, gcs stay from then on

docs/clusters.md goes through a run on a cluster from nothing. tpu --help, slurm --help and gke --help list all options; --dry-run
prints what would run. They and gke check a config or table first, and the files that it names; --no-check leaves that out.
Every command but help first makes .venv beside this file (once, some minutes). Instead of that,
  ATTENTION_JAX_PYTHON=/path/to/python  takes this interpreter as it is;
  ATTENTION_JAX_EXTRAS="cuda gcs"       installs these extras too.
Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/attention_jax/xla.
Decoding on one CPU uses two kernels that c++ (or CXX) builds on first use, in ~/.cache/attention_jax/kernels, and without a
compiler XLA's programs. AJ_KERNELS=xla leaves every program to XLA, in training too (attention_jax/kernels/README.md).
On one CPU, translation keeps a step's memory for the next; AJ_KEEP_MEMORY=0 gives it back.
docs/environment.md lists all variables.
TEXT
}

say() { echo "launch.sh: $*" >&2; }
fail() {
  echo "error: $*" >&2
  exit 2
}

# Sets PYTHON to an interpreter that has the package and the named extras, installing what is missing.
environment() {
  PYTHON="${ATTENTION_JAX_PYTHON:-}"
  if [[ -n "$PYTHON" ]]; then
    command -v "$PYTHON" >/dev/null || fail "ATTENTION_JAX_PYTHON=$PYTHON: this is no program that can be run."
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  else
    PYTHON="$VENV/bin/python"
    local extras="text plot fast-images $* ${ATTENTION_JAX_EXTRAS:-}"
    installed "$extras" || locked_install "$extras"
  fi
  # Without a home there is no cache: others could prepare a known folder in a shared /tmp, and a cache holds code.
  local home="${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}"
  local cache="$home/attention_jax/xla"
  if [[ -z "${JAX_COMPILATION_CACHE_DIR:-}" && -n "$home" ]] && mkdir -p "$cache" 2>/dev/null; then
    export JAX_COMPILATION_CACHE_DIR="$cache"
  fi
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"
  # Large pages for large arrays, which Linux hands out page by page; for translation attention_jax/cli/malloc.py keeps them.
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
}

# Flags of XLA that help where several cards exchange gradients; what the user has set stays. XLA ends at a flag that it does
# not know: this one is known to jaxlib 0.10.2 to 0.12 (tests/launch/test_xla_flags.py). For TPUs none is set: libtpu compiles
# the same program with its own defaults (docs/clusters.md).
xla_flags() {
  local flag=--xla_gpu_enable_latency_hiding_scheduler cards
  [[ "${AJ_XLA_FLAGS:-}" != off && "${JAX_PLATFORMS:-cuda}" =~ cuda|gpu ]] && command -v nvidia-smi >/dev/null || return 0
  cards="$(nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU || true)"
  if [[ "$cards" -gt 0 && $((cards * ${AJ_PROCESSES:-1})) -gt 1 && "${XLA_FLAGS:-}" != *"$flag"* ]]; then
    export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flag=true"
    say "XLA_FLAGS has $flag=true: exchanges overlap with computing; AJ_XLA_FLAGS=off leaves it out"
  fi
}

# One word a line, sorted, once each.
words() { printf '%s\n' "$*" | tr -s ' ,' '\n\n' | sed '/^$/d' | sort -u; }
# What an installation is made from, besides the extras. An editable install holds the checkout's path.
source_state() { echo "$ROOT $(cat "$ROOT/pyproject.toml" "$ROOT"/.ci/constraints-*.txt | cksum)"; }
installed_extras() { if [[ -f "$STAMP" ]]; then sed -n '2,$p' "$STAMP"; fi; }

installed() {
  [[ -x "$VENV/bin/python" && -f "$STAMP" ]] || return 1
  [[ "$(head -n 1 "$STAMP")" == "$(source_state)" ]] || return 1
  [[ "$(words "$1" "$(installed_extras)")" == "$(installed_extras)" ]]
}

# One launch at a time; the others wait and then find it done.
locked_install() {
  [[ -w "$ROOT" && -w "$ROOT/pyproject.toml" && (! -e "$VENV" || -w "$VENV") ]] ||
    fail "$VENV lacks packages and you cannot write to it: ask the owner of $ROOT for ./launch.sh setup, use a copy of your own, or name a Python with ATTENTION_JAX_PYTHON."
  (
    if command -v flock >/dev/null; then # macOS has none
      exec 9<>"$ROOT/pyproject.toml"
      flock -n 9 || { say "waiting for another launch.sh that is installing" && flock 9; }
    fi
    installed "$1" || install "$1"
  )
}

install() {
  [[ -f "$STAMP" || ! -e "$VENV" ]] || fail "$VENV was not made by launch.sh: move it away, or use it with ATTENTION_JAX_PYTHON=$VENV/bin/python."
  local before extras known extra
  extras="$(words "$1" "$(installed_extras)")"
  known="$(sed -n '/^\[project.optional-dependencies\]/,/^$/s/^\([a-z-]*\) = \[.*/\1/p' "$ROOT/pyproject.toml")"
  for extra in $extras; do
    grep -qx "$extra" <<<"$known" || fail "there is no extra '$extra': give some of $(paste -sd ' ' - <<<"$known")."
  done

  before="$(head -n 1 "$STAMP" 2>/dev/null || true)"
  mkdir -p "$VENV"
  { echo incomplete && installed_extras; } >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
  if [[ "$before" != "$ROOT "* || ! -x "$VENV/bin/python" ]]; then # none yet, cut off, or moved: from the beginning
    make_venv
  fi
  say "installing attention_jax${extras:+ with $(paste -sd ' ' - <<<"$extras")} (once; later starts skip this)"
  local quiet=() constraints=.ci/constraints-py311.txt
  [[ -t 2 ]] || quiet=(--quiet)
  if runs "$PYTHON" 3.12; then constraints=.ci/constraints-newest.txt; fi
  (
    cd "$ROOT"
    local target=".${extras:+[$(paste -sd , - <<<"$extras")]}"
    if command -v uv >/dev/null; then
      uv pip install ${quiet[@]+"${quiet[@]}"} --python "$PYTHON" -c "$constraints" -e "$target"
    else
      "$PYTHON" -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check --no-input -c "$constraints" -e "$target"
    fi
  ) >&2 || fail "the installation into $VENV failed, as said above: correct that and start the same command again."
  { source_state && words "$extras"; } >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
}

make_venv() {
  local python
  if ! python="$(find_python)" && command -v uv >/dev/null; then
    uv python install --quiet "$LEAST" >&2 || fail "uv could not fetch a Python, as said above: install Python $LEAST or newer, or name one with ATTENTION_JAX_PYTHON."
    python="$(uv python find "$LEAST")"
  fi
  [[ -n "$python" ]] || fail "Python $LEAST or newer with its venv module was not found in PATH: install it (Debian: python3-venv), or name one with ATTENTION_JAX_PYTHON."
  say "making $VENV with $("$python" --version)"
  find "$VENV" -mindepth 1 -maxdepth 1 ! -name "$(basename "$STAMP")" -exec rm -rf {} +
  if command -v uv >/dev/null; then
    uv venv --quiet --allow-existing --python "$python" "$VENV" >&2
  else
    "$python" -m venv "$VENV" >&2
  fi || fail "$python could not make $VENV, as said above."
}

# Whether a program is a Python of this version or newer. It is run: a version manager's shim may exist and fail.
runs() { "$1" -c "import sys${3:-}; sys.exit(sys.version_info < (${2/./, }))" >/dev/null 2>&1; }

find_python() {
  local name need=", ensurepip, venv"
  if command -v uv >/dev/null; then need=", venv"; fi
  for name in "${PYTHONS[@]}"; do
    if runs "$name" "$LEAST" "$need"; then
      command -v "$name"
      return
    fi
  done
  return 1
}

# From here on the environment is .venv-newest, of the newest Python in PATH or among pyenv's.
newest() {
  local minor
  VENV="$ROOT/.venv-newest" STAMP="$ROOT/.venv-newest/launch.stamp" LEAST=3.12 PYTHONS=()
  for minor in 14 13 12; do
    PYTHONS+=("python3.$minor" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.$minor."*/bin/python)
  done
  if [[ -z "${ATTENTION_JAX_PYTHON:-}" && ! -x "$VENV/bin/python" ]] && ! find_python >/dev/null && ! command -v uv >/dev/null; then
    echo "error: --newest: no Python newer than 3.11 was found in PATH or among pyenv's: install one, or leave --newest out." >&2
    exit 3
  fi
}

# The launchers for other machines need no environment here: any Python from 3.9 on.
launch_elsewhere() {
  local name
  for name in "${ATTENTION_JAX_PYTHON:-}" "$VENV/bin/python" python3 python; do
    if [[ -n "$name" ]] && runs "$name" 3.9; then
      PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$name" -m attention_jax.launch "$@"
    fi
  done
  fail "Python 3.9 or newer was not found in PATH: install it, or name one with ATTENTION_JAX_PYTHON."
}

command="${1:-help}"
[[ $# -eq 0 ]] || shift
case "$command" in
  help | -h | --help) help ;;
  setup) environment "$@" ;;
  quickstart)
    environment
    table=quickstart
    if [[ "${1:-}" == translation ]]; then
      shift
      table=quickstart_translation
    fi
    exec "$PYTHON" -m attention_jax table "$ROOT/experiments/$table.py" "$@"
    ;;
  train | evaluate | export | probe | translate | score | table | compare | compare-runs | config | completion | plot | summary)
    environment
    case "$command" in train | evaluate | table | compare) xla_flags ;; esac
    exec "$PYTHON" -m attention_jax "$command" "$@"
    ;;
  preflight)
    environment tpu
    if [[ "${1:-}" == all ]]; then set -- "$ROOT/experiments/preflight.py" "${@:2}"; fi
    if [[ "${1:-}" == scaling ]]; then
      if [[ "${2:-}" == *.py ]]; then set -- "${@:2}"; else set -- "$ROOT/experiments/scaling_pods.py" "${@:2}"; fi
    fi
    exec "$PYTHON" -m attention_jax preflight "$@"
    ;;
  prepare)
    case "${1:-}" in
      multi30k | multi30k_bpe | tatoeba_ko_en | tldr_ko_en) environment ;; # plain files: no TensorFlow
      *) environment prepare ;;
    esac
    exec "$PYTHON" -m attention_jax prepare "$@"
    ;;
  local)
    environment
    exec "$PYTHON" -m attention_jax.launch local "$@"
    ;;
  tpu | slurm | gke) launch_elsewhere "$command" "$@" ;;
  notebook)
    environment notebook
    exec "$PYTHON" -m jupyterlab "$@" "$ROOT/experiments/notebooks"
    ;;
  docs)
    environment docs
    cd "$ROOT" # the hooks import the package that they document
    if [[ "${1:-}" == --serve ]]; then exec "$PYTHON" -m mkdocs serve "${@:2}"; fi
    exec "$PYTHON" -m mkdocs build "$@"
    ;;
  python)
    environment
    exec "$PYTHON" "$@"
    ;;
  test)
    extras=(dev) marks="not peers" slow=""
    while :; do
      case "${1:-}" in
        --peers) extras+=(peers) marks="" ;;
        --fast) slow="not slow" ;;
        --newest)
          newest
          slow="not slow"
          ;;
        *) break ;;
      esac
      shift
    done
    environment "${extras[@]}"
    marks+="${marks:+${slow:+ and }}$slow"
    if [[ -n "$marks" ]]; then set -- -m "$marks" "$@"; fi
    cd "$ROOT"
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    if [[ "$VENV" == "$ROOT/.venv" ]]; then "$PYTHON" -m mypy; fi # once: other versions of JAX have other types
    exec "$PYTHON" -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder "$@"
    ;;
  *) fail "launch.sh has no command '$command': give one of quickstart, train, evaluate, export, probe, translate, score, table, compare, compare-runs, config, completion, plot, summary, preflight, prepare, local, tpu, slurm, gke, notebook, docs, python, test, setup." ;;
esac
