"""Engines: the heads' networks exported and run by ONNX Runtime or TensorRT.

``networks.py`` defines the interface of an engine; ``export.py`` writes ONNX models; ``onnx_engine.py`` and
``tensorrt_engine.py`` run them; ``parity.py`` compares an engine with PyTorch; ``attach.py`` finds or exports the files and
attaches an engine to heads.
"""
