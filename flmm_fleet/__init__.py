"""Many robots on several replicas of one model: deployment on Ray Serve. Knows no ROS."""
