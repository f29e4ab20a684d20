"""Layouts: what shares a pass, that no row reaches another one, and that all layouts give the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from trainer import encoding, loop, model, packing
from trainer.encoding import IGNORED
from trainer.feed import Item
from trainer.packing import ATTENTION, PADDED, PADDING_FREE

CPU = torch.device("cpu")
TALK = [
    {"role": "user", "content": "导体内部？"},
    {"role": "assistant", "content": "电场为零"},
    {"role": "user", "content": "表面的电荷怎样分布？"},
    {"role": "assistant", "content": "有电荷，密度随曲率变化"},
]


def test_rows_fill_passes_up_and_none_is_split() -> None:
    lengths = [1200, 800, 1200, 800, 100]
    assert packing.plan(lengths, 2000, PADDING_FREE) == [[0, 1], [2, 3], [4]]
    assert packing.plan(lengths, 2100, PADDING_FREE) == [[0, 1, 4], [2, 3]]
    assert packing.plan(lengths, 10_000, PADDING_FREE) == [[0, 2, 1, 3, 4]]


def test_padded_rows_are_grouped_by_like_length() -> None:
    lengths = [100, 20, 90, 25, 95]
    assert packing.plan(lengths, 300, PADDED) == [[0, 4, 2], [3, 1]]
    assert packing.plan(lengths, 299, PADDED) == [[0, 4], [2, 3, 1]], "what is padded counts"


@pytest.mark.parametrize("layout", [PADDING_FREE, PADDED])
@pytest.mark.parametrize("most", [1, 50, 130, 1000])
def test_a_pass_is_within_its_limit_or_one_row_alone(layout: str, most: int) -> None:
    lengths = [7, 130, 60, 61, 3, 3, 59, 128]
    groups = packing.plan(lengths, most, layout)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        rows = [lengths[place] for place in group]
        tokens = len(rows) * max(rows) if layout == PADDED else sum(rows)
        assert tokens <= most or len(rows) == 1
    assert packing.plan([], most, layout) == []


@pytest.fixture(scope="module")
def base(tiny_base: Path, tiny_parameters: Any) -> model.Base:
    return model.load_base(str(tiny_base), tiny_parameters())


@pytest.fixture(scope="module")
def adapted(base: model.Base, tiny_parameters: Any) -> Iterator[Any]:
    """An adapter that does something from the beginning, on a base with TRL's head."""
    found = model.attach_adapter(base, tiny_parameters())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    with loop._fused_head(base.model):
        yield found
    model.detach_adapter(found, base)


@pytest.fixture(scope="module")
def items(base: model.Base, tiny_rows: Any) -> list[Item]:
    """Rows of different lengths, the last two being turns of one talk, in which the earlier answer is masked."""
    rows = [*tiny_rows, {"id": "talk", "messages": TALK}]
    found, _ = encoding.encode(list(enumerate(rows, 1)), base.tokenizer, "x", enable_thinking=False, max_length=512)
    assert len(found) == 5
    return [Item(f"{e.row_id}/{e.turn}", torch.tensor(e.input_ids), torch.tensor(e.labels)) for e in found]


Way = Callable[[Any, list[Item]], torch.Tensor]


def without_padding(adapted: Any, items: list[Item]) -> torch.Tensor:
    """The scores of a pass as it is trained."""
    with packing.attending(adapted.get_base_model(), PADDING_FREE):
        given = packing.inputs(packing.lay_out(items, PADDING_FREE), ATTENTION, CPU)
        scores: torch.Tensor = adapted(**given).logits[0]
    return scores


def leaky(adapted: Any, items: list[Item]) -> torch.Tensor:
    """The same rows one after another under plain causal attention, as packing without care does it."""
    ids = packing.lay_out(items, PADDING_FREE).input_ids
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    scores: torch.Tensor = adapted(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
    return scores


def losses(scores: torch.Tensor, items: list[Item]) -> list[torch.Tensor]:
    """The loss of each row on its own, from the scores of all of them."""
    parts = scores.split([len(item) for item in items])
    return [
        torch.nn.functional.cross_entropy(part[:-1], item.labels[1:], ignore_index=IGNORED, reduction="sum")
        for part, item in zip(parts, items, strict=True)
    ]


def gradients(adapted: Any) -> list[torch.Tensor]:
    found = [weight.grad.clone() for weight in adapted.parameters() if weight.requires_grad]
    adapted.zero_grad()
    return found


def turned(item: Item) -> Item:
    """Another row of the same length."""
    return Item(item.row_id, item.input_ids.flip(0), item.labels)


@pytest.mark.parametrize(("way", "isolated"), [(without_padding, True), (leaky, False)])
def test_changing_a_row_changes_no_other_one(adapted: Any, items: list[Item], way: Way, isolated: bool) -> None:
    for changed in range(len(items) - 1):  # the last one lies before no other
        after = [turned(item) if n == changed else item for n, item in enumerate(items)]
        outcomes = []
        for rows in (items, after):
            scores = way(adapted, rows)
            parts = scores.detach().split([len(item) for item in rows])
            others = [n for n in range(len(items)) if n != changed]
            by_row = losses(scores, rows)
            torch.stack([by_row[n] for n in others]).sum().backward()  # type: ignore[no-untyped-call]
            outcomes.append(([parts[n] for n in others], [by_row[n].detach() for n in others], gradients(adapted)))
        (scores_of, losses_of, grads), (scores_after, losses_after, grads_after) = outcomes
        same = [torch.equal(a, b) for a, b in zip(scores_of + losses_of, scores_after + losses_after, strict=True)]
        if isolated:
            assert all(same), "bit by bit"
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads, grads_after, strict=True))
        else:
            assert not all(same)
            assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads, grads_after, strict=True))


@pytest.mark.parametrize(("way", "isolated"), [(without_padding, True), (leaky, False)])
def test_a_row_among_others_is_the_row_alone(adapted: Any, items: list[Item], way: Way, isolated: bool) -> None:
    with torch.no_grad():
        together = way(adapted, items).split([len(item) for item in items])
        alone = [adapted(input_ids=item.input_ids[None], use_cache=False).logits[0] for item in items]
    close = [torch.allclose(a, b, atol=1e-5) for a, b in zip(together, alone, strict=True)]
    assert close[0] and (all(close) if isolated else not any(close[1:]))


def by_trl(adapted: Any, base: model.Base, items: list[Item], folder: Path) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of the rows as one batch of TRL's own trainer, collator and loss."""
    rows = {
        "input_ids": [item.input_ids.tolist() for item in items], "labels": [item.labels.tolist() for item in items]
    }  # fmt: skip
    forward = vars(base.model).get("forward")
    trainer = SFTTrainer(
        model=adapted, train_dataset=Dataset.from_dict(rows), processing_class=base.tokenizer,
        args=SFTConfig(
            output_dir=str(folder), per_device_train_batch_size=len(items), max_length=None, report_to="none",
            use_cpu=True, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False,
        ),
    )  # fmt: skip
    batch = trainer.data_collator([{name: column[n] for name, column in rows.items()} for n in range(len(items))])
    found = trainer.compute_loss(adapted, batch)
    found.backward()
    base.model.forward = forward
    return float(found), gradients(adapted)


def test_every_layout_gives_the_gradients_of_trl(
    adapted: Any, base: model.Base, items: list[Item], tmp_path: Path
) -> None:
    trained = sum(int((item.labels != IGNORED).sum()) for item in items)
    loss, wanted = by_trl(adapted, base, items, tmp_path)
    assert any(bool(gradient.any()) for gradient in wanted)
    for layout, sharing in ((PADDING_FREE, False), (PADDED, False), (PADDING_FREE, True)):
        for most in (10_000, 80, 1):  # all at once, some passes, one by one
            total, computed = 0.0, 0
            with packing.attending(base.model, layout):
                for one in packing.passes(items, most, layout, sharing):
                    computed += one.tokens
                    part = packing.loss(adapted, one, base.model.config._attn_implementation, CPU) / trained
                    part.backward()  # type: ignore[no-untyped-call]
                    total += float(part.detach())
            assert (computed < sum(map(len, items))) == (sharing and most == 10_000), "each in a pass of its own"
            assert total == pytest.approx(loss, abs=1e-5)
            for name, a, b in zip(names(adapted), gradients(adapted), wanted, strict=True):
                assert torch.allclose(a, b, atol=1e-6, rtol=1e-4), f"{layout} {sharing} {most} {name}"


def names(adapted: Any) -> list[str]:
    return [name for name, weight in adapted.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("layout", [PADDING_FREE, PADDED])
def test_scores_in_tiles_are_scores_at_once(
    adapted: Any, base: model.Base, items: list[Item], monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    outcomes = []
    for most in (packing.DENSE_SCORES, 0):
        monkeypatch.setattr(packing, "DENSE_SCORES", most)
        with packing.attending(base.model, layout):
            one = packing.lay_out(items, layout)
            found = packing.loss(adapted, one, base.model.config._attn_implementation, CPU)
            found.backward()  # type: ignore[no-untyped-call]
        outcomes.append((found.detach(), gradients(adapted)))
    (dense, wanted), (tiled, found) = outcomes
    assert torch.allclose(dense, tiled, rtol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(found, wanted, strict=True))


def test_the_base_attends_as_before_afterwards(base: model.Base) -> None:
    before = base.model.config._attn_implementation
    with packing.attending(base.model, PADDING_FREE):
        assert base.model.config._attn_implementation == ATTENTION
    with pytest.raises(KeyError), packing.attending(base.model, PADDING_FREE):
        raise KeyError
    assert base.model.config._attn_implementation == before == "sdpa"


def test_flash_attention_is_told_where_rows_begin(items: list[Item]) -> None:
    lengths = [len(item) for item in items]
    given = packing.inputs(packing.lay_out(items, PADDING_FREE), packing.FLASH, CPU)
    assert given["cu_seq_lens_q"].tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert given["cu_seq_lens_q"].dtype == torch.int32 and given["max_length_k"] == max(lengths)
    assert "attention_mask" not in given and given["use_cache"] is False
    assert [n for n, place in enumerate(given["position_ids"][0].tolist()) if place == 0] == (
        given["cu_seq_lens_q"][:-1].tolist()
    )


def test_a_model_that_isolates_rows_is_taken(base: model.Base) -> None:
    assert packing.refusal(base.model) == ""


def test_a_model_whose_rows_see_each_other_is_refused(base: model.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def sees_all(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any) -> Any:
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return attended.transpose(1, 2), None

    monkeypatch.setitem(packing.AttentionInterface._global_mapping, ATTENTION, sees_all)
    assert packing.refusal(base.model) == "rows of Qwen3ForCausalLM see each other"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "Qwen3ForCausalLM has layers of sliding_attention"),
        ({"attn_logit_softcapping": 50.0}, "Qwen3ForCausalLM caps its attention scores"),
        ({"_attn_implementation_internal": "eager"}, "eager attention was asked for"),
    ],
)
def test_an_architecture_that_needs_more_is_refused(
    base: model.Base, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], reason: str
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(base.model.config, name, value, raising=False)
    assert packing.refusal(base.model) == reason


def test_a_model_with_an_attention_of_its_own_is_refused(base: model.Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(base.model), "_supports_attention_backend", False)
    assert packing.refusal(base.model) == "the attention of Qwen3ForCausalLM cannot be replaced"


@pytest.mark.parametrize("layout", [PADDING_FREE, PADDED])
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_pass_that_teaches_nothing_goes_through_every_layer(
    base: model.Base, tiny_parameters: Any, layout: str, recomputed: bool
) -> None:
    """What a process with nothing left to train does while the others gather their layers: no bit may change by it."""
    adapted = model.attach_adapter(base, tiny_parameters())
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    seen: list[int] = []
    layers = base.model.base_model.layers
    hooks = [layer.input_layernorm.register_forward_hook(lambda *_: seen.append(1)) for layer in layers]
    if recomputed:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        adapted.train()
        with packing.attending(base.model, layout):
            attention = base.model.config._attn_implementation
            found = packing.loss(adapted, packing.empty(layout), attention, torch.device("cpu"))
            found.backward()
        assert float(found) == 0.0 and packing.empty(layout).items == []
        assert all(weight.grad is not None and not weight.grad.any() for weight in trained)
        assert len(seen) == len(layers) * (2 if recomputed else 1)
    finally:
        base.model.activation_checkpointing_disable()
        for hook in hooks:
            hook.remove()
        model.detach_adapter(adapted, base)
