"""Language models: the sizes that publications on optimizer memory report."""

from __future__ import annotations

from dataclasses import replace

from memlens.models.shape import ModelShape

__all__ = ["MODELS"]


_GALORE = "counted by users of configs/llama_*.json of the GaLore repository (arXiv 2403.03507)"
_LLAMA = "sizes of arXiv 2302.13971; the count of its checkpoints"
_LLAMA_2 = "arXiv 2307.09288; the count of its checkpoints"
_BLOOM = "model cards of bigscience/bloom-*"
_HUB = "number of parameters of its checkpoint"


def _llama(
    name: str, hidden: int, ffn: int, layers: int, heads: int,
    parameters: int, source: str, rounding: int = 0,
) -> ModelShape:  # fmt: skip
    """A LLaMA: one head of keys and values for each of queries, embeddings not tied."""
    return ModelShape(
        name=f"llama-{name.lower()}",
        title=f"LLaMA {name}",
        kind="causal_lm",
        model_class="LlamaForCausalLM",
        config={
            "vocab_size": 32_000,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "tie_word_embeddings": False,
        },
        published_parameters=parameters,
        rounding=rounding,
        source=source,
    )


_LLAMA_7B = _llama("7B", 4096, 11008, 32, 32, 6_738_415_616, _LLAMA)
_LLAMA_13B = _llama("13B", 5120, 13824, 40, 40, 13_015_864_320, _LLAMA)
_VICUNA = "LLaMA-2, fine-tuned (v1.5)"


def _bloom(name: str, hidden: int, layers: int, heads: int, parameters: int) -> ModelShape:
    return ModelShape(
        name=f"bloom-{name.lower()}",
        title=f"BLOOM-{name}",
        kind="causal_lm",
        model_class="BloomForCausalLM",
        config={
            "vocab_size": 250_880,
            "hidden_size": hidden,
            "n_layer": layers,
            "n_head": heads,
            "tie_word_embeddings": True,
        },
        published_parameters=parameters,
        source=_BLOOM,
    )


def _phi(name: str, hidden: int, layers: int, rotary: float, parameters: int) -> ModelShape:
    return ModelShape(
        name=f"phi-{name}",
        title=f"Phi-{name}",
        kind="causal_lm",
        model_class="PhiForCausalLM",
        config={
            "vocab_size": 51_200,
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "partial_rotary_factor": rotary,
            "tie_word_embeddings": False,
        },
        published_parameters=parameters,
        source=_HUB,
    )


def _qwen(name: str, hidden: int, ffn: int, tied: bool, parameters: int) -> ModelShape:
    return ModelShape(
        name=f"qwen1.5-{name.lower()}",
        title=f"Qwen1.5-{name}",
        kind="causal_lm",
        model_class="Qwen2ForCausalLM",
        config={
            "vocab_size": 151_936,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "tie_word_embeddings": tied,
        },
        published_parameters=parameters,
        source=_HUB,
    )


def _gemma(
    name: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, parameters: int
) -> ModelShape:
    return ModelShape(
        name=f"gemma-{name.lower()}",
        title=f"Gemma-{name}",
        kind="causal_lm",
        model_class="GemmaForCausalLM",
        config={
            "vocab_size": 256_000,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 256,
            "tie_word_embeddings": True,
        },
        published_parameters=parameters,
        source=_HUB,
    )


def _gpt2(name: str, title: str, width: int, layers: int, heads: int, count: int) -> ModelShape:
    return ModelShape(
        name=name,
        title=title,
        kind="causal_lm",
        model_class="GPT2LMHeadModel",
        config={
            "vocab_size": 50_257,
            "n_positions": 1024,
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
            "tie_word_embeddings": True,
        },
        published_parameters=count,
        source=f"{_HUB} (its paper counts differently)",
        max_tokens=1024,
    )


MODELS: tuple[ModelShape, ...] = (
    _llama("60M", 512, 1376, 8, 8, 58_073_600, _GALORE),
    _llama("130M", 768, 2048, 12, 12, 134_105_856, _GALORE),
    _llama("350M", 1024, 2736, 24, 16, 367_969_280, _GALORE),
    _llama("1B", 2048, 5461, 24, 32, 1_339_082_752, _GALORE),
    _llama(
        "3B", 2560, 6848, 32, 32, 3_000_000_000,
        "the name of configs/llama_3b.json of the GaLore repository", rounding=500_000_000,
    ),
    _LLAMA_7B,
    _LLAMA_13B,
    replace(_LLAMA_7B, name="llama-2-7b", title="LLaMA-2-7B", source=_LLAMA_2),
    replace(_LLAMA_13B, name="llama-2-13b", title="LLaMA-2-13B", source=_LLAMA_2),
    replace(_LLAMA_7B, name="vicuna-7b", title="Vicuna-7B", source=_VICUNA),
    replace(_LLAMA_13B, name="vicuna-13b", title="Vicuna-13B", source=_VICUNA),
    _bloom("560M", 1024, 24, 16, 559_214_592),
    _bloom("3B", 2560, 30, 32, 3_002_557_440),
    _bloom("7B", 4096, 30, 32, 7_069_016_064),
    _phi("1.5", 2048, 24, 0.5, 1_418_270_720),
    _phi("2", 2560, 32, 0.4, 2_779_683_840),
    _qwen("0.5B", 1024, 2816, True, 463_987_712),
    _qwen("1.8B", 2048, 5504, False, 1_836_828_672),
    _gemma("2B", 2048, 16384, 18, 8, 1, 2_506_172_416),
    _gemma("7B", 3072, 24576, 28, 16, 16, 8_537_680_896),
    ModelShape(
        name="falcon-7b",
        title="Falcon-7B",
        kind="causal_lm",
        model_class="FalconForCausalLM",
        config={
            "vocab_size": 65_024,
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "multi_query": True,
            "parallel_attn": True,
            "bias": False,
            "tie_word_embeddings": True,
        },
        published_parameters=7_217_189_760 - 65_024 * 4544,
        source="7,217,189,760 in its checkpoint, which stores the tied embedding twice",
    ),
    ModelShape(
        name="chatglm3-6b",
        title="ChatGLM3-6B",
        kind="causal_lm",
        model_class="GlmForCausalLM",
        # Its own code is not a part of transformers; Glm is the same block in the same shapes.
        # Glm's default tokens for padding and endings lie beyond this vocabulary.
        config={
            "vocab_size": 65_024,
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 28,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "attention_bias": True,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        },
        published_parameters=6_243_584_000,
        source=f"{_HUB}, as loaded by its own code",
    ),
    ModelShape(
        name="bert-base",
        title="BERT-Base",
        kind="masked_lm",
        model_class="BertForMaskedLM",
        config={
            "vocab_size": 30_522,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
        published_parameters=109_514_298,
        source="bert-base-uncased as masked language model; arXiv 1810.04805 says 110M",
        max_tokens=512,
    ),
    _gpt2("gpt2", "GPT-2", 768, 12, 12, 124_439_808),
    _gpt2("gpt2-xl", "GPT-2 XL", 1600, 48, 25, 1_557_611_200),
    ModelShape(
        name="t5-3b",
        title="T5-3B",
        kind="seq2seq",
        model_class="T5ForConditionalGeneration",
        config={
            "vocab_size": 32_128,
            "d_model": 1024,
            "d_kv": 128,
            "d_ff": 16384,
            "num_layers": 24,
            "num_heads": 32,
            "decoder_start_token_id": 0,
        },
        published_parameters=2_851_598_336,
        source=_HUB,
    ),
)  # fmt: skip
