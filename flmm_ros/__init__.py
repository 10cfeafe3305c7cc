"""ROS 2 nodes of flmm_ros: they translate between messages and flmm_core, and do no maths of their own."""

from pkgutil import extend_path

# The generated messages (flmm_ros.msg) live in another folder of the same package.
__path__ = extend_path(__path__, __name__)
