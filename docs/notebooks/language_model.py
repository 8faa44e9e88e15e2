# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebook: language_model
#
# Train a decoder on a text file, stop and continue it, and let it write. [The page of the
# recipe](../recipes/language_model.md) has longer trainings.

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
# A text of your own would be a file. This one counts:

# %%
Path("counting.txt").write_text("\n".join(f"{i} and {i + 1} are {2 * i + 1}." for i in range(3000)), encoding="utf-8")

# %% [markdown]
# Train 10 steps on its letters, then continue to 20. The second command names the step at which it goes on.

# %%
RUN = Path("runs/notebook-language_model")
train = ["train", "--recipe", "language_model", "--preset", "nano", "--tokenizer.kind", "char"]
train += ["--data.source", "counting.txt", "--data.max_seq_length", "64", "--learning_rate", "1e-2"]
train += ["--logging_steps", "5", "--max_eval_examples", "16", "--output_dir", str(RUN)]
relay(*train, "--max_steps", "10")
relay(*train, "--max_steps", "20", "--resume_from_checkpoint", "auto")

# %% [markdown]
# `bits_per_byte` is comparable between tokenizers:

# %%
events = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
for event in events:
    if event["split"] == "eval":
        print(event["step"], {name: round(value, 3) for name, value in event.items() if "bits" in name})

# %%
relay("predict", str(RUN), "--prompt", "12 and ", "--max_new_tokens", "20")
