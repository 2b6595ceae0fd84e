"""One switch for this folder: "auto" runs a kernel if it is faster, "xla" leaves every program to JAX and XLA.

The environment variable AJ_KERNELS sets it for a process, `use_kernels` for a `with` block. It is part of the keys under which
JAX caches traced, lowered and compiled programs, including those inside `jax.checkpoint`, loops and custom derivatives.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax

from attention_jax.errors import UserError

CHOICES = ("auto", "xla")


def _checked(choice: str, source: str) -> str:
    if choice not in CHOICES:
        raise UserError(f"{source}: {choice!r} is not one of {', '.join(map(repr, CHOICES))}.")
    return choice


_choice = jax.make_user_context(default_value=_checked(os.environ.get("AJ_KERNELS") or "auto", "AJ_KERNELS"))


def use_kernels(choice: str) -> AbstractContextManager[None]:
    """Makes a `with` block of this thread trace with the kernels ("auto") or with JAX's own operations only ("xla").

    Under "xla" every function has the derivatives that JAX gives it, including forward mode (`jax.jvp`, `jax.jacfwd`,
    `jax.linearize`) and forward over reverse; results differ by rounding.
    """
    return _choice(_checked(choice, "use_kernels"))


def kernels_are_on() -> bool:
    """True unless the switch is set to "xla"."""
    return _choice.value == "auto"


def choose_by_platform(cpu: Callable[..., Any], native: Callable[..., Any], *arrays: jax.Array | None) -> Any:
    """Returns `cpu(*arrays)` in a program for CPU, else `native(*arrays)`.

    The choice is made when a program is lowered, so that a machine without a TPU compiles a TPU's program.
    """
    if kernels_are_on():
        return jax.lax.platform_dependent(*arrays, cpu=cpu, default=native)
    return native(*arrays)


@contextlib.contextmanager
def use_standard_numerics() -> Iterator[None]:
    """Turns 64-bit types and strict promotion off in this thread until the context ends; also a decorator.

    With it, this library's programs do not depend on the flags of JAX that a process sets for its other code.
    """
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
