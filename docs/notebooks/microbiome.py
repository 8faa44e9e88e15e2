# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebook: microbiome
#
# Learn embeddings of samples from UniFrac distances, then predict a number of each sample. [The page of the
# recipe](../recipes/microbiome.md) has longer trainings. It needs the extra `microbiome`.

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
# Without `data.table` the recipe makes a study: a tree, sequences that evolved along it, and samples along a gradient.
# Stage 1 learns the distances between these samples.

# %%
small = ["train", "--recipe", "microbiome", "--preset", "small", "--data.demo_samples", "60", "--data.demo_asvs", "80"]
relay(*small, "--max_steps", "20", "--output_dir", "runs/notebook-encoder")

# %% [markdown]
# Stage 2 predicts the gradient from the encoder:

# %%
predict = [*small, "--stage", "predict", "--init_from", "runs/notebook-encoder", "--max_steps", "10"]
relay(*predict, "--output_dir", "runs/notebook-gradient")

# %%
events = [json.loads(line) for line in Path("runs/notebook-gradient/metrics.jsonl").read_text().splitlines()]
print(events[-1])

# %% [markdown]
# `relay predict` writes the embeddings, an ordination and a page with pictures:

# %%
relay("predict", "runs/notebook-encoder", "--output", "described")
print(sorted(path.name for path in Path("described").iterdir()))
