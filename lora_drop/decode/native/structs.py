"""`abi.h` in Python: structures, enumerations and functions.

A structure does not own the memory that it points to: its maker keeps the tensors. After any change raise ABI here and
in `abi.h`; a test compares the layouts.
"""

from __future__ import annotations

import ctypes

ABI = 11
F32, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K = range(7)  # kinds of numbers
OK, NO_MEMORY, NO_THREADS = range(3)  # results of the functions that return an int

_pointer, _int64 = ctypes.c_void_p, ctypes.c_int64


class Matrix(ctypes.Structure):
    """(N, K) weights and a bias."""

    _fields_ = [
        *((name, _pointer) for name in ("data", "bias")),
        *((name, _int64) for name in ("n", "k", "kind")),
        ("next", _pointer),
    ]


class Layer(ctypes.Structure):
    """A layer's weights and sizes."""

    _fields_ = [
        *((name, _pointer) for name in ("attention_norm", "mlp_norm", "qk_norm")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _int64) for name in ("hidden", "heads", "kv_heads", "head_dim", "inner")),
        ("eps", ctypes.c_float),
    ]


class Store(ctypes.Structure):
    """K/V of a layer, and the number of tokens in it."""

    _fields_ = [("data", _pointer), ("capacity", _int64), ("length", _int64), ("kind", _int64)]


class Plan(ctypes.Structure):
    """How LoRA steps run a layer."""

    _fields_ = [("drops", _int64), ("gate", _pointer), ("a", Matrix), ("b", Matrix), ("hidden", _pointer)]


class Step(ctypes.Structure):
    """One step."""

    _fields_ = [
        *(
            (name, _int64)
            for name in ("rows", "lora", "rule", "attention_only", "write_kv", "narrow", "held", "forgets")
        ),
        ("scale", ctypes.c_float),
        *((name, _pointer) for name in ("token", "entered", "watched")),
    ]


class Screen(ctypes.Structure):
    """A preview of the head."""

    _fields_ = [("project", Matrix), ("codes", Matrix), ("rows", _pointer), ("best", _int64)]


class Ends(ctypes.Structure):
    """The embedding, and the norm and the head."""

    _fields_ = [("embed", Matrix), ("head", Matrix), ("norm", _pointer), ("eps", ctypes.c_float)]


class Answer(ctypes.Structure):
    """The head of some rows, and what to read off their logits."""

    _fields_ = [("screen", _pointer), ("rows", _int64), *((name, _pointer) for name in ("logits", "best", "entropy"))]


FUNCTIONS = {  # result and arguments of each
    "ld_abi": (_int64, ()),
    "ld_path": (ctypes.c_char_p, ()),
    "ld_paths": (ctypes.c_char_p, ()),
    "ld_threads": (ctypes.c_int, (_int64,)),
    "ld_pack": (None, (_pointer, _pointer, _int64, _int64, _int64)),
    "ld_step": (ctypes.c_int, (*(_pointer,) * 3, _int64, *(_pointer,) * 6)),
    "ld_prompt": (ctypes.c_int, (_pointer, _pointer, _int64, _pointer, _pointer)),
    "ld_head": (ctypes.c_int, (_pointer,) * 3),
    "ld_entropy": (ctypes.c_float, (_pointer, _int64)),
    "ld_best": (_int64, (_pointer, _int64)),
}
