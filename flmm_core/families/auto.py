"""Any model of transformers that chats about images and has no family of its own: its layout is measured, not written down.

Measuring encodes two images for each row and each column of cells, once for each size of images; the result is kept in the
user's cache. Before such a model is used, :mod:`flmm_core.lmm.acceptance` proves prompt, layout and answers.
"""

from __future__ import annotations

import logging
import time
from inspect import signature
from typing import Any

from PIL import Image
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from flmm_core.errors import LoadError
from flmm_core.families.base import PreparedImages
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.measurements import Measurements
from flmm_core.families.processed import ProcessedFamily, of_images
from flmm_core.families.stripes import centres, patchwise
from flmm_core.families.view_grid import ViewGrid, measured_grid

_log = logging.getLogger(__name__)


class AutoFamily(ProcessedFamily):
    """A family that is measured."""

    def __init__(self, *, model: PreTrainedModel, processor: Any, checkpoint: Checkpoint) -> None:
        super().__init__(model=model, processor=processor, checkpoint=checkpoint)
        self.model_type = str(checkpoint.config.get("model_type"))
        self._model = model if isinstance(model, PreTrainedModel) else None
        self.measurements = Measurements.of(checkpoint, loaded=self._model is not None)
        if self._model is not None and (reason := _unfit(self._model)):
            raise LoadError(f"LMM {checkpoint.source}: {self.model_type}: {reason}")

    @classmethod
    def claims(cls, checkpoint: Checkpoint) -> bool:
        """Claims all kinds that transformers can chat with about images."""
        return checkpoint.config.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def set_most_tokens(self, most: int) -> int:
        """Refuses: which of the processor's sizes limits an image is not known.

        Raises:
            LoadError: always.
        """
        raise LoadError(f"image_tokens: expected 0 for {self.model_type}, which is measured and cannot be limited, got {most}")

    def grid(self, image: Image.Image, tokens: tuple[int, ...], made: Any) -> ViewGrid:
        """The measured grid of images of this size; measured now if it is not known yet.

        Raises:
            ValueError: the tokens form no even grid; or it is not known, and there is no model to measure it on.
        """
        if image.size not in self.measurements.grids:
            self.measurements.keep_grid(image.size, self._measured(image.width, image.height))
        return self.measurements.grids[image.size]

    def _measured(self, width: int, height: int) -> ViewGrid:
        model = self._model
        if model is None:
            raise ValueError(f"layout of {width} x {height} images: expected a measured one, got none; load the LMM once")

        def features(image: Image.Image) -> Any:
            return self.encode(model, PreparedImages(of_images(self.processed([image])), ())).views[0]

        began = time.monotonic()
        with patchwise(model):
            grid = measured_grid(centres(features, width, height))
        rows, columns = grid.cells
        seconds = time.monotonic() - began
        _log.info(
            "%s: %d x %d images have %d x %d cells (measured, %.1f s)", self.model_type, width, height, columns, rows, seconds
        )
        return grid


def _unfit(model: PreTrainedModel) -> str:
    """Why words of a model do not attend to image tokens in their own sequence; empty if they do."""
    if model.config.is_encoder_decoder:
        return "expected a decoder that attends to image tokens, got an encoder and a decoder"
    if not hasattr(model.base_model, "get_image_features") or "mm_encoder_outputs" not in signature(model.forward).parameters:
        return "expected a model that takes encoded images (mm_encoder_outputs), got one that does not"
    return ""
