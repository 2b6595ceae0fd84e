"""Attention in vision and language, in JAX: launch a config, reproduce an ablation table, load a checkpoint.

Names are looked up when they are first used, so that `import attention_jax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_jax.analysis.attention_maps import attention_maps
    from attention_jax.data.images.preprocessing import preprocessing
    from attention_jax.errors import UserError
    from attention_jax.interop.pretrained import load_pretrained
    from attention_jax.load import Run, load_checkpoint, load_run, save_run
    from attention_jax.models import create_model, list_models, register_model
    from attention_jax.models.summary import summary
    from attention_jax.tables.compare import compare

__version__ = "0.2.0"
_HOME = {
    "UserError": "attention_jax.errors",
    "attention_maps": "attention_jax.analysis.attention_maps",
    "compare": "attention_jax.tables.compare",
    "create_model": "attention_jax.models",
    "list_models": "attention_jax.models",
    "load_checkpoint": "attention_jax.load",
    "load_pretrained": "attention_jax.interop.pretrained",
    "load_run": "attention_jax.load",
    "preprocessing": "attention_jax.data.images.preprocessing",
    "Run": "attention_jax.load",
    "save_run": "attention_jax.load",
    "register_model": "attention_jax.models",
    "summary": "attention_jax.models.summary",
}
__all__ = [  # noqa: RUF022  grouped by use
    "create_model",
    "list_models",
    "register_model",
    "summary",
    "load_checkpoint",
    "load_run",
    "save_run",
    "load_pretrained",
    "Run",
    "preprocessing",
    "attention_maps",
    "compare",
    "UserError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attention_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # otherwise the module of the same name would hide the function
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
