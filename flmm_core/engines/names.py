"""Names of the networks that heads may have, and of their tensors. This file must load fast, so it does not import PyTorch."""

from __future__ import annotations

NAMES = ("unet", "sam_encoder", "sam_decoder")

INPUTS = {"unet": ("maps",), "sam_encoder": ("pixels",), "sam_decoder": ("embedding",)}
"""Names of inputs, in order; all are float32. The decoder's prompts follow, by :attr:`RefinerConfig.prompts`."""
OUTPUTS = {"unet": ("logits",), "sam_encoder": ("embedding",), "sam_decoder": ("low_res", "iou")}
"""Names of outputs, in order; all are float32. Shapes: :meth:`UNetHead.network`, :meth:`SamRefiner.encoder_network` and
:meth:`SamRefiner.decoder_network`."""

LOGITS = ("logits", "low_res")
"""Outputs that are logits of masks."""
