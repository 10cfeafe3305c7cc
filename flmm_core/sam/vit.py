"""The SAM of ``segment_anything``, of any size: the sizes are read off its weights, as no file says them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F


class SamPromptEncoder(PromptEncoder):
    """The prompt encoder of ``segment_anything``; its points can be exported, as nothing is indexed by values."""

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        points = points + 0.5  # from the middle of the first pixel to its edge
        if pad:
            points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        place = self.pe_layer.forward_with_coords(points, self.input_image_size)
        kind, outside, inside = labels[..., None], *(self.point_embeddings[i].weight for i in (0, 1))
        return torch.where(kind == -1, self.not_a_point_embed.weight, place + torch.where(kind == 1, inside, outside))


def sam_vit_like(state: Mapping[str, Tensor]) -> Sam:
    """An untrained SAM with a ViT image encoder, of the sizes that these weights have."""
    embedding, grid = state["image_encoder.pos_embed"], state["image_encoder.pos_embed"].shape[1]
    patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    dim, side = embedding.shape[-1], grid * patch
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("image_encoder.blocks."))
    spans = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]
    # A relative position table has 2 * size - 1 rows: the whole grid for global blocks, the window for the others.
    everywhere = [i for i, (rows, _) in enumerate(spans) if rows == 2 * grid - 1]
    windows = [(rows + 1) // 2 for i, (rows, _) in enumerate(spans) if i not in everywhere]
    out = state["image_encoder.neck.0.weight"].shape[0]
    layers = {key.split(".")[3] for key in state if key.startswith("mask_decoder.transformer.layers.")}
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=dim,
            depth=depth,
            num_heads=dim // spans[0][1],
            mlp_ratio=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / dim,
            out_chans=out,
            qkv_bias="image_encoder.blocks.0.attn.qkv.bias" in state,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=windows[0] if windows else 0,
            global_attn_indexes=tuple(everywhere),
        ),
        prompt_encoder=SamPromptEncoder(
            embed_dim=out,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
            transformer=TwoWayTransformer(
                depth=len(layers),
                embedding_dim=out,
                mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
                num_heads=8,
            ),
            transformer_dim=out,
            iou_head_depth=3,
            iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        ),
    )
