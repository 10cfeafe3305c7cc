"""The heads' networks as exported engines: what is exported, where engines are kept, and what runs them.

``networks.py`` says what an engine is; ``export.py`` writes ONNX models; ``onnx_engine.py`` runs them; ``parity.py`` compares
an engine with PyTorch; ``attach.py`` finds or makes the files and puts an engine into heads.
"""
