"""Parameters at start: what is wrong with them is said in one line, whichever layer notices."""

import pytest
import rclpy
from rclpy.parameter import Parameter

from flmm_core.config import GroundingConfig, tunables
from flmm_ros.camera import CAMERA_TUNABLES
from flmm_ros.parameters import NODE_TUNABLES, ParameterError, declare_grounding, grounding_config, value


@pytest.fixture(scope="module")
def context():
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    yield context
    rclpy.try_shutdown(context=context)


def declared(context, **overrides):
    node = rclpy.create_node(
        "parameters", context=context, parameter_overrides=[Parameter(name, value=given) for name, given in overrides.items()]
    )
    try:
        declare_grounding(node, lambda: "")
        return grounding_config(node), node.get_parameter("max_image_age").value, value(node, "max_image_age", float)
    finally:
        node.destroy_node()


def test_defaults_are_those_of_the_configuration(context):
    config, age, _ = declared(context)
    assert config == GroundingConfig()
    assert age == next(entry.default for entry in NODE_TUNABLES if entry.name == "max_image_age")


def test_names_are_unique():
    for entries in ((*tunables(), *NODE_TUNABLES), CAMERA_TUNABLES):
        names = [entry.name for entry in entries]
        assert len(set(names)) == len(names)


def test_a_whole_number_is_a_float(context):
    _, _, age = declared(context, max_image_age=2)
    assert age == 2.0 and isinstance(age, float)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("queue_size", "many", "parameter queue_size: expected int, got str 'many'"),
        ("queue_size", 2.5, "parameter queue_size: expected int, got float 2.5"),
        ("queue_size", 0, "parameter queue_size: expected 1 to 1000 commands, got 0"),
        ("max_new_tokens", 0, "parameter max_new_tokens: expected 1 to 1024 tokens, got 0"),
        ("mask_threshold", float("nan"), "parameter mask_threshold: expected 0.01 to 0.99 probability, got nan"),
        ("max_image_age", -0.5, "parameter max_image_age: expected 0.0 to 86400.0 s, got -0.5"),
        ("max_image_age", True, "parameter max_image_age: expected float, got bool True"),
        ("dtype", "float8", "parameter dtype: expected one of auto, float32, bfloat16, float16, got 'float8'"),
        ("lmm", 7, "parameter lmm: expected str, got int 7"),
    ],
)
def test_wrong_values(context, name, given, message):
    with pytest.raises(ParameterError) as error:
        declared(context, **{name: given})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_of_files_are_ignored_and_typed_ones_refused(context, monkeypatch, capfd):
    """Files are shared between nodes; what is typed is meant for this one."""
    declared(context, max_imageage=3)
    assert "ignored, unknown parameter max_imageage: did you mean max_image_age?" in capfd.readouterr().err
    monkeypatch.setattr("sys.argv", ["node", "--ros-args", "-p", "max_imageage:=3", "-p", "/grounding:colour:=1"])
    for name, message in (
        ("max_imageage", "unknown parameter max_imageage: did you mean max_image_age?"),
        (
            "colour",
            "unknown parameter colour: known are autostart, cpu_threads, cuda_graphs, depth_tolerance, depth_transport,",
        ),
    ):
        with pytest.raises(ParameterError) as error:
            declared(context, **{name: 3})
        assert message in str(error.value) and "\n" not in str(error.value)


def test_most_parameters_are_locked_while_a_model_is_loaded(context):
    locks = []
    node = rclpy.create_node("locked", context=context)
    try:
        declare_grounding(node, lambda: "".join(locks))
        assert node.set_parameters([Parameter("lmm", value="other")])[0].successful
        assert grounding_config(node).lmm == "other"
        locks.append("loaded")
        result = node.set_parameters([Parameter("lmm", value="third"), Parameter("max_image_age", value=1.0)])
        assert [entry.successful for entry in result] == [False, True]
        assert result[0].reason == "parameter lmm: loaded"
    finally:
        node.destroy_node()
