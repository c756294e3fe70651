"""Decoding in static buffers, on CUDA with captured graphs: `decoder.py` decodes, `layers.py` has its arithmetic."""
