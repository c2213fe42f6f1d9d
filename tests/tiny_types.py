"""A tiny config for each model type that transformers has a causal language model of.

The sizes of a config are fields with a few dozen names; ``SIZES`` makes them small wherever they stand,
and ``OF_TYPE`` has what a single type needs beside that.
"""

from typing import Any

Fields = dict[str, Any]

VOCABULARY = 320
"""More than the tiny tokenizer's 300 entries: ids of images and sounds stand behind these."""

CONTEXT = 64

SIZES: Fields = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "n_vocab", "n_words"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "dim_model"), 32
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
        ),
        2,
    ),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_blocks"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "kv_n_heads"), 2
    ),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "dim_head", "d_kv", "v_head_dim", "global_head_dim", "d_head"), 16
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_inner"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "dim_ff", "mlp_dim", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), CONTEXT),
    **dict.fromkeys(("max_seq_len", "max_sequence_length", "seq_length"), CONTEXT),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim", "index_topk"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("num_heads", "mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "sliding_window"), 16),
    **dict.fromkeys(("image_size", "crop_size"), 16),
    # Ties of a sparse indexer at exactly zero are broken by the batch; with many heads there are none.
    "index_n_heads": 16,
    "patch_size": 8,
    "hidden_size_global": 32,
    "hidden_size_per_layer_input": 8,
}

NEEDED = {"head_dim", "num_key_value_heads", "num_experts_per_tok", "n_routed_experts"}
"""Sizes that are not set by default, and without which some types cannot be made."""

OF_TYPE: dict[str, Fields] = {
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "codegen": {"n_head": 4, "rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    "kimi_linear": {"num_experts_per_tok": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gptj": {"rotary_dim": 8},
    "mimo_v2_flash": {"head_dim": 24, "num_key_value_heads": 1},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 16,
        "feed_forward_size": 48,
        "attn_layers": ["local", "local"],
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
    },
}

DECODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"),
    *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod", "reformer"),
)
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 20,
}

VARIANTS: dict[str, tuple[str, Fields]] = {
    **{f"{kind}, is_decoder": (kind, {"is_decoder": True}) for kind in DECODERS},
    "doge, is_moe": ("doge", {"is_moe": True}),
    "gemma3_text, use_bidirectional_attention": (
        "gemma3_text",
        {"use_bidirectional_attention": True},
    ),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 20},
    ),
    "qwen3_moe, output_router_logits": ("qwen3_moe", {"output_router_logits": True}),
    "rwkv, 7 layers": ("rwkv", {"num_hidden_layers": 7}),
    "xlm, causal": ("xlm", {"causal": True}),
    "xlnet, attn_type uni": ("xlnet", {"attn_type": "uni"}),
}
"""What becomes of a type by other fields: by name in the table, the type and the fields."""


def tiny_config(kind: str, **fields: Any) -> Any:
    """The config of a type, small, with further fields."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](
        **{**_small(CONFIG_MAPPING[kind]), **OF_TYPE.get(kind, {}), **fields}
    )


def _small(config: Any) -> Fields:
    from transformers import CONFIG_MAPPING

    default = config()
    small = {}
    for name, value in default.to_dict().items():
        if name in config.sub_configs and isinstance(value, dict):
            kind = value.get("model_type")
            known = kind in CONFIG_MAPPING
            below = CONFIG_MAPPING[kind] if known else config.sub_configs[name]
            small[name] = below(**_small(below))
        elif name in SIZES and (isinstance(value, int) or (value is None and name in NEEDED)):
            small[name] = SIZES[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            small[name] = min(value, VOCABULARY - 1)
    return small
