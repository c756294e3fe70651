"""Record the run that the page plays while a visitor waits for the first run: `python -m scripts.recorded_run`.

It is a real run of the button "Show me" on the bundled model, with its date.
"""

from __future__ import annotations

import argparse
import datetime

from lora_drop.ui.serve.memory import share_heap


def main() -> None:
    share_heap()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of each lane; a picture has room for these")
    tokens = parser.parse_args().tokens

    from lora_drop.models.load import load_model
    from lora_drop.paths import SHIPPED_RECORDED
    from lora_drop.run.request import Request
    from lora_drop.run.results.bank_presets import presets_of
    from lora_drop.run.run import run
    from lora_drop.run.trace.records import Header, write_line
    from lora_drop.ui.facts import preset_facts
    from lora_drop.ui.run_tab import FIRST_PROMPT

    loaded = load_model("bundled")
    choice = preset_facts(loaded)["show_me"]
    config = presets_of(loaded)[choice["preset"]].config
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    SHIPPED_RECORDED.parent.mkdir(parents=True, exist_ok=True)
    with SHIPPED_RECORDED.open("w", encoding="utf-8") as file:
        for record in run(loaded, Request(FIRST_PROMPT, config, tokens, compare=choice["compare"])):
            if isinstance(record, Header):
                record.software["date"] = today
            file.write(write_line(record))
    print(SHIPPED_RECORDED)


if __name__ == "__main__":
    main()
