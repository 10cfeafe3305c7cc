"""Proofs that a model whose family was measured, not written, is read as it is: run when it is loaded, and kept.

The prompt and the answer are compared with what the checkpoint's own processor and ``model.generate`` make of the same image
and words, the layout with the pixels, and answers behind a kept image with those that read it anew.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_core.common.plain_text import one_line
from flmm_core.errors import LoadError, of_machine
from flmm_core.families.auto import AutoFamily
from flmm_core.families.view_grid import ViewsLayout
from flmm_core.lmm import attention_recorder
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.position_truth import ANSWER, INSIDE, OUTSIDE, QUESTION, REGIONS, position_truth

_log = logging.getLogger(__name__)

SIZE = (640, 480)
"""Width and height of the image of the proofs, pixels."""
TOKENS = 12
"""Longest answer of the proofs."""


def accept(lmm: FrozenLmm, source: str) -> None:
    """Prove a model whose family was measured; other families were proven by tests.

    Args:
        lmm: as loaded.
        source: of the model, for messages.

    Raises:
        LoadError: names the check that failed, and by how much.
    """
    family, kind = lmm.family, str(lmm.model.dtype).removeprefix("torch.")
    if not isinstance(family, AutoFamily) or kind in family.measurements.proofs:
        return
    began = time.monotonic()
    image = _picture()
    checks = {"layout": _layout, "position": _position, "greedy answer": _greedy, "kept image": _kept}
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check(lmm, image)
        except Exception as error:  # models raise errors of any type where they are used in a way that they do not know
            if of_machine(error):
                raise
            reason = one_line(error)
            raise LoadError(
                f"LMM {source}: {family.model_type} has no family of its own, and could not be measured; {name}: {reason}"
            ) from error
    family.measurements.keep_proofs({**family.measurements.proofs, kind: found})
    told = ", ".join(f"{name} {result}" for name, result in found.items())
    _log.info("LMM %s: %s was measured and proven in %.1f s: %s", source, family.model_type, time.monotonic() - began, told)


def _picture() -> Image.Image:
    """Coloured blocks of all sizes."""
    width, height = SIZE
    random = np.random.default_rng(0)
    fine, coarse = (random.integers(0, 128, (height // size, width // size, 3), dtype=np.uint8) for size in (8, 80))
    return Image.fromarray(np.kron(fine, np.ones((8, 8, 1), np.uint8)) + np.kron(coarse, np.ones((80, 80, 1), np.uint8)))


def _layout(lmm: FrozenLmm, image: Image.Image) -> str:
    """Measures it, where it is not kept yet."""
    geometry = lmm.encode_image(image).geometry
    return f"{geometry.grid_width} x {geometry.grid_height} cells"


def _position(lmm: FrozenLmm, image: Image.Image) -> str:
    """Position truth; 16-bit numbers round attention by a few units in the last place."""
    outside = OUTSIDE + (4 * torch.finfo(lmm.model.dtype).eps if torch.finfo(lmm.model.dtype).bits < 32 else 0)
    inside = max(INSIDE, 2 * outside)
    found = position_truth(lmm, image, [REGIONS["corner"], REGIONS["end"]], reach=_reach(lmm, image))
    most, least = max(one.outside for one in found), min(one.inside for one in found)
    if most > outside or least < inside:
        raise ValueError(
            f"expected cells that change by less than {outside:.2g} outside of other pixels and by more than {inside:.2g}"
            f" inside, got {most:.2g} and {least:.2g}"
        )
    return f"within {most:.1e} outside and above {least:.2g} inside"


def _reach(lmm: FrozenLmm, image: Image.Image) -> float:
    """Image pixels that resizing blends, of unknown scale: less than a third of a cell; and what enlarging the whole blends."""
    layout = lmm.encode_image(image).layouts[0]
    assert isinstance(layout, ViewsLayout)
    grid = layout.grid
    parts = [(grid.cells, 0.3), *([(grid.whole, 1.5)] if grid.whole else [])]
    return max(part * max(image.height / rows, image.width / columns) for (rows, columns), part in parts)


def _greedy(lmm: FrozenLmm, image: Image.Image) -> str:
    """The plain model's ids, from the checkpoint's own processor; with a cache of all positions, which rounds as ours does."""
    model: Any = lmm.model
    family: Any = lmm.family
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    made = family.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=family.chat.template,
        add_generation_prompt=True,
        **({"enable_thinking": False} if "enable_thinking" in family.chat.template else {}),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    with attention_recorder.uninstalled(model), torch.no_grad():
        output = model.generate(**made, cache=family.new_cache(model), do_sample=False, max_new_tokens=TOKENS)
    plain = output[0, made["input_ids"].shape[1] :].tolist()
    trace = lmm.generate(lmm.encode_image(image), QUESTION, max_new_tokens=TOKENS)
    ours, ends = list(trace.token_ids), lmm.decoder.end_ids
    expected = [token for token in plain if token not in ends]
    if ours != expected:
        place = next((i for i, (a, b) in enumerate(zip(expected, ours, strict=False)) if a != b), min(len(expected), len(ours)))
        raise ValueError(f"expected the plain model's token ids {expected}, got {ours}, which differ from token {place} on")
    return f"identical ({len(plain)} tokens)"


def _kept(lmm: FrozenLmm, image: Image.Image) -> str:
    """An answer behind an image that another question read is that of the image alone: it does not attend to later words."""
    kept = lmm.encode_image(image)
    lmm.teacher_force(kept, "what else is there?", ANSWER)
    states = [lmm.teacher_force(one, QUESTION, ANSWER).states for one in (kept, lmm.encode_image(image))]
    off = float((states[0] - states[1]).abs().max() / states[1].abs().max())
    most = 5e-3 if torch.finfo(lmm.model.dtype).bits >= 32 else 0.1
    if off > most:
        raise ValueError(f"expected hidden states within {most:g} of those that read the image anew, got {off:.2g}")
    return f"within {off:.1e}"
