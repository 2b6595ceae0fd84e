"""Two white digits, and between them an arrow to the one to read: is a map of where to look worth more than channels?

Run:       ./launch.sh table experiments/cued_arrow.py
Hardware:  two CPU cores, less than 25 minutes.
Expected:  experiments/results/cued_arrow.md

Task, budget, rows and comparisons were fixed before any test image was evaluated. Piloted on the split "validation", seed
100, in % (half guess the digit): none 67.2; twice as deep 97.0; BAM 91.9; added branch 96.5, which is therefore the control
of equal cost that gates are compared with.
"""

from experiments.studies import smoke

title = "Which of two digits, by an arrow between them: gates after stage 2"
source = (
    "Our own task for a claim of Park et al. 2018 (arXiv 1807.06514) and Woo et al. 2018 (arXiv 1807.06521): that a map of "
    "where to look helps beyond a gate of channels (Hu et al. 2018)."
)
notes = (
    "Two UCI digits at the two ends of 10x32 pixels, and in the middle an arrow that points to the left or to the right: the "
    "label is the digit that it points to. A guess at which of the two is meant is right in about half of the cases. 10,000 "
    "images for training, made of two thirds of the training digits; 2,000 for the test, made of the test digits.\n"
    "One basic block in each of two stages of 16 and 32 filters; the last map is averaged over positions. Gates stand after "
    "stage 2, where no convolution follows. Controls, which have no map: two blocks in each stage; BAM's dilated convolutions "
    "added and not multiplied, so that a position sees the whole image. Reduction 1 in all gates that have one; "
    "BAM keeps its dilation of 4 on maps of 5x16. The pilot of BAM had a dilation of 2 there."
)
base = "../configs/cued_digits.py"
_CONTROLS = "experiments.studies.controls"


def _row(label: str, gate: str | None = None, **fields: object) -> dict:
    """`fields` are the gate's; of a row without a gate the network's."""
    overrides = {f"model.{name}": value for name, value in fields.items()}
    if gate:
        overrides = {f"model.gate_args.{name}": value for name, value in fields.items()}
        overrides |= {"model.gate": gate, "model.gate_at": "stage", "model.gate_stages": (2,)}
    compared = gate is not None and not gate.startswith(_CONTROLS)
    against = "added branch" if compared else None
    return {"label": label, "against": against, "overrides": {**overrides, "data.args.key": "arrow"}}


rows = [
    _row("none"),
    _row("twice as deep", stage_sizes=(2, 2)),
    _row("added branch", f"{_CONTROLS}.AddedBranch", reduction=1),
    _row("SE", "se", reduction=1),
    _row("BAM channel branch", "bam", reduction=1, spatial=False, fit_dilation=False),
    _row("BAM spatial branch", "bam", reduction=1, channel=False, fit_dilation=False),
    _row("BAM", "bam", reduction=1, fit_dilation=False),
    _row("CBAM", "cbam", reduction=1),
    _row("self-attention", "self_attention"),
]
compare_to = "baseline"
findings = [
    {"text": f"a map of where to look helps (Park et al. 2018, Section 3, of BAM), {claim}", "row": row, "over": over}
    for claim, row, over in (
        ("here against the gate of channels alone", "BAM", "BAM channel branch"),
        ("here against a control that they do not have: the same convolutions, added", "BAM", "added branch"),
        ("here against another control of ours: a plain network that is twice as deep", "BAM", "twice as deep"),
    )
]
scales = {
    "quick": {"seeds": 5},
    "smoke": {"seeds": 1, "overrides": {**smoke.CUED_DIGITS, "model.widths": (8, 8)}},
}
