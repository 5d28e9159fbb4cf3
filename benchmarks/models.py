"""CLIP in the shapes of ViT-B/32, with random weights: as quick as the real one, and meaning nothing.

Random weights are kind to few digits. With ``outliers`` some channels of every LayerNorm are 8 to 25 times as large as
the others, as in trained vision transformers, which is what makes int8 hard (Dettmers et al.: LLM.int8(), 2022).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_OUTLIER_CHANNELS = 6


def make_clip(
    folder: Path,
    *,
    outliers: bool = False,
    seed: int = 7,
    vision: Mapping[str, int] = MappingProxyType({}),
    text: Mapping[str, int] = MappingProxyType({}),
    dimension: int = 512,
) -> Path:
    """Write a model as ``clip-ViT-B-32`` lies on the model hub, 605 MB; what is there already is left.

    Args:
        folder: where to.
        outliers: whether some channels are large.
        seed: of the weights.
        vision: what is to be otherwise than in ViT-B/32 of the image side, as ``CLIPConfig`` takes it.
        text: likewise of the text side.
        dimension: of the vectors.
    """
    inner = folder / "0_CLIPModel"
    if (folder / "modules.json").is_file():
        return folder
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"<|unused{number}|>" for number in range(49406 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=77)
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config={**text, **marks}, vision_config=dict(vision), projection_dim=dimension)
    model = CLIPModel(config)
    if outliers:
        _enlarge(model)
    inner.mkdir(parents=True)
    side = config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    for part in (model, tokenizer, processor):
        part.save_pretrained(inner)
    (folder / "config_sentence_transformers.json").write_text("{}")
    one = {"idx": 0, "name": "0", "path": inner.name, "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([one]))
    return folder


def _enlarge(model: object) -> None:
    import torch

    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for module in model.vision_model.modules():  # type: ignore[attr-defined]
            if isinstance(module, torch.nn.LayerNorm):
                chosen = torch.randperm(len(module.weight), generator=generator)[:_OUTLIER_CHANNELS]
                module.weight[chosen] *= 8 + 17 * torch.rand(_OUTLIER_CHANNELS, generator=generator)
