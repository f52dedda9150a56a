"""Every reader under hypothesis, a second or so each and the same inputs every time; `make fuzz` runs many more."""

import json
import sys
from pathlib import Path

import pytest
import run_targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import Reader, changed
from targets import TARGETS

from smartcs.model.files import CheckpointError
from smartcs.report.run_page import write_run_report

CORPUS = Path(__file__).with_name("corpus")
QUICK = settings(
    derandomize=True,
    max_examples=120,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Any bytes; those that change a valid file; and a file of the corpus with a few bytes changed."""
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    edited = st.builds(
        lambda seed, edits: seed[:1] + Reader(edits).edited(seed[1:]), st.sampled_from(seeds), st.binary(max_size=30)
    )
    return st.one_of(edited, st.binary(max_size=60).map(lambda data: b"\1" + data), st.binary(max_size=200))


def test_every_target_has_a_corpus() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    """Something in it is read, so the fuzzers begin behind the parsers; what was once found is refused or read."""
    read = [TARGETS[name].check(path.read_bytes()) for path in sorted((CORPUS / name).iterdir())]
    assert any(read)


@pytest.mark.parametrize("name", TARGETS)
def test_reader(name: str) -> None:
    @QUICK
    @given(inputs(name))
    def run(data: bytes) -> None:
        TARGETS[name].check(data)

    run()


def test_page_of_a_damaged_run(tmp_path: Path) -> None:
    """What metrics.json says of a run is drawn and written, or refused by name."""
    metrics = run_targets.METRICS

    @settings(QUICK, max_examples=25)
    @given(st.binary(min_size=2, max_size=12))
    def run(data: bytes) -> None:
        value = changed(metrics, Reader(data))
        (tmp_path / "metrics.json").write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
        try:
            write_run_report(tmp_path)
        except CheckpointError as error:
            assert "metrics.json" in str(error)

    run()


@pytest.mark.parametrize(
    ("name", "where", "faulty"),
    [
        ("model_config", "config_from_hf", lambda raw, source="": {"hidden_size": raw["hidden_size"]}),
        ("losses_csv", "RunData", None),
        ("data_file", "load_file", lambda path, *_, **__: path.read_text()),
    ],
)
def test_a_faulty_reader_is_found(monkeypatch: pytest.MonkeyPatch, name: str, where: str, faulty: object) -> None:
    monkeypatch.setattr(sys.modules[TARGETS[name].run.__module__], where, faulty)
    with pytest.raises((AssertionError, ValueError, AttributeError, KeyError, TypeError, RecursionError)):
        test_reader(name)
