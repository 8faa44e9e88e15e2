# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebook: text2sql
#
# Train a small model that writes SQL, look at its numbers, and ask it. The steps are few, so that this notebook runs in
# seconds and its answers are wrong. [The page of the recipe](../recipes/text2sql.md) has longer trainings.

# %%
import json
import subprocess
import sys
from pathlib import Path


def relay(*words: str) -> None:
    """Run a command of Relay and show what it prints. In a terminal it is `relay ...`."""
    done = subprocess.run([sys.executable, "-m", "runner", *words], capture_output=True, text=True)
    print(done.stdout)
    if done.returncode:
        raise SystemExit(done.stderr)


# %% [markdown]
# The recipe makes its own questions and databases. This is one of the pairs that it trains on:

# %%
from recipes.text2sql.data.demo import build

pair = build().train[0]
print(pair.db_id, "|", pair.question, "|", pair.query)

# %% [markdown]
# Train. `nano` is the smallest preset.

# %%
RUN = Path("runs/notebook-text2sql")
train = ["train", "--recipe", "text2sql", "--preset", "nano", "--max_steps", "4", "--logging_steps", "1"]
relay(*train, "--max_eval_examples", "2", "--output_dir", str(RUN))

# %% [markdown]
# Every logged number is a line of `metrics.jsonl`:

# %%
events = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
for event in events:
    if event["split"] == "train":
        print(event["step"], round(event["loss"], 3))
assert events[0]["loss"] > [event for event in events if event["split"] == "train"][-1]["loss"]

# %% [markdown]
# Ask a question. Relay writes SQL, and runs it on the database of a bookshop if it is valid.

# %%
relay("predict", str(RUN), "--question", "how many books are there ?")

# %% [markdown]
# The model is one of transformers:

# %%
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(RUN / "final")
print(type(model).__name__, f"{model.num_parameters():,} parameters")
