"""Exported models: loaded by stock open_clip, transformers and onnxruntime, they compute what their source computes."""

from __future__ import annotations

import io
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import folder_with, minute
from PIL import Image
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.errors import DataError, HostError, ModelError, UsageError
from softclip_cli.export import check_target, export, open_clip_folder, without_folders
from softclip_cli.export.parity import Loaded, check, compare, sample_pairs
from softclip_cli.registry import open_model

TEXTS = ["a red star", "two blue rings, on the left of a green square"]


def photo(width: int = 50, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def code_of(folder: Path) -> str:
    """The first Python code of a model card."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that a card's code makes, run in its folder."""
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code_of(folder), names)
    return names


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return folder_with({**minute(), "quick_gelu": True}, tmp_path / "vit")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A timm image tower and a BERT text tower, as a checkpoint that names the text tower by its place on this machine."""
    from softclip_cli.training.smoke import write_text_tower

    write_text_tower(tmp_path / "text", "bert", 48, 77, ["a red star", "two blue rings on the left of a green square"])
    model = open_model(f"timm:test_resnet@random+hf:{tmp_path / 'text'}@random", seed=0)
    (tmp_path / "pair").mkdir()
    model.save(tmp_path / "pair")
    return tmp_path / "pair"


def test_an_open_clip_export_gives_the_embeddings_of_its_source(vit, tmp_path, monkeypatch):
    import open_clip

    document = export(str(vit), tmp_path / "out", "open_clip")
    source = open_clip.create_model(f"local-dir:{vit}").eval()
    names = run_code(tmp_path / "out", monkeypatch)
    pixels, tokens = names["preprocess"](photo())[None], names["tokenizer"](TEXTS)
    with torch.no_grad():
        for ours, theirs in (
            (names["model"].encode_image(pixels), source.encode_image(pixels)),
            (names["model"].encode_text(tokens), source.encode_text(tokens)),
        ):
            assert (ours - theirs).abs().max() < 1e-5
    assert document["parity"]["image"]["max_abs_difference"] < 1e-6
    assert open_model(str(tmp_path / "out")).fingerprint() == document["model"]["fingerprint"]
    listed = json.loads((tmp_path / "out" / "export.json").read_text())
    assert set(listed["files"]) == {path.name for path in (tmp_path / "out").iterdir()} - {"export.json"}
    assert listed["model"]["reference"] == "vit"


def test_an_export_with_a_hugging_face_text_tower_loads_after_a_move(pair, tmp_path, monkeypatch):
    wanted = open_model(str(pair))
    export(str(pair), tmp_path / "out", "open_clip")
    shutil.rmtree(tmp_path / "text")
    shutil.rmtree(pair)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "out", moved)
    for file in moved.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
    names = run_code(moved, monkeypatch)
    with torch.no_grad():
        expected = wanted.encode_text(wanted.tokenize(TEXTS))
        assert (names["model"].encode_text(names["tokenizer"](TEXTS), normalize=True) - expected).abs().max() < 1e-5
        monkeypatch.chdir(tmp_path)
        found = open_clip_folder.load(moved).own_text(TEXTS)
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_transformers_export_gives_the_embeddings_of_stock_open_clip(tmp_path, monkeypatch, custom_text):
    import open_clip
    from transformers import CLIPModel

    activation = {} if custom_text else {"quick_gelu": True}
    folder = folder_with({**minute(), **activation}, tmp_path / "vit", custom_text)
    document = export(str(folder), tmp_path / "out", "hf")
    source = open_clip.create_model(f"local-dir:{folder}").eval()
    names = run_code(tmp_path / "out", monkeypatch)
    assert isinstance(names["model"], CLIPModel)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(1))
    words = names["processor"](text=TEXTS, padding=True, truncation=True, return_tensors="pt")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        output = names["model"](pixel_values=pixels, **words)
        image, text = source.encode_image(pixels, normalize=True), source.encode_text(tokens, normalize=True)
        assert (output.image_embeds - image).abs().max() < 1e-5
        assert (output.text_embeds - text).abs().max() < 1e-5
        logits = source.logit_scale.exp() * image @ text.T
        assert (output.logits_per_image - logits).abs().max() < 1e-3
        assert names["logits"]([photo()], TEXTS).shape == (1, 2)
    # The folder's processor resizes with torchvision: near the source, not equal.
    assert document["parity"]["own_preprocessing"]["image"]["min_cosine"] > 0.999


def test_the_written_tokenizer_gives_the_ids_of_open_clip(tmp_path):
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import AutoTokenizer

    from softclip_cli.export.clip_tokenizer import write_clip_tokenizer

    source = SimpleTokenizer(context_length=16)
    write_clip_tokenizer(source, tmp_path, 16)
    texts = [*TEXTS, "it's 3 o'clock — naïve CAFÉ!", "  spaces\n and 1234 56% ", "漢字 😀", "word " * 40, ""]
    written = AutoTokenizer.from_pretrained(tmp_path)(texts, padding="max_length", truncation=True).input_ids
    for ours, theirs in zip(written, source(texts).tolist(), strict=True):
        end = theirs.index(49407)
        assert ours[: end + 1] == theirs[: end + 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32}}, "ModifiedResNet"),
        ({"vision_cfg": {"pool_type": "avg"}}, "class token"),
        ({"vision_cfg": {"no_ln_pre": True}}, "no norm before the first layer"),
        ({"text_cfg": {"ls_init_value": 0.1}}, "layers of its text tower"),
        ({"text_cfg": {"no_causal_mask": True}}, "not a causal one"),
        ({"text_cfg": {"pool_type": "last"}}, "not a causal one"),
        ({"text_cfg": {"proj_bias": True}}, "has a bias"),
        ({"init_logit_bias": -10.0}, "logit bias"),
    ],
)
def test_what_is_no_clip_model_is_refused_with_the_reason(change, reason):
    from softclip_cli.building import build_model
    from softclip_cli.export.transformers_folder import obstacles

    config = minute()
    for section, values in change.items():
        config[section] = {**config[section], **values} if isinstance(values, dict) else values
    found = obstacles(build_model(config, {}))
    assert len(found) == 1
    assert reason in found[0]
    assert obstacles(build_model(minute(), {})) == []


def test_a_pair_is_refused_for_transformers_and_nothing_is_left(pair, tmp_path):
    with pytest.raises(ModelError) as caught:
        export(str(pair), tmp_path / "out", "hf")
    assert "test_resnet" in caught.value.why
    assert "bert with mean pooler" in caught.value.why
    assert "--to onnx" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pair", "text"]


@pytest.mark.parametrize("part", ["image", "text", "logit_scale", "nan"])
def test_an_export_that_computes_something_else_is_refused(vit, tmp_path, monkeypatch, part):
    load = open_clip_folder.load

    def wrong(folder: Path) -> Loaded:
        good = load(folder)
        values = {"image": good.image, "text": good.text, "logit_scale": good.logit_scale}
        if part == "nan":
            values["text"] = lambda tokens: good.text(tokens) * torch.nan
        elif part == "logit_scale":
            values[part] *= 1.01
        else:
            values[part] = lambda x: torch.nn.functional.normalize(getattr(good, part)(x) + 2e-5, dim=-1)
        return Loaded(**values)

    monkeypatch.setattr(open_clip_folder, "load", wrong)
    with pytest.raises(ModelError, match="does not compute what its source does") as caught:
        export(str(vit), tmp_path / "out", "open_clip")
    assert {"nan": "text", "logit_scale": "logit scale"}.get(part, part) in caught.value.why
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_the_comparison_is_the_one_of_float64():
    a, b = torch.randn(2, 5, 8, generator=torch.manual_seed(0)).unbind()
    found = compare(a, b)
    x, y = a.double().numpy(), b.double().numpy()
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert found == pytest.approx({"max_abs_difference": np.abs(x - y).max(), "min_cosine": cosine.min()})
    images, texts = sample_pairs()
    assert len(set(images)) == len(images) == len(texts)
    assert Image.open(io.BytesIO(images[0])).size == (96, 96)


def test_what_is_in_the_way_stays(vit, tmp_path):
    export(str(vit), tmp_path / "out", "open_clip")
    with pytest.raises(DataError, match="already holds an export"):
        export(str(vit), tmp_path / "out", "open_clip")
    export(str(vit), tmp_path / "out", "open_clip", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("x")
    with pytest.raises(DataError, match="is not an export"):
        check_target("open_clip", tmp_path / "mine", overwrite=True)
    with pytest.raises(UsageError, match="unknown format"):
        check_target("hff", tmp_path / "new")


def test_a_full_disk_leaves_nothing(vit, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("softclip_cli.export.write_json", full)
    with pytest.raises(HostError, match="cannot be written") as caught:
        export(str(vit), tmp_path / "out", "open_clip")
    assert "No space left" in caught.value.why
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_a_missing_extra_is_named_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("softclip_cli.export.onnx_folder.find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["export", "--model", "nonsense", "--to", "onnx", "--out", str(tmp_path / "out")])
    assert result.exit_code == 5
    assert "pip install 'softclip[onnx]'" in result.stderr


@pytest.mark.parametrize(("model", "words"), [("ViT-B-99", "no model named"), ("run:nobody", "no run")])
def test_an_unknown_model_is_exit_4(tmp_path, model, words):
    result = CliRunner().invoke(app, ["export", "--model", model, "--to", "open_clip", "--out", str(tmp_path / "out")])
    assert result.exit_code == 4
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_run_is_exported_with_its_card_and_its_averaged_weights(tmp_path, monkeypatch):
    from fake_runs import evaluations, make_run, write
    from safetensors.torch import load_file, save_file

    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path))
    run = make_run(tmp_path, "a", checkpoints=(200,))
    folder = run.path / "checkpoints" / "step-00000200"
    shutil.rmtree(folder)
    folder_with(minute(), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, folder / "ema.safetensors")
    plain = open_model("run:a").fingerprint()
    for file in (run.path / "evals").iterdir():
        one = json.loads(file.read_text())
        write(file, {**one, "model": {"reference": "run:a", "name": "a", "fingerprint": plain}})

    result = CliRunner().invoke(
        app, ["export", "--model", "run:a", "--to", "open_clip", "--out", str(tmp_path / "out"), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["model"] | {"run": "a", "step": 200, "averaged": False} == document["model"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Zero-shot classification | generated:kind |" in card
    assert "tolerance 1e-05" in card
    assert len(evaluations(0.6)) > 5

    averaged = export("run:a@ema", tmp_path / "averaged", "open_clip")
    assert averaged["model"]["averaged"] is True
    written = load_file(tmp_path / "averaged" / "model.safetensors")
    assert all(torch.equal(written[name], tensor + 0.01) for name, tensor in weights.items())
    card = (tmp_path / "averaged" / "README.md").read_text()
    assert "has not been evaluated" in card  # the documents are of the other weights
    assert open_model("run:a@200+ema").fingerprint() == averaged["model"]["fingerprint"] != plain
    (folder / "ema.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no averaged weights"):
        open_model("run:a@last+ema")


def test_a_run_without_a_checkpoint_is_exit_4(tmp_path, monkeypatch):
    from fake_runs import make_run

    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path))
    make_run(tmp_path, "a", checkpoints=())
    result = CliRunner().invoke(app, ["export", "--model", "run:a", "--to", "hf", "--out", str(tmp_path / "out")])
    assert result.exit_code == 4
    assert "has no checkpoint" in result.stderr


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("run:a@best", "run:a@best"),
        ("/home/me/runs/a", "a"),
        ("timm:x@/home/me/w.pth+hf:/data/text", "timm:x@w.pth+hf:text"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("runs/a/checkpoints/step-00000200", "runs/a/checkpoints/step-00000200"),
        ("~/runs/a", "a"),
    ],
)
def test_references_lose_the_folders_of_this_machine(reference, expected):
    assert without_folders(reference) == expected


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs pip install 'softclip[onnx]'",
)
def test_onnx_graphs_give_the_embeddings_of_stock_open_clip_at_any_batch_and_length(vit, tmp_path, monkeypatch):
    import open_clip

    export(str(vit), tmp_path / "out", "onnx")
    names = run_code(tmp_path / "out", monkeypatch)
    source = open_clip.create_model(f"local-dir:{vit}").eval()
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{vit}")
    tokens = open_clip.get_tokenizer(f"local-dir:{vit}")(TEXTS * 2)
    picture = photo(32, 32)
    with torch.no_grad():
        image = source.encode_image(transform(picture)[None], normalize=True).numpy()
        text = source.encode_text(tokens, normalize=True).numpy()
    assert np.abs(names["encode_images"](np.asarray(picture)[None]) - image).max() < 1e-5
    assert np.abs(names["encode_ids"](tokens.numpy()) - text).max() < 1e-5
    longest = int(tokens.argmax(1).max()) + 1
    assert longest < tokens.shape[1]
    assert np.abs(names["encode_ids"](tokens[:1, :longest].numpy()) - text[:1]).max() < 1e-5
    assert names["config"]["logit_scale"] == pytest.approx(float(source.logit_scale.exp()))
    assert (tmp_path / "out" / "tokenizer.json").stat().st_size > 1e6


def test_check_needs_the_own_image_processor_only_where_it_must_agree(vit):
    model, good = open_model(str(vit)), open_clip_folder.load(vit)
    other = Loaded(good.image, good.text, good.logit_scale, own_image=lambda images: good.own_image(images[::-1]))
    found = check(model, other, tolerance=1e-5, own_image_exact=False)
    assert found["own_preprocessing"]["image"]["max_abs_difference"] > 1e-5
    with pytest.raises(ModelError, match="source"):
        check(model, other, tolerance=1e-5, own_image_exact=True)
