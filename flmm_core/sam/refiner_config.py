"""Which prompts SAM's mask decoder gets, and which of its masks is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RefinerConfig:
    """Prompts that the mask decoder gets; the published method uses mask, box and words, and a single mask."""

    use_mask: bool = True
    use_box: bool = True
    use_text: bool = True
    points: int = 0
    """Points inside the coarse mask, see :func:`~flmm_core.sam.points.interior_points`."""
    multimask: bool = False
    """Whether SAM proposes three masks, of which one is kept."""
    choice: Literal["coarse", "predicted"] = "coarse"
    """Which: the one with the highest IoU with the coarse mask, or the one of which SAM itself predicts the highest IoU."""

    def __post_init__(self) -> None:
        if self.points < 0 or self.choice not in ("coarse", "predicted"):
            raise ValueError(
                f"refiner: expected 0 or more points and the choice coarse or predicted, got {self.points} and {self.choice!r}"
            )
        if not self.prompts:
            raise ValueError("refiner: expected at least one kind of prompts, got none")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Names of the prompts that the decoder gets, in the order of :meth:`SamRefiner.decoder_network`."""
        used = {"masks": self.use_mask, "boxes": self.use_box, "texts": self.use_text}
        return (*(name for name, use in used.items() if use), *(("points", "labels") if self.points else ()))
