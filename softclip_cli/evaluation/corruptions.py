"""Robustness to common corruptions: ImageNet-C's, made while the images are read (Hendrycks and Dietterich 2019).

As in ImageNet-C, an image is first cropped to a square of 224 pixels, then corrupted, and then sees the model's own
preprocessing: so a severity means the same for models of any input size. Nothing is stored.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from softclip_cli.data.decode import Preprocess, eval_view, open_header
from softclip_cli.errors import DataError, HostError, UsageError, nearest
from softclip_cli.evaluation import names as class_texts
from softclip_cli.evaluation import result
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, Progress, embed_images
from softclip_cli.evaluation.images import ImageSource, digest
from softclip_cli.evaluation.intervals import bootstrap_mean, ends, metric, share_metric
from softclip_cli.evaluation.scoring import top_matches
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.zeroshot import class_embeddings, dataset_facts, require_class_names

SIZE = 224  # pixels of ImageNet-C's crop, which its severities were chosen for
SMALLEST = 32  # pixels below which the library refuses
SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("common", "noise", "blur", "weather", "digital", "validation", "all")
SEEDED = ("impulse_noise", "glass_blur")  # draw from a generator of their own, which takes a seed
PACKAGE = "imagecorruptions-imaug"
LOOKED_AT = 16  # images whose size is looked at before anything is embedded


def library() -> Any:
    """The module `imagecorruptions` of the package that is kept up.

    Raises:
        HostError: it is not installed, or cannot be imported (its namesake of 2020 does not work with NumPy 2).
    """
    try:
        import imagecorruptions
    except ModuleNotFoundError as error:
        if error.name == "imagecorruptions":
            raise HostError(
                "common corruptions need the package " + PACKAGE,
                "it is not installed",
                'install it: pip install "softclip[corruptions]"',
            ) from None
        raise _unusable(error) from error
    except ImportError as error:
        raise _unusable(error) from error
    return imagecorruptions


def _unusable(error: ImportError) -> HostError:
    return HostError(
        "the package imagecorruptions cannot be imported",
        str(error),
        f"if it is the one of 2020, replace it: pip uninstall imagecorruptions, pip install {PACKAGE};"
        " where libGL is missing: pip install opencv-python-headless",
    )


def choose_corruptions(given: Sequence[str]) -> list[str]:
    """Names of corruptions from names and groups (`common` for ImageNet-C's fifteen), each once, in the library's order.

    Raises:
        UsageError: a name is unknown.
        HostError: as `library`.
    """
    known = list(library().get_corruption_names("all"))
    wanted: set[str] = set()
    for name in given:
        if name in GROUPS:
            wanted |= set(library().get_corruption_names(name))
        elif name in known:
            wanted.add(name)
        else:
            raise UsageError(
                f"no corruption named {name!r}",
                "they are " + ", ".join(known) + "; groups: " + ", ".join(GROUPS),
                nearest(name, [*known, *GROUPS]) or "--corruption common takes ImageNet-C's fifteen",
            )
    return [name for name in known if name in wanted]


def check_severities(given: Sequence[int]) -> tuple[int, ...]:
    """The severities, each once, ascending.

    Raises:
        UsageError: none, or one that is not 1 to 5.
    """
    wrong = [value for value in given if value not in SEVERITIES]
    if wrong or not given:
        raise UsageError(f"severity {wrong[0] if wrong else ''} is not known", "they are 1 to 5", "--severity 1,3,5")
    return tuple(sorted(set(given)))


@dataclass(frozen=True)
class Corruption:
    """One way to spoil an image. Its randomness is a function of the seed, the image's index, the name and the severity."""

    name: str
    severity: int
    seed: int = 0

    def __call__(self, pixels: np.ndarray, index: int) -> np.ndarray:
        """The corrupted image: uint8 (H, W, 3), of the same size.

        Args:
            pixels: uint8 (H, W, 3), at least 32 pixels a side.
            index: of the image in its set.
        """
        number = int.from_bytes(self.name.encode(), "little") % 2**32
        state = int(np.random.SeedSequence([self.seed, index, number, self.severity]).generate_state(1)[0])
        own = {"seed": state} if self.name in SEEDED else {}
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(state)  # noqa: NPY002 (the library draws from NumPy's global generator)
        try:
            return library().corrupt(np.ascontiguousarray(pixels), self.severity, self.name, **own)
        finally:
            np.random.set_state(before)  # noqa: NPY002


class Cropped(ImageSource):
    """Square crops of another source's images, corrupted or not, encoded without loss so that they can be read as any image.

    Args:
        source: the images.
        spec: the crop: side in pixels, interpolation and mode.
        corrupt: (pixels, index) → pixels; None leaves them as they are.
    """

    def __init__(
        self, source: ImageSource, spec: Preprocess, corrupt: Callable[[np.ndarray, int], np.ndarray] | None = None
    ) -> None:
        self.source, self.spec, self.corrupt = source, spec, corrupt

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> bytes:
        pixels = eval_view(self.source[index], self.spec)
        if self.corrupt is not None:
            pixels = self.corrupt(pixels, index)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "BMP")
        return stream.getvalue()

    def key(self, index: int) -> str:
        return self.source.key(index)

    def signature(self) -> str:
        return digest("cropped", self.source.signature(), repr(self.spec), repr(self.corrupt))


def check_sizes(data: ClassificationSet, size: int) -> None:
    """Refuse images that would be enlarged more than twice before they are corrupted.

    Raises:
        DataError: one of the first images is too small; says how small.
    """
    sides = [min(open_header(data.images[index]).size) for index in range(min(LOOKED_AT, len(data.images)))]
    if 2 * min(sides) < size:
        raise DataError(
            f"{data.name} (split {data.split}): an image of {min(sides)} pixels is too small for corruptions at {size} pixels",
            "enlarged that much, noise and blur would be much finer than the picture, and CIFAR-10-C has other severities",
            f"corrupt at the pictures' own size: --corruption-size {max(SMALLEST, min(sides))} (the result says so)",
        )


def corruption_robustness(
    model: EmbeddingModel,
    data: ClassificationSet,
    corruptions: Sequence[str],
    severities: Sequence[int] = SEVERITIES,
    *,
    size: int = SIZE,
    seed: int = 0,
    options: EmbedOptions | None = None,
    single_only: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Zero-shot accuracy under common corruptions: the mean over corruptions and severities, and each corruption's.

    Args:
        model: the model; its training mode is left as it was.
        data: the clean images, with class names.
        corruptions, severities: see `choose_corruptions` and `check_severities`.
        size: side of the crop that is corrupted.
        seed: of the corruptions' randomness.
        options: how to embed; features of corrupted images are not kept.
        single_only: use the single prompt, no ensemble.
        say: told what is embedded next.
        progress: called with (images done, images) of this pass.

    Returns:
        A result document (docs/design.md): `clean_top1`, `top1` (the mean over everything), `relative_top1` (the ratio) and
        `top1_NAME`, the mean over severities. Intervals resample images, with all that was made of them.

    Raises:
        DataError: no class names, images too small, or an image that cannot be decoded.
        ModelError: an embedding is not finite.
        HostError: as `library`.
    """
    started = time.perf_counter()
    options = options or EmbedOptions()
    class_names = require_class_names(data)
    check_sizes(data, size)
    prompts = [class_texts.single_prompt(data.prompts)] if single_only else list(data.prompts)
    classes = class_embeddings(model, class_names, prompts, options=options)
    crop = replace(model.preprocess, size=size)
    version = _version()

    def hits(source: ImageSource, kept: EmbedOptions) -> tuple[np.ndarray, Any]:
        features = embed_images(model, source, name=data.name, split=data.split, options=kept, progress=progress)
        assert features.projected is not None
        return top_matches(features.projected, classes, 1)[:, 0] == data.labels, features

    # A crop of the model's own size is what the model sees of the image anyhow: its features may be there already.
    as_it_is = size == model.preprocess.size
    if say is not None:
        say("no corruption")
    clean, features = hits(data.images if as_it_is else Cropped(data.images, crop), options)
    passing = replace(options, cache=None)
    table = np.zeros((len(corruptions), len(severities), len(data.images)), dtype=bool)
    for row, name in enumerate(corruptions):
        for column, severity in enumerate(severities):
            if say is not None:
                say(f"{name}, severity {severity}")
            corrupted = Cropped(data.images, crop, Corruption(name, severity, seed))
            table[row, column] = hits(corrupted, passing)[0]
    per_image = table.mean(axis=(0, 1))
    samples = bootstrap_mean(np.stack([per_image, clean.astype(np.float64)], axis=1))
    count = len(clean)
    metrics = {"top1": _bootstrapped(per_image), "clean_top1": share_metric(clean)}
    if clean.any():
        ratios = samples[:, 0] / np.maximum(samples[:, 1], 1 / count)
        metrics["relative_top1"] = metric(
            per_image.mean() / clean.mean(), count, ends(ratios), interval="bootstrap over images, 95 %"
        )
    metrics |= {f"top1_{name}": _bootstrapped(table[row].mean(axis=0)) for row, name in enumerate(corruptions)}
    protocol = {
        "corruptions": list(corruptions),
        "severities": list(severities),
        "corrupted_at": f"a crop of {size} pixels, before the model's own preprocessing",
        "seed": seed,
        "library": version,
        "prompts": prompts,
        "prompts_source": data.prompts_source,
        "class_names_source": data.class_names_source,
        **options.protocol(),
    }
    details = {
        "chance": 1 / data.class_count,
        "table": {
            name: {str(severity): float(table[row, column].mean()) for column, severity in enumerate(severities)}
            for row, name in enumerate(corruptions)
        },
    }
    return result.build(
        task="corruption",
        dataset=dataset_facts(data, features),
        protocol=protocol,
        model=model,
        metrics=metrics,
        details=details,
        seconds=time.perf_counter() - started,
    )


def _bootstrapped(shares: np.ndarray) -> dict[str, Any]:
    return metric(shares.mean(), len(shares), ends(bootstrap_mean(shares)), interval="bootstrap over images, 95 %")


def _version() -> str:
    from importlib import metadata

    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return f"imagecorruptions {getattr(library(), '__version__', 'of unknown version')}"
