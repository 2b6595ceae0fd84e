"""Times training steps and translation of ours beside PyTorch, plain Flax, Hugging Face's Marian and CTranslate2.

    ./launch.sh python experiments/benchmarks/translation.py --peer_python=PATH

A training step is the forward pass with dropout, the label-smoothed loss, the backward pass and an update by Adam, in
float32 on one batch of random tokens, of three networks with equally many parameters: ours, one written with
`flax.linen.MultiHeadDotProductAttention`, and `torch.nn.Transformer` (`translation_nets.py` has both). Translation is one
Marian model of random weights, read by Hugging Face's library, by CTranslate2 in float32 and by ours; end symbols are
forbidden, so that all write the same number of tokens. Each peer has its own process with the same environment; they work
in turn, so that whatever else the machine does disturbs all of them alike. `two_checkouts.py --cases=greedy,beam` beside this
file compares the speed and memory of searches with those of another state of the code.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import translation_nets
from page import render_page, say_range
from train_step import answer, cpu_name


class Training(NamedTuple):
    """A network and its batch: `pairs` with `shortest` to `length` tokens a side."""

    network: dict[str, Any]
    pairs: int
    shortest: int
    length: int

    def batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, target shifted right, and target, [pairs, length] int32; 0 is padding."""
        rng = np.random.default_rng(0)
        sides = []
        for _ in range(2):
            tokens = rng.integers(3, self.network["vocab_size"], (self.pairs, self.length)).astype(np.int32)
            lengths = rng.integers(self.shortest, self.length + 1, self.pairs)
            sides.append(np.where(np.arange(self.length) < lengths[:, None], tokens, 0))
        source, target = sides
        return source, np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=1), target

    @property
    def tokens(self) -> int:
        return int((self.batch()[2] > 0).sum())


class Translating(NamedTuple):
    """A Marian model, `sentences` of `length` tokens, and how many are written with which beam."""

    network: dict[str, Any]
    sentences: int
    length: int
    new_tokens: int
    beam: int

    @property
    def tokens(self) -> int:
        return self.sentences * self.new_tokens


BASE = dict(vocab_size=8000, layers=6, features=512, hidden=2048, heads=8)
CASES: dict[str, Training | Translating] = {
    "train_base": Training({**BASE, "dropout": 0.1}, 32, 32, 32),
    "train_small": Training(dict(vocab_size=9728, layers=4, features=128, hidden=256, heads=4, dropout=0.3), 168, 17, 24),
    **{f"greedy{n}": Translating(BASE, n, 32, 32, 1) for n in (1, 8, 32, 128)},
    **{f"beam4_{n}": Translating(BASE, n, 32, 32, 4) for n in (1, 8, 32)},
}
TITLES = {
    "train_base": "training, Transformer base, 32 pairs × 32 tokens, vocabulary 8,000",
    "train_small": "training, 4 + 4 layers of 128, 168 pairs × 17 to 24 tokens, vocabulary 9,728",
    **{
        name: f"{'greedy' if case.beam == 1 else f'beam {case.beam}'}, base size, sentences × new tokens {case.sentences} × 32"
        for name, case in CASES.items()
        if isinstance(case, Translating)
    },
}
PEERS = {
    Training: {"ours": "ours", "flax": "plain Flax", "torch": "`torch.nn.Transformer`"},
    Translating: {"ours": "ours", "marian": "Hugging Face Marian", "ct2": "CTranslate2 float32"},
}
OF_PEERS = ("torch", "marian", "ct2")  # run under --peer_python
PACKAGES = {
    **dict.fromkeys(("ours", "flax"), ("jax", "flax")),
    "torch": ("torch",),
    "marian": ("torch", "transformers"),
    "ct2": ("ctranslate2",),
}
SMOOTHING = 0.1


def jax_trainer(who: str, case: Training) -> tuple[Callable[[], None], int]:
    """What takes one step whenever it is called, and the number of parameters."""
    import jax
    import jax.numpy as jnp
    import optax

    source, target_in, target = (jax.device_put(x) for x in case.batch())
    if who == "ours":
        import attention_jax as aj
        from attention_jax.optim.losses import token_cross_entropy

        model = aj.create_model("transformer_base", attention_bias=True, final_norm=True, **case.network)
        arguments: dict[str, Any] = {"train": True}
    else:
        model, arguments = translation_nets.flax_net(**case.network), {}
    optimizer = optax.adam(1e-4, 0.9, 0.98)

    def init() -> tuple:
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        params = model.init(keys, source[:1], target_in[:1])["params"]
        return params, optimizer.init(params), jnp.zeros((), jnp.int32)

    def step(state: tuple, source: jax.Array, target_in: jax.Array, target: jax.Array) -> tuple:
        params, moments, count = state
        key = jax.random.fold_in(jax.random.key(0), count)

        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, source, target_in, rngs={"dropout": key}, **arguments)
            if who == "ours":
                losses = token_cross_entropy(logits, target, SMOOTHING)
            else:
                smoothed = optax.smooth_labels(jax.nn.one_hot(target, logits.shape[-1]), SMOOTHING)
                losses = optax.softmax_cross_entropy(logits, smoothed)
            return (losses * (target > 0)).sum() / (target > 0).sum()

        gradients = jax.grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, count + 1

    state, step = jax.jit(init)(), jax.jit(step, donate_argnums=0)

    def take() -> None:
        nonlocal state
        state = jax.block_until_ready(step(state, source, target_in, target))

    return take, sum(leaf.size for leaf in jax.tree.leaves(state[0]))


def torch_trainer(case: Training) -> tuple[Callable[[], None], int]:
    """As `jax_trainer`."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = translation_nets.torch_net(**case.network).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, (0.9, 0.98))
    source, target_in, target = (torch.from_numpy(x).long() for x in case.batch())

    def take() -> None:
        optimizer.zero_grad()
        logits = model(source, target_in).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, target.flatten(), ignore_index=0, label_smoothing=SMOOTHING).backward()
        optimizer.step()

    return take, sum(parameter.numel() for parameter in model.parameters())


def work(who: str, name: str, folder: Path) -> None:
    """One process: prints when it is ready, then seconds (wall, CPU, CPU in the kernel) for every line that comes in.

    What it says about itself first is its number of parameters, or the tokens that it has translated to.
    """
    case = CASES[name]
    if who == "ours":  # as the command line does
        from attention_jax.cli.malloc import keep_freed_memory

        keep_freed_memory()
    if isinstance(case, Translating):
        source = np.random.default_rng(0).integers(2, case.network["vocab_size"] - 1, (case.sentences, case.length))
        source[:, -1] = translation_nets.EOS
        threads = len(os.sched_getaffinity(0))
        take = translation_nets.marian_translator(who, folder, source.astype(np.int32), case.new_tokens, case.beam, threads)
        about = take().tolist()
    else:
        take, about = torch_trainer(case) if who == "torch" else jax_trainer(who, case)
        take()
    take()
    print(json.dumps([about, {package: importlib.metadata.version(package) for package in PACKAGES[who]}]), flush=True)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF)
        wall = time.perf_counter()
        take()
        wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
        kernel = after.ru_stime - before.ru_stime
        print(json.dumps([wall, after.ru_utime - before.ru_utime + kernel, kernel]), flush=True)


def race(name: str, pythons: dict[str, str], rounds: int, folder: Path) -> tuple[dict[str, list], dict[str, str], str]:
    """Seconds (wall, CPU, kernel) of every turn by who took it, the versions of what ran, and whether all did the same work."""
    processes, versions, about = {}, {}, {}
    for who, python in pythons.items():
        command = [python, __file__, f"--worker={who}", f"--cases={name}", f"--folder={folder}"]
        processes[who] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        about[who], used = answer(processes[who])
        versions |= used
    times = {who: [] for who in pythons}
    for _ in range(rounds):
        for who, process in processes.items():
            print("go", file=process.stdin, flush=True)
            times[who].append(answer(process))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return times, versions, same_work(CASES[name], about)


def same_work(case: Training | Translating, about: dict[str, Any]) -> str:
    """A sentence about what the peers said of themselves.

    Raises:
        SystemExit: they differ in parameters or in the number of tokens written.
    """
    if isinstance(case, Training):
        if len(set(about.values())) > 1:
            raise SystemExit(f"not the same network, these are the numbers of parameters: {about}.")
        return f"{next(iter(about.values())):,} parameters each."
    rows = {who: np.array(tokens) for who, tokens in about.items()}
    for who, tokens in rows.items():
        if tokens.shape != (case.sentences, case.new_tokens):
            raise SystemExit(f"{who} wrote {tokens.shape} tokens and not {(case.sentences, case.new_tokens)}.")
    equal = [f"{(rows['ours'] == rows[who]).all(1).sum()} with {who}" for who in rows if "ours" in rows and who != "ours"]
    return f"Of {case.sentences} translations ours share {' and '.join(equal)}." if equal else ""


def report(names: list[str], peer_python: str, rounds: int, only: list[str], command: str) -> str:
    """Runs the cases and returns the page."""
    lines, notes, versions = [], [], {}
    training, translating, beside = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if any(isinstance(CASES[name], Translating) for name in names):
            subprocess.run([peer_python, __file__, "--worker=files", f"--folder={folder}"], check=True)
        for name in names:
            case = CASES[name]
            titles = {who: title for who, title in PEERS[type(case)].items() if not only or who in only}
            pythons = {who: peer_python if who in OF_PEERS else sys.executable for who in titles}
            times, used, note = race(name, pythons, rounds, folder)
            versions |= used
            notes.append(f"- {TITLES[name]}: {note}")
            best = {who: [min(turn[i] for turn in turns) for i in (0, 1)] for who, turns in times.items()}
            kernel = {who: statistics.median(turn[2] for turn in turns) for who, turns in times.items()}
            print(name, {who: [round(1000 * turn[0]) for turn in turns] for who, turns in times.items()}, flush=True)
            for who, title in titles.items():
                wall, cpu = best[who]
                median = statistics.median(turn[0] for turn in times[who])
                is_compared = "ours" in best and who != "ours"
                ratios = [f"{best[who][i] / best['ours'][i]:.2f}" for i in (0, 1)] if is_compared else ["", ""]
                if is_compared:
                    beside.append(f"| {TITLES[name]} | {title} | {ratios[0]} |")
                    (training if isinstance(case, Training) else translating).append(wall / best["ours"][0])
                numbers = [f"{case.tokens / wall:,.0f}", f"{1000 * wall:,.0f} ({1000 * median:,.0f})"]
                numbers += [f"{1000 * cpu:,.0f} ({1000 * kernel[who]:,.0f})"]
                lines.append(" | ".join([f"| {TITLES[name]}", title, *numbers, *ratios]) + " |")
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    found = [
        f"{work} is {say_range(ratios)} times as fast as with the other libraries"
        for work, ratios in (("training", training), ("translation", translating))
        if ratios
    ]
    every = ["| work | by | tokens/s | ms | CPU ms | × ours | × ours, CPU |", "|---|---|---|---|---|---|---|", *lines]
    return render_page(
        "Training and translation beside other libraries",
        f"With this library, {' and '.join(found)}." if found else "Nothing was compared with ours.",
        "\n".join(["| work | beside | ours is this many times as fast |", "|---|---|---:|", *beside]),
        f"`{command}` (needs a quiet machine and PyTorch). The best of {rounds} turns, which all take in turn, each in its "
        "own process.",
        f"{len(os.sched_getaffinity(0))} threads, {cpu_name()}, load {os.getloadavg()[0]:.1f}, "
        f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')} for all, {software}.",
        {
            "Tokens a second, milliseconds and CPU time": "\n".join([*every, "", *notes])
            + f"\n\nTarget tokens a second at the best of {rounds} turns. Milliseconds of a step or a translation: minimum "
            "(median). "
            "CPU time of all threads, which other programs on the machine disturb less: minimum (median of the kernel's share, "
            "which is mostly for handing out memory). Then how many times as long as ours."
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated names")
    parser.add_argument("--who", default="", help="only these, of ours, flax, torch, marian, ct2")
    parser.add_argument("--rounds", type=int, default=8, help="turns that each takes")
    parser.add_argument("--peer_python", default=sys.executable, help="a Python with torch, transformers and ctranslate2")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.cases.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"--cases: {', '.join(sorted(unknown))} is not one of {', '.join(CASES)}.")
    if args.worker == "files":
        return translation_nets.write_marian(args.folder, **BASE)
    if args.worker:
        return work(args.worker, names[0], args.folder)
    command = " ".join(["python", *(arg for arg in sys.argv if not arg.startswith(("--peer_python", "--output")))])
    only = args.who.split(",") if args.who else []
    text = report(names, args.peer_python, args.rounds, only, f"{command} --peer_python=PATH")
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
