"""Fixtures of several test files."""

import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of a tiny data set; a file that wants another one has a fixture of this name."""
    from tiny_dataset import write_tiny_dataset

    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "set", count=8)


@pytest.fixture(scope="module")
def samples(data):
    """What is read from :func:`data`."""
    from flmm_core.data.tabletop import read_dataset

    return list(read_dataset(data))


@pytest.fixture(scope="session")
def open_renderer():
    """Opens a renderer of some size; without OpenGL the test is skipped."""

    def opened(*size):
        from flmm_sim.offscreen import RenderingUnavailableError
        from flmm_sim.renderer import TabletopRenderer

        try:
            return TabletopRenderer(*size)
        except RenderingUnavailableError as error:
            pytest.skip(str(error))

    return opened


@pytest.fixture(scope="module")
def renderer(open_renderer):
    """A renderer of the camera's size."""
    with open_renderer() as opened:
        yield opened


@pytest.fixture(scope="module")
def heads():
    """Tiny random grounding heads."""
    from tiny_models import tiny_heads

    return tiny_heads().eval()


@pytest.fixture(scope="module")
def folder(heads, tmp_path_factory):
    """Exported networks of :func:`heads`; a file that wants another folder has a fixture of this name."""
    from flmm_core.engines.export import export_networks

    out = tmp_path_factory.mktemp("engines") / "fp32"
    export_networks(heads, out)
    return out
