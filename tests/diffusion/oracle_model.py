"""Plain numpy masked-diffusion transformers, the model half of the decoding oracle.

Written for reading: one sequence, one head at a time, nothing from jaxllm. LLaDA (MHA or GQA, no biases) and
Dream / Qwen2 (GQA, biases on q, k and v, predictions shifted by one) with full bidirectional attention, or with a
sliding window in some layers.
Sizes: N tokens, R computed rows, V vocabulary, D width, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# our part name -> Hugging Face name of layer {i}
LLADA_LAYER = {
    "attn_norm": "model.transformer.blocks.{i}.attn_norm.weight",
    "q": "model.transformer.blocks.{i}.q_proj.weight",
    "k": "model.transformer.blocks.{i}.k_proj.weight",
    "v": "model.transformer.blocks.{i}.v_proj.weight",
    "o": "model.transformer.blocks.{i}.attn_out.weight",
    "mlp_norm": "model.transformer.blocks.{i}.ff_norm.weight",
    "gate": "model.transformer.blocks.{i}.ff_proj.weight",
    "up": "model.transformer.blocks.{i}.up_proj.weight",
    "down": "model.transformer.blocks.{i}.ff_out.weight",
}
LLADA_TOP = {
    "embed": "model.transformer.wte.weight",
    "final_norm": "model.transformer.ln_f.weight",
    "head": "model.transformer.ff_out.weight",
}
DREAM_LAYER = {
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "v_bias": "model.layers.{i}.self_attn.v_proj.bias",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
}
DREAM_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}


@dataclasses.dataclass(frozen=True)
class Model:
    """One transformer: `layers[l]` and `top` hold matrices [out, in] and vectors under the part names above."""

    layers: list[dict[str, np.ndarray]]
    top: dict[str, np.ndarray]
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    mask_id: int
    shift_logits: bool  # row i - 1 predicts token i
    windows: tuple[int, ...] = ()  # keys seen on either side, layer by layer, 0 for all

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64, of every intermediate."""
        return self.top["embed"].dtype


def load(tensors: dict[str, np.ndarray], config: dict, dtype: type = np.float64) -> Model:
    """Model from Hugging Face tensors and the contents of config.json, all computed in `dtype`."""
    dream = DREAM_TOP["embed"] in tensors
    layer_names, top_names = (DREAM_LAYER, DREAM_TOP) if dream else (LLADA_LAYER, LLADA_TOP)
    count = config["num_hidden_layers"] if dream else config["n_layers"]
    heads = config["num_attention_heads"] if dream else config["n_heads"]
    width = config["hidden_size"] if dream else config["d_model"]
    layers = [{part: tensors[name.format(i=i)].astype(dtype) for part, name in layer_names.items()}
              for i in range(count)]
    return Model(
        layers=layers,
        top={part: tensors[name].astype(dtype) for part, name in top_names.items()},
        heads=heads,
        kv_heads=config["num_key_value_heads"] if dream else config["n_kv_heads"],
        head_dim=width // heads,
        rope_theta=config["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
        mask_id=config["mask_token_id"],
        shift_logits=dream,
    )


def rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    """Rows [R, D] divided by their root mean square, times `scale` [D]."""
    mean_square = (x * x).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * scale


def rotate(x: np.ndarray, positions: list[int], theta: float) -> np.ndarray:
    """Rotary positions on [R, heads, K]: coordinate c turns with c + K/2 by position * theta^(-2c/K)."""
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (np.arange(half, dtype=x.dtype) / half)
    out = np.empty_like(x)
    for row, position in enumerate(positions):
        angle = (position * frequency).astype(x.dtype)
        a, b = x[row, :, :half], x[row, :, half:]
        out[row, :, :half] = a * np.cos(angle) - b * np.sin(angle)
        out[row, :, half:] = b * np.cos(angle) + a * np.sin(angle)
    return out


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def project(model: Model, layer: int, x: np.ndarray, positions: list[int]) -> tuple[np.ndarray, ...]:
    """Hidden rows x [R, D] at `positions` to rotated q [R, H, K], rotated k [R, G, K] and v [R, G, K]."""
    w = model.layers[layer]
    normed = rms_norm(x, w["attn_norm"], model.rms_norm_eps)
    q, k, v = normed @ w["q"].T, normed @ w["k"].T, normed @ w["v"].T
    if "q_bias" in w:
        q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
    rows = len(positions)
    q = q.reshape(rows, model.heads, model.head_dim)
    k = k.reshape(rows, model.kv_heads, model.head_dim)
    v = v.reshape(rows, model.kv_heads, model.head_dim)
    return rotate(q, positions, model.rope_theta), rotate(k, positions, model.rope_theta), v


def attention_weights(model: Model, layer: int, q: np.ndarray, rows: list[int], k: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(K)) as [H, R, N] from q [R, H, K] at positions `rows` and k [N, G, K]."""
    group = model.heads // model.kv_heads
    scale = q.dtype.type(np.sqrt(model.head_dim))
    window = model.windows[layer] if model.windows else 0
    far = np.abs(np.array(rows, int)[:, None] - np.arange(len(k))) > (window or len(k))
    return np.stack([softmax(np.where(far, -np.inf, q[:, h] @ k[:, h // group].T / scale)) for h in range(model.heads)])


def mix(model: Model, weights: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention output [R, H * K] from weights [H, R, N] and v [N, G, K]."""
    group = model.heads // model.kv_heads
    return np.concatenate([weights[h] @ v[:, h // group] for h in range(model.heads)], axis=-1)


def finish(model: Model, layer: int, x: np.ndarray, mixed: np.ndarray) -> np.ndarray:
    """Rest of the block: output projection, residual, SwiGLU, residual. Rows [R, D] to rows [R, D]."""
    w = model.layers[layer]
    x = x + mixed @ w["o"].T
    normed = rms_norm(x, w["mlp_norm"], model.rms_norm_eps)
    gate = normed @ w["gate"].T
    return x + (gate / (1 + np.exp(-gate)) * (normed @ w["up"].T)) @ w["down"].T


def embed(model: Model, tokens: list[int]) -> np.ndarray:
    """Embeddings [R, D]."""
    return model.top["embed"][tokens]


def head(model: Model, x: np.ndarray) -> np.ndarray:
    """Logits [R, V] of hidden rows [R, D], unshifted: row i belongs to input position i."""
    return rms_norm(x, model.top["final_norm"], model.rms_norm_eps) @ model.top["head"].T


def forward(model: Model, tokens: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every row of every layer: logits [N, V] (unshifted), keys and values [L, N, G, K]."""
    positions = list(range(len(tokens)))
    x, keys, values = embed(model, tokens), [], []
    for layer in range(len(model.layers)):
        q, k, v = project(model, layer, x, positions)
        x = finish(model, layer, x, mix(model, attention_weights(model, layer, q, positions, k), v))
        keys.append(k)
        values.append(v)
    return head(model, x), np.stack(keys), np.stack(values)


def random_model(family: str, seed: int, *, vocab: int = 64, width: int = 32, layers: int = 3, heads: int = 4,
                 kv_heads: int | None = None, mlp: int = 48, sharpness: float = 2.0) -> tuple[dict, dict]:
    """Random float32 tensors under Hugging Face names and their config.json, for tests.

    The mask is the last id, EOS the one before. `kv_heads` defaults to `heads` for "llada" and half of them for
    "dream". `sharpness` is about the standard deviation of the logits: larger means more confident predictions.
    """
    rng = np.random.default_rng(seed)
    dream = family == "dream"
    if family not in ("llada", "dream"):
        raise ValueError(f"family={family!r}: use 'llada' or 'dream'")
    kv_heads = kv_heads or (heads // 2 if dream else heads)
    key_width = width // heads * kv_heads
    shapes = {"attn_norm": (width,), "q": (width, width), "k": (key_width, width), "v": (key_width, width),
              "q_bias": (width,), "k_bias": (key_width,), "v_bias": (key_width,),
              "o": (width, width), "mlp_norm": (width,), "gate": (mlp, width), "up": (mlp, width),
              "down": (width, mlp), "embed": (vocab, width), "final_norm": (width,), "head": (vocab, width)}
    gains = {"q": 1.5, "k": 1.5, "head": sharpness}

    def draw(part: str) -> np.ndarray:
        noise = rng.standard_normal(shapes[part])
        if part.endswith("norm"):
            value = 1 + 0.1 * noise
        elif part.endswith("bias"):
            value = 0.3 * noise
        elif part == "embed":
            value = noise
        else:
            value = gains.get(part, 1.0) * noise / np.sqrt(shapes[part][1])
        return value.astype(np.float32)

    layer_names, top_names = (DREAM_LAYER, DREAM_TOP) if dream else (LLADA_LAYER, LLADA_TOP)
    tensors = {name: draw(part) for part, name in top_names.items()}
    for i in range(layers):
        tensors.update({name.format(i=i): draw(part) for part, name in layer_names.items()})
    special = {"mask_token_id": vocab - 1, "eos_token_id": vocab - 2, "pad_token_id": vocab - 2}
    if dream:
        config = {"model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": width,
                  "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                  "intermediate_size": mlp, "vocab_size": vocab, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
                  "max_position_embeddings": 256, "tie_word_embeddings": False, "hidden_act": "silu", **special}
    else:
        config = {"model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": width, "n_layers": layers,
                  "n_heads": heads, "n_kv_heads": kv_heads, "mlp_hidden_size": mlp, "vocab_size": vocab,
                  "embedding_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_sequence_length": 256,
                  "weight_tying": False, "activation_type": "silu", "block_type": "llama",
                  "layer_norm_type": "rms", "rope": True, "include_bias": False, "include_qkv_bias": False,
                  **special}
    return tensors, config
