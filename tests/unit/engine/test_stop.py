"""Signals end a run politely, and what is said twice in one breath is said once."""

import json
import os
import signal
import subprocess
import sys

from tests.common.paths import ROOT

# Each case is a process of its own, forked after the slow imports. echo: seconds in which a signal counts as the same.
DRIVER = """
import json, os, signal, sys, time
import torch
from megatron.common import console
from megatron.engine import stop

def send(names):
    for name in names:
        if name.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(0.05)
            continue
        # stdout, stderr: whoever reads it has gone.
        stream, (reader, writer) = getattr(sys, name), os.pipe()
        kept = os.dup(stream.fileno())
        os.close(reader)
        os.dup2(writer, stream.fileno())
        if name == "stdout":
            console.info("a line for nobody")
            os.dup2(kept, stream.fileno())

def run(training, saving, echo):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    stop._ECHO_SECONDS = echo
    with stop.StopSignal() as told:
        send(training)
        told.poll()
        print(told.poll(), told.to_be_continued, flush=True)
    with stop.uninterrupted():
        send(saving)
        print("saved", flush=True)
    os._exit(0)

for case in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        run(*case)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
GO_ON_LATER = "True True\nsaved\nended 0"
STOP = "True False\nsaved\nended 0"


def test_signals_say_whether_to_go_on_later_and_who_insists_is_obeyed_at_once():
    cases = {
        # Announcements that come again interrupt nothing.
        (("SIGUSR1", "SIGUSR1"), ("SIGUSR1",), 100.0): GO_ON_LATER,
        (("SIGUSR1", "SIGUSR2"), ("SIGTERM",), 100.0): STOP,
        (("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGUSR1"), 100.0): STOP,
        (("SIGINT",), ("SIGUSR2",), 100.0): STOP,
        # Insistence.
        (("SIGTERM", "SIGTERM"), (), 0.01): f"ended {-signal.SIGTERM}",
        (("SIGTERM",), ("SIGTERM",), 0.01): f"True False\nended {-signal.SIGTERM}",
        (("SIGINT", "SIGINT"), (), 100.0): f"ended {-signal.SIGINT}",
        # Without a decision the signals have their old meaning afterwards, when the last save is done.
        ((), ("SIGUSR2",), 100.0): f"False False\nsaved\nended {-signal.SIGUSR2}",
        ((), ("SIGTERM", "SIGTERM"), 100.0): f"False False\nsaved\nended {-signal.SIGTERM}",
        ((), ("SIGINT", "SIGINT"), 100.0): f"False False\nended {-signal.SIGINT}",
        # What reads the output may go before the signal comes, or with it.
        (("stdout",), ("stdout",), 100.0): STOP,
        (("stderr", "SIGTERM"), (), 100.0): STOP,
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(list(cases)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout == "\n".join(cases.values()) + "\n"
