"""`softclip report`: verdicts, confusions, queries with their pictures, scatter and alignment, in light, dark and print."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_fixtures import pictures
from fake_runs import document, make_run, metric
from test_compare import zeroshot

from softclip_cli.data.corpus import Corpus, CorpusWriter, Record
from softclip_cli.evaluation import outcomes
from softclip_cli.evaluation.views import hash64
from softclip_cli.reports.mistakes import confusion_counts, mistakes
from softclip_cli.reports.query_pictures import query_examples
from softclip_cli.reports.run_page import write_report
from softclip_cli.reports.scatter import robustness_plots
from softclip_cli.reports.sections import alignment_plots
from softclip_cli.runs import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["circle", "square", "star", "ring", "moon", "fish", "house", "cross"]
IMAGES = pictures(12, seed=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpora") / "drawn"
    with CorpusWriter(path) as writer, writer.split("test") as part:
        for number, image in enumerate(IMAGES):
            part.write(Record(f"i{number}", image, [f"caption of {number}", f"another one of {number}"]))
    return Corpus.open(path)


def retrieved(corpus: Corpus, shift: int) -> dict[str, Any]:
    """A retrieval result whose model finds image q + shift first."""
    about = {
        str(number): {
            "key": f"i{number}",
            "hash": format(hash64(image) % 2**64, "016x"),
            "caption": f"caption of {number}",
        }
        for number, image in enumerate(IMAGES)
    }
    of_texts, of_images = [], []
    for query in range(4):
        order = [(query + (shift if query % 2 else 0) + k) % 12 for k in range(5)]
        found = [{"image": i, "score": 0.5 - 0.01 * k, "correct": i == query} for k, i in enumerate(order)]
        rank = 1.0 if order[0] == query else 6.0
        of_texts.append({"text": f"caption of {query}", "image": query, "rank": rank, "results": found})
        answers = [{"text": f"caption of {i}", "score": 0.4, "correct": i == query} for i in order]
        of_images.append({"image": query, "rank": rank, "results": answers})
    kept = {"where": str(corpus.path), "chosen": "4 queries", "gallery": {"images": 12, "texts": 24}}
    kept |= {"images": about, "text_to_image": of_texts, "image_to_text": of_images}
    found = document("retrieval", "drawn", {"rsum": {"value": 100.0, "low": 90.0, "high": 110.0, "n": 12}})
    found["dataset"] |= {"split": "test", "fingerprint": "e" * 64}
    return found | {"details": {"examples": kept}}


def robust(model_accuracy: float, shifted: float) -> dict[str, Any]:
    ends = {"unit": "share", "n": 1000}
    found = document("robustness", "photos-v2", {})
    found["metrics"] = {
        "top1": {"value": shifted, "low": shifted - 0.03, "high": shifted + 0.03, **ends},
        "reference_top1": {
            "value": model_accuracy,
            "low": model_accuracy - 0.03,
            "high": model_accuracy + 0.03,
            **ends,
        },
    }
    found["protocol"] = {"reference": {"name": "photos", "top1": model_accuracy}}
    points = [["a", 0.5, 0.4], ["b", 0.7, 0.6], ["c", 0.8, 0.72]]
    return found | {"details": {"line": {"slope": 1.0, "intercept": -0.4, "points": points}}}


def classes(made: dict[str, Any], count: int = 8) -> dict[str, Any]:
    made["details"]["per_class"] = [{"class": name, "n": 50, "accuracy": 0.5} for name in NAMES[:count]]
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> list[Run]:
    folder, made = tmp_path_factory.mktemp("runs"), []
    for place, (name, skill) in enumerate((("clip", 0.45), ("psd", 0.6))):
        run = make_run(folder, name, objective=name, skill=skill, steps=80)
        if name == "clip":  # without soft targets
            lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
            for line in lines:
                line.pop("soft_share", None)
                line.pop("target_entropy", None)
            (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tau = {"value": 0.4 + 0.05 * place, "low": 0.38, "high": 0.5, "n": 100, "unit": "correlation"}
        rated = document("alignment", "rated", {"kendall_tau": tau, "target_image_to_text_kendall_tau": tau})
        extra = (classes(zeroshot(skill, place)), retrieved(corpus, 1 + place), robust(0.6, skill), rated)
        for number, one in enumerate(extra):
            (run.path / "evals" / f"more-{number}.json").write_text(json.dumps(one))
        made.append(Run(run.path))
    return made


@pytest.fixture(scope="module")
def page(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("pages") / "report.html", runs, queries=2)


def words(path: Path) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8"))).split())


def test_the_page_tells_noise_from_differences(page: Path) -> None:
    text = words(page)
    assert re.search(r"Of \d+ paired comparisons of main numbers, psd is better than clip in \d+", text)
    assert "▲ better" in text
    assert "Holm's correction" in text
    assert "McNemar" not in text  # the command's table has it


def test_queries_are_shown_with_the_pictures_that_were_evaluated(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = {base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)}
    assert shown and shown <= set(IMAGES)
    told = words(page)
    assert (
        told.count("first hit at rank 1 of 12") == told.count("first hit at rank 6 of 12") == 2
    )  # a hit, a miss, twice
    assert "“caption of 0”" in told and "“caption of 1”" in told and "“caption of 2”" not in told


def test_pictures_that_changed_or_are_gone_are_not_shown(corpus: Corpus) -> None:
    changed = retrieved(corpus, 1)
    for about in changed["details"]["examples"]["images"].values():
        about["hash"] = "0" * 16
    examples, note = query_examples(["a"], {"a": [changed]}, 4)
    assert examples == []
    assert "have changed since" in note
    examples, note = query_examples(["a"], {"a": [gone(corpus)]}, 4)
    assert examples == []
    assert "are not on this machine" in note
    assert len(query_examples(["a"], {"a": [retrieved(corpus, 1)]}, 4)[0]) == 8
    assert query_examples(["a"], {"a": [retrieved(corpus, 1)]}, 0) == ([], "")


def gone(corpus: Corpus) -> dict[str, Any]:
    made = retrieved(corpus, 1)
    made["details"]["examples"]["where"] = "/nowhere/at/all"
    return made


def test_confusions_are_counted_from_the_outcomes() -> None:
    from sklearn.metrics import confusion_matrix

    rng = np.random.default_rng(0)
    labels, best = rng.integers(0, 8, 300), rng.integers(0, 8, (300, 1))
    made = classes(document("zeroshot", "drawn", {}, details={}))
    made["outcomes"] = outcomes.packed(outcomes.classification(best, labels))
    expected = confusion_matrix(labels, best[:, 0], normalize="true")
    found = mistakes(["a"], {"a": [made]})[0]
    np.testing.assert_allclose(found.matrices[0].shares, expected)
    np.fill_diagonal(expected, 0)
    assert found.rows[0][2][0] == pytest.approx(expected.max())
    true, taken = np.unravel_index(expected.argmax(), expected.shape)
    assert found.rows[0][:2] == (NAMES[true], NAMES[taken])
    assert found.more == (expected > 0).sum() - len(found.rows)
    counted = Counter(zip(labels.tolist(), best[:, 0].tolist(), strict=True))
    sparse = {"true": [a for a, _ in counted], "predicted": [b for _, b in counted], "n": list(counted.values())}
    kept = classes(document("zeroshot", "drawn", {}, details={"confusion": sparse}))
    assert confusion_counts(kept) == counted


def test_an_old_document_still_tells_what_a_class_is_mostly_taken_for() -> None:
    entries = [{"class": "ring", "n": 3, "accuracy": 0.2, "mostly_taken_for": "circle"}]
    old = document("zeroshot", "drawn", {"top1": metric(0.2)}, details={"per_class": entries})
    found = mistakes(["a", "b"], {"a": [old], "b": []})
    assert found[0].rows == (("ring", "circle", (None, None)),)
    assert found[0].matrices == ()


def test_robustness_is_drawn_beside_the_standard_models(runs: list[Run]) -> None:
    documents = {"clip": [robust(0.6, 0.5)], "psd": [robust(0.6, 0.55)]}
    (plot,) = robustness_plots(["clip", "psd"], documents)
    assert plot.title == "photos-v2 against photos"
    assert "3 standard models" in plot.svg and "their line" in plot.svg
    assert "clip, photos-v2: 60.0% without, 50.0% with the shift" in plot.description
    assert robustness_plots(["clip"], {"clip": []}) == []
    extreme = robust(0.6, 0.0)
    assert "0.0% with" in robustness_plots(["clip"], {"clip": [extreme]})[0].description


def test_a_model_keeps_its_look_where_it_is_alone(runs: list[Run]) -> None:
    plots = {plot.title.partition(":")[0]: plot.svg for plot in alignment_plots(["clip", "psd"], runs)}
    assert set(plots) == {"soft share", "target entropy"}
    for svg in plots.values():
        assert "--series-2" in svg and "--series-1" not in svg


def test_a_page_of_one_run_has_no_comparison(runs: list[Run], tmp_path: Path) -> None:
    shutil.copytree(runs[1].path, tmp_path / "psd")
    (tmp_path / "psd" / "metrics.jsonl").unlink()  # fewer plots: quicker
    text = write_report(tmp_path / "one.html", [Run(tmp_path / "psd")], queries=1).read_text(encoding="utf-8")
    assert 'id="comparison"' not in text
    assert 'id="alignment"' in text and 'id="retrieval"' in text and 'class="matrix"' in text


# In a browser

MEASURE = """<script>
function parse(text) {
  const numbers = text.match(/[\\d.]+/g).map(Number);
  const unit = text.startsWith("color(") ? 1 : 255;
  return {rgb: numbers.slice(0, 3).map(n => n / unit), alpha: numbers.length > 3 ? numbers[3] : 1};
}
function luminance(rgb) {
  const [r, g, b] = rgb.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function background(element) {
  for (let e = element; e; e = e.parentElement) {
    const found = parse(getComputedStyle(e).backgroundColor);
    if (found.alpha > 0.99) return found.rgb;
  }
  return [1, 1, 1];
}
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  let worst = 99, where = "";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE", "TITLE", "DESC"].includes(element.tagName.toUpperCase())) continue;
    const svg = element.closest("svg");
    const style = getComputedStyle(element);
    const ink = luminance(parse(svg && style.fill !== "none" ? style.fill : style.color).rgb);
    const paper = luminance(background(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < worst) { worst = ratio; where = walker.currentNode.data.trim().slice(0, 30); }
  }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  parent.postMessage([document.documentElement.scrollWidth, innerWidth, worst.toFixed(2), dark, where].join("|"), "*");
});
</script></body>"""
FRAME = """<html><body><iframe src="measured.html" style="width: 390px; height: 3000px; border: 0"></iframe>
<script>addEventListener("message", e => { document.title = e.data; });</script></body></html>"""


def browse(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    flags += f"--disable-component-update --user-data-dir={tmp_path / 'profile'}"
    try:
        return subprocess.run([str(CHROMIUM), *flags.split(), *arguments], capture_output=True, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium does not answer here")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways_and_legibly(page: Path, tmp_path: Path, scheme: str) -> None:
    text = page.read_text(encoding="utf-8").replace("</body>", MEASURE)
    (tmp_path / "measured.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME, encoding="utf-8")
    # An iframe is as narrow as it is told; a window has a least width in some builds.
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    shown = browse(tmp_path, setting, "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri())
    found = re.search(r"<title>(\d+)\|(\d+)\|([\d.]+)\|(\w+)\|(.*?)</title>", shown.stdout.decode())
    if found is None:
        pytest.skip(f"Chromium does not run here (exit code {shown.returncode})")
    assert found[4] == ("true" if scheme == "dark" else "false")
    assert int(found[2]) == 390
    assert int(found[1]) <= 390, "wider than the phone"
    assert float(found[3]) >= 4.5, f"too little contrast: {found[5]}"


@pytest.mark.skipif(CHROMIUM is None or shutil.which("pdftotext") is None, reason="no Chromium or pdftotext here")
def test_print_leaves_closed_parts_out(page: Path, tmp_path: Path) -> None:
    shown = browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'x.pdf'}", page.as_uri())
    if not (tmp_path / "x.pdf").is_file():
        pytest.skip(f"Chromium does not print here (exit code {shown.returncode})")
    done = subprocess.run(["pdftotext", "-layout", str(tmp_path / "x.pdf"), "-"], capture_output=True, text=True)
    for there in ("Noise or not", "Alignment", "what is taken for what", "caption of 1"):
        assert there in done.stdout
    for closed in ("All metrics", "Settings and environment", "batch_size = 128", "Diagnostics of the training"):
        assert closed not in done.stdout
