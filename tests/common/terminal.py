"""A program on a terminal of its own, typed at like a person would."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

CTRL_C = "\x03"
CTRL_D = "\x04"
UP = "\x1b[A"

# The new session has no terminal yet; opening one makes it the controlling one, which Ctrl-C is sent through.
_TAKE_TERMINAL = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """Context manager around a command; `command` is a list.

    Attributes: output: all that the program has shown so far.
    """

    def __init__(self, command, cwd=None, env=None):
        self.output = ""
        self._read_until = 0
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**os.environ, "TERM": "dumb", **(env or {})},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, timeout: float = 60.0) -> str:
        """Wait for `text` in the output that no earlier expect has passed; returns what came before it."""
        deadline = time.monotonic() + timeout
        while text not in self.output[self._read_until :]:
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"waited in vain for {text!r}; the terminal shows:\n{self.output}"
            if select.select([self._master], [], [], remaining)[0]:
                try:
                    self.output += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # the program has closed its end
                    at_end = self.output[self._read_until :]
                    assert text in at_end, f"ended without {text!r}; the terminal shows:\n{self.output}"
        place = self.output.index(text, self._read_until)
        before = self.output[self._read_until : place]
        self._read_until = place + len(text)
        return before

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for the end of the program; returns its exit code."""
        return self.process.wait(timeout)
