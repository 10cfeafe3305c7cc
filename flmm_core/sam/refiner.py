"""SAM as a refiner: a coarse mask, its box, points inside it and the tokens of a phrase become a sharp mask.

The image is encoded once; each phrase then takes one pass of the small mask decoder. This file is independent of LMMs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.images.geometry import mask_box
from flmm_core.images.masks import Overlap
from flmm_core.sam.masks import RefinedMask, RefinedMasks, SamPrompts
from flmm_core.sam.points import interior_points
from flmm_core.sam.refiner_config import RefinerConfig
from flmm_core.sam.transformers_sam import TransformersSam

DECODER_BATCH = 8
"""Phrases in one pass of the mask decoder; limits the memory that long answers take."""


@dataclass(frozen=True)
class SamImage:
    """Output of SAM's image encoder for one image."""

    embedding: Tensor
    """``[1, C, eh, ew]`` float32: a grid of ``eh x ew`` cells over the padded input.

    ``C`` is 256 for SAM. SAM 2 and HQ-SAM pack further feature maps behind these channels, in the layout of
    :mod:`flmm_core.sam.transformers_sam`.
    """
    image_height: int
    image_width: int
    input_height: int
    """The image's height inside SAM's square input, which is padded at the right and the bottom."""
    input_width: int

    def to(self, device: torch.device) -> SamImage:
        """A copy with the embedding in float32 on a device."""
        return replace(self, embedding=self.embedding.to(device, torch.float32))


class SamRefiner(nn.Module):
    """SAM with a frozen image encoder; its prompt encoder and mask decoder may be trained."""

    def __init__(self, *, sam: Sam | TransformersSam, config: RefinerConfig | None = None) -> None:
        super().__init__()
        self.model = sam
        self._stretches = isinstance(sam, TransformersSam) and sam.stretches
        self.config = config or RefinerConfig()
        self.model.image_encoder.requires_grad_(False)
        self.encoder_engine: Callable[[Tensor], Tensor] | None = None
        """Replaces :meth:`encoder_network` if set."""
        self.decoder_engine: Callable[..., tuple[Tensor, Tensor]] | None = None
        """Replaces :meth:`decoder_network` if set; takes the embedding and the prompts that the configuration names."""

    @property
    def text_size(self) -> int:
        """Width of the text prompt's tokens."""
        return int(self.model.prompt_encoder.embed_dim)

    @property
    def frame(self) -> int:
        """Side of SAM's square input, pixels."""
        return int(self.model.image_encoder.img_size)  # type: ignore[arg-type]

    def preprocess(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """SAM's own preprocessing.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.

        Returns:
            Normalised and padded pixels ``[1, 3, frame, frame]``, and the image's height and width in there.
        """
        height, width = self.input_size(*image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        pixels = torch.as_tensor(resized, device=self.model.device).permute(2, 0, 1)[None]
        return self.model.preprocess(pixels), (height, width)

    def input_size(self, image_height: int, image_width: int) -> tuple[int, int]:
        """Height and width of an image inside SAM's input, pixels."""
        if self._stretches:
            return self.frame, self.frame
        height, width = ResizeLongestSide.get_preprocess_shape(image_height, image_width, self.frame)
        return max(1, height), max(1, width)  # SAM's own rounding leaves nothing of a one-pixel line

    @torch.no_grad()
    def encode_image(self, image: np.ndarray) -> SamImage:
        """Run the image encoder.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.
        """
        pixels, size = self.preprocess(image)
        run = self.encoder_network if self.encoder_engine is None else self.encoder_engine
        return SamImage(run(pixels), image.shape[0], image.shape[1], size[0], size[1])

    def encoder_network(self, pixels: Tensor) -> Tensor:
        """The image encoder, which an engine may replace: ``[1, 3, frame, frame]`` to ``[1, C, eh, ew]``."""
        embedding: Tensor = self.model.image_encoder(pixels)
        return embedding

    def decoder_network(
        self,
        embedding: Tensor,
        masks: Tensor | None = None,
        boxes: Tensor | None = None,
        texts: Tensor | None = None,
        points: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Prompt encoder and mask decoder, which an engine may replace; the prompts are those of :class:`SamPrompts`.

        Args:
            embedding: ``[1, C, eh, ew]`` of :class:`SamImage`.
            masks: ``[n, 1, mh, mw]``.
            boxes: ``[n, 4]``.
            texts: ``[n, t, 256]``.
            points: ``[n, p, 2]``.
            labels: ``[n, p]``.

        Returns:
            Logits ``[n, k, m, m]`` over the padded input, and the IoU ``[n, k]`` that SAM predicts; ``k`` is 1, or 3 with
            ``multimask``.
        """
        encoder = self.model.prompt_encoder
        given = None if points is None else (points, labels)
        sparse, dense = encoder(points=given, boxes=boxes, masks=masks)
        if texts is not None:
            if masks is None and boxes is None and points is None:  # SAM returns one row for all phrases
                sparse, dense = sparse.expand(len(texts), -1, -1), dense.expand(len(texts), -1, -1, -1)
            sparse = torch.cat([sparse, texts], dim=1)
        low_res, iou = self.model.mask_decoder(
            image_embeddings=embedding,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=self.config.multimask,
        )
        return low_res, iou

    def prompts(self, image: SamImage, coarse: Tensor, texts: Sequence[Tensor]) -> SamPrompts:
        """Prompts from coarse masks and words.

        The value that pads the mask prompt is ``min(-1, minimum over all phrases of this call)``, as in the published
        method: outside the image a phrase's prompt therefore depends on the other phrases of the call.

        Args:
            image: from :meth:`encode_image`.
            coarse: ``[n, h, w]`` logits that cover exactly the image.
            texts: ``n`` tensors ``[t, 256]``.
        """
        if coarse.shape[0] != len(texts):
            raise ValueError(f"text prompts: expected one for each of {coarse.shape[0]} masks, got {len(texts)}")
        inner = F.interpolate(coarse[:, None], (image.input_height, image.input_width), mode="bilinear")
        if not len(texts):
            none = coarse.new_zeros(0, self.config.points, 2)
            return SamPrompts(coarse.new_zeros(0, 1, *self.mask_size), coarse.new_zeros(0, 4), (), none, none[..., 0])
        outside = coarse.detach().amin().clamp_max(-1.0)
        padded = outside.expand(len(texts), 1, self.frame, self.frame).clone()
        padded[..., : image.input_height, : image.input_width] = inner
        masks = F.interpolate(padded, self.mask_size, mode="bilinear")
        # One mask at a time: at image size a batch of them can be large.
        boxes = torch.stack([self._box(one, image) for one in coarse.detach()])
        points, labels = interior_points(masks[:, 0], self.config.points, frame=self.frame)
        return SamPrompts(masks, boxes, tuple(texts), points, labels)

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of a mask prompt."""
        height, width = self.model.prompt_encoder.mask_input_size
        return height, width

    def _box(self, coarse: Tensor, image: SamImage) -> Tensor:
        """Box prompt of one coarse mask ``[h, w]``, ``[4]`` float32, or the whole image if no cell is positive."""
        mask = self._image_mask(coarse, image)
        whole = torch.tensor([0, 0, image.image_width, image.image_height], device=coarse.device)
        x = image.input_width / image.image_width
        y = image.input_height / image.image_height
        scale = torch.tensor([x, y, x, y], dtype=torch.float64, device=coarse.device)
        return (torch.where(mask.any(), mask_box(mask), whole) * scale).float()

    def _image_mask(self, coarse: Tensor, image: SamImage) -> Tensor:
        """A coarse mask ``[h, w]`` thresholded at image size, ``[H, W]`` bool."""
        size = (image.image_height, image.image_width)
        return F.interpolate(coarse.sigmoid()[None, None], size, mode="bilinear")[0, 0] > 0.5

    def forward(self, image: SamImage, coarse: Tensor, texts: Sequence[Tensor]) -> RefinedMasks:
        """Refine coarse masks.

        The decoder has no padding mask for prompt tokens, so only phrases with the same number of tokens share a batch. Results
        are in the order of the phrases and independent of the batches, but see :meth:`prompts` for the padding.

        Args:
            image: from :meth:`encode_image`.
            coarse: ``[n, h, w]`` logits that cover exactly the image.
            texts: ``n`` tensors ``[t, 256]``, tokens of each phrase after the text projection.
        """
        prompts = self.prompts(image, coarse, texts)
        groups: dict[int, list[int]] = {}
        for i, text in enumerate(prompts.texts):
            groups.setdefault(len(text) if self.config.use_text else 0, []).append(i)
        batches = [part[i : i + DECODER_BATCH] for part in groups.values() for i in range(0, len(part), DECODER_BATCH)]
        if not batches:
            return RefinedMasks(coarse.new_zeros(0, *self.mask_size), coarse.new_zeros(0))
        results = [self._decode(image, prompts, batch, coarse) for batch in batches]
        order = torch.tensor([i for batch in batches for i in batch], device=coarse.device).argsort()
        low_res = torch.cat([result.low_res for result in results])[order]
        return RefinedMasks(low_res, torch.cat([result.iou for result in results])[order])

    def _decode(self, image: SamImage, prompts: SamPrompts, batch: list[int], coarse: Tensor) -> RefinedMasks:
        """Run the decoder on the phrases with indices ``batch``, which have the same number of tokens."""
        config = self.config
        given = {name: getattr(prompts, name) for name in config.prompts}
        used = {name: torch.stack([values[i] for i in batch]) for name, values in given.items()}
        if self.decoder_engine is None:
            low_res, iou = self.decoder_network(image.embedding, **used)
        else:
            low_res, iou = self.decoder_engine(image.embedding, *used.values())
        if not config.multimask:
            return RefinedMasks(low_res[:, 0], iou[:, 0])
        if config.choice == "predicted":
            best = iou.argmax(dim=1)
        else:
            closest = [self._closest(image, masks, coarse[i]) for masks, i in zip(low_res, batch, strict=True)]
            best = torch.tensor(closest, device=low_res.device)
        rows = torch.arange(len(batch), device=low_res.device)
        return RefinedMasks(low_res[rows, best], iou[rows, best])

    @torch.no_grad()
    def _closest(self, image: SamImage, candidates: Tensor, coarse: Tensor) -> int:
        """Index of the candidate ``[k, m, m]`` with the highest IoU with the thresholded coarse mask ``[h, w]``."""
        target = self._image_mask(coarse, image)
        ious = [Overlap.of(mask, target).iou for mask in self.to_image(candidates, image) > 0]
        return ious.index(max(ious))

    @torch.no_grad()
    def masks(self, image: SamImage, coarse: Tensor, texts: Sequence[Tensor], *, threshold: float) -> tuple[RefinedMask, ...]:
        """Refine coarse masks and enlarge them to the image.

        Args:
            image: from :meth:`encode_image`.
            coarse: ``[n, h, w]`` logits that cover exactly the image.
            texts: ``n`` tensors ``[t, 256]``, tokens of each phrase after the text projection.
            threshold: probability above which a pixel belongs to a mask, in (0, 1).

        Returns:
            ``n`` masks in the order of the phrases.
        """
        masks, figures = [], []
        logit = float(np.log(threshold / (1 - threshold)))
        for low_res in self(image, coarse, texts).low_res:  # one by one: a batch of logits at image size can be large
            logits = self.to_image(low_res[None], image)[0]
            masks.append(logits > logit)
            total = logits.sigmoid_().masked_fill_(~masks[-1], 0).sum()
            score = total.double() / masks[-1].sum().clamp_min(1)
            figures.append(torch.cat([mask_box(masks[-1]).double(), score[None]]))
        if not masks:
            return ()
        refined = []
        # One synchronisation with the device for the boxes and scores of all phrases; the masks stay on it.
        for mask, (left, top, right, bottom, score) in zip(masks, torch.stack(figures).tolist(), strict=True):
            refined.append(RefinedMask(mask, (int(left), int(top), int(right), int(bottom)), score))
        return tuple(refined)

    def to_image(self, low_res: Tensor, image: SamImage) -> Tensor:
        """Enlarge logits ``[n, m, m]`` over the padded input to ``[n, H, W]`` over the image, by SAM's own postprocessing."""
        return self.model.postprocess_masks(
            low_res[:, None],
            (image.input_height, image.input_width),
            (image.image_height, image.image_width),
        )[:, 0]
