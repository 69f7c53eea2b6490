"""Recipes: complete, sourced, equal to what is known of their papers, and each runs two steps without data or a download."""

from __future__ import annotations

import json
import math
import re
import tempfile

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from softclip_cli import recipes
from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.errors import UsageError
from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.objective import build_objective
from softclip_cli.objectives.settings import ObjectiveSettings, resolve
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.smoke import smoke_settings
from softclip_cli.training.student import build_model

NAMES = ["ema-kd-rn50-declutr-cc3m", "otter-rn50-declutr-cc3m", "psd-rn50-cc3m", "psd-vit-b32-cc12m"]
DECLUTR = NAMES[:2]
MARKED = re.compile(r"#.*\[(paper|code|recon|ours)\]")
runner = CliRunner()


def settings(name: str) -> TrainSettings:
    return build(TrainSettings, recipes.read(name))


def run(*arguments: str) -> tuple[int, str, str]:
    result = runner.invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_recipes_are_these():
    assert recipes.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_says_what_it_is(name):
    resolve(settings(name).objective, batch_size=settings(name).data.batch_size)
    facts = recipes.facts(name)
    assert all((facts.title, facts.source, facts.data, facts.cost, facts.notes))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_where_it_comes_from(name):
    section, unmarked = "", []
    for line in recipes.text(name).splitlines():
        if line.startswith("["):
            section = line
        elif re.match(r"\w+ = ", line) and section != "[recipe]" and not MARKED.search(line):
            unmarked.append(line)
    assert unmarked == []


# What the sources say, written down a second time (methods.md; CLIP's tables of hyper-parameters for psd).
RELEASE = {
    "model.embed_dim": 768,
    "model.text_projection": "none",
    "model.context_length": 60,
    "data.batch_size": 512,
    "data.augment": "resize-crop",
    "data.resize": 256,
    "model.image_size": 224,
    "optimizer.name": "sgd",
    "optimizer.lr": 3e-3,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 0.0,
    "schedule.epochs": 10,
    "schedule.warmup": 0,
    "schedule.decay": "cosine",
    "objective.teacher": "ema",
    "objective.ema_decay": 0.999,
    "objective.ema_warmup": True,
    "objective.mix": "two-head",
    "objective.alpha_end": 0.5,
    "objective.targets": "direct",
    "objective.initial_logit_scale": math.exp(3.9),
    "objective.initial_soft_logit_scale": math.exp(3.9),
    "objective.min_logit_scale": 1,
    "objective.max_logit_scale": 100,
}
CLIP = {
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-4,
    "optimizer.weight_decay": 0.2,
    "schedule.warmup": 2000,
    "schedule.decay": "cosine",
    "schedule.final_lr": 0,
    "schedule.epochs": 32,
    "data.augment": "crop",
    "data.flip": 0,
    "objective.initial_logit_scale": 1 / 0.07,
    "objective.max_logit_scale": 100,
}
KNOWN = {
    "ema-kd-rn50-declutr-cc3m": RELEASE | {"objective.rule": "softmax", "objective.teacher_scale_fixed": 100},
    "otter-rn50-declutr-cc3m": RELEASE
    | {
        "objective.rule": "sinkhorn",
        "objective.sinkhorn_lambda": 0.15,
        "objective.sinkhorn_iterations": 5,
        "objective.similarity": "cross+intra",
        "objective.intra_weight_image": 1,
        "objective.intra_weight_text": 1,
        "objective.target_diagonal": "drop",
    },
    "psd-rn50-cc3m": CLIP | {"model.reference": "RN50", "optimizer.betas": (0.9, 0.999), "optimizer.eps": 1e-8},
    "psd-vit-b32-cc12m": CLIP | {"model.reference": "ViT-B-32", "optimizer.betas": (0.9, 0.98), "optimizer.eps": 1e-6},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_holds_what_is_known(name):
    made = settings(name)
    sections = {"objective": resolve(made.objective)}
    for dotted, value in KNOWN[name].items():
        section, key = dotted.split(".")
        found = getattr(sections.get(section) or getattr(made, section), key)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), dotted


@pytest.mark.parametrize("name", DECLUTR)
def test_the_towers_are_those_of_the_release(name):
    reference = settings(name).model.reference
    assert reference.startswith("timm:resnet50")
    assert reference.endswith("+hf:johngiorgi/declutr-sci-base")


@pytest.mark.parametrize("alignment", [0.0, 0.5, 0.75, 1.0])
def test_averaging_exact_gradients_is_near_the_releases_sum_of_cut_ones(alignment):
    """Why lr is the release's own: it adds both directions but cuts the gradient through the keys (docs/recipes.md)."""
    torch.manual_seed(0)
    drawn = torch.randn(3, 512, 768, dtype=torch.float64)
    image, text = (functional.normalize(alignment * drawn[2] + drawn[i], dim=1).requires_grad_() for i in range(2))
    log_scale = torch.tensor(3.9, dtype=torch.float64, requires_grad=True)
    own = torch.arange(512)
    scale = log_scale.exp()
    theirs = functional.cross_entropy(scale * image @ text.detach().T, own)
    theirs = theirs + functional.cross_entropy(scale * text @ image.detach().T, own)
    of_release = torch.autograd.grad(theirs, [image, text, log_scale], retain_graph=True)
    ours = build_objective(ObjectiveSettings(name="clip"), embed_dim=768)(Embeddings(image, text), None, scale, 0.0)
    exact = torch.autograd.grad(ours.loss, [image, text, log_scale])
    for mine, other in zip(exact[:2], of_release[:2], strict=True):
        assert float(functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)) > 0.98
        assert 0.97 < float(mine.norm() / other.norm()) < 1.03
    assert float(exact[2]) == pytest.approx(float(of_release[2]) / 2, rel=1e-4)


def test_a_copied_recipe_is_a_configuration_file(tmp_path):
    code, out, _ = run("recipes", "show", NAMES[0])
    assert code == 0
    (tmp_path / "mine.toml").write_text(out)
    code, copied, err = run("train", "--show-config", "--config", str(tmp_path / "mine.toml"))
    assert code == 0, err
    assert copied == run("train", "--show-config", "--recipe", NAMES[0])[1]


def test_options_win_over_the_recipe():
    shown = run("train", "--show-config", "--recipe", NAMES[0], "--lr", "0.5", "--set", "data.batch_size=64")[1]
    assert "lr = 0.5" in shown and "batch_size = 64" in shown and 'name = "sgd"' in shown


def test_listing_names_every_recipe_with_its_title():
    assert all(name in run("recipes", "list")[1] for name in NAMES)
    listed = json.loads(run("recipes", "list", "--json")[1])["recipes"]
    assert {row["name"]: row["title"] for row in listed} == {name: recipes.facts(name).title for name in NAMES}


def test_an_unknown_recipe_is_answered_with_the_nearest():
    code, out, err = run("recipes", "show", "psd-vit-b32-cc3m")
    assert (code, out) == (2, "")
    assert "psd-vit-b32-cc12m" in err


@pytest.mark.parametrize("name", NAMES)
def test_smoke_runs_a_recipe_and_leaves_nothing_behind(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    code, out, err = run("train", "--recipe", name, "--smoke", "--device", "cpu", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["smoke"] == "passed"
    assert [line["step"] for line in document["steps"]] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in document["steps"])
    assert document["evaluations"]["val"]["step"] == 2
    assert {"data.corpus", "data.batch_size", "schedule.steps"} <= {item["setting"] for item in document["replaced"]}
    assert all(item["why"] and item["setting"] in err for item in document["replaced"])
    # No run that a later command would take for the newest, no corpus, no checkpoint, no cached features.
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", NAMES)
def test_smoke_keeps_all_but_what_it_says(name, tmp_path):
    made, replaced = smoke_settings(settings(name), tmp_path, text_kind=recipes.facts(name).text_tower)
    changed = {item.setting for item in replaced}
    assert changed <= {
        *(f"data.{key}" for key in ("corpus", "workers", "batch_size")),
        *("schedule.steps", "log.every", "checkpoint.every", "eval.every", "eval.limit", "model.reference"),
    }
    for section, values in settings(name).model_dump().items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if f"{section}.{key}" not in changed:
                assert getattr(getattr(made, section), key) == value, f"{section}.{key}"
    assert made.precision == settings(name).precision


def test_the_stand_in_tower_is_built_as_the_recipe_says(tmp_path):
    """Head with a bias to 768, identity on the text side, masked mean, at most 60 tokens, CLIP's pixel statistics."""
    made, _ = smoke_settings(settings(DECLUTR[0]), tmp_path, text_kind="bert")
    model = build_model(made, torch.device("cpu"))
    head = model.net.visual.head.proj
    assert tuple(head.weight.shape) == (768, 2048) and head.bias is not None
    assert isinstance(model.net.text.proj, torch.nn.Identity)
    assert model.net.text.transformer.config.model_type == "bert"
    assert model.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    assert model.preprocess.size == 224
    tokens = model.tokenize(["a red square " * 60, "a blue circle"])
    assert tokens.shape == (2, 60)
    with torch.no_grad():
        states = model.net.text.transformer(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
        mean = states[1][tokens[1] != 0].mean(dim=0)
        assert torch.allclose(model.encode_text(tokens, normalize=False)[1], mean, atol=1e-5)


def test_smoke_takes_any_settings(tmp_path):
    """A queue with micro-batches, frozen towers, and a frozen teacher, without a recipe; nothing stays in the cache."""
    code, out, err = run(
        *("train", "--smoke", "--json", "--device", "cpu", "--objective", "albef", "--micro-batch", "64")
    )
    assert code == 0, err
    assert json.loads(out)["recipe"] is None
    assert "data.micro_batch 64 → 2" in err
    code, _, err = run("train", "--smoke", "--json", "--device", "cpu", "--lock", "image,text")
    assert code == 0, err
    teacher = ("--set", "objective.teacher_model=tiny", "--set", "data.teacher_features=stored")
    code, _, err = run("train", "--smoke", "--json", "--device", "cpu", "--objective", "distill", *teacher)
    assert code == 0, err
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_an_unknown_text_tower_is_replaced_by_a_guess_that_is_said(tmp_path):
    made = build(
        TrainSettings, {"model": {"reference": "timm:resnet10t+hf:someone/something", "text_projection": "mlp"}}
    )
    smoked, replaced = smoke_settings(made, tmp_path)
    said = next(item for item in replaced if item.setting == "model.reference")
    assert "a guess" in said.now and "someone/something" in said.was
    assert build_model(smoked, torch.device("cpu")).embed_dim == 256


def test_weights_of_an_architecture_are_not_fetched(tmp_path):
    made = build(TrainSettings, {"model": {"reference": "ViT-B-32@laion2b_s34b_b79k"}})
    assert smoke_settings(made, tmp_path / "one")[0].model.reference == "ViT-B-32"
    made = build(TrainSettings, {"objective": {"name": "distill", "teacher_model": "ViT-B-32@laion2b_s34b_b79k"}})
    assert smoke_settings(made, tmp_path / "two")[0].objective.teacher_model == "ViT-B-32"


def test_smoke_has_no_run_folder_to_name(tmp_path):
    code, out, err = run("train", "--smoke", "--out", str(tmp_path / "run"))
    assert (code, out) == (2, "")
    assert "--out" in err
    assert not (tmp_path / "run").exists()


def test_a_crop_larger_than_its_image_is_refused(colour_corpus, tmp_path):
    code, _, err = run(
        *("train", "--data", str(colour_corpus), "--batch-size", "16", "--steps", "1", "--device", "cpu"),
        *("--set", "data.augment=resize-crop", "--set", "data.resize=20", "--out", str(tmp_path / "run")),
    )
    assert code == 2
    assert "data.resize (20)" in err and "48" in err
    assert not (tmp_path / "run").exists()


def test_a_text_tower_of_another_width_needs_a_projection(tmp_path):
    with pytest.raises(Exception, match="768 features"):
        made, _ = smoke_settings(settings(DECLUTR[0]), tmp_path, text_kind="bert")
        build_model(build(TrainSettings, made.model_dump(), {"model": {"embed_dim": 512}}), torch.device("cpu"))


def test_a_recipe_without_a_title_is_refused():
    with pytest.raises(Exception, match="title"):
        recipes.RecipeFacts.model_validate({"source": "x", "data": "x", "cost": "x"})


def test_recipes_read_refuses_an_unknown_name():
    with pytest.raises(UsageError, match="nothing"):
        recipes.read("nothing")
