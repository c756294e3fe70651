"""What ui/serve/gradio_private.py changes inside of Gradio does what is said of it."""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import safehttpx
from gradio import route_utils, routes
from gradio.server_messages import ProcessGeneratingMessage

import lora_drop.ui
from lora_drop.errors import GET_PAGE, TESTED_GRADIO, LoraDropError
from lora_drop.ui.components import FreeNumber, FreeSlider, OpenButton
from lora_drop.ui.serve import gradio_private
from lora_drop.ui.serve.gradio_private import ask_no_other_host
from lora_drop.ui.serve.gradio_queue import TOTAL, FairQueue, use_fair_queue
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import Limits, Policy
from lora_drop.ui.serve.visits import Visits


def test_another_gradio_warns_in_private_and_is_refused_in_public(monkeypatch, capsys):
    gradio_private.refuse_untested(public=True)
    assert capsys.readouterr().err == "" and TESTED_GRADIO in GET_PAGE
    monkeypatch.setattr(gr, "__version__", "6.310.0")
    gradio_private.refuse_untested(public=False)
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"warning: gradio 6.310.0 is installed, and this page is tested with 6.31 alone: {GET_PAGE}"
    with pytest.raises(LoraDropError, match="6.310.0.*--private"):
        gradio_private.refuse_untested(public=True)


def test_gradio_prints_one_clean_line(capsys):
    gradio_private.clean_prints()
    routes.print("id=\x1b[31m\nFAKE", "line")
    assert capsys.readouterr().out == "id=\ufffd[31m FAKE line\n"


def test_gradio_still_checks_addresses_by_this_function(monkeypatch):
    monkeypatch.setattr(safehttpx, "async_validate_url", safehttpx.async_validate_url)  # put back afterwards
    ask_no_other_host()
    with pytest.raises(ValueError, match="asks no other host"):
        asyncio.run(safehttpx.async_validate_url("example.com"))


def fair_queue(**limits) -> FairQueue:
    with gr.Blocks() as demo:
        pass
    return use_fair_queue(demo, Policy(limits=Limits(**limits)), Counters(), lambda name, values: None, Visits())


def test_the_calls_of_sessions_that_are_gone_are_forgotten():
    queue = fair_queue()
    queue.pending_messages_per_session["here"] = asyncio.Queue()
    queue.pending_event_ids_session |= {name: {"a call"} for name in ("here", *map(str, range(2 * queue.sessions)))}
    queue._forget()
    assert list(queue.pending_event_ids_session) == ["here"]


def test_what_all_sessions_leave_unread_is_bounded_and_the_fullest_is_cut():
    queue = fair_queue(unread=1)
    counters = queue.counters
    events = [SimpleNamespace(session_hash=str(n), _id=f"run {n}", alive=True) for n in range(TOTAL + 1)]
    for n, event in enumerate(events):
        queue.event_ids_to_events[event._id] = event
        queue.pending_messages_per_session[event.session_hash] = asyncio.Queue()
        size = 1_000_000 if n == 2 else 780_000
        queue.send_message(event, ProcessGeneratingMessage(output={"data": ["a" * size]}, success=True))
    assert not counters.refused("unread"), "so much may wait"
    queue.send_message(events[0], ProcessGeneratingMessage(output={"data": ["a" * 100_000]}, success=True))
    assert counters.refused("unread") == 1 and [event.alive for event in events] == [True, True, False, True, True]
    unread = queue.pending_messages_per_session
    assert unread["2"].get_nowait().output["error"].startswith("Stopped: more than 1 MiB")
    assert unread["2"].empty() and unread.nbytes < TOTAL * 2**20 and unread["0"].qsize() == 2


def test_gradio_still_reads_uploads_with_this_parser():
    gradio_private.drop_broken_uploads()
    gradio_private.drop_broken_uploads()  # once more: another page of this process
    for number in range(3 * gradio_private.KEPT_UPLOADS):
        routes.file_upload_statuses.track(str(number))
    assert len(routes.file_upload_statuses._signals) == gradio_private.KEPT_UPLOADS
    assert len(routes.file_upload_statuses._statuses) == gradio_private.KEPT_UPLOADS
    assert gradio_private._PARSE is not route_utils.GradioMultiPartParser.parse


def test_an_error_that_is_no_visitors_goes_on_as_it_came():
    for kind in (KeyError, TypeError):
        with pytest.raises(kind):
            asyncio.run(gradio_private.answers_to_mistakes()[kind](None, _raised(kind)))


def _raised(kind: type[Exception]) -> Exception:
    try:
        raise kind("a bug of ours")
    except kind as error:
        return error


def test_a_component_of_ours_is_still_drawn_as_its_parent():
    names = [part().get_block_name() for part in (FreeSlider, FreeNumber, OpenButton)]
    assert names == ["slider", "number", "uploadbutton"]


def test_no_other_module_of_the_page_reaches_inside_of_gradio():
    for path in Path(lora_drop.ui.__file__).parent.rglob("*.py"):
        if path.name not in ("gradio_private.py", "gradio_queue.py"):
            text = path.read_text(encoding="utf-8")
            # `os._exit` is Python's own, and public.
            assert not re.search(r"(?<!self)(?<!cls)(?<!\bos)\._(?!_)\w", text), path.name
            assert not re.search(r"^(from gradio|import gradio\.)", text, re.M), path.name
