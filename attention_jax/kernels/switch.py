"""One switch for this folder: "auto" runs a kernel where it is faster, "xla" leaves every program to JAX and XLA.

The environment variable AJ_KERNELS sets it for a process, `use_kernels` for a part of one. It is part of the keys by which JAX
caches traced, lowered and compiled programs, those inside of `jax.checkpoint`, loops and custom derivatives included.
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
    """Makes what this thread traces in a `with` block use the kernels ("auto") or JAX's own operations alone ("xla").

    Under "xla" every function has the derivatives that JAX gives it, forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`)
    and forward over reverse included; results differ by rounding.
    """
    return _choice(_checked(choice, "use_kernels"))


def kernels_are_on() -> bool:
    """True unless the switch is at "xla"."""
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

    Programs of this library are the same whatever flags of JAX a process sets for code of its own.
    """
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
