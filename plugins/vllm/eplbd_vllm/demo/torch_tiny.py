"""Tiny random mixture-of-experts models, written as a checkpoint and a tokenizer that vLLM loads.

    python -m eplbd_vllm.demo.torch_tiny qwen3 FOLDER

Three shapes: `qwen3`, every layer of experts; `deepseek`, a dense first layer, shared experts and
grouped routing; `dense`, without experts. A few megabytes each, the same weights for the same seed.
Owns the shapes. It must not know vLLM: what it writes is read like any other checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

VOCABULARY = 512
HIDDEN, HEADS, HEAD = 128, 4, 32
LAYERS, EXPERTS, TOPK, MIDDLE = 3, 8, 2, 64
"""Sizes that the CPU's grouped kernels take: multiples of 32."""
LATENT, ROPE = 512, 64
"""DeepSeek's own: the CPU's kernel for latent attention knows no others."""

_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

Config = dict[str, object]

_SHARED: Config = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * MIDDLE,
    "moe_intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_experts_per_tok": TOPK,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 1,
}

CONFIGS: dict[str, Config] = {
    "qwen3": {
        **_SHARED,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": HEAD,
        "num_experts": EXPERTS,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.0,
    },
    "deepseek": {
        **_SHARED,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": LATENT,
        "q_lora_rank": None,
        "qk_nope_head_dim": HEAD,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": HEAD,
        "num_nextn_predict_layers": 0,
    },
    "dense": {
        **_SHARED,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": HEAD,
    },
}


def write(shape: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a model of `shape` into `folder`, unless it is there; return the folder."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    done = folder / "config.json"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[shape]
    source = torch.Generator().manual_seed(seed)
    tensors = {name: _weight(name, size, source).contiguous() for name, size in sizes(shape)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = {word: i for i, word in enumerate(_SPECIAL.values())}
    words |= {f"w{i}": i for i in range(len(words), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, _SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL).save_pretrained(folder)
    done.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def _weight(name: str, size: tuple[int, ...], source: torch.Generator) -> Tensor:
    """Norms are one, the rest is drawn: gates wide, so that a token's experts follow its word."""
    if name.endswith(("norm.weight", "layernorm.weight")):
        return torch.ones(size)
    if len(size) == 1:
        return torch.zeros(size)
    drawn: Tensor = torch.randn(size, generator=source)
    if name == "model.embed_tokens.weight":
        return drawn
    wide = 2.0 if name.endswith("mlp.gate.weight") else 1.0
    return drawn.mul_(wide * size[-1] ** -0.5)


def sizes(shape: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the checkpoint."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (HIDDEN,)
        yield f"{at}.post_attention_layernorm.weight", (HIDDEN,)
        attention = _latent_attention if shape == "deepseek" else _attention
        yield from ((f"{at}.self_attn.{name}", size) for name, size in attention())
        if shape == "dense" or (shape == "deepseek" and layer == 0):
            yield from _swiglu(f"{at}.mlp", 2 * MIDDLE)
            continue
        yield f"{at}.mlp.gate.weight", (EXPERTS, HIDDEN)
        if shape == "deepseek":
            yield f"{at}.mlp.gate.e_score_correction_bias", (EXPERTS,)
            yield from _swiglu(f"{at}.mlp.shared_experts", MIDDLE)
        for expert in range(EXPERTS):
            yield from _swiglu(f"{at}.mlp.experts.{expert}", MIDDLE)


def _swiglu(at: str, middle: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{at}.gate_proj.weight", (middle, HIDDEN)
    yield f"{at}.up_proj.weight", (middle, HIDDEN)
    yield f"{at}.down_proj.weight", (HIDDEN, middle)


def _attention() -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("q_proj", "k_proj", "v_proj"):
        yield f"{name}.weight", (HEADS * HEAD, HIDDEN)
    yield "o_proj.weight", (HIDDEN, HEADS * HEAD)
    for name in ("q_norm", "k_norm"):
        yield f"{name}.weight", (HEAD,)


def _latent_attention() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "q_proj.weight", (HEADS * (HEAD + ROPE), HIDDEN)
    yield "kv_a_proj_with_mqa.weight", (LATENT + ROPE, HIDDEN)
    yield "kv_a_layernorm.weight", (LATENT,)
    yield "kv_b_proj.weight", (HEADS * 2 * HEAD, LATENT)
    yield "o_proj.weight", (HIDDEN, HEADS * HEAD)


if __name__ == "__main__":
    sys.stdout.write(f"{write(sys.argv[1], Path(sys.argv[2]))}\n")
