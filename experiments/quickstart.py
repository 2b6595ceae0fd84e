"""The first table: two digits, between them an arrow to the one to read, and networks with and without a map of where to look.

Run:       ./launch.sh quickstart
Hardware:  two CPU cores, less than five minutes.
Expected:  experiments/results/quickstart.md

Three rows of cued_arrow.py, where the others, two more seeds and what was piloted are.
"""

from experiments.studies import smoke

title = "Which of two digits? A small network with a map of where to look, and with more convolutions"
source = (
    "Two UCI digits, and between them an arrow to the left or to the right: the label is the digit that it points to. BAM: "
    "Park et al. 2018 (arXiv 1807.06514)."
)
notes = (
    "One basic block in each of two stages of 16 and 32 filters, which does not see far enough to bring the arrow and the "
    "digits together: it reads both digits and mostly guesses which is meant. BAM multiplies the output of stage 2 by a map of "
    "where to look and of channels; its dilated convolutions see the whole image. Added: the same convolutions, added and not "
    "multiplied, which tells how much of BAM's gain is its field of view."
)
base = "../configs/cued_digits.py"

_ARROW = {"data.args.key": "arrow"}
_AFTER = {**_ARROW, "model.gate_at": "stage", "model.gate_stages": (2,), "model.gate_args.reduction": 1}
rows = [
    {"label": "none", "overrides": _ARROW},
    {"label": "BAM", "overrides": {**_AFTER, "model.gate": "bam", "model.gate_args.fit_dilation": False}},
    {
        "label": "added",
        "against": "BAM",
        "overrides": {**_AFTER, "model.gate": "experiments.studies.controls.AddedBranch"},
    },
]
compare_to = "baseline"

scales = {
    "quick": {"seeds": 3},
    # Shows in seconds that everything runs; its numbers mean nothing.
    "smoke": {"seeds": 2, "overrides": {**smoke.CUED_DIGITS, "total_steps": 6, "checkpoint.every_steps": 3}},
}

attention_of = "BAM"
next_commands = [
    (
        "change a field and train that network",
        "./launch.sh train --config=configs/cued_digits.py --config.model.gate=eca --workdir=runs/mine",
    ),
    (
        "open a network of this table in Python; experiments/notebooks/load_and_look.ipynb goes on from here",
        "./launch.sh python -c \"import attention_jax as aj; print(aj.load_run('{workdir}/bam/0').metrics[-1])\"",
    ),
    ("evaluate a network of this table again", "./launch.sh evaluate --workdir={workdir}/bam/0"),
]
