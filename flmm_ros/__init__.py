"""The ROS 2 nodes and their clients: they translate between messages and flmm_core, and contain no maths of their own."""

from pkgutil import extend_path

# The generated messages (flmm_ros.msg) are installed in another folder of the same package.
__path__ = extend_path(__path__, __name__)
