"""How much device memory training and answering take, from the model's shape. No torch.

All figures are bytes on one device. The terms that can be counted exactly (weights, what a layer saves for its
backward pass) are; the rest is rounded up, and each term says where it comes from. What the allocator loses to
fragmentation is not in them: compare a total with a share of the device's memory (SAFE_SHARE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from trainer.shape import Shape, adapted_modules, adapter_parameters

Attention = Literal["flash", "sdpa", "eager"]

SAFE_SHARE = 0.9  # of a device's memory; the rest is for fragmentation and what others allocate on it
# nf4: half a byte for each weight, and of the doubly quantised constants 8/64 + 32/(64 x 256) = 0.127 bits
# (Dettmers et al. 2023, QLoRA, section 3).
NF4_BYTES = 0.5 + 0.127 / 8
# CUDA's context with the kernels of torch and cuBLAS' workspaces: 0.5 to 0.7 GB on the cards of the last years.
CUDA_CONTEXT = 600_000_000
# A process without a GPU: 490 MB were resident after the imports of torch 2.13, transformers, TRL and PEFT; the rest
# is what the C library's allocator held back over a stage of the embedded base.
PROCESS = 700_000_000
# TRL's fused head projects tiles of at most so many tokens and words (trl.kernels.chunked_logprob.TOKEN_CHUNK_SIZE
# and trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE of 1.16), so the logits never stand there whole.
TILE_TOKENS, TILE_WORDS = 4096, 32768
DENSE_SCORES = 1 << 24  # trainer.packing: up to so many logits they are computed at once instead
READ_TOKENS = 4096  # trainer.decoder: of prompts that are read at once


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for."""

    weights: int = 0
    adapter: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    gathered: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, item.name) for item in fields(self))


def weight_bytes(shape: Shape, *, quantised: bool, dtype_bytes: int) -> int:
    """The base's weights; embeddings, head and norms are never quantised."""
    linear = shape.linear_parameters * (NF4_BYTES if quantised else dtype_bytes)
    return round(linear) + (shape.embedding_parameters + shape.other_parameters) * dtype_bytes


def share_bytes(shape: Shape, shards: int, *, quantised: bool, dtype_bytes: int) -> int:
    """What one of `shards` processes holds of the base's weights; FSDP2 divides every one of them."""
    return -(-weight_bytes(shape, quantised=quantised, dtype_bytes=dtype_bytes) // shards)


def gathered_bytes(shape: Shape, shards: int, *, dtype_bytes: int) -> int:
    """Whole weights that stand on a device beside its share, at their peak; none where the base is not in shares.

    What is not a decoder layer (embeddings, head, last norm: R) is gathered first and kept for the whole pass, a
    layer (L) for as long as it computes. FSDP2 receives into a buffer and copies that into the weights. So R stands
    there twice, its buffer until the first layer has one (2 R + L); on the way back the layer in use is followed by
    the next one's buffer and its copy, and the buffer of the one before may still be held (R + 4 L). The larger of
    both counts. Torch's allocator (CPU, tiny Qwen3 models) had 2 R + L, and R + 3 L or R + 4 L.
    """
    if shards < 2:
        return 0
    root = (shape.embedding_parameters + shape.hidden) * dtype_bytes
    layers = shape.linear_parameters + shape.other_parameters - shape.hidden
    layer = -(-layers // shape.layers) * dtype_bytes
    return root + max(root + layer, 4 * layer)


def adapter_dtype_bytes(*, quantised: bool, dtype_bytes: int) -> int:
    """The adapter's precision: PEFT keeps it in float32, TRL turns that of a quantised base to bfloat16."""
    return 2 if quantised and dtype_bytes == 2 else 4


def layer_bytes_per_token(
    shape: Shape, *, rank: int, targets: str | Sequence[str], quantised: bool, dtype_bytes: int, dropout: bool = True,
    attention: Attention = "sdpa", on_gpu: bool = True,
) -> int:  # fmt: skip
    """Bytes that one decoder layer saves for its backward pass for each token, without what is quadratic.

    Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models, section 4) count 34 h
    bytes for a GPT layer that trains its weights. Here the base is frozen, so that its linear layers save nothing,
    and each adapted one saves its input. With width h, query width q, key width k, feed-forward width f, rank r, b
    bytes of the computation and inputs n of an adapted module, it is

        RMS norms     2 (4 h + 4), and with Qwen3's head norms 4 (q + k) + 4 (heads + key heads): all in float32
        attention     b (q + 2 k) or, with repeated keys and values, 3 b q; its output b q; 4 heads for the softmax
        SwiGLU        3 b f: gate, its activation, up
        adapters      b r each, and their inputs: b h for q, k, v together, b h for gate and up, b f for down; o's is
                      the attention's output. With dropout or a float32 adapter under autocast each has a copy (b n),
                      with dropout a mask as well (1 byte on a GPU, the adapter's precision on a CPU)

    Compared with what torch saves (CPU, tiny Qwen3 models) it is exact.
    """
    b, q, k = dtype_bytes, shape.query_width, shape.key_width
    adapter = adapter_dtype_bytes(quantised=quantised, dtype_bytes=b)
    saved = 2 * (4 * shape.hidden + 4)
    if shape.head_norms:
        saved += 4 * (q + k) + 4 * (shape.heads + shape.key_value_heads)
    saved += b * (q + 2 * k if attention == "flash" else 3 * q) + b * q + 4 * shape.heads
    saved += 3 * b * shape.intermediate
    modules = adapted_modules(shape, targets)
    saved += len(modules) * b * rank
    inputs = sum(n for n, _ in modules.values())
    if dropout:
        saved += inputs * (b + (1 if on_gpu else adapter))
    elif adapter != b:
        saved += inputs * b
    else:
        shared = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",))
        saved += sum(b * modules[found[0]][0] for group in shared if (found := [n for n in group if n in modules]))
    return saved


def attention_bytes(shape: Shape, tokens: int, longest: int, *, dtype_bytes: int, attention: Attention) -> int:
    """What is quadratic in one layer: sdpa saves the mask of a pass of several rows, eager every head's weights.

    A pass of rows one after another has a mask of tokens x tokens, one of padded rows rows x longest x longest; the
    larger one is counted. Flash attention needs none (Dao et al. 2022).
    """
    if attention == "flash":
        return 0
    pairs = tokens * max(tokens, longest)
    if attention == "sdpa":
        return pairs * dtype_bytes
    return shape.heads * pairs * (4 + 2 * dtype_bytes)  # float32 softmax, its copy, dropout's


def training_memory(
    shape: Shape, *, rank: int, targets: str | Sequence[str], quantised: bool, dtype_bytes: int, tokens_per_pass: int,
    longest: int, checkpointing: bool, trained_share: float, dropout: bool = True, attention: Attention = "sdpa",
    on_gpu: bool = True, shards: int = 1,
) -> Memory:  # fmt: skip
    """The peak of one forward and backward pass of `tokens_per_pass` tokens (at least the longest row).

    `shards`: the processes that share the base, 1 where each holds all of it.

    With checkpointing a layer saves its input only, and one layer at a time all that it needs. `trained_share` of
    the tokens carry loss; on a GPU only these go through the head.
    """
    tokens = max(tokens_per_pass, longest)
    b, count = dtype_bytes, adapter_parameters(shape, rank, targets)
    adapter = adapter_dtype_bytes(quantised=quantised, dtype_bytes=b)
    per_token = layer_bytes_per_token(
        shape, rank=rank, targets=targets, quantised=quantised, dtype_bytes=b, dropout=dropout, attention=attention,
        on_gpu=on_gpu,
    )  # fmt: skip
    layer = tokens * per_token + attention_bytes(shape, tokens, longest, dtype_bytes=b, attention=attention)
    # On the way back through a layer: gradients of the feed-forward's three tensors and a float32 copy of one.
    passing = tokens * shape.intermediate * (3 * b + 4)
    autocast_copies = count * b if adapter != b else 0
    logits = head_bytes(shape, tokens, trained_share, dtype_bytes=b, on_gpu=on_gpu)
    if checkpointing:  # the head is done with before a layer is recomputed: only the larger of both counts
        saved = shape.layers * tokens * shape.hidden * b + max(0, layer + passing - logits)
    else:
        saved = shape.layers * layer + passing
    return Memory(
        weights=share_bytes(shape, shards, quantised=quantised, dtype_bytes=b),
        gathered=gathered_bytes(shape, shards, dtype_bytes=b),
        adapter=count * adapter,
        gradients=count * adapter,
        optimiser=2 * count * adapter,  # both moments of AdamW, in the adapter's precision
        activations=saved + autocast_copies,
        logits=logits,
        overhead=overhead_bytes(shape, quantised=quantised, dtype_bytes=b, on_gpu=on_gpu),
    )


def head_bytes(shape: Shape, tokens: int, trained_share: float, *, dtype_bytes: int, on_gpu: bool) -> int:
    """TRL's fused head: one tile of logits, and the hidden states with their gradient, which it sums in float32.

    Few logits are computed whole (trainer.packing.loss), of the trained tokens only.
    """
    trained = max(1, round(tokens * min(1.0, trained_share)))
    if trained * shape.vocabulary <= DENSE_SCORES:  # logits, their float32 copy, its softmax and the gradient
        return trained * (shape.vocabulary * (dtype_bytes + 12) + shape.hidden * 2 * dtype_bytes)
    rows = trained if on_gpu else tokens
    tile = min(rows, TILE_TOKENS) * (TILE_WORDS if on_gpu else min(TILE_WORDS, shape.vocabulary))
    # Without Triton torch folds the tile: at its peak seven float32 copies of it and a mask were counted.
    return tile * (dtype_bytes if on_gpu else dtype_bytes + 29) + rows * shape.hidden * (4 + 2 * dtype_bytes)


def overhead_bytes(shape: Shape, *, quantised: bool, dtype_bytes: int, on_gpu: bool) -> int:
    """The context or the process, and the buffer in which a quantised weight is unpacked to be multiplied."""
    unpacked = shape.hidden * max(shape.intermediate, shape.query_width) * dtype_bytes if quantised else 0
    return (CUDA_CONTEXT if on_gpu else PROCESS) + unpacked


def cache_bytes(shape: Shape, batch: int, tokens: int, *, dtype_bytes: int) -> int:
    """The KV cache of `batch` rows of `tokens` each: a key and a value in every layer.

    transformers' DynamicCache appends by copying a layer, so one layer stands there twice.
    """
    return 2 * (shape.layers + 1) * shape.key_width * batch * tokens * dtype_bytes


def answering_memory(
    shape: Shape, *, quantised: bool, dtype_bytes: int, batch: int, tokens: int, prompt: int | None = None,
    merged_copy: bool = False, on_gpu: bool = True, shards: int = 1,
) -> Memory:  # fmt: skip
    """The peak of answering `batch` rows at a time whose prompt and answer have at most `tokens` together.

    Reading the prompts, of at most `prompt` tokens (None: `tokens`), needs one layer's tensors for all of them; the
    logits are those of each row's last token, with a float32 copy. `merged_copy`: the adapter is merged into a
    second, unquantised set of the linear weights. `shards` as in `training_memory`.
    """
    b, prompt = dtype_bytes, tokens if prompt is None else prompt
    reading = min(batch, max(1, READ_TOKENS // max(1, prompt)))  # rows whose prompts are read at once
    widest = max(3 * shape.intermediate, 4 * shape.query_width) * b + 3 * shape.hidden * 4
    copy = shape.linear_parameters * b if merged_copy else 0
    return Memory(
        weights=share_bytes(shape, shards, quantised=quantised, dtype_bytes=b) + copy,
        gathered=gathered_bytes(shape, shards, dtype_bytes=b),
        activations=reading * prompt * (widest + prompt * b),  # with the mask of padded prompts
        logits=batch * shape.vocabulary * (b + 4),
        cache=cache_bytes(shape, batch, tokens, dtype_bytes=b),
        overhead=overhead_bytes(shape, quantised=quantised, dtype_bytes=b, on_gpu=on_gpu),
    )
