"""Parameters at start: what is wrong with them is said in one line, whichever layer notices."""

import pytest
import rclpy
from rclpy.parameter import Parameter

from flmm_core.config import GroundingConfig, tunables
from flmm_ros.camera import CAMERA_TUNABLES
from flmm_ros.parameter_names import ParameterError
from flmm_ros.parameters import NODE_TUNABLES, declare_grounding, grounding_config, value
from flmm_ros.spinning import RunnableNode


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
    _, stored, age = declared(context, max_image_age=2)
    assert (stored, age) == (2.0, 2.0) and isinstance(stored, float)


@pytest.fixture
def loaded(context):
    """A node with a model."""
    node = RunnableNode("loaded", context=context, parameter_overrides=[Parameter("watch_rate", value=4)])
    declare_grounding(node, lambda: "loaded")
    yield node
    node.destroy_node()


def test_a_whole_number_that_is_set_later_is_a_float(loaded):
    assert loaded.set_parameters_atomically([Parameter("max_image_age", value=3)]).successful
    stored = loaded.get_parameter("max_image_age")
    assert (stored.type_, stored.value) == (Parameter.Type.DOUBLE, 3.0)
    refused = loaded.set_parameters_atomically([Parameter("max_image_age", value=True)])
    assert refused.reason == "parameter max_image_age: expected float, got bool True"
    refused = loaded.set_parameters_atomically([Parameter("max_command_length", value=2.0)])
    assert refused.reason == "parameter max_command_length: expected int, got float 2.0"


def test_values_that_are_there_already_are_no_failure(loaded):
    """What `ros2 param dump` wrote, `ros2 param load` may set: locked and read-only parameters among it."""
    names = list(loaded.get_parameters_by_prefix(""))
    assert {"lmm", "queue_size", "use_sim_time"} <= set(names)
    dumped = [Parameter(name, value=loaded.get_parameter(name).value) for name in names]
    assert all(loaded.set_parameters_atomically([one]).successful for one in dumped)
    assert loaded.set_parameters_atomically(dumped).successful
    assert loaded.set_parameters_atomically([Parameter("watch_rate", value=4)]).successful
    assert not loaded.set_parameters_atomically([Parameter("queue_size", value=9)]).successful


def test_thresholds_may_change_while_a_model_is_loaded(loaded):
    for name in ("selector_threshold", "presence_threshold", "mask_threshold"):
        assert loaded.set_parameters_atomically([Parameter(name, value=0.7)]).successful
        assert not loaded.set_parameters_atomically([Parameter(name, value=1.5)]).successful


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
            "unknown parameter colour: known are autostart, command_deadline, cpu_threads, cuda_graphs, depth_tolerance,",
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
