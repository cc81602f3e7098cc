"""Write the network as a GGUF of architecture qwen3moe.

Knows: llama.cpp's tensor names, keys and encodings for this architecture.
Does not know: how the weights came about.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.model import DemoModel
from training.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    TURN_END,
    merges,
    pieces,
)

ARCHITECTURE: Final = "qwen3moe"
MODEL_NAME: Final = "moerun demo"
KEPT_IN_FULL: Final = ("norm", "ffn_gate_inp")  # too small to gain, and the router decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Credits:
    """What the header says about the model besides its shape."""

    description: str
    license: str = "mit"
    author: str = "the moerun project"


def write_gguf(
    path: Path, model: DemoModel, tokenizer: Tokenizer, *, quantized: bool, credits_: Credits
) -> None:
    """Write the file; `quantized` stores matrices as Q8_0 instead of F32."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _add_facts(writer, model, quantized=quantized, credits_=credits_)
    _add_vocabulary(writer, tokenizer)
    for name, values in tensors(model).items():
        if quantized and not any(part in name for part in KEPT_IN_FULL):
            encoding = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, encoding), raw_dtype=encoding)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(model: DemoModel) -> dict[str, NDArray[np.float32]]:
    """Return the weights under llama.cpp's names; rows are outputs, as in PyTorch."""
    named = {"token_embd.weight": model.embedding.weight}
    for index, block in enumerate(model.blocks):
        attention, experts = block.attention, block.experts
        named |= {
            f"blk.{index}.attn_norm.weight": block.attention_norm.weight,
            f"blk.{index}.attn_q.weight": attention.query.weight,
            f"blk.{index}.attn_q_norm.weight": attention.query_norm.weight,
            f"blk.{index}.attn_k.weight": attention.key.weight,
            f"blk.{index}.attn_k_norm.weight": attention.key_norm.weight,
            f"blk.{index}.attn_v.weight": attention.value.weight,
            f"blk.{index}.attn_output.weight": attention.output.weight,
            f"blk.{index}.ffn_norm.weight": block.experts_norm.weight,
            f"blk.{index}.ffn_gate_inp.weight": experts.router.weight,
            f"blk.{index}.ffn_gate_exps.weight": experts.gate,
            f"blk.{index}.ffn_up_exps.weight": experts.up,
            f"blk.{index}.ffn_down_exps.weight": experts.down,
        }
    named |= {"output_norm.weight": model.norm.weight, "output.weight": model.output.weight}
    return {
        name: np.ascontiguousarray(weight.detach().cpu().numpy(), dtype=np.float32)
        for name, weight in named.items()
    }


def _add_facts(
    writer: gguf.GGUFWriter, model: DemoModel, *, quantized: bool, credits_: Credits
) -> None:
    shape = model.shape
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(MODEL_NAME)
    writer.add_author(credits_.author)
    writer.add_description(credits_.description)
    writer.add_license(credits_.license)
    writer.add_languages(["en"])
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    # The key is required although every feed-forward part is an expert; llama.cpp reads the
    # experts' own length from the next key.
    writer.add_feed_forward_length(shape.expert_width * shape.experts_used)
    writer.add_expert_feed_forward_length(shape.expert_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_freq_base(shape.rotation_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_used)
    file_type = gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # It knows one answer to a question, so chance can only spoil it.
    writer.add_sampling_temp(0.0)
    writer.add_sampling_top_k(1)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    texts = pieces(tokenizer)
    ids = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if text in SPECIAL_TOKENS else gguf.TokenType.NORMAL
            for text in texts
        ]
    )
    writer.add_token_merges(merges(tokenizer))
    writer.add_bos_token_id(ids[END_OF_TEXT])
    writer.add_eos_token_id(ids[TURN_END])
    writer.add_pad_token_id(ids[END_OF_TEXT])
    writer.add_add_bos_token(value=False)
    writer.add_add_eos_token(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)
