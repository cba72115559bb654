"""The processes that belong to this one, and how to leave none of them behind."""

import contextlib


def kill_children() -> None:
    """End what this process has started, such as data loaders."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def kill_ssh_session() -> None:
    """End the ssh session that has started this process, and all that stands between (a shell, mpirun's daemon).

    For a host that was cut off: the session would wait for a quarter of an hour for what the other side has to say. One
    with a terminal is somebody's, and stays.
    """
    import psutil

    between = []
    for ancestor in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if ancestor.terminal() is not None:
                return
            between.append(ancestor)
            if ancestor.name().startswith("sshd"):
                break
    else:
        return
    for process in between:
        with contextlib.suppress(psutil.Error):
            process.kill()
