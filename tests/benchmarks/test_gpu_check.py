"""make gpu-check's parts: stages that fail, hang or cannot run, the report, and that no test is left out."""

import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import gpu_check
import gpu_report
import pytest
from _pytest.mark.expression import Expression
from gpu_stages import SKIPPED, Outcome, Stage, pytest_stage, run, run_all
from results_io import RESULTS

KEYS = {"schema", "rehearsal", "passed", "seconds", "environment", "missing", "kernels", "build", "stages", "tests"}
KEYS |= {"failed_tests", "failures", "error_budget", "benchmarks"}


def python(code: str, name: str = "stage", limit: float = 60, **settings) -> Stage:
    return Stage(name, [sys.executable, "-c", code], limit, **settings)


def soon() -> float:
    return time.monotonic() + 60


def test_a_stage_passes_with_its_result(tmp_path):
    result = tmp_path / "rows.json"
    outcome = run(python(f"open({str(result)!r}, 'w').write('[1]')", result=result), soon(), tmp_path)
    assert (outcome.status, outcome.result, outcome.reason) == ("passed", [1], "")


def test_a_failing_stage_says_why_and_stops_no_other(tmp_path):
    failing = python(f"import sys; print('before'); sys.exit('broken in {gpu_report.ROOT}/csrc')", "first")
    first, second = run_all([failing, python("print('fine')", "second")], soon(), tmp_path, jobs=2)
    assert (first.status, second.status) == ("failed", "passed")
    assert first.reason == "exit code 1; its last lines:\nbefore\nbroken in ./csrc"


def test_a_hanging_stage_is_ended_with_what_it_started(tmp_path):
    """And what it had written by then is kept."""
    result, child = tmp_path / "rows.json", tmp_path / "child"
    code = f"""
import subprocess, time
open({str(result)!r}, "w").write("[1]")
child = subprocess.Popen(["sleep", "100"])
open({str(child)!r}, "w").write(str(child.pid))
print("now it hangs", flush=True)
time.sleep(100)
"""
    outcome = run(python(code, limit=2, result=result), soon(), tmp_path)
    assert outcome.status == "timed out" and outcome.seconds < 20 and outcome.result == [1]
    assert outcome.reason == "ended after 2 s; its last lines:\nnow it hangs"
    for _ in range(100):
        if not _is_running(int(child.read_text())):
            return
        time.sleep(0.1)
    raise AssertionError("its child goes on")


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stage_that_cannot_run_here_is_skipped(tmp_path):
    outcome = run(python(f"import sys; print('no such library'); sys.exit({SKIPPED})"), soon(), tmp_path)
    assert (outcome.status, outcome.reason) == ("skipped", "no such library")


def test_nothing_begins_when_the_time_is_up(tmp_path):
    outcome = run(python("print()"), time.monotonic() - 1, tmp_path)
    assert (outcome.status, outcome.reason) == ("not run", "the time of the whole check was up")


TESTS = """
import os, pytest, time
def test_right(): pass
def test_wrong(): assert 1 == 2, "one is not two"
@pytest.fixture
def broken(): raise OSError("no disk")
def test_error(broken): pass
@pytest.mark.skip(reason="not here")
def test_skipped(): pass
def test_last(): END
"""


def run_pytest(tmp_path, source: str, limit: float = 60) -> Outcome:
    path = tmp_path / "test_it.py"
    path.write_text(source)
    alone = [f"--rootdir={tmp_path}", f"--confcutdir={tmp_path}", "-c", os.devnull, str(path)]
    return run(pytest_stage("it", alone, limit, {}), soon(), tmp_path)


@pytest.mark.parametrize(
    ("end", "limit", "status", "reason"),
    [("time.sleep(100)", 15, "timed out", "it hung"), ("os._exit(3)", 60, "failed", "it ended the process")],
)
def test_tests_are_counted_whatever_ends_them(tmp_path, end, limit, status, reason):
    outcome = run_pytest(tmp_path, TESTS.replace("END", end), limit)
    assert outcome.status == status
    assert outcome.tests == {"passed": 1, "failed": 1, "error": 1, "skipped": 1, "unfinished": 1}
    found = {one["test"].partition("::")[2]: one["message"] for one in outcome.failures}
    assert found["test_wrong"].startswith("AssertionError: one is not two") and "no disk" in found["test_error"]
    assert found["test_last"] == reason


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def test_right(): pass", "passed"),
        ("import pytest\n@pytest.mark.skip\ndef test_it(): pass", "failed"),
        ("", "failed"),
        ("import no_such_module", "failed"),
    ],
)
def test_a_proof_needs_a_test_that_passed(tmp_path, source, status):
    outcome = run_pytest(tmp_path, source)
    assert outcome.status == status and bool(outcome.reason or outcome.failures) == (status == "failed")


def test_the_share_of_the_error_budget_is_kept(tmp_path):
    source = f"import sys; sys.path.append('{gpu_report.ROOT}/tests'); import error_budget\n"
    source += "def test_it(): error_budget.observed['forward', 'float32'] = 0.25"
    assert run_pytest(tmp_path, source).budget == {"forward float32": 0.25}


@pytest.fixture
def check(monkeypatch, tmp_path, capsys):
    """Runs gpu_check.py with these stages in the place of its own: exit code, report, output."""

    def execute(build: Stage, tests: list[Stage]) -> tuple[int, dict, str]:
        monkeypatch.setattr(gpu_check, "WORK", tmp_path)
        monkeypatch.setattr(gpu_check, "build_stage", lambda limit: build)
        monkeypatch.setattr(gpu_check, "test_stages", lambda device, limit: tests)
        row = [{"case": "c", "shape": "s", "precision": "p", "candidate": "x", "status": "not measured", "reason": "w"}]
        code = f"import json; json.dump({row}, open({str(tmp_path / 'rows')!r}, 'w'))"
        measuring = python(code, "measuring", result=tmp_path / "rows")
        monkeypatch.setattr(gpu_check, "measuring_stage", lambda *_: measuring)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--rehearse", "--commit", "abc"])
        monkeypatch.setenv("OUT", str(tmp_path / "out"))
        (tmp_path / "out").mkdir()
        with pytest.raises(SystemExit) as info:
            gpu_check.main()
        report = json.loads((tmp_path / "out" / "rehearsal.json").read_text())
        return info.value.code, report, capsys.readouterr().out

    return execute


def test_a_check_that_holds(check):
    code, report, output = check(python("print()", "build"), [python("print()", "test-op")])
    assert code == 0 and report["passed"] and set(report) == KEYS | {"note"}
    assert [stage["name"] for stage in report["stages"]] == ["build", "kernels", "test-op", *["measuring"] * 3]
    assert report["environment"]["commit"] == "abc" and len(report["benchmarks"]) == 3
    assert "every proof held" in output and "REHEARSAL" in output


def test_a_check_that_does_not_hold(check):
    """The other stages run; what failed is in the report, and the exit code says so."""
    hanging = python("import time; time.sleep(100)", "test-hangs", limit=1)
    code, report, output = check(python("raise OSError('no compiler')", "build"), [hanging, python("print()", "fine")])
    assert code == 1 and not report["passed"]
    status = {stage["name"]: stage["status"] for stage in report["stages"]}
    assert (status["build"], status["test-hangs"], status["fine"]) == ("failed", "timed out", "passed")
    assert "no compiler" in report["stages"][0]["reason"] and "NOT PROVEN" in output


def test_every_test_is_in_one_process():
    environment = os.environ | {"SMARTCS_TEST_DEVICE": "cpu"}
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    listed = subprocess.run(command, cwd=gpu_report.ROOT, env=environment, capture_output=True, text=True, check=True)
    tests = [line.lower() for line in listed.stdout.splitlines() if line.startswith("tests/gpu/")]
    stages = gpu_check.test_stages("cpu", 1)
    selections = [Expression.compile(stage.command[stage.command.index("-k") + 1]) for stage in stages]
    assert len(tests) > 100
    for test in tests:
        # As pytest has it, but for names of folders: those are the same for all.
        name = test.removeprefix("tests/gpu/")
        taken = [one for one in selections if one.evaluate(lambda word, name=name, **_: word.lower() in name)]
        assert len(taken) == 1, test


def test_reports_name_no_path_and_no_host():
    text = f"{sys.prefix}/lib {gpu_report.ROOT}/csrc {os.path.expanduser('~')}/x on {os.uname().nodename}"
    assert gpu_report.scrubbed(text) == "<env>/lib ./csrc <home>/x on <host>"
    assert gpu_report.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    cut = gpu_report.failure("stage", "test", "begin" + 5000 * "x" + "end")["message"]
    assert len(cut) < 2000 and cut.startswith("begin") and cut.endswith("end")


def test_the_committed_rehearsal():
    text = (RESULTS / "gpu-check-rehearsal.json").read_text()
    report = json.loads(text)
    assert report["rehearsal"] and report["passed"] and set(report) == KEYS | {"note"}
    assert {"build", "test-attention", "training", "encoder", "ops"} <= {stage["name"] for stage in report["stages"]}
    assert all(row["note"] == report["note"] for row in report["benchmarks"])
    assert not re.search(r"/(work|root|home|tmp|usr)/", text) and os.uname().nodename not in text


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name == "pybind11" else SimpleNamespace())
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, path=None: None if name == "nvcc" else name)
    assert gpu_check.missing_tools("cuda") == [
        "pybind11 is not installed, the build needs it: pip install pybind11",
        "nvcc is not on PATH",
    ]
    assert gpu_check.missing_tools("cpu") == gpu_check.missing_tools("cuda")[:1]


def test_the_limit_of_a_process_is_what_is_left(monkeypatch):
    stage = gpu_check.measuring_stage("ops", "gpu_ops.py", "cuda", 100, time.monotonic() + 40)
    assert 39 < stage.limit <= 40 and int(stage.command[-1]) <= 30
