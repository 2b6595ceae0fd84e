"""Writes tests/fixtures/parity_*.npz from PyTorch: `python -m tests.peers.freeze [CASE ...]` in the repository's root.

Needs torch, torchvision, timm and transformers (the extra `peers`); of attention_jax nothing is used but the names of
parameters, so that a fixture cannot be made to agree with it.
"""

import sys

import numpy as np

from tests.helpers import (
    parity,
    parity_convnext,
    parity_efficientnet,
    parity_recipes,
    parity_recurrent,
    parity_translation,
    parity_vit,
)
from tests.peers import (
    torch_convnext,
    torch_efficientnet,
    torch_nets,
    torch_recipes,
    torch_recurrent,
    torch_training,
    torch_transformer,
    torch_vit,
    torch_weights,
)

NEAREST = 1e-5  # to a kink of ReLU or maximum; float32 errs by about 1e-6
DOUBTFUL = 1e-5  # gradient as a share of its array's largest; Adam's first step goes by the sign alone
FAINTEST = 1e-3  # gradient of a weight as a share of the network's largest; less, and a mistake there would not show


def faint(results: parity.Results, faintest: float = FAINTEST) -> list[str]:
    """Weights whose gradient hardly differs from zero, as behind a ReLU that is off for every example."""
    found = []
    for kind in {"gradients", "train_gradients"} & results.keys():
        size = {path: np.abs(value).max() for path, value in results[kind].items()}
        found += [path for path in size if not path.endswith("bias") and size[path] < faintest * max(size.values())]
    return found


def main(names: list[str]) -> None:
    """Freezes the named cases, or all."""
    parity.FIXTURES.mkdir(exist_ok=True)
    for name, case in {**parity.CASES, **parity_convnext.CASES, **parity_efficientnet.CASES}.items():
        if not names or name in names:
            faintest = FAINTEST
            if isinstance(case, parity_convnext.Case):
                results, nearest = torch_convnext.run(case)
            elif isinstance(case, parity_efficientnet.Case):
                results, nearest = torch_efficientnet.run(case)
                faintest = parity_efficientnet.FAINTEST
            else:
                results, nearest = torch_nets.run(case, biased=name == parity.BIASED)
            print(f"{name}: a kink is {nearest:.1e} away")
            if nearest < NEAREST:
                raise SystemExit(f"{name}: float32 may fall on the other side of a kink; give the case another seed.")
            if faint(results, faintest):
                raise SystemExit(f"{name}: {faint(results, faintest)} hardly matter; give the case another seed.")
            parity.save(name, results)
    for name, training in parity.TRAININGS.items():
        if not names or name in names:
            parity.save(name, torch_training.train(training))
    for name, recipe in parity.RECIPES.items():
        if not names or name in names:
            results, nearest = torch_training.follow(recipe)
            print(f"{name}: a kink is {nearest:.1e} away")
            if nearest < NEAREST:
                raise SystemExit(f"{name}: float32 may fall on the other side of a kink; give the case another seed.")
            parity.save(name, results)
    for name, family in parity_recipes.FAMILIES.items():
        if not names or name in names:
            results, nearest = torch_recipes.follow(family)
            print(f"{name}: a kink is {nearest:.1e} away")
            if nearest < NEAREST / 10:  # the values before ReLU are tens of thousands, and changes have a wide tolerance
                raise SystemExit(f"{name}: float32 may fall on the other side of a kink; give the case another seed.")
            parity.save(name, parity_recipes.leave_out(results))
    for name, case in parity_translation.CASES.items():
        if not names or name in names:
            results, nearest, doubtful = torch_transformer.run(case)
            print(f"{name}: a kink is {nearest:.1e} away, a gradient's sign {doubtful:.1e}")
            if nearest < NEAREST or doubtful < DOUBTFUL:
                raise SystemExit(f"{name}: float32 may fall on the other side; give the case another seed.")
            if faint(results):
                raise SystemExit(f"{name}: {faint(results)} hardly matter; give the case another seed.")
            parity.save(name, results)
    for name in parity_translation.MARIANS:
        if not names or name in names:
            parity.save(name, torch_transformer.run_marian(name))
    for name, stack in parity_recurrent.STACKS.items():
        if not names or name in names:
            parity.save(name, torch_recurrent.run_stack(stack))
    for name, case in parity_recurrent.MODELS.items():
        if not names or name in names:
            results, nearest = torch_recurrent.run(case)
            print(f"{name}: a kink is {nearest:.1e} away")
            if nearest < NEAREST:
                raise SystemExit(f"{name}: float32 may fall on the other side of a kink; give the case another seed.")
            if faint(results):
                raise SystemExit(f"{name}: {faint(results)} hardly matter; give the case another seed.")
            parity.save(name, results)
    for name, of_vit in parity_vit.VITS.items():
        if not names or name in names:
            results = torch_vit.run(of_vit)
            if faint(results):
                raise SystemExit(f"{name}: {faint(results)} hardly matter; give the case another seed.")
            parity.save(name, results)
    if not names or "weights" in names:
        torch_weights.write()
    if not names or "imagenet" in names:
        parity.save("imagenet", {"logits": {name: torch_nets.imagenet_logits(name) for name in parity.IMAGENET}})


if __name__ == "__main__":
    main(sys.argv[1:])
