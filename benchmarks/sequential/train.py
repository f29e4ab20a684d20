"""One adapter, as the documentation of TRL and PEFT shows it: rows in, adapter out, one process.

    python train.py --base FOLDER --rows FILE.jsonl --output FOLDER --settings settings.json --started 0

What benchmarks/line.py holds our tool against. It writes train.json: seconds of each part, steps, trained tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

imported = time.monotonic()

parser = argparse.ArgumentParser()
for name in ("base", "rows", "output", "settings"):
    parser.add_argument(f"--{name}", type=Path, required=True)
parser.add_argument("--started", type=float, required=True, help="time.monotonic() at the start of this process")
arguments = parser.parse_args()
settings = json.loads(arguments.settings.read_text(encoding="utf-8"))

tokenizer = AutoTokenizer.from_pretrained(arguments.base)
model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=settings["dtype"])
loaded = time.monotonic()


def render(messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    """A conversation as text, in the words of the base's own chat template."""
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, enable_thinking=False, **options))


examples = []
for line in arguments.rows.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    messages, tools = row["messages"], row.get("tools")
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # Tokenised apart, so that no token reaches across the end of the prompt; only the answer carries loss.
        prompt = render(messages[:turn], tools, add_generation_prompt=True)
        answer = render(messages[: turn + 1], tools)[len(prompt) :].rstrip()
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        examples.append({"input_ids": prompt_ids + answer_ids, "labels": [-100] * len(prompt_ids) + answer_ids})

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=str(arguments.output),
        max_length=None,  # no row is longer than the base takes
        save_strategy="no",
        logging_steps=settings["logging_steps"],
        report_to="none",
        disable_tqdm=True,
        **settings["training"],
    ),
    train_dataset=Dataset.from_list(examples),
    processing_class=tokenizer,
    peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
)
prepared = time.monotonic()
trainer.train()
trained = time.monotonic()
trainer.save_model(str(arguments.output))
saved = time.monotonic()

answers = sum(label != -100 for example in examples for label in example["labels"])
result = {
    "import": imported - arguments.started,
    "load": loaded - imported,
    "data": prepared - loaded,
    "train": trained - prepared,
    "save": saved - trained,
    "steps": trainer.state.global_step,
    "epochs": trainer.state.epoch,
    "trained_tokens": answers,
    "last_loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1],
}
(arguments.output / "train.json").write_text(json.dumps(result), encoding="utf-8")
