"""The form of the base that the devices hold: whole in each, in 4 bits, or in shares. No torch.

Whole is fastest. 4 bits come before shares where both are free to choose: each process then still computes by itself,
where shares are gathered from the others in every pass, and for every token of an answer.
"""

from __future__ import annotations

from trainer.budget import ASKED, TrainingNeeds, unknown
from trainer.config import Parameters, conflicts, raise_findings
from trainer.copies import size


def quantise(parameters: Parameters, needs: TrainingNeeds, processes: int, tokens: int) -> tuple[bool, str]:
    """Whether the base is quantised, and why; `needs` are those of the longest row on the whole base.

    It is whole in each process where passes of `tokens` fit without checkpointing.
    """
    if isinstance(parameters.use_qlora, bool):
        return parameters.use_qlora, ASKED
    if needs.device.kind == "cpu":
        return False, "without a GPU weights of 4 bits are slower"
    if parameters.shard_base is True and processes > 1:
        return False, "shard_base is true, and weights of 4 bits are not shared"
    if not needs.known:
        return True, f"{unknown(needs.shape)}; weights of 4 bits need the least memory"
    tokens = max(parameters.tokens_per_pass or tokens, parameters.max_length)
    told = needs.told(tokens, False, f"with the base in {needs.base.value('dtype')}")
    if needs.fit(tokens, False):
        return False, told
    four_bits, shares = needs.with_base(quantised=True), needs.with_base(shards=processes)
    may_share = processes > 1 and parameters.shard_base == "auto"
    if may_share and not _holds(four_bits) and _holds(shares):
        return False, f"{told}, and {size(_least(four_bits))} with weights of 4 bits; shares of the whole weights fit"
    return True, told


def shard_base(parameters: Parameters, needs: TrainingNeeds, processes: int, quantised: bool) -> tuple[bool, str]:
    """Whether each process holds a share of the base only, and why; `needs` as in `quantise`.

    InputError where it is asked for with weights of 4 bits.
    """
    asked = parameters.shard_base
    if asked is False:
        return False, ASKED
    if processes < 2:
        return False, "one process has nothing to share with"
    raise_findings(conflicts(parameters))
    if quantised:
        return False, "weights of 4 bits are not shared"
    if asked is True:
        return True, ASKED
    if needs.device.kind == "cpu":
        return False, "without a GPU all processes use the same memory"
    if not needs.known:
        return False, unknown(needs.shape)
    told = needs.told(_tokens(needs), _recomputes(needs), "with the whole base")
    if _holds(needs):
        return False, told
    shares = needs.with_base(shards=processes)
    fit = _holds(shares)
    return fit, f"{told}, {size(_least(shares))} with a share{'' if fit else ', which is too much as well'}"


def _tokens(needs: TrainingNeeds) -> int:
    return needs.parameters.tokens_per_pass or needs.lengths.longest


def _recomputes(needs: TrainingNeeds) -> bool:
    asked = needs.parameters.gradient_checkpointing
    return asked if isinstance(asked, bool) else True


def _least(needs: TrainingNeeds) -> int:
    """The least bytes that it can be trained with: the longest row alone, recomputed, where nobody asks otherwise."""
    return needs.memory(_tokens(needs), _recomputes(needs)).total


def _holds(needs: TrainingNeeds) -> bool:
    return needs.fit(_tokens(needs), _recomputes(needs))
