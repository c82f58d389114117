"""A block rebuilt from the parts that the topology names gives the block's own output, for every family."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tr

from core.errors import ConfigError, UnsupportedModelError
from core.models.topology import FAMILIES, Family, ModelTopology, block_linears, register_topology

LLAMA = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "llama": lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**LLAMA, attention_bias=True)),
    "mistral": lambda: tr.MistralForCausalLM(tr.MistralConfig(**LLAMA)),
    "qwen2": lambda: tr.Qwen2ForCausalLM(tr.Qwen2Config(**LLAMA)),
    "qwen3": lambda: tr.Qwen3ForCausalLM(tr.Qwen3Config(**LLAMA, head_dim=8)),
    "gemma2": lambda: tr.Gemma2ForCausalLM(
        tr.Gemma2Config(**LLAMA, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=None)),
    "gemma3_text": lambda: tr.Gemma3ForCausalLM(
        tr.Gemma3TextConfig(**LLAMA, head_dim=8, query_pre_attn_scalar=8)),
    "phi3": lambda: tr.Phi3ForCausalLM(tr.Phi3Config(**LLAMA, pad_token_id=0, eos_token_id=1)),
    "gpt2": lambda: tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "gpt_neox": lambda: tr.GPTNeoXForCausalLM(tr.GPTNeoXConfig(**BERT, use_parallel_residual=False, rotary_pct=0.5)),
    "gpt_neox-parallel": lambda: tr.GPTNeoXForCausalLM(tr.GPTNeoXConfig(**BERT)),
    "opt": lambda: tr.OPTForCausalLM(
        tr.OPTConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                     word_embed_proj_dim=32, max_position_embeddings=64)),
    "opt-post": lambda: tr.OPTForCausalLM(
        tr.OPTConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                     word_embed_proj_dim=32, max_position_embeddings=64, do_layer_norm_before=False)),
    "bloom": lambda: tr.BloomForCausalLM(tr.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)),
    "bert": lambda: tr.BertForMaskedLM(tr.BertConfig(**BERT)),
    "roberta": lambda: tr.RobertaForMaskedLM(tr.RobertaConfig(**BERT)),
    "xlm-roberta": lambda: tr.XLMRobertaForMaskedLM(tr.XLMRobertaConfig(**BERT)),
    "m2m_100": lambda: tr.M2M100ForConditionalGeneration(
        tr.M2M100Config(vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
                        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(name):
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
        elif "RMSNorm" in type(module).__name__:
            torch.nn.init.normal_(module.weight, float("Gemma" not in type(module).__name__), 0.1)
    return model


def first_block(model, ids):
    """The arguments and the output of the first block in a whole forward pass, and cos and sin where there are any."""
    found = {}
    block = ModelTopology.of(model).blocks[0]

    def before(module, arguments, named):
        found["x"] = arguments[0] if arguments else named["hidden_states"]
        found["phases"] = named.get("position_embeddings")

    def after(module, arguments, output):
        found["y"] = output[0] if isinstance(output, tuple) else output

    handles = [
        block.module.register_forward_pre_hook(before, with_kwargs=True),
        block.module.register_forward_hook(after),
    ]
    with torch.no_grad():
        base = model.get_encoder() if model.config.is_encoder_decoder else model
        base(input_ids=ids)
    for handle in handles:
        handle.remove()
    return block, found["x"], found["y"], found["phases"]


def attention(block, x, phases, family):
    """Softmax attention (B, T, d) of the named projections; Qwen3's norms of queries and keys are part of its attn."""
    batch, length, _ = x.shape
    size = block.head_dim_qk

    def heads(y, n):
        return y.view(batch, length, n, size).transpose(1, 2)

    if block.qkv is not None and block.qkv_layout == "concat":
        counts = (block.n_heads, block.n_kv_heads, block.n_kv_heads)
        parts = block.qkv(x).split([n * size for n in counts], -1)
        q, k, v = (heads(part, n) for part, n in zip(parts, counts))
    elif block.qkv is not None:
        q, k, v = block.qkv(x).view(batch, length, block.n_heads, 3 * size).transpose(1, 2).chunk(3, -1)
    else:
        q = heads(block.q(x), block.n_heads)
        k, v = heads(block.k(x), block.n_kv_heads), heads(block.v(x), block.n_kv_heads)
    if family in ("qwen3", "gemma3_text"):
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
    if block.rope == "half":
        cos, sin = (phase[:, None] for phase in phases)
        width = cos.shape[-1]

        def turn(t):
            first, rest = t[..., :width], t[..., width:]
            a, b = first.chunk(2, -1)
            return torch.cat([first * cos + torch.cat([-b, a], -1) * sin, rest], -1)

        q, k = turn(q), turn(k)
    groups = block.n_heads // block.n_kv_heads
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(size)
    if family == "bloom":
        from transformers.models.bloom.modeling_bloom import build_alibi_tensor

        slopes = build_alibi_tensor(torch.ones(batch, length), block.n_heads, scores.dtype)
        scores = scores + slopes.view(batch, block.n_heads, 1, length)
    if FAMILIES[family].residual in ("pre_ln", "sandwich") and family != "m2m_100":
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return block.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def feed_forward(block, x):
    if hasattr(block.mlp, "gate_up_proj"):
        gate, up = block.up(x).chunk(2, -1)
        return block.down(block.act(gate) * up)
    inner = block.act(block.up(x)) if block.gate is None else block.act(block.gate(x)) * block.up(x)
    return block.down(inner)


@pytest.mark.parametrize("name", MODELS)
def test_a_block_is_its_parts(name):
    model = make(name)
    family = name.partition("-parallel")[0].partition("-post")[0]
    block, x, y, phases = first_block(model, torch.randint(3, 50, (2, 7)))
    first, second = block.norms[:2]
    if block.residual == "sandwich":
        third, fourth = block.norms[2:]
        h = x + second(attention(block, first(x), phases, family))
        rebuilt = h + fourth(feed_forward(block, third(h)))
    elif block.residual == "pre_ln":
        h = x + attention(block, first(x), phases, family)
        rebuilt = h + feed_forward(block, second(h))
    elif block.residual == "post_ln":
        h = first(x + attention(block, x, phases, family))
        rebuilt = second(h + feed_forward(block, h))
    else:
        rebuilt = x + attention(block, first(x), phases, family) + feed_forward(block, second(x))
    torch.testing.assert_close(rebuilt, y, atol=2e-6, rtol=1e-5)
    assert (y - x).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_every_block_is_named_and_what_is_named_is_there(name):
    model = make(name)
    topology = ModelTopology.of(model)
    assert len(topology.blocks) == len(topology.stack) == 2
    assert model.get_submodule(topology.stack_name) is topology.stack
    for target in topology.targets("q", "down"):
        assert model.get_submodule(target) is not None
    assert len(topology.targets("q", "k", "v", "o", "up", "gate", "down")) == 2 * len(topology.blocks[0].linears())
    hidden = torch.randn(1, 3, 32)
    if topology.final_norm is not None:
        assert topology.final_norm(hidden).shape == hidden.shape
    assert topology.head is None or topology.head is model.get_output_embeddings()
    assert topology.blocks[1].sublayer_out is not None


def test_a_headless_encoder_and_a_wrapped_model_have_the_same_blocks():
    from peft import LoraConfig, get_peft_model

    encoder = MODELS["m2m_100"]().get_encoder()
    assert len(ModelTopology.of(encoder).blocks) == 2 and ModelTopology.of(encoder).head is None
    bare = tr.BertModel(tr.BertConfig(**BERT))
    assert ModelTopology.of(bare).blocks[0].q is bare.encoder.layer[0].attention.self.query
    model = make("llama")
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    topology = ModelTopology.of(wrapped)
    assert topology.blocks[0].q is model.model.layers[0].self_attn.q_proj and hasattr(topology.blocks[0].q, "lora_A")


def test_what_is_unknown_is_told():
    model = make("llama")
    with pytest.raises(ConfigError, match="'qk'"):
        ModelTopology.of(model).targets("qk")
    model.config.model_type = "lama"
    with pytest.raises(UnsupportedModelError) as error:
        ModelTopology.of(model)
    assert "did you mean 'llama'" in error.value.hint
    bloom = MODELS["bloom"]()
    bloom.config.apply_residual_connection_post_layernorm = True
    with pytest.raises(UnsupportedModelError, match="residual"):
        ModelTopology.of(bloom)


def test_the_linear_maps_of_blocks_are_found_in_any_family():
    model = make("llama")
    topology = ModelTopology.of(model)
    assert block_linears(model) == topology.targets("q", "k", "v", "o", "gate", "up", "down")
    other = tr.Olmo2ForCausalLM(tr.Olmo2Config(**LLAMA, pad_token_id=0))
    with pytest.raises(UnsupportedModelError):
        ModelTopology.of(other)
    found = block_linears(other)
    assert len(found) == 2 * 7 and all(name.startswith("model.layers.") for name in found)
    other.config.model_type, other.model.layers = "unheard_of", torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match="unheard_of"):
        block_linears(other)


def test_a_user_adds_a_family():
    model = make("llama")
    model.config.model_type = "my_llama"
    register_topology("my_llama", FAMILIES["llama"])
    try:
        assert isinstance(FAMILIES["my_llama"], Family) and len(ModelTopology.of(model).blocks) == 2
    finally:
        del FAMILIES["my_llama"]
