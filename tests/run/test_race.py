"""Turns on one device: one thread makes every step."""

import threading

import pytest

from lora_drop.run.race import owned


def test_one_thread_takes_all_steps_of_a_device_whoever_asks():
    seen = []

    def work(name):
        try:
            for number in range(3):
                seen.append(threading.current_thread().name)
                yield name, number
        finally:
            seen.append(threading.current_thread().name)

    items = []
    one, two = (owned("test:0", work(name)) for name in "ab")
    for _ in range(3):  # each step from a thread of its own, two runs in turn
        for run in (one, two):
            asking = threading.Thread(target=lambda run=run: items.append(next(run)))
            asking.start()
            asking.join()
    assert items == [(name, number) for number in range(3) for name in "ab"]
    one.close()
    assert not list(two)
    assert len(seen) == 8 and set(seen) == {"owner-of-test:0_0"}
    with pytest.raises(ZeroDivisionError):
        list(owned("test:0", (1 // number for number in (1, 0))))
