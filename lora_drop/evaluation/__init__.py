"""Quality: what LoRA-Drop costs in likelihood and agreement."""
