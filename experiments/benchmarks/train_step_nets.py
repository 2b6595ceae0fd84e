"""The ResNets that `train_step.py` compares with, in plain Flax and in PyTorch, which are imported when they are used."""

from typing import Any

CIFAR = {"resnet20": 3, "resnet32": 5}
REDUCTION, DILATION = 16, 4


def flax_net(name: str, overrides: dict[str, Any], classes: int, dtype: str = "float32") -> Any:
    """A Linen module as a user would write it out of `flax.linen` alone."""
    import functools

    import flax.linen as nn
    import jax.numpy as jnp

    he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    conv = functools.partial(nn.Conv, use_bias=False, kernel_init=he, dtype=dtype)
    norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=dtype)

    def around(k: int, dilation: int = 1) -> list[tuple[int, int]]:
        return [(dilation * (k - 1) // 2,) * 2] * 2

    class Bottleneck(nn.Module):
        width: int
        features: int
        stride: int
        groups: int

        @nn.compact
        def __call__(self, x):
            y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
            y = conv(self.width, (3, 3), self.stride, padding=around(3), feature_group_count=self.groups)(y)
            y = norm()(conv(self.features, (1, 1))(nn.relu(norm()(y))))
            if x.shape != y.shape:
                x = norm()(conv(self.features, (1, 1), self.stride)(x))
            return nn.relu(x + y)

    class Basic(nn.Module):
        width: int
        stride: int

        @nn.compact
        def __call__(self, x):
            y = nn.relu(norm()(conv(self.width, (3, 3), self.stride, padding=around(3))(x)))
            y = norm()(conv(self.width, (3, 3), padding=around(3))(y))
            if x.shape != y.shape:
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[-1])))
            return nn.relu(x + y)

    class BAM(nn.Module):
        @nn.compact
        def __call__(self, x):
            c = x.shape[-1]
            dense, biased = functools.partial(nn.Dense, dtype=dtype), functools.partial(conv, use_bias=True)
            channel = dense(c)(nn.relu(dense(c // REDUCTION)(x.mean((1, 2)))))
            spatial = nn.relu(biased(c // REDUCTION, (1, 1))(x))
            for _ in range(2):
                dilated = biased(c // REDUCTION, (3, 3), padding=around(3, DILATION), kernel_dilation=DILATION)
                spatial = nn.relu(dilated(spatial))
            spatial = norm()(biased(1, (1, 1))(spatial))
            return x * (1 + nn.sigmoid(norm()(channel)[:, None, None] + spatial))

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            if name in CIFAR:
                widths = overrides.get("widths", (16, 32, 64))
                x = nn.relu(norm()(conv(widths[0], (3, 3), padding=around(3))(x)))
                for stage, width in enumerate(widths):
                    for i in range(CIFAR[name]):
                        x = Basic(width, 2 if stage and not i else 1)(x)
                return nn.Dense(classes)(x.astype(jnp.float32).mean((1, 2)))
            x = nn.relu(norm()(conv(64, (7, 7), 2, padding=around(7))(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            wider, groups = (2, 32) if "resnext" in name else (1, 1)
            for stage, blocks in enumerate((3, 4, 6, 3)):
                features = 256 * 2**stage
                for i in range(blocks):
                    x = Bottleneck(wider * features // 4, features, 2 if stage and not i else 1, groups)(x)
                if "bam" in name and stage < 3:
                    x = BAM()(x)
            return nn.Dense(classes)(x.astype(jnp.float32).mean((1, 2)))

    return ResNet()


def torch_net(name: str, overrides: dict[str, Any], classes: int) -> Any:
    """torchvision's networks; BAM and the CIFAR networks, which it does not have, written here."""
    import torch
    import torchvision
    from torch import nn

    class BAM(nn.Module):
        def __init__(self, c: int):
            super().__init__()
            r = c // REDUCTION

            self.channel = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                *(nn.Linear(c, r), nn.ReLU(inplace=True)),
                *(nn.Linear(r, c), nn.BatchNorm1d(c)),
            )
            self.spatial = nn.Sequential(
                *(nn.Conv2d(c, r, 1), nn.ReLU(inplace=True)),
                *(nn.Conv2d(r, r, 3, padding=DILATION, dilation=DILATION), nn.ReLU(inplace=True)),
                *(nn.Conv2d(r, r, 3, padding=DILATION, dilation=DILATION), nn.ReLU(inplace=True)),
                *(nn.Conv2d(r, 1, 1), nn.BatchNorm2d(1)),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + torch.sigmoid(self.channel(x)[:, :, None, None] + self.spatial(x)))

    class Basic(nn.Module):
        def __init__(self, features: int, width: int, stride: int):
            super().__init__()
            self.stride, self.more = stride, width - features
            self.body = nn.Sequential(
                nn.Conv2d(features, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
            return nn.functional.relu(self.body(x) + shortcut)

    if name in CIFAR:
        widths = overrides.get("widths", (16, 32, 64))
        channels = 1 if "widths" in overrides else 3
        layers = [nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        before = widths[0]
        for stage, width in enumerate(widths):
            for i in range(CIFAR[name]):
                layers.append(Basic(before, width, 2 if stage and not i else 1))
                before = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    net = getattr(torchvision.models, name.removeprefix("bam_"))(num_classes=classes)
    if name.startswith("bam_"):
        for stage, c in ((1, 256), (2, 512), (3, 1024)):
            setattr(net, f"layer{stage}", nn.Sequential(getattr(net, f"layer{stage}"), BAM(c)))
    return net
