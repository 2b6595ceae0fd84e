"""ResNet-20 with and without BAM on CIFAR-10, equal budget.

Run:       TFDS_DATA_DIR=DIR ./launch.sh table experiments/cifar10.py --scale=small
           DIR holds CIFAR-10: ./launch.sh prepare cifar10 --data_dir=DIR
Hardware:  small: two CPU cores, one for each row (--rows=ResNet-20 and --rows=BAM-ResNet-20, side by side); paper: one
           accelerator; quick, on the embedded digits: two cores.
Expected:  8.75 % test error for ResNet-20 after the full schedule (published, Table 6; not run here). Small, 10 epochs: 15.10 %
           and 15.27 % with BAM (reproduced here, experiments/results/cifar10-small.md).
"""

title = "ResNet-20 with and without BAM on CIFAR-10"
source = "He et al. 2016 (arXiv 1512.03385, Section 4.2 and Table 6) and Park et al. 2018 (arXiv 1807.06514)."
notes = (
    "Published: CIFAR-10, the full schedule of 164 epochs. Small keeps the paper's recipe but for 10 epochs and a cosine "
    "schedule after one epoch of warm-up, one seed: the difference then has no interval over seeds. Quick trains the same "
    "networks on the 8x8 digits, which says nothing about CIFAR-10."
)
base = "../configs/quickstart.py"

rows = [
    {
        "label": "ResNet-20",
        "overrides": {"model.name": "resnet20"},
        "published": {"CIFAR-10 test error %": 8.75},
        "network": {"name": "resnet20"},
    },
    {"label": "BAM-ResNet-20", "overrides": {"model.name": "bam_resnet20"}, "network": {"name": "bam_resnet20"}},
]
network_shape = (1, 32, 32, 3)

scales = {
    "quick": {"seeds": 3, "overrides": {"total_epochs": 10.0, "logging.tensorboard": False}},
    "smoke": {
        "seeds": 1,
        "overrides": {
            "logging.tensorboard": False,
            "total_steps": 4,
            "schedule.warmup_steps": 1,
            "evaluation.every_steps": 4,
            "checkpoint.every_steps": 4,
            "logging.every_steps": 2,
        },
    },
    "small": {
        "base": "../configs/cifar10.py",
        "seeds": 1,
        "overrides": {
            "total_epochs": 10.0,
            "schedule.name": "cosine",
            "schedule.warmup_epochs": 1.0,
            "evaluation.every_epochs": 1.0,
            "checkpoint.every_epochs": 1.0,
            "logging.every_steps": 50,
        },
    },
    "paper": {"base": "../configs/cifar10.py", "seeds": 5},
}

attention_of = "BAM-ResNet-20"
