"""Turns on one device: one thread makes every step."""

import threading

import pytest
import torch

from lora_drop.run.race import by_owner, owned

CARD = torch.device("cuda", 0)


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
    one, two = (owned(CARD, work(name)) for name in "ab")
    for _ in range(3):  # each step from a thread of its own, two runs in turn
        for run in (one, two):
            asking = threading.Thread(target=lambda run=run: items.append(next(run)))
            asking.start()
            asking.join()
    assert items == [(name, number) for number in range(3) for name in "ab"]
    one.close()
    assert not list(two)
    assert len(seen) == 8 and set(seen) == {"owner-of-cuda:0_0"}
    with pytest.raises(ZeroDivisionError):
        list(owned(CARD, (1 // number for number in (1, 0))))


def test_what_runs_in_a_device_s_thread_may_ask_for_it_again():
    names = by_owner(CARD, lambda: [by_owner(CARD, lambda: threading.current_thread().name)])
    assert names == ["owner-of-cuda:0_0"]
    assert by_owner(torch.device("cpu"), threading.current_thread) is threading.current_thread()
