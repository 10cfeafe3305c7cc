"""Muted surface images for the table, the floor and the walls, made with numpy."""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 256
"""Pixels along each side of a texture."""


def _colored(values: np.ndarray, dark: tuple[int, int, int], light: tuple[int, int, int]) -> np.ndarray:
    """Blend from ``dark`` to ``light`` (RGB 0..255) by values ``[SIZE, SIZE]`` in 0..1; returns uint8 RGB."""
    share = np.clip(values, 0, 1)[..., None]
    return (np.asarray(dark) * (1 - share) + np.asarray(light) * share).astype(np.uint8)


def _noise(rng: np.random.Generator, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Smooth tiling noise, zero mean, unit deviation."""
    raw = np.tile(rng.standard_normal((SIZE, SIZE)).astype(np.float32), (3, 3))
    smooth = cv2.GaussianBlur(raw, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)[SIZE : 2 * SIZE, SIZE : 2 * SIZE]
    return (smooth - smooth.mean()) / smooth.std()


def _wood(rng: np.random.Generator, planks: int) -> np.ndarray:
    grain = 0.5 + 0.16 * _noise(rng, 40, 1.2) + 0.10 * _noise(rng, 25, 5)
    width = SIZE // planks
    row = np.arange(SIZE)
    grain = grain + 0.12 * rng.standard_normal(planks)[np.minimum(row // width, planks - 1)][:, None]
    grain[(row % width < 2) & (planks > 1)] -= 0.35
    return grain


def _checker(cells: int) -> np.ndarray:
    index = np.arange(SIZE) * cells // SIZE
    return ((index[:, None] + index[None, :]) % 2).astype(float)


def _stripes(bands: int) -> np.ndarray:
    index = np.arange(SIZE) * bands // SIZE
    return np.broadcast_to((index % 2)[None, :].astype(float), (SIZE, SIZE))


def _tiles(rng: np.random.Generator, cells: int) -> np.ndarray:
    step = SIZE // cells
    shade = np.kron(rng.uniform(0.55, 0.9, (cells, cells)), np.ones((step, step)))
    line = np.arange(SIZE) % step < 3
    shade[line] = shade[:, line] = 0.1
    return shade


def make_textures(seed: int = 0) -> dict[str, np.ndarray]:
    """All surface textures, ``[SIZE, SIZE, 3]`` uint8 RGB each, by name."""
    rng = np.random.default_rng(seed)
    fine = _noise(rng, 1, 1)
    return {
        "light wood": _colored(_wood(rng, 4), (138, 112, 84), (196, 170, 136)),
        "dark wood": _colored(_wood(rng, 3), (66, 50, 40), (118, 92, 72)),
        "grey wood": _colored(_wood(rng, 5), (104, 100, 94), (160, 154, 146)),
        "linen": _colored(0.5 + 0.25 * _noise(rng, 6, 0.8) + 0.25 * _noise(rng, 0.8, 6), (150, 142, 128), (190, 182, 166)),
        "granite": _colored(0.5 + 0.35 * fine, (96, 96, 98), (158, 156, 154)),
        "slate": _colored(0.5 + 0.25 * _noise(rng, 9, 9), (72, 78, 84), (104, 110, 116)),
        "concrete": _colored(0.5 + 0.2 * _noise(rng, 16, 16) + 0.1 * fine, (132, 132, 130), (172, 170, 166)),
        "checker": _colored(_checker(8), (118, 108, 98), (166, 158, 146)),
        "stripes": _colored(_stripes(16), (120, 126, 128), (160, 162, 160)),
        "tiles": _colored(_tiles(rng, 4), (92, 90, 88), (176, 172, 164)),
        "plain beige": _colored(0.5 + 0.1 * fine, (168, 156, 136), (184, 172, 152)),
        "plain grey": _colored(0.5 + 0.1 * fine, (120, 122, 124), (136, 138, 140)),
        "olive cloth": _colored(0.5 + 0.2 * _noise(rng, 1, 5), (104, 106, 88), (140, 142, 122)),
    }
