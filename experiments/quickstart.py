"""The first table: two digits, between them the colour of the one to read, and networks with and without attention.

Run:       ./launch.sh quickstart
Hardware:  two CPU cores, less than five minutes.
Expected:  experiments/results/quickstart.md

Three rows of cued_colour.py and visual_attention.py, where the others, more seeds and what was piloted are.
"""

title = "Which of two digits? Networks with and without attention"
source = (
    "Two UCI digits, one red and one green, and between them a patch of one of their colours: the label is the digit of that "
    "colour. BAM: Park et al. 2018 (arXiv 1807.06514); self-attention: Zhang et al. 2019 (arXiv 1805.08318)."
)
notes = (
    "One basic block in each of two stages of 16 and 32 filters, too small a network to bring the patch and the digits "
    "together by convolutions alone: it reads both digits and guesses which is meant, which is right in about half of the "
    "cases. BAM stands after stage 1, self-attention after stage 2. A network that is twice as deep needs neither: see "
    "cued_colour.py."
)
base = "../configs/cued_digits.py"

rows = [
    {"label": "none"},
    {
        "label": "BAM",
        "overrides": {
            "model.gate": "bam",
            "model.gate_at": "stage",
            "model.gate_stages": (1,),
            "model.gate_args.reduction": 1,  # 16 hidden channels, as many as the paper's after stage 1 of a ResNet-50
        },
    },
    {
        "label": "self-attention",
        "overrides": {"model.gate": "self_attention", "model.gate_at": "stage", "model.gate_stages": (2,)},
    },
]
compare_to = "baseline"

scales = {
    "quick": {"seeds": 3},
    # Shows in seconds that everything runs; its numbers mean nothing.
    "smoke": {
        "seeds": 2,
        "overrides": {
            "data.args.number": 40,
            "batch_size": 4,
            "total_steps": 6,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 3,
            "evaluation.batch_size": 20,
            "checkpoint.every_steps": 3,
            "logging.every_steps": 2,
        },
    },
}

attention_of = "self-attention"

next_commands = [
    (
        "change a field and train that network",
        "./launch.sh train --config=configs/cued_digits.py --config.model.gate=eca --workdir=runs/mine",
    ),
    (
        "open a network of this table in Python; experiments/notebooks/load_and_look.ipynb goes on from here",
        "./launch.sh python -c \"import attention_jax as aj; print(aj.load_run('{workdir}/bam/0').metrics[-1])\"",
    ),
    ("evaluate a network of this table again", "./launch.sh evaluate --workdir={workdir}/self-attention/0"),
]
