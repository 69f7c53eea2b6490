"""Signs of noise in captions that cost no model: repetition over images, very short ones, file names, odd ones out.

None of them is the share of wrong captions, which only looking tells; each says what it counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SHORT_WORDS = 3  # a caption with fewer says little
ODD_SAMPLE = 20_000  # images whose captions are compared with each other
# A file name, an address, or a camera's number: what stands where nobody wrote a caption.
NO_SENTENCE = r"(?i)(https?://|www\.|\.(jpe?g|png|gif|webp|tiff?)\b|^\W*(img|dsc|dscn|dscf|pict|image|photo)[\W_]*\d+\W*$|^[\W\d_]+$)"
WORD = re.compile(r"[^\W\d_]{3,}")
# Words that two captions share without telling of the same thing.
_FUNCTION_TEXT = (
    "the and with for from into onto over under near next beside behind front their his her its him them they she has have "
    "had are was were who that this these those there while other another some two three four one out off down through "
    "across during about being been what which where when very not but you your our all photo picture image view"
)
FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())


def caption_signs(lists: pa.ChunkedArray) -> dict[str, Any]:
    """Counts over the captions of a split.

    Args:
        lists: a list of captions for each image.

    Returns:
        `captions`; `distinct`, texts that differ beyond case and punctuation; `shared` (captions, texts: on several images);
        `short` and `no_sentence`, captions; `odd`, or None where no image has two captions: `images` compared, `captions` of
        them, the `share` that has no content word in common with any other caption of its image, `by_chance` the same
        for captions of another image.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    texts = pc.list_flatten(lists)
    owners = pc.list_parent_indices(lists)
    normal = normalised(texts)
    table = pa.table({"text": normal, "image": owners})
    by_text = table.group_by("text").aggregate([("image", "count_distinct"), ("image", "count")])
    several = pc.greater(by_text["image_count_distinct"], 1)
    words = pc.list_value_length(pc.utf8_split_whitespace(texts))
    return {
        "captions": len(texts),
        "distinct": len(by_text),
        "shared": {
            "texts": int(pc.sum(several).as_py() or 0),
            "captions": int(pc.sum(by_text.filter(several)["image_count"]).as_py() or 0),
        },
        "short": int(pc.sum(pc.less(words, SHORT_WORDS)).as_py() or 0),
        "no_sentence": int(pc.sum(pc.match_substring_regex(texts, NO_SENTENCE)).as_py() or 0),
        "odd": _odd(lists),
    }


def normalised(texts: pa.Array) -> pa.Array:
    """Texts in lower case, without punctuation, words apart by one space."""
    import pyarrow.compute as pc

    plain = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\pL\pN\s]+", " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, r"\s+", " "))


def content_words(text: str) -> frozenset[str]:
    """The words that tell what is to be seen, without the endings of plurals and of -ing."""
    words = (word for word in WORD.findall(text.casefold()) if word not in FUNCTION_WORDS)
    return frozenset(re.sub(r"(ing|es|s)$", "", word) if len(word) > 4 else word for word in words)


def _odd(lists: pa.Array) -> dict[str, Any] | None:
    """Captions that share no content word with the other captions of their image, and what chance would give."""
    import pyarrow.compute as pc

    places = np.flatnonzero(pc.list_value_length(lists).to_numpy(zero_copy_only=False) > 1)
    if len(places) < 2:
        return None
    places = places[np.unique(np.linspace(0, len(places) - 1, min(ODD_SAMPLE, len(places))).round().astype(int))]
    sets = [[content_words(text) for text in texts] for texts in lists.take(places).to_pylist()]
    # A round through all images in a random order: neighbours in a corpus may be alike.
    order = np.random.default_rng(0).permutation(len(sets))
    following = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    odd = chance = captions = 0
    for number, own in enumerate(sets):
        others = sets[following[number]]
        for place, words in enumerate(own):
            captions += 1
            odd += not words & _union(own[:place] + own[place + 1 :])
            # As many captions to agree with as of its own image.
            chance += not words & _union(others[: len(own) - 1])
    return {
        "images": len(places),
        "captions": captions,
        "share": round(odd / captions, 4),
        "by_chance": round(chance / captions, 4),
    }


def _union(sets: Sequence[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)
