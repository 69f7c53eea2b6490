"""A model as a folder that `transformers.CLIPModel.from_pretrained` loads, where its architecture is CLIP's own.

CLIPModel is one architecture: a vision transformer with a class token and a norm before its first layer, a causal text transformer that is
pooled at the first end-of-text token, a matrix behind each. What is anything else cannot be written as one, whatever its weights.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from PIL import Image
from torch import Tensor, nn

from softclip_cli.data.decode import RESAMPLING
from softclip_cli.errors import ModelError
from softclip_cli.export.clip_tokenizer import is_clip_tokenizer, write_clip_tokenizer
from softclip_cli.export.parity import Loaded
from softclip_cli.model import Model
from softclip_cli.tower_pair import quiet_transformers

Weights = dict[str, Tensor]


def obstacles(model: Model) -> list[str]:
    """Why the model is not a CLIPModel: one phrase a reason, empty where it is one."""
    return [*_image_obstacles(model), *_text_obstacles(model)]


def _image_obstacles(model: Model) -> Iterator[str]:
    visual = model.image.visual
    if not isinstance(visual, VisionTransformer):
        what = model.config["vision_cfg"].get("timm_model_name") or type(visual).__name__
        yield f"its image tower is a {what}, not CLIP's vision transformer"
        return
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        yield "its image tower is not pooled at the class token"
    if not isinstance(visual.ln_pre, nn.LayerNorm):
        yield "its image tower has no norm before the first layer"
    if len(set(visual.image_size)) > 1 or len(set(visual.patch_size)) > 1:
        yield "its images or patches are not square"
    if model.preprocess.resize_mode == "longest":
        yield "its images are padded to a square"
    yield from _block_obstacles("image", visual.transformer)


def _text_obstacles(model: Model) -> Iterator[str]:
    if model.text.hugging_face:
        kind = model.text.text.config.model_type
        pooling = model.config["text_cfg"].get("hf_pooler_type") or "its own pooling"
        yield f"its text tower is a {kind} with {pooling.replace('_', ' ')}, not CLIP's text transformer"
        return
    text = model.text.text
    if not model.text.trimmable or model.text.pool_type == "first":
        yield "its text tower is not a causal one that is pooled at the end of the text"
    if not is_clip_tokenizer(model):
        yield "its tokenizer is not CLIP's"
    elif model.text.pool_type == "eos" and _end_id(model) != (
        model.net.text_eos_id if text is model.net else text.eos_id
    ):
        yield "its text tower is pooled at another token than CLIP's end of text"
    if getattr(text.text_projection, "bias", None) is not None:
        yield "the projection of its text tower has a bias"
    if getattr(model.net, "logit_bias", None) is not None:
        yield "it has a logit bias"
    yield from _block_obstacles("text", text.transformer)


def _block_obstacles(tower: str, transformer: Any) -> Iterator[str]:
    blocks = list(transformer.resblocks)
    if not all(isinstance(block, ResidualAttentionBlock) and isinstance(block.ls_1, nn.Identity) for block in blocks):
        yield f"the layers of its {tower} tower have parts that CLIP's have not (layer scale, or norms inside)"
    elif _activation(blocks[0].mlp.gelu) is None:
        yield f"the activation of its {tower} tower is {blocks[0].mlp.gelu}"


def _activation(module: nn.Module) -> str | None:
    """transformers' name of an activation, None where it is none of CLIP's."""
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    return None


def _end_id(model: Model) -> int:
    return int(model.tokenizer.eot_token_id)


def write(model: Model, folder: Path) -> dict[str, Any]:
    """Write configuration, weights, image processor and tokenizer.

    Returns:
        what `export.json` says of it: `class`, the class in transformers.

    Raises:
        ModelError: the architecture is not CLIP's; says every reason.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    reasons = obstacles(model)
    if reasons:
        raise ModelError(
            f"{model.name} cannot be written as a CLIPModel of transformers",
            "; ".join(reasons),
            "export it with --to open_clip or --to onnx",
        )
    visual, text = model.image.visual, model.text.text
    settings: dict[str, Any] = {
        "projection_dim": model.embed_dim,
        "logit_scale_init_value": float(model.net.logit_scale.detach().reshape(())),
        "vision_config": {
            **_sizes(visual.transformer, visual.ln_post),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": model.embed_dim,
        },
        "text_config": {
            **_sizes(text.transformer, text.ln_final),
            "vocab_size": text.token_embedding.num_embeddings,
            "max_position_embeddings": text.positional_embedding.shape[0],
            "projection_dim": model.embed_dim,
            "bos_token_id": int(model.tokenizer.sot_token_id),
            "eos_token_id": _end_id(model),
            "pad_token_id": _end_id(model),
        },
    }
    net = CLIPModel(CLIPConfig(**settings)).eval()
    net.load_state_dict(_weights(model))
    with quiet_transformers():
        net.save_pretrained(folder)
    write_clip_tokenizer(model.tokenizer, folder, model.text.context_length)
    size = model.preprocess.size
    shortest = model.preprocess.resize_mode == "shortest"
    processor = CLIPImageProcessor(
        size={"shortest_edge": size} if shortest else {"height": size, "width": size},
        do_center_crop=shortest,
        crop_size={"height": size, "width": size},
        resample=int(RESAMPLING[model.preprocess.interpolation]),
        image_mean=list(model.preprocess.mean),
        image_std=list(model.preprocess.std),
    )
    processor.save_pretrained(folder)  # where older versions of transformers look for it
    CLIPProcessor(processor, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return {"class": "CLIPModel"}


def _sizes(transformer: Any, norm: Any) -> dict[str, Any]:
    first = transformer.resblocks[0]
    return {
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": _activation(first.mlp.gelu),
        "layer_norm_eps": norm.eps,
    }


def _weights(model: Model) -> Weights:
    """The model's weights under CLIPModel's names."""
    visual, text = model.image.visual, model.text.text
    found: Weights = {
        "logit_scale": model.net.logit_scale.reshape(()),
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "visual_projection.weight": _matrix(visual.proj, model.embed_dim),
        "text_model.embeddings.token_embedding.weight": text.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": text.positional_embedding,
        "text_projection.weight": _matrix(text.text_projection, model.embed_dim),
        **_named("vision_model.pre_layrnorm", visual.ln_pre),
        **_named("vision_model.post_layernorm", visual.ln_post),
        **_named("text_model.final_layer_norm", text.ln_final),
    }
    for tower, transformer in (("vision_model", visual.transformer), ("text_model", text.transformer)):
        for number, block in enumerate(transformer.resblocks):
            found |= _layer(f"{tower}.encoder.layers.{number}", block)
    return {name: tensor.detach().cpu().float().contiguous() for name, tensor in found.items()}


def _layer(name: str, block: Any) -> Weights:
    found: Weights = {}
    # One matrix makes query, key and value, in this order.
    parts = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    for letter, weight, bias in zip("qkv", *parts, strict=True):
        found |= {f"{name}.self_attn.{letter}_proj.weight": weight, f"{name}.self_attn.{letter}_proj.bias": bias}
    return (
        found
        | _named(f"{name}.self_attn.out_proj", block.attn.out_proj)
        | _named(f"{name}.layer_norm1", block.ln_1)
        | _named(f"{name}.layer_norm2", block.ln_2)
        | _named(f"{name}.mlp.fc1", block.mlp.c_fc)
        | _named(f"{name}.mlp.fc2", block.mlp.c_proj)
    )


def _named(name: str, module: Any) -> Weights:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def _matrix(projection: Any, width: int) -> Tensor:
    """A projection as the weight of a linear layer; one that is absent changes nothing."""
    if projection is None:
        return torch.eye(width)
    return projection.weight if isinstance(projection, nn.Linear) else projection.T


def load(folder: Path) -> Loaded:
    """The folder as transformers loads it."""
    from transformers import CLIPModel, CLIPProcessor

    with quiet_transformers():
        net, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)

    def image(pixels: Tensor) -> Tensor:
        return F.normalize(_features(net.get_image_features(pixel_values=pixels)), dim=-1)

    def own_text(texts: Any) -> Tensor:
        ready = processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
        return F.normalize(_features(net.get_text_features(**ready)), dim=-1)

    def own_image(images: Any) -> Tensor:
        opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
        return image(processor(images=opened, return_tensors="pt")["pixel_values"])

    return Loaded(
        image=image,
        text=lambda tokens: F.normalize(_features(net.get_text_features(input_ids=tokens)), dim=-1),
        logit_scale=float(net.logit_scale.detach().exp()),
        own_image=own_image,
        own_text=own_text,
    )


def _features(output: Any) -> Tensor:
    """The projected features, which transformers 4 returns bare."""
    return output if isinstance(output, Tensor) else output.pooler_output
