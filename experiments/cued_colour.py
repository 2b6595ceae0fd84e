"""Two coloured digits, and between them the colour of the one to read: what an early layer must know of the whole image.

Run:       ./launch.sh table experiments/cued_colour.py
Hardware:  a CPU core; the results took 83 minutes on one that others shared.
Expected:  experiments/results/cued_colour.md, and cued_colour-short.md of `--scale=short`

Short, 500 updates, was run first; task, budget, rows and comparisons were fixed before any test image was evaluated. Piloted
on the split "validation", seed 100, 500 updates unless said otherwise, in % (half guess the digit): none 51.8; twice as deep
94.5; SE, reduction 1, 77.1 in every block, 83.3 after stage 1; ECA in every block 88.9; added mean after stage 1 46.5; after
stage 1 and with reduction 1 BAM 71.4 and the added branch 85.2, which is therefore the control of equal cost that gates are
compared with; with reduction 4 BAM 41.1, added branch 74.3. On 16x32 pixels, 800 updates: none 53.5; SE in every block,
reduction 4, 52.7 (also 54.3 in 2,400 updates of 32 images, and 47.0 with a third of the noise); ECA 86.8 in every block;
self-attention after stage 2 93.9.

Whether a network had found the cue after 500 updates differed by seed, in training too. Quick has 1,200 and fewer rows, and
as it was planned after that look at the test, other images (version 2). Piloted on "validation", 1,200
updates, version 1, seeds 100, 101 and 102: ECA in every block 97.2, 97.1, 97.9; added branch 95.0, 96.6, and 89.7 after 400
of them, where the third was stopped; twice as deep 97.1, 96.2 (found between updates 400 and 600) and not run.
The pilots: ./launch.sh train --config=configs/cued_digits.py --config.data.eval_split=validation --config.seed=100
--workdir=runs/pilot, with the fields of a row (--dry-run prints them).
"""

from experiments.studies import smoke

title = "Which of two digits, by the colour of a patch between them: gates after stage 1"
source = (
    "Our own task for a claim of Park et al. 2018 (arXiv 1807.06514) and others: that a gate lets an early layer decide by the "
    "whole image what matters. Squeeze-and-excitation (Hu et al. 2018), BAM, CBAM (Woo et al. 2018), ECA (Wang et al. 2020), "
    "the global context block (Cao et al. 2019), self-attention (Zhang et al. 2019)."
)
notes = (
    "Two UCI digits, one red and one green, at the two ends of 10x32 pixels, and in the middle a framed patch of one of their "
    "colours: the label is the digit of that colour. A guess at which of the two is meant is right in about half of the "
    "cases. 10,000 images for training, made of two thirds of the training digits; 2,000 for the test, made of the test "
    "digits.\n"
    "One basic block in each of two stages of 16 and 32 filters. Gates stand after stage 1, before the convolutions of stage "
    "2, or in both blocks. Controls, which have no map: two blocks in each stage; x + W·mean(x); BAM's dilated convolutions "
    "added and not multiplied, so that a position sees nearly the whole image. Reduction 1 in all gates that have one: 16 "
    "hidden channels, as many as in the paper's BAM after stage 1 of a ResNet-50. Without a cue: the patch has the colour of "
    "either digit by chance; there no row may be better than a guess."
)
base = "../configs/cued_digits.py"
_CONTROLS = "experiments.studies.controls"


def _row(label: str, gate: str | None = None, at: str = "stage", cue: bool = True, **fields: object) -> dict:
    """`fields` are the gate's; of a row without a gate the network's."""
    overrides = {f"model.{name}": value for name, value in fields.items()}
    if gate:
        overrides = {f"model.gate_args.{name}": value for name, value in fields.items()}
        overrides |= {"model.gate": gate, "model.gate_at": at, "model.gate_stages": (1,) if at == "stage" else None}
    if not cue:
        overrides["data.args.informative"] = False
    compared = gate is not None and not gate.startswith(_CONTROLS) and cue
    return {"label": label, "against": "added branch" if compared else None, "overrides": overrides}


rows = [
    _row("none"),
    _row("twice as deep", stage_sizes=(2, 2)),
    _row("added mean", f"{_CONTROLS}.AddedMean"),
    _row("added branch", f"{_CONTROLS}.AddedBranch", reduction=1),
    _row("SE", "se", reduction=1),
    _row("ECA", "eca"),
    _row("global context", "gc", reduction=1),
    _row("BAM", "bam", reduction=1),
    _row("CBAM", "cbam", reduction=1),
    _row("self-attention", "self_attention"),
    _row("ECA in every block", "eca", at="block"),
    _row("the same without a cue", "eca", at="block", cue=False),
]
compare_to = "baseline"
findings = [
    {
        "text": f"a gate lets an early layer decide by the whole image (Park et al. 2018, Section 1), {claim}",
        "row": row,
        "over": over,
    }
    for claim, row, over in (
        ("BAM against no gate", "BAM", "none"),
        ("BAM against a control that they do not have: its convolutions, added", "BAM", "added branch"),
        ("the gate that was best on the validation split against that control", "ECA in every block", "added branch"),
        ("the gate that was best on the validation split against no gate", "ECA in every block", "none"),
        (
            "that gate against another control of ours: a plain network that is twice as deep",
            "ECA in every block",
            "twice as deep",
        ),
    )
]
scales = {
    "quick": {
        "seeds": 5,
        "overrides": {
            "total_steps": 1200,
            "evaluation.every_steps": 120,
            "checkpoint.every_steps": 1200,
            "data.args.version": 2,
        },
        "rows": [
            *("none", "twice as deep", "added branch", "BAM", "CBAM", "ECA in every block", "the same without a cue"),
        ],
    },
    "short": {"seeds": 5},
    "smoke": {"seeds": 1, "overrides": {**smoke.CUED_DIGITS, "model.widths": (8, 8)}},
}
