"""One machine, real processes: errors are told once, codes are passed on, nobody is left behind (P34)."""

import json
import os
import signal
import time

import pytest

from megatron.launcher import Job, run_local
from megatron.launcher.coordinator import Coordinator
from megatron.launcher.failures import Outcome
from tests.unit.launcher.jobs import finish, is_running, run, start, wait_for, worker_pids

TELL_PID = 'temporary = here / f"tmp_{rank}"; temporary.write_text(str(os.getpid()))\n'
TELL_PID += 'temporary.rename(here / f"pid_{rank}")\n'
# Both come to the launcher at the same time, however long one of them takes to start.
MEET = (
    TELL_PID + 'while not ((here / "pid_0").exists() and (here / "pid_1").exists()):\n    time.sleep(0.01)\n'
)


def test_workers_get_torchruns_variables_and_the_arguments(tmp_path):
    script = """
import json
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
record = {"env": [os.environ[name] for name in names], "argv": sys.argv[1:], "omp": os.environ["OMP_NUM_THREADS"]}
(here / f"said_{rank}.json").write_text(json.dumps(record))
"""
    assert run(tmp_path, script, 2, ("--megatron_config", "abc")) == (0, "", "")
    said = [json.loads((tmp_path / f"said_{rank}.json").read_text()) for rank in range(2)]
    assert said[1]["env"] == ["1", "1", "2", "2", "127.0.0.1", "29500", "cpu"]
    assert said[0]["argv"] == ["--local_rank=0", "--megatron_config", "abc"]
    assert int(said[0]["omp"]) >= 1


def test_a_users_mistake_on_every_rank_is_told_once_in_one_line(tmp_path):
    script = """
def main():
    raise ConfigError("seed=0 must be above 0")
run_main(main)
"""
    code, out, err = run(tmp_path, script, 3)
    assert (code, out) == (1, "")
    assert err == "error: seed=0 must be above 0\n"


def test_a_defect_keeps_its_traceback_and_others_are_not_waited_for(tmp_path):
    script = """
def main():
    if rank == 1:
        raise ZeroDivisionError("one over nothing")
    time.sleep(1000)
run_main(main)
"""
    code, _, err = run(tmp_path, script)
    assert code == 1
    assert err.count("Traceback") == 1 and "worker.py" in err
    assert err.endswith("error: rank 1: ZeroDivisionError: one over nothing\n")


def test_consequences_on_other_ranks_take_one_line(tmp_path):
    script = """
def main():
    time.sleep(0.3 * rank)
    raise RuntimeError("first" if rank == 0 else "connection closed by peer\\nlong explanation")
run_main(main)
"""
    code, _, err = run(tmp_path, script)
    assert code == 1 and err.count("Traceback") == 1
    assert err.endswith(
        "error: rank 0: RuntimeError: first\nthen rank 1: RuntimeError: connection closed by peer\n"
    )


@pytest.mark.parametrize(
    ("how", "expected"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_the_exit_code_is_the_failed_workers(tmp_path, how, expected):
    script = f"if rank == 1:\n    {how}\ntime.sleep(1000)\n"
    code, _, err = run(tmp_path, script)
    assert code == expected
    reason = (
        "ended with exit code 7" if expected == 7 else "was killed by SIGKILL (the system may have run out"
    )
    assert f"error: rank 1 {reason}" in err


def test_a_worker_that_was_killed_is_the_cause_whatever_the_others_say(tmp_path):
    script = """
def main():
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("connection closed by peer")
run_main(main)
"""
    code, _, err = run(tmp_path, script)
    assert code == 137
    assert err.splitlines()[0].startswith("error: rank 0 was killed by SIGKILL")
    assert "Traceback" not in err


def test_a_failure_leaves_no_process_behind_even_a_stubborn_one(tmp_path):
    script = f"""
{TELL_PID}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while not (here / "pid_0").exists() or not (here / "pid_1").exists():
    time.sleep(0.01)
if rank == 1:
    sys.exit(3)
time.sleep(1000)
"""
    process = start(tmp_path, script)
    pids = worker_pids(tmp_path)
    code, _, _ = finish(process)
    assert code == 3
    assert wait_for(lambda: not any(is_running(pid) for pid in pids))


def test_processes_a_worker_has_started_end_with_the_job(tmp_path):
    script = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
(here / "child").write_text(str(child.pid))
sys.exit(4)
"""
    code, _, _ = run(tmp_path, script, 1)
    assert code == 4
    assert wait_for(lambda: not is_running(int((tmp_path / "child").read_text())))


def test_killing_the_launcher_outright_ends_the_workers(tmp_path):
    process = start(tmp_path, TELL_PID + "time.sleep(1000)\n")
    pids = worker_pids(tmp_path)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert wait_for(lambda: not any(is_running(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_may_finish_and_save_when_the_launcher_is_asked_to_stop(tmp_path, number):
    script = f"""
def save(number, frame):
    time.sleep(0.5)
    (here / f"saved_{{rank}}").touch()
    sys.exit(0)
signal.signal(signal.{number.name}, save)
{TELL_PID}
time.sleep(1000)
"""
    process = start(tmp_path, script)
    worker_pids(tmp_path)
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "waiting for the processes to stop" in out
    assert (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists()


def test_workers_may_save_although_the_terminal_goes_and_says_so_more_than_once(tmp_path):
    script = f"""
def save(number, frame):
    time.sleep(0.5)
    (here / f"saved_{{rank}}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
{TELL_PID}
time.sleep(1000)
"""
    process = start(tmp_path, script)
    worker_pids(tmp_path)
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    process.wait(30)
    process.stdin.close()
    process.stderr.close()
    assert (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists()


def test_who_interrupts_the_very_end_does_not_want_another_start(tmp_path, monkeypatch):
    def close(coordinator):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.undo()
        coordinator.close()

    monkeypatch.setattr(Coordinator, "close", close)
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    job = Job(str(tmp_path / "worker.py"), (), {"localhost": [0]}, True, False, "127.0.0.1", 29500)
    assert run_local(job) == Outcome(3, may_recover=False)


def test_announcements_of_a_scheduler_reach_the_workers_who_may_ask_for_another_start(tmp_path):
    script = f"""
heard = []
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
{TELL_PID}
while len(heard) < 2:
    time.sleep(0.01)
    (here / f"heard_{{rank}}_{{len(heard)}}").touch()
time.sleep(rank)
sys.exit(75)
"""
    process = start(tmp_path, script)
    worker_pids(tmp_path)
    process.send_signal(signal.SIGUSR1)
    assert wait_for(lambda: all((tmp_path / f"heard_{rank}_1").exists() for rank in range(2)))
    process.send_signal(signal.SIGUSR1)
    assert finish(process) == (75, "", "")


def test_an_announcement_that_comes_before_a_worker_listens_is_repeated_to_it(tmp_path):
    script = f"""
{TELL_PID}
while not (here / "announced").exists():
    time.sleep(0.01)
run_main(lambda: time.sleep(1000))
"""
    process = start(tmp_path, script, size=1)
    worker_pids(tmp_path, size=1)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)  # for the launcher to pass it on, which the worker does not notice
    (tmp_path / "announced").touch()
    assert finish(process) == (75, "", "")


def test_a_worker_that_asks_for_another_start_does_not_hide_a_failure(tmp_path):
    code, _, err = run(tmp_path, "time.sleep(0.5 * rank)\nsys.exit((75, 3)[rank])\n")
    assert code == 3 and "rank 1 ended with exit code 3" in err


def test_a_second_interrupt_kills(tmp_path):
    script = f"signal.signal(signal.SIGINT, signal.SIG_IGN)\n{TELL_PID}time.sleep(1000)\n"
    process = start(tmp_path, script)
    pids = worker_pids(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # Two signals at once would be one.
    process.send_signal(signal.SIGINT)
    code, _, _ = finish(process)
    assert code == 130
    assert not any(is_running(pid) for pid in pids)


def test_interrupting_a_script_that_does_not_care_is_no_error(tmp_path):
    script = (
        f"def main():\n    {TELL_PID.splitlines()[0]}\n    {TELL_PID.splitlines()[1]}\n    time.sleep(1000)\n"
    )
    process = start(tmp_path, script + "run_main(main)\n")
    worker_pids(tmp_path)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err) == (130, "")


def test_only_the_first_worker_reads_the_terminal(tmp_path):
    process = start(tmp_path, "(here / f'read_{rank}').write_text(sys.stdin.readline())\n")
    process.communicate("a prompt\n", timeout=30)
    assert [(tmp_path / f"read_{rank}").read_text() for rank in range(2)] == ["a prompt\n", ""]


def test_an_interrupt_of_a_conversation_is_passed_on_every_time_and_ends_nothing(tmp_path):
    script = """
caught = []
signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
for count in range(4):
    (here / f"caught_{count}_{rank}").write_text("")
    while len(caught) <= count < 3:
        time.sleep(0.01)
"""
    process = start(tmp_path, script, conversation=True)
    for count in range(3):
        seen = [tmp_path / f"caught_{count}_{rank}" for rank in range(2)]
        assert wait_for(lambda seen=seen: all(path.exists() for path in seen))
        process.send_signal(signal.SIGINT)
    assert finish(process) == (0, "", "")


def test_a_stall_shows_the_stack_of_the_rank_that_others_wait_for_and_ends_all(tmp_path):
    script = f"""
from megatron.common.activity import beat, enter
{MEET}
def forgets_to_go_on():
    time.sleep(1000)
def main():
    for step in range(1, 9):
        beat("training step", step)
        if step == 5 + rank:
            enter("backward")
            forgets_to_go_on()
run_main(main)
"""
    process = start(tmp_path, script, patience=1.0)
    pids = worker_pids(tmp_path)
    code, _, err = finish(process)
    assert code == 1
    first, second, *stack = err.splitlines()
    assert first.startswith(
        "error: nothing was finished for 1 s (watchdog_timeout): rank 0 does not go on (iteration 5"
    )
    assert first.endswith("rank 1 waits (iteration 6, training step, backward)")
    assert second.startswith("rank 0, iteration 5, training step, backward, without progress for ")
    assert stack[-2:] == [
        f'  File "{tmp_path}/worker.py", line 15, in forgets_to_go_on',
        "    time.sleep(1000)",
    ]
    assert not any(is_running(pid) for pid in pids)


def test_a_rank_that_is_stuck_in_c_and_holds_pythons_lock_is_shown_too(tmp_path):
    script = f"""
import ctypes
from megatron.common.activity import beat
{MEET}
def never_lets_go():
    ctypes.PyDLL(None).sleep(1000)
def main():
    beat("training step", 6)
    time.sleep(1)
    never_lets_go() if rank else time.sleep(1000)
run_main(main)
"""
    process = start(tmp_path, script, patience=2.0)
    pids = worker_pids(tmp_path)
    code, _, err = finish(process)
    assert code == 1
    first, second, *stack = err.splitlines()
    assert first.startswith(
        "error: nothing was finished for 2 s (watchdog_timeout): rank 1 does not go on (iteration 6"
    )
    assert second.startswith("rank 1, iteration 6, training step, without progress for ")
    assert f'  File "{tmp_path}/worker.py", line 16 in never_lets_go' in stack
    assert not any(is_running(pid) for pid in pids)


def test_slow_progress_is_no_stall(tmp_path):
    script = f"""
from megatron.common.activity import pulse
{MEET}
def main():
    for _ in range(30 if rank else 1):
        time.sleep(0.1)
        pulse()
    time.sleep(3.0 * (1 - rank))
run_main(main)
"""
    process = start(tmp_path, script, patience=2.5)
    assert finish(process) == (0, "", "")
