"""The page of a run: says what the metrics say, loads nothing, escapes everything, copes with what is missing."""

import html
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from smartcs.model.files import CheckpointError
from smartcs.report import write_run_report
from smartcs.report.page import picture_file
from smartcs.report.run_page import PICTURES
from smartcs.training import paper

FIGURES = {
    "sst_accuracy": "SST accuracy",
    "qqp_accuracy": "QQP accuracy",
    "sts_pearson": "STS Pearson",
    "score": "Score",
}
VOID = ("meta", "link", "br", "path", "use", "rect")


class Page(HTMLParser):
    """Attributes, ids, nesting and visible text of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.text, self.open = [], [], []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    def says(self, *texts):
        said = " ".join(" ".join(self.text).split())
        return all(text in said for text in texts)


def test_numbers_are_the_metrics(whole_run):
    page, metrics = Page(whole_run / "report.html"), json.loads((whole_run / "metrics.json").read_text())
    published, tested = (rows["smart-bregman"].as_dict() for rows in (paper.DEV, paper.TEST))
    columns = (metrics["dev"], metrics["dev"]["majority"], published, metrics["test"], tested)
    assert page.says("dev majority, dev paper, dev test paper, test")
    for name, label in FIGURES.items():
        assert page.says(" ".join([label, *(f"{values[name]:.3f}" for values in columns)])), name
        of_tile = [metrics["dev"][name], metrics["dev"]["majority"][name], published[name]]
        assert page.says("{}, dev {:.3f} majority class {:.3f} the paper {:.3f}".format(label, *of_tile))
    for epoch in metrics["epochs"]:
        losses = [epoch[kind][task] for kind in ("train_losses", "dev_losses") for task in ("sst", "qqp", "sts")]
        number = f"{epoch['epoch']}{' (best)' if epoch['epoch'] == 2 else ''}"
        assert page.says(" ".join([number, *(f"{value:.3f}" for value in (*map(epoch.get, FIGURES), *losses))]))
    sst = metrics["analysis"]["sst"]
    measured = (sst["recall"], paper.SST_RECALL, sst["precision"], paper.SST_PRECISION, sst["adjacent_errors_by_class"])
    for name, *values in zip(paper.SST_CLASSES, *measured, strict=True):
        assert page.says(" ".join([name, *(f"{value:.3f}" for value in values)]))
    for task in ("sst", "qqp"):
        for row in metrics["analysis"][task]["confusion"]:
            assert page.says(" ".join(f"{count} {count / sum(row):.0%}" for count in row))
    assert page.says(f"{metrics['analysis']['sts']['true_mean']:.3f}", f"{sst['adjacent_errors']:.1%}")
    assert page.says("0.01234", "0.9876", "0.004321", "0.03456", "3.457", "0.322", "1,212", "77.7")
    assert page.says("The 31.5 s", "in 0.7 s", "10.5", "41.2", "98,765", "1,234", "1,940 s per epoch", "1.20 times")
    assert page.says("train SST 3,001 7", "line 726", "A Processor, 2 threads", "torch 2.13.0", "linear fused oneDNN")
    # Settings that are not the defaults come first, with the default.
    assert page.says("Other than the defaults (7)", "smart.tasks sst none", "cycles 12 –")
    assert page.source.index(">smart.tasks<") < page.source.index(">smart.weight<")
    assert page.says("finished") and not page.says("0.769")


def test_every_picture_is_there_in_both_forms(whole_run):
    page = Page(whole_run / "report.html")
    files = {path.name for path in (whole_run / "figures").iterdir()}
    assert files == {f"{name}.png" for name in PICTURES}
    figures = [attributes["id"] for tag, attributes in page.tags if tag == "figure"]
    assert sorted(figures) == sorted(PICTURES)
    assert sum(tag == "svg" for tag, _ in page.tags) == len(PICTURES)
    assert all(attributes["aria-label"] for tag, attributes in page.tags if tag == "svg")


def test_loads_nothing(whole_run):
    page = Page(whole_run / "report.html")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.tags:
        assert tag not in ("script", "img", "iframe", "object") and "src" not in attributes
        target = attributes.get("href")
        assert target is None or target == "data:," or (target[0] == "#" and target[1:] in ids), target
    assert set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(ids)
    assert "http" not in page.source and "@import" not in page.source and "url(" in page.source
    # Both themes: no colour of a drawing is fixed.
    assert "prefers-color-scheme: dark" in page.source and "@media print" in page.source
    assert not re.search(r"#[0-9a-f]{6}", page.source[page.source.index("</style>") :])


def test_pictures_are_not_blank(whole_run):
    import matplotlib.image

    for name in PICTURES:
        pixels = matplotlib.image.imread(whole_run / picture_file(name))[..., :3]
        height, width, _ = pixels.shape
        assert width > 500 and height > 200, name
        background = pixels[0, 0]
        drawn = (abs(pixels - background).max(axis=-1) > 0.1).mean()
        assert 0.003 < drawn < 0.9, (name, drawn)
        # Nothing of the drawing is cut off at the edges.
        rim = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert max(abs(edge - background).max() for edge in rim) < 0.1, name


def test_baseline_without_smart(make_run):
    def change(metrics):
        metrics.update(smart=None, bregman=None, pretrain=None, test=None)

    lines = ["step,epoch,task,loss,tokens", *(f"{n},1,{t},{1 / n},9" for n, t in enumerate(("sst", "qqp", "sts"), 1))]
    folder = make_run(change, lines, recipe="baseline")
    (folder / "figures").mkdir()
    for stale in ("smart-alignment", "pretrain-loss", "of-somebody-else"):
        (folder / "figures" / f"{stale}.png").write_bytes(b"old")
    page = Page(write_run_report(folder))
    assert page.says("Baseline: the paper prints a score of 0.764; its own formula gives 0.769.")
    assert not page.says("Adversarial alignment") and not page.says("Masked language modelling")
    left = {path.stem for path in (folder / "figures").iterdir()}
    assert "of-somebody-else" in left and not {"smart-alignment", "pretrain-loss"} & left
    # The same again, byte for byte.
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_run_report(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("recipe", "said"),
    [("smart-adv", "The paper has no row for this recipe."), ("smart", "The paper's row (SMART Loss) is of BERT base")],
)
def test_the_papers_row(make_run, recipe, said):
    page = Page(write_run_report(make_run(bare, None, recipe=recipe)))
    assert page.says(said, "12 layers" if recipe == "smart" else "Score", "6 layers")


def bare(metrics):
    """Drops what takes time to draw."""
    for name in ("analysis", "smart", "bregman", "pretrain", "epochs", "seconds_by_part"):
        metrics[name] = None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recipe": "smart", "smart.weight": 5.0}, "(in brackets): smart.weight 5.0 (2.0)."),
        ({"recipe": "smart", "bregman": {"tasks": "sst"}}, "bregman.tasks sst (none)"),
        ({"recipe": "baseline", "cosine": "fusion"}, "cosine fusion (none)"),
        ({"recipe": "baseline", "head_dropout": 0.3}, "head_dropout 0.3 (0.0)"),
        ({"recipe": "stickland", "sampler": "annealed"}, "sampler annealed (annealed_deterministic)"),
        ({"recipe": "pretrain", "pretrain.fraction": 0.15}, "pretrain.fraction 0.15 (left open)"),
        ({"recipe": "pretrain", "pretrain.epochs": 0}, "pretrain.epochs 0 (5)"),
    ],
)
def test_the_papers_row_is_not_shown_beside_another_method(make_run, settings, said):
    page = Page(write_run_report(make_run(bare, None, **settings)))
    assert page.says(f"The paper's row ({paper.NAMES[settings['recipe']]}) is not shown", said)
    assert not page.says("paper, dev") and not page.says("the paper 0.") and not page.says("prints a score")
    assert not page.says("paper, test") and not page.says("s per epoch for this row")


def test_other_settings_are_conditions_of_the_papers_row(make_run):
    settings = {"learning_rate": 1e-4, "batch_sst": 16, "seed": 2, "smart.weight": 7.0, "pretrain.epochs": 3}
    page = Page(write_run_report(make_run(bare, None, recipe="pretrain", **settings)))
    assert page.says("paper, dev", "3 epochs of 12 cycles. Its settings other than the recipe's (in brackets): learn")
    assert page.says(": learning_rate 0.0001 (3e-05), batch_sst 16 (6), pretrain.epochs 3 (5).")  # SMART is not used


def test_runs_of_other_versions(make_run):
    """Their configurations lack parts, or have settings and values that are unknown now."""

    def change(metrics):
        bare(metrics)
        metrics["config"] = {"recipe": "smart", "epochs": 1, "precision": "bf16", "gone": 1}
        metrics["cycles_per_epoch"] = metrics["model"]["num_hidden_layers"] = 1
        metrics["environment"]["machine"]["threads"] = 1

    page = Page(write_run_report(make_run(change, None)))
    assert page.says("paper, dev", "1 layer of hidden size 384", "1 epoch of 1 cycle.", "precision bf16 (fp32)")
    assert page.says("A Processor, 1 thread;", "1 layer, hidden size 384")


def test_legends_and_captions_name_what_is_drawn(make_run):
    def change(metrics):
        epochs = metrics["epochs"]
        bare(metrics)
        metrics.update(epochs=epochs)
        del metrics["dev"]["majority"]

    path = write_run_report(make_run(change, None, recipe="smart-adv"))
    page = Page(path)
    assert page.says("Dev figures of the best epoch (dot). Further", "Dev figures after each epoch. The weights")
    (path.parent / "metrics.json").write_text(
        json.dumps({"dev": {"sst_accuracy": 0.4, "score": 0.5, "majority": {"score": 0.3}}})
    )
    # The first row of the drawing has no majority, the second has.
    page = Page(write_run_report(path.parent))
    assert page.says("beside the majority class (grey square). Further")
    figure = page.source[page.source.index('<figure id="headline"') :]
    assert ">majority class</text>" in figure[: figure.index("</svg>")]


def test_the_command_of_the_footer_can_be_pasted(tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    assert Page(write_run_report(folder)).says(f"python -m smartcs.report '{folder}'")


def test_interrupted_before_the_first_evaluation(make_run):
    def change(metrics):
        metrics.update(dict.fromkeys((*FIGURES, "best_epoch", "test", "analysis", "seconds_per_epoch")))
        metrics.update(interrupted=True, epochs=[], smart={"sst": {"steps": 0, "fallbacks": 0, "regulariser": None}})
        metrics["dev"] = {**dict.fromkeys(FIGURES), "majority": metrics["dev"]["majority"]}
        metrics["seconds_by_part"] = dict.fromkeys(metrics["seconds_by_part"], 0.0)

    head = "step,epoch,task,loss,tokens,smart,alignment,perturbation,bregman"
    folder = make_run(change, [head, "1,1,sst,1.62,99,0,0,0,0", "2,1,qqp,0.69,99,,,,"])
    with open(folder / "losses.csv", "a") as file:
        file.write("3,1,sts,2.0")  # killed while it wrote
    page = Page(write_run_report(folder))
    assert page.says("interrupted", "0 of 3 epochs were evaluated", "SST loss", "QQP loss")
    assert not page.says("STS loss") and not page.says("Dev figures by epoch")


def test_nothing_but_an_empty_object(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    page = Page(write_run_report(tmp_path))
    assert page.says("Training run") and not (tmp_path / "figures").exists()


def test_diverged_and_fallbacks(make_run):
    def change(metrics):
        bare(metrics)
        metrics.update(diverged=True, smart={"sst": {"fallbacks": 1234}})

    page = Page(write_run_report(make_run(change, None)))
    assert page.says("diverged", "a loss was not finite", "fell back to the plain loss in 1,234 steps")


def test_a_run_of_pretraining_alone(make_run):
    def change(metrics):
        kept = ("epochs", "steps", "tokens", "seconds", "config", "model", "environment", "data", "finished")
        for name in set(metrics) - set(kept):
            del metrics[name]
        metrics.update(mlm_loss=3.4567, mlm_accuracy=0.3219)
        metrics["epochs"] = [
            {name: epoch[name] for name in ("epoch", "train_losses", "dev_losses", "seconds")}
            for epoch in metrics["epochs"]
        ]
        metrics["config"] = {"seed": 1, "pretrain": {"epochs": 3, "learning_rate": 1e-5}}

    page = Page(write_run_report(make_run(change)))
    assert page.says("Pretraining run", "3.457", "0.322", "3 epochs", "cross entropy at hidden word pieces")
    assert not page.says("binary cross entropy") and not page.says("SST accuracy, dev")


def test_text_of_others_is_escaped(make_run):
    nasty = "<script>alert('x')</script>&<img src=x onerror=y>\"'$^{2}$"

    def change(metrics):
        for name in ("analysis", "smart", "bregman", "pretrain"):
            metrics[name] = None
        metrics["data"]["source"] = metrics["environment"]["machine"]["cpu"] = nasty
        metrics["data"]["skipped_rows"] = [nasty]
        metrics["seconds_by_part"][nasty] = 3.0  # a label within a drawing
        metrics["config"]["recipe"] = nasty
        metrics["environment"][nasty] = {nasty: nasty}

    page = Page(write_run_report(make_run(change, data=nasty, model=nasty)))
    assert "<script" not in page.source and "<img" not in page.source
    assert page.source.count("&lt;script&gt;") >= 8
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.says("$^{2}$") and not any("onerror" in attributes for _, attributes in page.tags)
    assert nasty in [data.strip() for data in page.text] and html.escape(nasty, quote=False) in page.source


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", "{", "not valid JSON"),
        ("losses.csv", "step,loss\n1,2\n", "no column epoch, task"),
        ("losses.csv", "step,epoch,task,loss\n1,1,sst,x\n", r"losses.csv, line 2: could not convert"),
        ("losses.csv", "step,epoch,task,loss\n1,1\n", r"losses.csv, line 2: "),
        ("losses.csv", "step,epoch,task,loss\n1,1,para,2\n", "line 2: task is 'para', expected sst, qqp, sts"),
    ],
)
def test_damaged_files(make_run, file, content, message):
    folder = make_run()
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        write_run_report(folder)
    assert not (folder / "report.html").exists()


def test_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no metrics.json: expected the output folder of a training run"):
        write_run_report(tmp_path)


def command(monkeypatch, capsys, *arguments):
    from smartcs.report.__main__ import main
    from smartcs.training.commandline import run_command

    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    captured = capsys.readouterr()
    return exit_info.value.code or 0, captured.out, captured.err


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.json").write_text("{}")
    code, out, _ = command(monkeypatch, capsys, tmp_path)
    assert code == 0 and out.strip() == str(tmp_path / "report.html") and (tmp_path / "report.html").is_file()
    code, _, err = command(monkeypatch, capsys, tmp_path / "none")
    assert code == 2 and err.startswith("error: no folder") and err.count("\n") == 1
    (tmp_path / "metrics.json").unlink()
    code, _, err = command(monkeypatch, capsys, tmp_path)
    assert code == 2 and "holds no metrics.json" in err and err.count("\n") == 1
    code, out, _ = command(monkeypatch, capsys, "--help")
    assert code == 0 and "RUN_DIR" in out


def test_leaves_matplotlib_as_it_was(make_run):
    import matplotlib

    with matplotlib.rc_context({"font.size": 33, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        write_run_report(make_run(lambda metrics: metrics.update(analysis=None, pretrain=None), None))
        assert dict(matplotlib.rcParams) == before
