"""The demo: a simulated robot camera and the node, commands of every kind, and their comparison with the truth; picking."""
