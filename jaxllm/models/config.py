"""The one description of a decoder-only transformer: causal or bidirectional, any supported family."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxllm.config import check
from jaxllm.models.lora import LoraConfig

Family = Literal["llada", "dream", "llama", "qwen2", "qwen3", "gpt_neox", "gemma2", "llada_moe", "mixtral", "qwen3_moe"]
DType = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "full", "dots"]
Router = Literal["softmax", "softmax_renormalized", "sigmoid"]
Attention = Literal["auto", "plain", "cudnn", "splash"]
Dispatch = Literal["auto", "dense", "blocks", "ragged"]
Norm = Literal["rms", "rms_plus_one", "layer"]
Mlp = Literal["swiglu", "geglu", "gelu", "gelu_tanh"]

MIXTURE_FAMILIES = ("llada_moe", "mixtral", "qwen3_moe")

# Settings of a run rather than of the weights: they may differ from a checkpoint's.
RUN_FIELDS = ("weight_dtype", "activation_dtype", "head_dtype", "remat", "attention", "dispatch", "balance_coef",
              "z_coef", "lora", "max_length", "rope_scaling")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """A stretch of the rotary wavelengths, for rows longer than those of pretraining.

    Attributes:
      factor: how far wavelengths are stretched.
      low_freq_factor, high_freq_factor: of `llama3`, Llama 3.1's. Wavelengths longer than `original_max_length` over
        the first grow by `factor`, those shorter than it over the second stay as they are; the stretch is blended in
        between.
      original_max_length: context of pretraining, in tokens, of `llama3` and `dynamic`.
      kind: `llama3`; `linear`, which stretches all alike; or `dynamic`, dynamic NTK, which changes the base. That would
        follow each row's length; here it is what rows of the model's `max_length` ask for.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int | None = None
    kind: Literal["llama3", "linear", "dynamic"] = "llama3"

    def __post_init__(self) -> None:
        check(self.factor >= 1, "rope_scaling.factor", self.factor, "must be at least 1")
        check(0 < self.low_freq_factor < self.high_freq_factor, "rope_scaling.low_freq_factor", self.low_freq_factor,
              f"must be positive and below high_freq_factor={self.high_freq_factor}")
        check(self.kind == "linear" or self.original_max_length is not None, "rope_scaling.original_max_length", None,
              f"kind={self.kind!r} needs it")
        check(self.original_max_length is None or self.original_max_length >= 1, "rope_scaling.original_max_length",
              self.original_max_length, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and switches of the transformer. Sizes are counts, lengths are tokens.

    Attributes:
      vocab_size: rows of the embedding, V.
      d_model: width of the residual stream, D.
      num_layers: blocks, L.
      num_heads: query heads, H.
      num_kv_heads: key and value heads, must divide `num_heads`.
      head_dim: width of one head, K.
      d_mlp: hidden width of the MLP, F; a mixture of experts has none of that width and only states it in checkpoints.
      max_length: longest sequence the position encoding is meant for.
      rope_theta: base of the rotary wavelengths.
      rope_scaling: stretch of them, None for plain RoPE.
      rotary_fraction: share of a head's width that is rotated, the first part of it (GPT-NeoX's `rotary_pct`).
      rms_norm_eps: added to the mean square, or to the variance by `layer` norms.
      norm: `rms`; `rms_plus_one`, whose scale is one plus its parameter, applied in float32 (Gemma); or `layer`,
        LayerNorm with a bias (GPT-NeoX).
      mlp: `swiglu`, `geglu` (gated by the tanh form of GELU), or ungated: `gelu`, which is exact, and `gelu_tanh`.
      post_norms: a norm behind attention and one behind the MLP too, before they are added (Gemma-2).
      parallel_residual: attention and MLP read the same input and are added at once (GPT-NeoX).
      causal: mask keys to the right of the query; False for masked-diffusion models.
      qkv_bias: biases on q, k, v (Qwen2, Dream, GPT-NeoX).
      o_bias, mlp_bias: biases on attention's output and on the MLP's matrices (GPT-NeoX).
      qk_norm: a norm per head on q and k before RoPE (Qwen3, LLaDA-MoE).
      query_pre_attn_scalar: scores are divided by its square root, None for that of `head_dim`.
      attention_cap: scores x of attention become c tanh(x / c), 0 to leave them (Gemma-2: 50).
      logit_cap: the same for a language model's logits (Gemma-2: 30).
      window: keys that a query sees in layers with a sliding window, itself and those before it; in a bidirectional
        model so many on either side of it. 0 for no such layers.
      window_layers: which layers have it, a pattern that is repeated over the depth (Gemma-2: every other one, from the
        first on); empty for all.
      scale_embeddings: embeddings are multiplied by the square root of D, rounded to the activation dtype (Gemma).
      tie_embeddings: the head is the transposed embedding.
      score_head: the head is one column `[D, 1]`, zero at first and never tied: a reward model.
      shift_logits: row i - 1 predicts token i also in a bidirectional model (Dream).
      weight_dtype: dtype in which parameters are held.
      activation_dtype: dtype of matmuls and the residual stream; logits are always float32.
      head_dtype: dtype in which the head's two operands are multiplied, summed in float32 whatever it is. float32 is
        what policies need whose log-probabilities are compared; half precision is several times as fast.
      remat: which activations the backward pass recomputes.
      num_experts: experts of each layer, E; 0 for a dense model.
      experts_per_token: experts that each token goes through, k.
      d_expert: hidden width of one expert.
      d_shared_expert: hidden width of an expert that every token goes through beside its k, 0 for none.
      router: `softmax` weighs the k experts' outputs by probabilities over all E (LLaDA-MoE), `softmax_renormalized`
        by those over the k (Mixtral, Qwen3-MoE), `sigmoid` one expert's input by its logit's sigmoid (Llama 4).
      balance_coef: weight of the load-balance loss, which is 1 for an even load whatever k is, in the training loss.
      z_coef: weight of the router's z loss.
      attention: how whole rows attend; `auto` is cuDNN's kernel on GPUs in half precision, splash on TPUs, and the
        plain form elsewhere.
      lora: low-rank adapters beside the blocks' kernels, None for none; counts of parameters leave them out.
      dispatch: how rows reach their experts; `auto` is `ragged` on TPUs and `blocks` elsewhere.
      family: whose Hugging Face names the checkpoint uses.
      mask_id, eos_id, pad_id, bos_id: special token ids, None where the family has none.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_mlp: int
    max_length: int = 4096
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_fraction: float = 1.0
    rms_norm_eps: float = 1e-5
    norm: Norm = "rms"
    mlp: Mlp = "swiglu"
    post_norms: bool = False
    parallel_residual: bool = False
    causal: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    query_pre_attn_scalar: int | None = None
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    window: int = 0
    window_layers: tuple[bool, ...] = ()
    scale_embeddings: bool = False
    tie_embeddings: bool = False
    score_head: bool = False
    shift_logits: bool = False
    weight_dtype: DType = "float32"
    activation_dtype: DType = "float32"
    head_dtype: DType = "float32"
    remat: Remat = "none"
    num_experts: int = 0
    experts_per_token: int = 0
    d_expert: int = 0
    d_shared_expert: int = 0
    router: Router = "softmax"
    balance_coef: float = 0.0
    z_coef: float = 0.0
    dispatch: Dispatch = "auto"
    attention: Attention = "auto"
    lora: LoraConfig | None = None
    family: Family = "llada"
    mask_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    bos_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_mlp",
                     "max_length"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.num_heads % self.num_kv_heads == 0, "num_kv_heads", self.num_kv_heads,
              f"must divide num_heads={self.num_heads}")
        check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "must be even for rotary positions")
        self._check_blocks()
        self._check_experts()
        check(not self.score_head or self.lora is None, "lora", self.lora, "adapters alone are trained, and a score "
              "head must be; leave lora out of a model with score_head")
        for name in ("mask_id", "eos_id", "pad_id", "bos_id"):
            value = getattr(self, name)
            check(value is None or 0 <= value < self.vocab_size, name, value,
                  f"must lie inside the vocabulary 0..{self.vocab_size - 1}")

    @property
    def head_width(self) -> int:
        """Columns of the head: the vocabulary, or 1."""
        return 1 if self.score_head else self.vocab_size

    @property
    def tied_head(self) -> bool:
        """Whether the head is the transposed embedding."""
        return self.tie_embeddings and not self.score_head

    @property
    def mask(self) -> int:
        """The mask token, for code that has checked that there is one."""
        assert self.mask_id is not None
        return self.mask_id

    @property
    def rotary_dim(self) -> int:
        """Width of the rotated part of a head."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP has a gate beside its two other matrices."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def windowed(self) -> tuple[bool, ...]:
        """For each layer whether it has a sliding window."""
        if not self.window:
            return (False,) * self.num_layers
        pattern = self.window_layers or (True,)
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

    def keys_met(self, length: int) -> int:
        """Keys within reach of one query in a row of `length`, summed over layers; order and segments left out."""
        reach = min(length, self.window if self.causal else 2 * self.window + 1)
        return sum(reach if own else length for own in self.windowed)

    def _check_blocks(self) -> None:
        check(0 < self.rotary_fraction <= 1 and self.rotary_dim >= 2 and self.rotary_dim % 2 == 0, "rotary_fraction",
              self.rotary_fraction, f"must give an even width of 2..head_dim={self.head_dim}, not {self.rotary_dim}")
        check(self.query_pre_attn_scalar is None or self.query_pre_attn_scalar >= 1, "query_pre_attn_scalar",
              self.query_pre_attn_scalar, "must be at least 1; leave it out for head_dim")
        for name in ("attention_cap", "logit_cap", "window"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative; 0 for none")
        check(not self.window_layers or (self.window > 0 and any(self.window_layers)), "window_layers",
              self.window_layers, "needs a window and a layer that has it")
        for name in () if self.lora is None or self.gated_mlp else self.lora.targets:
            check(name != "gate", "lora.targets", name, f"an MLP of {self.mlp!r} has no gate; leave it out")

    def _check_experts(self) -> None:
        for name in () if self.lora is None else self.lora.targets:
            check(self.num_experts == 0 or name in ("q", "k", "v", "o"), "lora.targets", name,
                  "a mixture of experts takes adapters on q, k, v and o only")
        if self.num_experts == 0:
            for name in ("experts_per_token", "d_expert", "d_shared_expert", "balance_coef", "z_coef"):
                check(getattr(self, name) == 0, name, getattr(self, name), "needs num_experts; a dense model has none")
            check(self.family not in MIXTURE_FAMILIES, "family", self.family,
                  "needs num_experts; its models are mixtures")
            return
        check(self.num_experts >= 1, "num_experts", self.num_experts, "must not be negative; 0 for a dense model")
        check(self.mlp == "swiglu" and not self.mlp_bias, "mlp", self.mlp, "experts are swiglu without mlp_bias")
        check(1 <= self.experts_per_token <= self.num_experts, "experts_per_token", self.experts_per_token,
              f"must lie in 1..num_experts={self.num_experts}")
        check(self.router != "sigmoid" or self.experts_per_token == 1, "experts_per_token", self.experts_per_token,
              "must be 1 with router='sigmoid', which weighs one expert's input")
        check(self.d_expert >= 1, "d_expert", self.d_expert, "must be at least 1")
        for name in ("d_shared_expert", "balance_coef", "z_coef"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")

    @property
    def num_parameters(self) -> int:
        """Count of scalar parameters."""
        return self._count(self.num_experts)

    @property
    def active_parameters(self) -> int:
        """Count of the parameters that one token meets; all of them in a dense model."""
        return self._count(self.experts_per_token)

    @property
    def layer_weights_per_token(self) -> int:
        """Matrix entries that one token is multiplied by in one layer."""
        return self._attention() + self._mlp(self.experts_per_token)

    def _attention(self) -> int:
        return self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)

    def _mlp(self, experts: int) -> int:
        if self.num_experts == 0:
            return (2 + self.gated_mlp) * self.d_model * self.d_mlp
        return self.d_model * (self.num_experts + 3 * (experts * self.d_expert + self.d_shared_expert))

    def _biases(self) -> int:
        d, f = self.d_model, self.d_mlp
        qkv = self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        return self.qkv_bias * qkv + self.o_bias * d + self.mlp_bias * ((1 + self.gated_mlp) * f + d)

    def _count(self, experts: int) -> int:
        d, k = self.d_model, self.head_dim
        each = 2 if self.norm == "layer" else 1  # parameters a norm has for one of its dims
        norms = each * ((4 if self.post_norms else 2) * d + (2 * k if self.qk_norm else 0))
        layer = self._attention() + self._biases() + norms + self._mlp(experts)
        head = 0 if self.tied_head else self.head_width * d
        return self.num_layers * layer + self.vocab_size * d + head + each * d


def with_lora(config: ModelConfig, lora: LoraConfig | None) -> ModelConfig:
    """The same model with other adapters, or without."""
    return dataclasses.replace(config, lora=lora)


def with_score_head(config: ModelConfig) -> ModelConfig:
    """The same transformer with a score head, and without a `pad_id` that is its `eos_id`.

    `transformers` reads a score at the last token that is not `pad_token_id`; with the two alike it would miss the EOS
    at which scores are read here, and say nothing.
    """
    pad = None if config.pad_id == config.eos_id else config.pad_id
    return dataclasses.replace(config, score_head=True, pad_id=pad)
