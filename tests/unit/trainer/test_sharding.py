"""A base in shares: two processes that really hold half of it each, joined by gloo, against the whole base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import MistralConfig, MistralForCausalLM

from tests.unit.trainer import together
from trainer import sharding
from trainer.errors import HostUnfit

# What every process begins with: a base in shares, and the same base whole in each of them.
START = """
os.dup2(2, 1)  # what transformers prints is no note of the launcher
me = crew.joined("cpu")
import torch
from torch.distributed.tensor import DTensor
from tests.conftest import LEARNING, LESSONS, chat
from tests.unit.trainer.interrupted import ROWS
from trainer import checkpoint, encoding, generate, model, packing, resume, sharding, train
from trainer.config import Parameters
from trainer.choices import for_base
from trainer.device import found
torch.set_num_threads(1)
QUESTIONS = [chat(f"q-{number}", *lesson) for number, lesson in enumerate(LESSONS["style"], 1)]

def parameters(**changes):
    return Parameters(**{**LEARNING, "model_name_or_path": BASE, "max_steps": 7, "max_new_tokens": 6,
                         "per_device_train_batch_size": 3, "tokens_per_pass": 60, **changes})

def load(**changes):
    asked = parameters(**changes)
    return me.one_by_one(lambda: model.load_base(BASE, asked, choices=for_base(asked, found(), None, me.size)))

def answers(adapted, base, rows, **more):
    return generate.answer(adapted, base.tokenizer, rows, parameters(), lambda *_: None, **more).predictions

shares, whole = load(shard_base=True), load()
"""
BASE_ALONE = """
told["kinds"] = sorted({type(weight.data).__name__ for weight in shares.model.parameters()})
told["bytes"] = [sum(weight.nbytes for weight in whole.model.parameters()),
                 sum(weight.to_local().nbytes for weight in shares.model.parameters())]
told["tied"] = shares.model.config.tie_word_embeddings
# Before anything is trained, so that the first weights are gathered for an answer; the second has one question less.
told["answers"] = me.share(answers(whole.model, whole, QUESTIONS)) == answers(
    shares.model, shares, me.share(QUESTIONS), crew=me
)
told["one"] = [answer["id"] for answer in answers(shares.model, shares, me.share(QUESTIONS[:1]), crew=me)]
ids = torch.arange(12)[None]
with torch.no_grad():
    told["forward"] = torch.equal(whole.model(input_ids=ids).logits, shares.model(input_ids=ids).logits)
"""
PEAK = """
from transformers import Qwen3Config, Qwen3ForCausalLM
from tests.unit.trainer.test_estimate import peak_bytes
from trainer import estimate, shape

for name, words, width in (("embeddings", 20000, 128), ("layers", 200, 256)):
    network = Qwen3ForCausalLM(Qwen3Config(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=width // 4, vocab_size=words, tie_word_embeddings=False))
    told[name] = estimate.gathered_bytes(shape.of_config(network.config.to_dict()), me.size, dtype_bytes=4)
    sharding.shard(network)
    adapter = torch.nn.Parameter(torch.zeros(width))
    network.base_model.layers[0].register_forward_pre_hook(lambda module, given: (given[0] + adapter, *given[1:]))
    step = lambda: network(input_ids=torch.tensor([[5]]), use_cache=False).logits.sum().backward()
    told[name] = [peak_bytes(step), told[name]]
"""
TRAINED = """
examples, _ = encoding.encode(list(enumerate(ROWS, 1)), whole.tokenizer, "x", enable_thinking=False, max_length=256)

class Watched(resume.ResumableTrainer):
    # Seven rows, three to a step: the last step of an epoch has one, and nothing for the second process.
    passes, broken = [], 0

    def compute_loss(self, model, one, *args, **more):
        Watched.passes.append(len(one.items))
        if self.state.global_step + 1 == Watched.broken:
            raise KeyboardInterrupt
        return super().compute_loss(model, one, *args, **more)

train.ResumableTrainer = Watched

def trained(base, crew, name, store=None, **changes):
    asked, losses, Watched.passes = parameters(**changes), [], []
    adapted = model.attach_adapter(base, asked)
    kinds = {("lora" in n, w.requires_grad, type(w.data).__name__) for n, w in adapted.named_parameters()}
    told[f"{name} weights"] = sorted(str(kind) for kind in kinds)
    try:
        record = train.train(adapted, base, examples, asked, folder / f"out{me.rank}",
                             lambda event, **fields: losses.append(fields.get("loss")), store, crew=crew)
    except KeyboardInterrupt:
        model.detach_adapter(adapted, base)
        return None
    told[f"{name} record"] = {key: record[key] for key in ("steps", "passes", "train_tokens", "pass_tokens",
                                                           "gradient_checkpointing", "resumed_from_steps")}
    told[f"{name} passes"] = list(Watched.passes)
    weights = [weight.detach().clone() for weight in adapted.parameters() if weight.requires_grad]
    return adapted, weights, [loss for loss in losses if loss is not None]

def off(found, base):
    model.detach_adapter(found[0], base)
    return found[1:]

def same(one, other):
    return one[1] == other[1] and all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))

alone = off(trained(whole, crew.ALONE, "alone"), whole)
for name, changes in {
    "plain": {}, "recomputed": {"gradient_checkpointing": True, "lora_dropout": 0.1}, "padded": {"packing": "padded"},
}.items():
    packing.DENSE_SCORES = 0 if name == "padded" else 1 << 24  # TRL's head in tiles, and none for what teaches nothing
    both = off(trained(whole, me, f"whole {name}", **changes), whole)
    found = trained(shares, me, name, **changes)
    told[f"{name} same"] = same(found[1:], both)
    if name == "plain":
        told["near"] = max(float((a - b).abs().max()) for a, b in zip(found[1], alone[0], strict=True))
        told["moved"] = max(float(weight.abs().max()) for weight in found[1])
        told["losses"] = [found[2], alone[1]]
        told["tutor"] = answers(found[0], shares, me.share(QUESTIONS), crew=me)
        if me.is_first:
            found[0].save_pretrained(str(folder / "adapter"))
        me.barrier()
    off(found, shares)

store = checkpoint.Store(folder / "checkpoints", {"who": "shares"})
kept = {"save_steps": 2, "gradient_checkpointing": True, "lora_dropout": 0.1}
Watched.broken = 6
told["broken"] = trained(shares, me, "broken", store, **kept)
Watched.broken = 0
again = off(trained(shares, me, "resumed", checkpoint.Store(folder / "checkpoints", {"who": "shares"}), **kept), shares)
straight = off(trained(shares, me, "straight", **kept), shares)
told["resumed same"] = same((again[0], again[1]), (straight[0], straight[1][-len(again[1]):]))

loaded = model.load_adapter(shares, folder / "adapter")
told["loaded"] = answers(loaded, shares, me.share(QUESTIONS), crew=me) == told["tutor"]
with loaded.disable_adapter():
    told["without"] = answers(loaded, shares, me.share(QUESTIONS), crew=me) == me.share(
        answers(whole.model, whole, QUESTIONS))
model.detach_adapter(loaded, shares)
told["left"] = sorted({type(weight.data).__name__ for weight in shares.model.parameters()})
"""


def script(base: Path, *parts: str) -> str:
    return f"BASE = {str(base)!r}\n" + "".join(parts)


@pytest.fixture(scope="module")
def told(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes found, the first one first."""
    found = together.run(tmp_path_factory.mktemp("shares"), script(tiny_base, START, BASE_ALONE, PEAK, TRAINED))
    assert found.code == 0 and all(found.told), found.errors
    return found.told


def test_each_process_holds_half_of_every_weight(told: list[dict[str, Any]]) -> None:
    for mine in told:
        assert mine["kinds"] == mine["left"] == ["DTensor"] and mine["tied"]
        whole, share = mine["bytes"]
        assert 0.49 * whole < share < 0.52 * whole


def test_what_is_gathered_at_a_time_is_what_is_estimated(told: list[dict[str, Any]]) -> None:
    for mine in told:
        for name in ("embeddings", "layers"):
            peak, estimated = mine[name]
            assert 0.7 * estimated < peak < 1.05 * estimated, "what is not weights is small in these models"


def test_a_base_in_shares_answers_as_the_whole_one(told: list[dict[str, Any]]) -> None:
    assert [mine["forward"] for mine in told] == [True, True]
    assert [mine["answers"] for mine in told] == [True, True]
    assert [mine["one"] for mine in told] == [["q-1"], []], "one without a question takes part"
    assert [mine["loaded"] for mine in told] == [mine["without"] for mine in told] == [True, True]


def test_the_adapter_alone_is_trained_and_whole_in_each_process(told: list[dict[str, Any]]) -> None:
    for mine in told:
        for name in ("plain", "recomputed", "padded", "resumed"):  # after answers and trainings of the same base, too
            assert mine[f"{name} weights"] == ["(False, False, 'DTensor')", "(True, True, 'Tensor')"]


def test_a_training_on_shares_has_the_bits_of_one_on_the_whole_base(told: list[dict[str, Any]]) -> None:
    for name in ("plain", "recomputed", "padded"):
        assert [mine[f"{name} same"] for mine in told] == [True, True], name
        assert told[0][f"{name} record"] == told[0][f"whole {name} record"], "passes that teach nothing do not count"
        assert told[0][f"{name} record"]["gradient_checkpointing"] == (name == "recomputed")
        first, second = (mine[f"{name} passes"] for mine in told)
        assert len(first) == len(second) and 0 in second
        assert len(told[1][f"whole {name} passes"]) < len(told[0][f"whole {name} passes"])


def test_and_gives_what_one_process_gives(told: list[dict[str, Any]]) -> None:
    shares, alone = told[0]["losses"]
    assert len(shares) == told[0]["plain record"]["steps"] == told[0]["alone record"]["steps"] == 7
    assert shares == pytest.approx(alone, abs=2e-4)
    assert told[0]["near"] < 1e-3 < told[0]["moved"]


def test_broken_off_and_resumed_it_has_the_same_bits(told: list[dict[str, Any]]) -> None:
    assert told[0]["broken"] is None and told[0]["resumed record"]["resumed_from_steps"] == [4]
    assert [mine["resumed same"] for mine in told] == [True, True]
    assert told[0]["resumed record"]["passes"] == told[0]["straight record"]["passes"]


# In the second process alone, in the middle of the model, as on a device that has less room than the others.
FULL = """
def full(module, given, kept):
    if kept.shape[1] > ROOM and module.training == TRAINS:  # not in the trial of the layout
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
if me.rank == 1:
    shares.model.base_model.layers[1].input_layernorm.register_forward_hook(full)
"""
TRAIN = """
examples, _ = encoding.encode(list(enumerate(ROWS, 1)), whole.tokenizer, "x", enable_thinking=False, max_length=256)
adapted = model.attach_adapter(shares, parameters())
train.train(adapted, shares, examples, parameters(), folder, lambda *_, **__: None, crew=me)
"""
ANSWER = """
answers(shares.model, shares, me.share(QUESTIONS * 2), crew=me, batch=3)
"""


def out_of_memory(base: Path, folder: Path, what: str) -> tuple[list[str], list[str]]:
    """The error of the second process, for which memory ran out, and of the first, which waited for it."""
    found = together.run(folder, script(base, START, f"ROOM, TRAINS = 20, {what == TRAIN}\n", FULL, what))
    assert found.code == 0, found.errors
    return found.told[1]["error"], found.told[0]["error"]


def test_memory_that_runs_out_in_one_process_ends_the_training_of_both(tiny_base: Path, tmp_path: Path) -> None:
    (kind, sentence), (other, left) = out_of_memory(tiny_base, tmp_path, TRAIN)
    assert (kind, other) == ("TrainingFailed", "PeerGone")
    assert sentence.startswith("out of memory at step 1: a pass of ") and "\n" not in sentence
    assert "cannot try a smaller one; set " in sentence and "gradient_checkpointing to true" in sentence
    assert left.startswith("process 1 of 2 was left alone in a pass of the model (")


def test_memory_that_runs_out_in_one_process_ends_the_answers_of_both(tiny_base: Path, tmp_path: Path) -> None:
    (kind, sentence), (other, left) = out_of_memory(tiny_base, tmp_path, ANSWER)
    assert (kind, other) == ("TrainingFailed", "PeerGone")
    assert sentence == (
        "out of memory while answering 3 questions at a time, and processes that share the base cannot try fewer; "
        "set per_device_eval_batch_size to 1 or less"
    )
    assert left.startswith("process 1 of 2 was left alone ")


def test_a_base_whose_answers_are_of_another_kind_is_not_shared() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 300}  # fmt: skip
    sliding = MistralForCausalLM(MistralConfig(**sizes, sliding_window=8))
    with pytest.raises(HostUnfit) as caught:
        sharding.shard(sliding)
    assert str(caught.value).startswith("MistralForCausalLM is not a decoder of like layers, and ")
    assert "set shard_base to false" in str(caught.value) and not sharding.is_sharded(sliding)
