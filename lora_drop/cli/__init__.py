"""The command line. `main.main(argv)` runs a command; `python -m lora_drop` and `lora-drop` call it.

One file per command, each with `add(commands)` for its options and `run(args)`, which raises LoraDropError for a
mistake. A file imports torch only in `run`, so that `--help` and mistakes are quick.
"""
