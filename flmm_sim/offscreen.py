"""MuJoCo, and OpenGL contexts without a window for it.

``import mujoco`` loads the OpenGL library that MUJOCO_GL names, and fails obscurely where it is missing. Modules of this
package import ``mujoco`` from here: no library is loaded before a context is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any

_ASKED = os.environ.get("MUJOCO_GL")
try:
    os.environ["MUJOCO_GL"] = "off"
    import mujoco
finally:
    del os.environ["MUJOCO_GL"]
    if _ASKED is not None:
        os.environ["MUJOCO_GL"] = _ASKED

__all__ = ["RenderingUnavailableError", "mujoco", "open_gl"]

_BACKENDS = ("egl", "osmesa")


class RenderingUnavailableError(RuntimeError):
    """Neither EGL nor OSMesa works on this machine."""


def open_gl(height: int, width: int) -> Any:
    """An OpenGL context without a window, made current: EGL, or else OSMesa; MUJOCO_GL narrows the choice to one.

    Raises:
        RenderingUnavailableError: no context could be made.
    """
    with contextlib.suppress(ImportError):
        # Part of PyTorch for GPUs. Its LLVM must be loaded before Mesa's; in the other order the process crashes.
        importlib.import_module("triton")
    asked = os.environ.get("MUJOCO_GL", "").lower()
    failures = []
    for backend in (asked,) if asked in _BACKENDS else _BACKENDS:
        platform = os.environ.get("PYOPENGL_PLATFORM")
        os.environ["MUJOCO_GL"] = backend  # libmujoco looks OpenGL's functions up by it
        try:
            context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            context.make_current()
        except Exception as error:  # PyOpenGL raises errors of many unrelated types when a library is missing
            failures.append(f"{backend} ({' '.join(str(error).split()).split('. ')[0]})")
            _forget(backend)
            _restore("PYOPENGL_PLATFORM", platform)
            _restore("MUJOCO_GL", asked or None)
        else:
            return context
    raise RenderingUnavailableError(
        f"cannot draw without a window: tried {', '.join(failures)}; install libegl1 and libgl1-mesa-dri for EGL, or libosmesa6"
    )


def _forget(backend: str) -> None:
    """Unload PyOpenGL, which binds to one platform at import, so that another one can be tried."""
    for name in list(sys.modules):
        if name.split(".")[0] == "OpenGL" or name == f"mujoco.{backend}":
            del sys.modules[name]


def _restore(variable: str, value: str | None) -> None:
    os.environ.pop(variable, None)
    if value is not None:
        os.environ[variable] = value
