"""A decoder opened up sees the whole text: in every family, attention implementation and padding.

For each family the first state must move with the last token, the gradient of the first state must reach it, and
padding must change nothing; as loaded, the same model must do neither. The value is the number of cases that fail.
"""

from __future__ import annotations

from benchmarks.bar import Bar, Measured, Setting

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Phi3")
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def measure(setting: Setting) -> Measured:
    import torch
    import transformers

    from apps.embeddings.model import is_decoder, opened, sees_ahead
    from core.errors import UnsupportedError

    failed, closed, refused = [], 0, []
    cases = [(f, a) for f in FAMILIES for a in ("sdpa", "eager")]
    for family, attention in cases:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SIZES)
        model = transformers.AutoModel.from_config(config, attn_implementation=attention).eval()
        closed += is_decoder(model)
        try:
            opened(model, True)
        except UnsupportedError as error:
            refused.append(f"{family} {attention}: {error.what}")
            continue
        states = model.get_input_embeddings()(torch.tensor([[3, 5, 7, 9, 11]])).detach().requires_grad_()
        model(inputs_embeds=states, use_cache=False).last_hidden_state[0, 0].sum().backward()
        if not sees_ahead(model) or not float(states.grad[0, -1].abs().max()) > 0:
            failed.append(f"{family} {attention}")
    return Measured(
        len(failed) + len(refused),
        not failed and not refused and closed == len(cases),
        baseline={"causal as loaded": f"{closed} of {len(cases)}"},
        details={"cases": len(cases), "failed": failed, "refused": refused},
    )


BAR = Bar(
    "embeddings.E2",
    "decoders become bidirectional: the first state follows the last token, padding changes nothing",
    "cases that fail",
    "0, and all causal as loaded",
    "cpu",
    0.5,
    measure,
)
