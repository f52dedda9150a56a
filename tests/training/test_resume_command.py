"""--resume: what it goes on from, what it refuses, and what it says."""

import json
import re
import shutil
from pathlib import Path

import pytest
from run_comparison import differences
from training.resuming import go_on

from smartcs.training import run as run_module
from smartcs.training.checkpoint import MANIFEST, write_checkpoint
from smartcs.training.commandline import UsageError
from smartcs.training.resume import Resumption
from smartcs.training.run_folder import read_config
from smartcs.training.state_files import STATE
from smartcs.training.trainer import Trainer


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> dict[str, Path]:
    """Runs that several tests start from copies of."""
    return {"folder": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def begun(kept, short, quiet_train, stop_at, tmp_path):
    """A run that stopped at step 8 with checkpoints of steps 5, 6 and 8, and its uninterrupted twin."""
    if "whole" not in kept:
        kept["whole"] = quiet_train(short(output=kept["folder"] / "whole")).folder
        stop_at(8)
        kept["begun"] = quiet_train(short(output=kept["folder"] / "begun", keep=3)).folder
    return Path(shutil.copytree(kept["begun"], tmp_path / "begun"))


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def one_line(stderr: str) -> str:
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    return stderr


def test_the_command_goes_on(command, begun, kept):
    assert checkpoints(begun) == ["step-00000005", "step-00000006", "step-00000008"]
    code, out, err = command("train", "--resume", begun, "--keep", 2)
    assert (code, err) == (0, "")
    assert re.search(r"resumed at step 8 from \S+step-00000008", out)
    assert differences(kept["whole"], begun) == []
    assert read_config(begun).keep == 2, "what may change is the run's from now on"


def test_a_finished_run_says_so(command, begun, kept):
    before = {path: path.stat().st_mtime_ns for path in kept["whole"].rglob("*")}
    code, out, err = command("train", "--resume", kept["whole"])
    assert (code, err) == (0, "") and "whole is finished: there is nothing to resume" in out
    assert before == {path: path.stat().st_mtime_ns for path in kept["whole"].rglob("*")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--learning-rate", 1e-4, "--seed", 3],
            "--seed is 3, but the run began with 11711; --learning-rate is 0.0001, but",
        ),
        (["--recipe", "smart"], "--recipe is smart, but the run began with baseline"),
        (["--smart.weight", 3], "--smart.weight is 3.0, but the run began with 2.0"),
        (["--no-fused"], "--fused is False, but the run began with True"),
        (["--output", "elsewhere"], "--output is elsewhere, but a run goes on where it is"),
        (["--epochs", 1], "--epochs is 1, but epoch 2 has begun"),
        (["--max-length", 20], "--max-length is 20, but the run began with 512"),
        (["--keep", -1], "--keep is -1, expected an integer of at least 0"),
    ],
)
def test_other_settings_are_refused(command, begun, options, message):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    code, _, err = command("train", "--resume", begun, *options)
    assert code == 2 and message in one_line(err)
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sampler": "annealed"}, "annealed sampling follows from that number"),
        ({"recipe": "smart", "smart.decay": "linear"}, "SMART's weight falls"),
        ({"recipe": "smart-bregman"}, "the anchor's momentum changes"),
    ],
)
def test_more_epochs_only_where_nothing_depends_on_their_number(command, short, quiet_train, settings, reason):
    folder = quiet_train(short(epochs=1, cycles=1, **settings)).folder
    code, _, err = command("train", "--resume", folder, "--epochs", 2)
    assert code == 2 and f"--epochs is 2, but the run began with 1 and {reason}" in one_line(err)


def test_what_says_the_same_or_only_how_it_is_written_is_taken(command, begun, data_folder, tmp_path, kept):
    """The data have moved, and so has the run."""
    moved = Path(shutil.copytree(data_folder, tmp_path / "moved"))
    begun = begun.rename(tmp_path / "other")
    typed = ["--data", moved, "--output", begun, "--eval-batch-size", 64, "--learning-rate", "0.001", "--keep", 2]
    code, _, err = command("train", "--resume", begun, *typed, "--checkpoint-every", 3)
    assert (code, err) == (0, "")
    found = differences(kept["whole"], begun)
    assert len(found) == 3 and {line.split(" is ")[0] for line in found} == {
        *("metrics.json: config: data", "metrics.json: config: checkpoint_every", "metrics.json: data: source")
    }
    assert "step-00000009" in checkpoints(begun)


@pytest.mark.parametrize(
    ("name", "part"), [("sts-dev.csv", "label"), ("ids-sst-train.csv", "text"), ("quora-test.csv", "id")]
)
def test_changed_data_are_named(command, begun, data_folder, tmp_path, name, part):
    changed = Path(shutil.copytree(data_folder, tmp_path / "changed"))
    header, first, *rest = (changed / name).read_text().splitlines()
    values = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    key = next(key for key in values if key.startswith({"label": "simil", "text": "sentence", "id": "id"}[part]))
    values[key] = "2.5" if part == "label" else "another" + values[key]
    (changed / name).write_text("\n".join([header, "\t".join(values.values()), *rest]) + "\n")
    code, _, err = command("train", "--resume", begun, "--data", changed)
    assert code == 2 and f"{name}: not what the run was trained on" in one_line(err)


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if kind == "flipped" else content[: len(content) // 2])


FILES = [
    *(
        "model.safetensors",
        "heads.safetensors",
        "optimizer.safetensors",
        "record.safetensors",
        "state.json",
        "config.json",
    ),
    *("manifest.json", "losses.csv", "tokenizer.json", "vocab.txt", "train_config.json", "smartcs.json"),
    *("tokenizer_config.json", "1_Pooling/config.json"),
]


@pytest.mark.parametrize("kind", ["cut", "flipped"])
def test_from_a_damaged_checkpoint_to_the_one_before(begun, kind):
    newest = begun / "checkpoints" / "step-00000008"
    assert {path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()} == set(FILES)
    for name in FILES:
        before = (newest / name).read_bytes()
        damage(newest / name, kind)
        found = Resumption.find(begun)
        assert found.checkpoint.step == 6 and len(found.damaged) == 1 and name in found.damaged[0]
        (newest / name).write_bytes(before)
    assert Resumption.find(begun).checkpoint.step == 8


def test_damage_is_said_and_the_run_is_the_same(command, begun, kept):
    damage(begun / "checkpoints" / "step-00000008" / "optimizer.safetensors", "flipped")
    shutil.rmtree(begun / "checkpoints" / "step-00000006")
    code, out, err = command("train", "--resume", begun, "--keep", 2)
    assert (code, err) == (0, "")
    assert "warning: passed over a damaged checkpoint: " in out and "optimizer.safetensors: has changed" in out
    assert re.search(r"resumed at step 5 from \S+step-00000005", out)
    assert differences(kept["whole"], begun) == []
    assert checkpoints(begun) == checkpoints(kept["whole"]), "the damaged one is gone"


def test_where_all_are_damaged(command, begun):
    for path in (begun / "checkpoints").iterdir():
        damage(path / "state.json", "cut")
    code, _, err = command("train", "--resume", begun)
    assert code == 2 and "no checkpoint is whole" in one_line(err) and err.count("state.json") == 3


def test_a_checkpoint_can_be_named(command, begun, kept):
    code, out, _ = command("train", "--resume", begun / "checkpoints" / "step-00000006", "--keep", 2)
    assert code == 0 and "resumed at step 6 from" in out
    assert differences(kept["whole"], begun) == []
    damage(begun / "checkpoints" / "step-00000010" / "vocab.txt", "cut")
    code, _, err = command("train", "--resume", begun / "checkpoints" / "step-00000010")
    assert code == 2 and "vocab.txt" in one_line(err)


def test_one_flipped_bit_among_the_best_weights_loses_nothing(begun, kept, command):
    """They are in the run's folder and in the checkpoint of the end of their epoch: one of them is enough."""
    best = Resumption.find(begun).state["record"]["weights"]["checkpoint"]
    assert best == "step-00000006"
    damage(begun / "checkpoints" / best / "model.safetensors", "flipped")
    assert Resumption.find(begun).checkpoint.step == 8
    whole = (begun / "model.safetensors").read_bytes()
    damage(begun / "model.safetensors", "flipped")
    found = Resumption.find(begun)
    assert found.checkpoint.step == 5, "of its time there was no best epoch"
    assert "step-00000006" in found.damaged[0] and "whole neither" in found.damaged[0]
    (begun / "model.safetensors").write_bytes(whole)


@pytest.mark.parametrize(
    ("where", "message"),
    [("nowhere", "is no folder"), (".", "holds no checkpoint"), ("run/checkpoints/step-00000012", "is no folder")],
)
def test_where_there_is_nothing(command, tmp_path, monkeypatch, where, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("train", "--resume", where)
    assert code == 2 and f"--resume {where}: {message}" in one_line(err)


def test_a_checkpoint_without_its_run_is_refused(command, begun, tmp_path):
    copy = shutil.copytree(begun / "checkpoints" / "step-00000006", tmp_path / "backup" / "step-00000006")
    code, _, err = command("train", "--resume", copy)
    assert code == 2 and "a checkpoint outside of its run" in one_line(err)
    assert [path.name for path in tmp_path.iterdir() if path.name != "begun"] == ["backup"]


def test_a_run_does_not_delete_the_checkpoint_it_starts_from(begun, short, quiet_train):
    source = begun / "checkpoints" / "step-00000006"
    with pytest.raises(UsageError, match="begun is, or holds, the folder that --model starts from"):
        quiet_train(short(output=begun, model=str(source), overwrite=True))
    assert (source / "model.safetensors").is_file()


def test_schedules_keep_the_length_of_the_run(short, quiet_train, stop_at, tmp_path, monkeypatch):
    """With larger batches an epoch would be shorter, and the anchor's momentum change sooner."""
    lengths = []

    def trainer(config, *others):
        made = Trainer(config, *others)
        lengths.append((config.cycles, made.sampler.cycles, made.objective.anchor.beta))
        return made

    monkeypatch.setattr(run_module, "Trainer", trainer)
    stop_at(4)
    begun = quiet_train(short(output=tmp_path / "run", cycles=None, recipe="smart-bregman"))
    go_on(begun.folder, batch_sst=24, batch_qqp=24, batch_sts=24)
    (_, cycles, beta), again = lengths
    assert again == (cycles, cycles, beta)


def test_overwrite_removes_checkpoints_and_nothing_else(begun, short, quiet_train):
    (begun / "checkpoints" / "mine").mkdir()
    (begun / "checkpoints" / ".step-00000009.1.tmp").mkdir()
    quiet_train(short(output=begun, overwrite=True, keep=0))
    assert checkpoints(begun) == ["mine"]


def test_a_state_of_another_kind_is_refused(begun, quiet_train):
    """Its hashes are right; what it says is not."""
    from dataclasses import replace

    from smartcs.model.files import CheckpointError
    from smartcs.training.run import train

    found = Resumption.find(begun)
    for path, value in (
        (("loop", "sampler"), {"cycles": 2}),
        (("optimizer", "exp_avg"), {}),
        (("record",), {}),
        (("loop", "step"), "x"),
    ):
        state = json.loads(json.dumps({key: found.state[key] for key in ("loop", "record", "objective")}, default=str))
        broken = {**found.state, **{"loop": state["loop"], "optimizer": dict(found.state["optimizer"])}}
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        if path == ("record",):
            broken["record"] = {"history": [], "weights": None}
        with pytest.raises(CheckpointError, match="step-00000008: not a state of this run"):
            train(found.config, None, replace(found, state=broken))


STRANGE = [
    (("record",), None, "KeyError: 'record'"),
    (("stage",), None, "KeyError: 'stage'"),
    (("stage",), "napping", "stage is 'napping'"),
    (("data",), None, "KeyError: 'data'"),
    (("data", "train"), "x", "expected an object"),
    (("data", "foo"), {"sst": "0"}, "expected train, dev, test"),
    (("record", "pretrained"), {}, "KeyError: 'steps'"),
    (("record", "pretrained"), {"steps": "x", "steps_per_epoch": 1, "interrupted": False}, "pretrained is"),
    (("conditions",), [], "expected an object"),
    (("loop",), {}, "KeyError: 'sampler'"),
    (("loop", "sampler", "cycles"), "x", "the sampler's cycles is 'x'"),
    (("loop", "sampler", "cycles"), -3, "the sampler's cycles is -3"),
    (("loop", "sampler", "epoch"), None, "KeyError: 'epoch'"),
    (("record", "weights"), "x", "TypeError"),
    (("record", "weights", "checkpoint"), "../../secret", "expected a checkpoint's"),
    (("record", "weights", "files"), {"../note": "0" * 64}, "expected a checkpoint's"),
    (("record", "weights", "files"), {"losses.csv": "0" * 64}, "expected a checkpoint's"),
]


@pytest.mark.parametrize(("path", "value", "message"), STRANGE, ids=str)
def test_a_state_from_a_stranger(command, begun, path, value, message):
    """Every checkpoint says so, and signs it: one clear line."""
    for folder in list((begun / "checkpoints").iterdir()):
        state = json.loads((folder / STATE).read_text())
        place = state
        for key in path[:-1]:
            place = place[key]
        if value is None:
            del place[path[-1]]
        elif place is None:  # no epoch was over yet
            shutil.rmtree(folder)
            continue
        else:
            place[path[-1]] = value
        (folder / STATE).write_text(json.dumps(state))
        sign(folder)
    code, _, err = command("train", "--resume", begun)
    assert code == 2 and message in one_line(err)


def sign(folder: Path) -> None:
    """Writes the checkpoint anew, with a manifest of what is there."""

    def fill(new: Path) -> None:
        shutil.copytree(folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))

    write_checkpoint(folder.parent, int(folder.name.removeprefix("step-")), fill)


def test_metrics_from_a_stranger(command, begun):
    (begun / "metrics.json").write_text('{"finished": true, "epochs": 5}')
    code, _, err = command("train", "--resume", begun)
    assert code == 2 and "metrics.json: not the metrics of a run (TypeError" in one_line(err)


def test_a_run_of_checkpoints_alone(begun, kept):
    """All that a run needs is there: the model of the best epoch is put back whole."""
    for path in begun.iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert go_on(begun, keep=2).signal is None
    assert differences(kept["whole"], begun) == []


def test_a_checkpoint_that_was_about_to_be_replaced(begun):
    newest = begun / "checkpoints" / "step-00000008"
    newest.rename(newest.with_name(".step-00000008.123.old"))
    assert Resumption.find(begun).checkpoint.step == 8 and newest.is_dir()
