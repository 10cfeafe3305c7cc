"""What holds for every engine of exported networks."""

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from flmm_core.engines.networks import NetworkSizes, module_of
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.refiner_config import RefinerConfig
from flmm_core.sam.vit import sam_vit_like


class UntrainedHeads(nn.Module):
    """What engines use of heads without a U-Net and without words for SAM."""

    networks = ("sam_encoder", "sam_decoder")

    def __init__(self, **prompts):
        """On a small SAM of segment-anything's own kind, with windows and global blocks."""
        super().__init__()
        torch.manual_seed(0)
        transformer = TwoWayTransformer(depth=2, embedding_dim=64, num_heads=8, mlp_dim=48)
        encoder = ImageEncoderViT(
            img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=3, out_chans=64, use_rel_pos=True, window_size=3,
            global_attn_indexes=(1,), mlp_ratio=2.0,
        )  # fmt: skip
        decoder = MaskDecoder(transformer_dim=64, transformer=transformer, iou_head_hidden_dim=32)
        state = Sam(encoder, PromptEncoder(64, (8, 8), (64, 64), 16), decoder).state_dict()
        sam = sam_vit_like(state)
        sam.load_state_dict(state)
        for parameter in sam.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        chosen = {"use_text": False, "points": 3, "multimask": True, "choice": "predicted", **prompts}
        self.sam = SamRefiner(sam=sam, config=RefinerConfig(**chosen))
        self.eval()


def compare(engine, heads, network, **shape):
    """What it computes is what PyTorch computes; ``shape`` is of the inputs."""
    inputs = NetworkSizes.of(heads).examples(network, **shape)
    with torch.no_grad():
        expected = module_of(heads, network)(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(engine.run(network, inputs), expected, strict=True):
        assert got.dtype == torch.float32 and got.shape == want.shape
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
