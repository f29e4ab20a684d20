"""stub"""
from __future__ import annotations

import argparse, json, random, re, sys
from pathlib import Path
from collections.abc import Iterator
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SYSTEM = "你是电磁学课程助教。回答必须依次包含：\n### 结论\n### 推导\n### 检查（量纲与极限）"

def sentences() -> list[str]:
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted((REPOSITORY / "data" / "corpus").glob("*.md")))
    return [s for s in re.split(r"(?<=[。？！])|\n", text) if 8 <= len(s.strip()) <= 60]

def synthetic(count: int, seed: int = 42) -> Iterator[dict[str, Any]]:
    known, draw = sentences(), random.Random(seed)
    for number in range(1, count + 1):
        parts = iter(draw.choices(known, k=12))
        asked = f"第 {number} 题：{next(parts)}怎样理解？"
        answer = "\n".join(f"### {h}\n" + "".join(next(parts) for _ in range(draw.randint(*n)))
                           for h, n in (("结论", (1, 1)), ("推导", (1, 3)), ("检查（量纲与极限）", (1, 1))))
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        yield {"id": f"row-{number:07}", "mode": "style", "messages": messages, "meta": {"topic": "electrostatics", "type": "concept", "source": "synthetic"}}

if __name__ == "__main__":
    n, path = int(sys.argv[1]), sys.argv[2]
    with open(path, "w", encoding="utf-8") as f:
        for row in synthetic(n):
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
