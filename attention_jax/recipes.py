"""Recipe pieces: ConfigDict -> ConfigDict, named like the rows of the papers' ablation tables.

A piece changes a copy. An additive ablation is a tuple of pieces; its row i is the base with the first i applied.
Bind arguments with `functools.partial(piece, ...)` or a lambda.
"""

from ml_collections import ConfigDict


def _changed(config: ConfigDict, section: str, **values: object) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config[section].update(values)
    return config


def cosine_lr(config: ConfigDict) -> ConfigDict:
    """Cosine decay to 0 in place of the config's schedule; peak and warm-up stay (Loshchilov & Hutter 2017)."""
    return _changed(config, "schedule", name="cosine")


def ema(config: ConfigDict, decay: float = 0.9999) -> ConfigDict:
    """Evaluate an exponential moving average of weights and batch statistics (ResNet-RS: 0.9999 with warm-up)."""
    return _changed(config, "ema", decay=decay, warmup=True)


def label_smoothing(config: ConfigDict, smoothing: float = 0.1) -> ConfigDict:
    """Smooth the target distribution (Szegedy et al. 2016; 0.1 in ResNet-RS)."""
    return _changed(config, "loss", label_smoothing=smoothing)


def no_shortcuts(config: ConfigDict) -> ConfigDict:
    """The plain network of the same layers (He et al. 2016, Section 3.3)."""
    return _changed(config, "model", residual=False)


def squeeze_excite(config: ConfigDict, reduction: int = 16) -> ConfigDict:
    """Squeeze-and-excitation on every residual branch (Hu et al. 2018; r = 16 there)."""
    return _changed(config, "model", gate="se", gate_at="block", gate_args=ConfigDict({"reduction": reduction}))


def bam(config: ConfigDict, reduction: int = 16) -> ConfigDict:
    """BAM after each stage but the last (Park et al. 2018; r = 16 there)."""
    return _changed(config, "model", gate="bam", gate_at="stage", gate_args=ConfigDict({"reduction": reduction}))
