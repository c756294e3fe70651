"""Decoding in static buffers, on CUDA with captured graphs: `decoder.py` is the decoder, `passes.py` its passes."""
