"""Answers of an adapter, and of the base without it, one question after the other, in one process.

    python generate.py --base FOLDER --adapter FOLDER --output FOLDER --settings settings.json
        --started 0 [--known FILE] SET=FILE.jsonl …

It writes predictions_<set>.jsonl and base_<set>.jsonl. With --known, what the base has answered before (for an earlier
stage) stands in that file and is not asked again. generate.json: seconds of each part, questions, tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

imported = time.monotonic()

parser = argparse.ArgumentParser()
for name in ("base", "adapter", "output", "settings"):
    parser.add_argument(f"--{name}", type=Path, required=True)
parser.add_argument("--known", type=Path)
parser.add_argument("sets", nargs="+")
parser.add_argument("--started", type=float, required=True, help="time.monotonic() at the start of this process")
arguments = parser.parse_args()
settings = json.loads(arguments.settings.read_text(encoding="utf-8"))

tokenizer = AutoTokenizer.from_pretrained(arguments.base)
model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=settings["dtype"])
model = PeftModel.from_pretrained(model, arguments.adapter)
model.eval()
loaded = time.monotonic()


def ask(row: dict[str, Any]) -> dict[str, Any]:
    """One greedy answer to a row's question: a prediction as the scorer reads it."""
    messages = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
    prompt = tokenizer.apply_chat_template(
        messages, tools=row.get("tools"), add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        **inputs,
        max_new_tokens=settings["max_new_tokens"],
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = output[0, inputs["input_ids"].shape[1] :].tolist()
    ended = new[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(new[:-1] if ended else new).strip()
    prediction = {"id": row["id"], "response": text, "finish_reason": "stop" if ended else "length", "tokens": len(new)}
    calls = []
    for found in re.findall(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", text, re.DOTALL):
        try:
            call = json.loads(found)
        except ValueError:
            continue
        call = call.get("function", call)
        calls.append({"name": call.get("name"), "arguments": call.get("arguments", {})})
    return {**prediction, "tool_calls": calls} if calls else prediction


def write(path: Path, predictions: list[dict[str, Any]]) -> None:
    """Predictions as JSONL."""
    lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions]
    path.write_text("".join(lines), encoding="utf-8")


sets = {}
for item in arguments.sets:
    name, _, file = item.partition("=")
    sets[name] = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]

answered, tokens = 0, 0
for name, rows in sets.items():
    predictions = [ask(row) for row in rows]
    answered += len(predictions)
    tokens += sum(prediction["tokens"] for prediction in predictions)
    write(arguments.output / f"predictions_{name}.jsonl", predictions)
generated = time.monotonic()

known = json.loads(arguments.known.read_text(encoding="utf-8")) if arguments.known and arguments.known.exists() else {}
base_answered, base_tokens = 0, 0
with model.disable_adapter():
    for name, rows in sets.items():
        predictions = []
        for row in rows:
            if row["id"] not in known:
                known[row["id"]] = ask(row)
                base_answered += 1
                base_tokens += known[row["id"]]["tokens"]
            predictions.append(known[row["id"]])
        write(arguments.output / f"base_{name}.jsonl", predictions)
if arguments.known:
    arguments.known.write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
ended = time.monotonic()

result = {
    "import": imported - arguments.started,
    "load": loaded - imported,
    "generate": generated - loaded,
    "base": ended - generated,
    "answered": answered,
    "generated_tokens": tokens,
    "base_answered": base_answered,
    "base_tokens": base_tokens,
}
(arguments.output / "generate.json").write_text(json.dumps(result), encoding="utf-8")
