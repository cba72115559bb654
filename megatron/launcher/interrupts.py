"""Signals that ask the launcher to end its job."""

import signal
import time

# Who closes a terminal or ends a session often says it more than once: the shell and the kernel send a SIGHUP each,
# a service manager SIGHUP right behind SIGTERM.
ECHO_SECONDS = 5.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A scheduler's announcements, which the workers understand (megatron/engine/stop.py).
ANNOUNCING = (signal.SIGUSR1, signal.SIGUSR2)


class Interrupts:
    """What the handlers note, which may run between any two steps of the program, and do nothing else here.

    Attributes: first: the signal that asked first, None as long as nobody has; insists: whether somebody asked again,
    on the keyboard or after a while; announced: the scheduler's signals.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.insists = False
        self.announced: list[int] = []
        self._since = 0.0
        self._told = False

    def note(self, number: int) -> bool:
        """Returns: whether this is the first wish that the job ends."""
        if number not in ENDING:
            self.announced.append(number)
            return False
        if self.first is None:
            self._since, self.first = time.monotonic(), number
            return True
        if number == signal.SIGINT or time.monotonic() - self._since > ECHO_SECONDS:
            self.insists = True
        return False

    def news(self) -> str | None:
        """The name of the signal that asked first, told once: to be acknowledged outside of the handler, in which the
        terminal may have gone and Python be amid a line."""
        if self.first is None or self._told:
            return None
        self._told = True
        return signal.Signals(self.first).name

    @property
    def heard(self) -> bool:
        """Whether there was any signal: then nobody waits for another start."""
        return self.first is not None or bool(self.announced)
