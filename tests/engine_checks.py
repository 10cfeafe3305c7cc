"""What holds for every engine of exported networks."""

import torch

from flmm_core.engines.networks import NetworkSizes, module_of


def compare(engine, heads, network, **shape):
    """What it computes is what PyTorch computes; ``shape`` is of the inputs."""
    inputs = NetworkSizes.of(heads).examples(network, **shape)
    with torch.no_grad():
        expected = module_of(heads, network)(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(engine.run(network, inputs), expected, strict=True):
        assert got.dtype == torch.float32 and got.shape == want.shape
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
