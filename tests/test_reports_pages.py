"""The pages: self-contained, complete, escaped, accessible, and true to the documents they are drawn from."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from fake_runs import document, drawing, evaluations, make_run, metric, retrieval_examples, training_pairs
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from softclip_cli.commands.report import report
from softclip_cli.errors import UsageError
from softclip_cli.reports import plots
from softclip_cli.reports.compare_page import same_or_not, write_demo_page
from softclip_cli.reports.examples import RetrievalExample, as_examples, by_query
from softclip_cli.reports.images import picture
from softclip_cli.reports.run_page import write_report
from softclip_cli.reports.tables import Cell
from softclip_cli.runs import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Every element with its attributes, and the text of each table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    runs = [
        make_run(folder / "runs", "2026-11-22-201500-clip", objective="clip", skill=0.5),
        make_run(folder / "runs", "2026-11-22-201930-psd", objective="psd", skill=0.6),
    ]
    out = write_demo_page(
        folder / "pages" / "demo.html",
        runs,
        retrieval=retrieval_examples(("clip", "psd")),
        pairs=training_pairs(),
        command="softclip demo",
    )
    assert [file.name for file in out.parent.iterdir()] == ["demo.html"]  # nothing half-written is left
    return out


@pytest.fixture(scope="module")
def page(demo: Path) -> Reader:
    return Reader(demo.read_text(encoding="utf-8"))


def test_the_page_fetches_nothing(demo: Path, page: Reader) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    text = demo.read_text(encoding="utf-8")
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert "@import" not in text
    assert not page.all("script")
    assert not page.all("iframe")


def test_every_picture_has_words_and_every_identifier_is_unique(page: Reader) -> None:
    images = page.all("img")
    assert len(images) == 6 * 5 + 2 + 4  # six answers of five images, two query images, four pairs
    assert all(image.get("alt") for image in images)
    assert sum((image["alt"] or "").startswith("Hit: ") for image in images) == 6
    identifiers = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert {name for name, count in identifiers.items() if count > 1} == set()
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(identifiers)
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in identifiers
    drawn = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert len(drawn) >= 5
    assert all(attributes.get("aria-labelledby") for attributes in drawn)
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in page.all("svg"))


def test_references_inside_plots_lead_somewhere(demo: Path, page: Reader) -> None:
    identifiers = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    text = demo.read_text(encoding="utf-8")
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= identifiers
    assert len(re.findall(r"url\(#([^)]+)\)", text)) > 10


def test_plots_take_their_colours_from_the_page(demo: Path) -> None:
    drawn = re.findall(r"<svg[^>]*role=\"img\".*?</svg>", demo.read_text(encoding="utf-8"), re.DOTALL)
    assert drawn
    for svg in drawn:
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "currentColor" in svg
        assert "<style" not in svg
        assert "font-family" not in svg


def test_the_table_marks_the_better_model_only_where_intervals_do_not_overlap(page: Reader) -> None:
    clip, psd = evaluations(0.5), evaluations(0.6)
    marked = Counter(row[0] for row in page.rows if any("better" in cell for cell in row))
    expected: Counter[str] = Counter()
    for one, other in zip(clip, psd, strict=True):
        for name, entry in one["metrics"].items():
            if other["metrics"][name]["low"] > entry["high"] and not name.startswith("drop"):
                expected[f"{one['task']} {name}"] += 1
    # What is a main metric stands in two tables: the first, and that of all metrics.
    main = {name: count for name, count in expected.items() if name.split()[1] not in ("top5", "single_prompt_top1")}
    assert sum(marked.values()) == sum(main.values()) + sum(expected.values())
    for row in page.rows:
        if any("better" in cell for cell in row[1:3]):
            assert "better" in row[2]
            low, high = (re.search(r"\[(.*), (.*)\]", cell) for cell in (row[2], row[1]))
            assert low and high
            assert float(low[1]) >= float(high[2])


def test_the_page_tells_what_was_run(page: Reader) -> None:
    text = " ".join(" ".join(page.texts).split()).replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "clip and psd, side by side",
        "2 models, trained on the same 10,000 pairs of data/generated for 400 steps each",
        "mismatched 15 %, vague 10 %, partial 5 %",
        "softclip demo",
        "chance: ln(128) = 4.85",
        "batch_size = 128",
        "A Processor",
        "chance 25 %",
    ):
        assert words in text
    assert text.count("✗ mismatched") == 1
    assert text.count("≈ vague") == text.count("≈ partial") == 1


def test_text_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>\x00\ud800 & "quoted" $x^2$'
    run = make_run(tmp_path / "runs", "a", data__corpus=evil.replace("\x00", "").replace("\ud800", ""))
    (run.path / "data.json").unlink()
    (run.path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {s}, "loss": 1.0, "chance": 2.0, "a<b>$x$": {s}}}\n' for s in range(1, 5))
        + '{"step": 4, "eval": "<i>$e$</i>", "top1": 0.5}\n'
    )
    for file in (run.path / "evals").iterdir():
        file.unlink()
    documents = {"a": [document("zeroshot", evil, {"<u>": metric(0.5)}, details={"per_class": {evil: 0.5}})]}
    example = {
        "query_text": evil,
        "model": evil,
        "results": [{"image": b"no image", "caption": evil, "score": 0.1, "correct": True}],
    }
    out = write_demo_page(
        tmp_path / "page.html",
        [Run(run.path), Run(run.path)],
        documents,
        [example],
        [{"image": b"", "caption": evil, "noise": evil}],
        names=[evil, f"{evil}2"],
        title=evil,
        command=evil,
    )
    text = out.read_text(encoding="utf-8")
    read = Reader(text)
    assert not read.all("script")
    assert not read.all("u")
    assert not read.all("i") or all("style" in a for a in read.all("i"))
    assert "\x00" not in text
    assert "<script>alert(1)</script>" in "".join(read.texts)
    assert "$x^2$" in html.unescape(text)  # no mathematics is made of a dollar sign
    assert "cannot be decoded" in text


def test_an_empty_run_still_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.toml").write_text("")
    read = Reader(write_report(None, [Run(tmp_path / "bare")]).read_text())
    assert "Run bare" in " ".join(read.texts)
    assert not read.all("figure")
    with pytest.raises(UsageError):
        write_demo_page(tmp_path / "x.html", [])


def test_runs_that_differ_in_more_than_the_objective_are_warned_about(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a", objective="clip")
    b = make_run(tmp_path, "b", objective="psd", data__batch_size=64, seed=3)
    assert "They differ in batch size and seed" in same_or_not([a, b])
    assert "differ" not in same_or_not([a, make_run(tmp_path, "c", objective="psd")])


def test_more_models_than_looks_and_unlike_evaluations_fit_on_a_page(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", f"run-{i}", objective="psd", skill=0.1 * i + 0.1, steps=80) for i in range(8)]
    (runs[3].path / "metrics.jsonl").unlink()
    for file in list((runs[5].path / "evals").glob("shift*")):
        file.unlink()
    read = Reader(write_report(tmp_path / "pages", [Run(run.path) for run in runs]).read_text())
    assert (tmp_path / "pages" / "report.html").is_file() or (tmp_path / "pages").is_file()
    heads = [row for row in read.rows if row and row[0] == "Metric"]
    assert heads[0][1:9] == [f"run-{i}" for i in range(8)]


def test_a_large_or_turned_image_is_made_small_and_upright_and_a_small_one_kept() -> None:
    stream = io.BytesIO()
    wide = Image.new("RGB", (800, 400), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    wide.save(stream, "JPEG", exif=exif)
    shown = picture(stream.getvalue())
    assert (shown.width, shown.height) == (96, 192)
    with Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2]))) as small:
        assert small.size == (96, 192)
        pixel = small.convert("RGB").getpixel((48, 96))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 240
    assert pixel[1] < 20
    kept = drawing("star", "red")
    assert base64.b64decode(picture(kept).uri.partition(",")[2]) == kept
    assert not picture(b"GIF89a broken").readable


def test_examples_of_one_query_stand_together_in_order() -> None:
    examples = as_examples(retrieval_examples(("clip", "psd")))
    groups = by_query(examples)
    assert [[example.model for example in group] for group in groups] == [["clip", "psd"]] * 5
    assert len({group[0].query for group in groups}) == 5
    assert all(isinstance(example, RetrievalExample) and len(example.results) == 5 for example in examples)


def test_smoothing_is_a_running_mean() -> None:
    values = [float((i * 7919) % 101) for i in range(300)]
    half = int(300 * 0.04 / 2)
    for place, value in enumerate(plots.smoothed(values)):
        reach = min(half, place, 299 - place)
        window = values[place - reach : place + reach + 1]
        assert value == pytest.approx(sum(window) / len(window))
    assert plots.smoothed([]) == []
    assert plots.smoothed([3.0]) == [3.0]


def test_the_same_plot_is_drawn_to_the_same_bytes_and_described_in_words() -> None:
    groups = {"no shift": [Cell(0.5, 0.4, 0.6), None], "blur": [Cell(0.25), Cell(0.75, 0.7, 0.8)]}
    one, two = (plots.bar_plot("b", "Shift", "top-1 (%)", ["clip", "psd"], groups) for _ in range(2))
    assert one.svg == two.svg
    assert one.description == "Shift. no shift: clip 50.0%; blur: clip 25.0%, psd 75.0%."
    assert one.description in html.unescape(one.svg)


def variables(scheme: str) -> dict[str, str]:
    """The colours of style.css under a scheme."""
    style = (resources.files("softclip_cli.reports") / "templates" / "style.css").read_text()
    light, dark, printed = (
        re.findall(r"--([a-z0-9-]+):\s*(#[0-9a-f]{6})", part) for part in style.split(":root {")[1:4]
    )
    return dict({"light": light, "dark": dark, "print": printed}[scheme])


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_have_enough_contrast(scheme: str) -> None:
    colours = variables(scheme)
    assert set(colours) == set(variables("light"))

    def contrast(name: str) -> float:
        pair = sorted(luminance(colours[one]) for one in (name, "paper"))
        return (pair[1] + 0.05) / (pair[0] + 0.05)

    for name in ("ink", "muted", "good", "bad"):
        assert contrast(name) >= 4.5, name  # text
    for number in range(1, plots.SERIES + 1):
        assert contrast(f"series-{number}") >= 3, number  # graphics


def test_report_writes_into_the_run_or_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path / "runs"))
    for name in ("a", "b"):
        (make_run(tmp_path / "runs", name).path / "metrics.jsonl").unlink()  # no plots: quicker
    monkeypatch.chdir(tmp_path)
    app = Typer()
    app.command()(report)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    assert run("a")[0] == 0
    assert (tmp_path / "runs" / "a" / "report.html").is_file()
    assert run("a", "b")[0] == 0
    assert (tmp_path / "report.html").is_file()
    assert run("a", "--out", "x/y.html")[0] == 0
    assert (tmp_path / "x" / "y.html").is_file()
    code, output = run("a", "--out", str(tmp_path / "x" / "y.html" / "z.html"))
    assert code == 5
    assert "cannot be written" in output
    code, output = run("a", "c")
    assert code == 4
    assert "no run 'c'" in output


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(demo: Path, tmp_path: Path, width: int) -> None:
    measured = tmp_path / "measured.html"
    script = "<script>document.title = innerWidth + ' ' + document.documentElement.scrollWidth</script></body>"
    measured.write_text(demo.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += (
        f"--disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --window-size={width},900"
    )
    try:
        shown = subprocess.run(
            [str(CHROMIUM), *flags.split(), "--dump-dom", measured.as_uri()], capture_output=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        pytest.skip("Chromium does not answer here")
    title = re.search(rb"<title>(\d+) (\d+)</title>", shown.stdout)
    if title is None:
        pytest.skip(f"Chromium does not run here (exit code {shown.returncode})")
    assert int(title[1]) <= max(width, 500)  # some builds have a least width of 500
    assert int(title[2]) <= int(title[1])
