"""A fleet: several replicas of one model that serve many robots, deployed on Ray Serve. Knows no ROS."""
