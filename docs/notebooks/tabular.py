# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebook: tabular
#
# Pre-train a model on three made tables, fine-tune it on a table of yours, and predict new rows. [The page of the
# recipe](../recipes/tabular.md) has longer trainings. It needs the extra `tabular`.

# %%
import csv
import random
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
# A table of deliveries: late if it is heavy or its note is about snow.


# %%
def write(path: str, rows: int, seed: int) -> None:
    dice = random.Random(seed)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["weight_kg", "note", "arrived"])
        for _ in range(rows):
            weight = round(dice.uniform(1, 40), 1)
            note = dice.choice(["snow on the road", "no remarks", "rain at noon"])
            table.writerow([weight, note, "late" if weight > 30 or "snow" in note else "in time"])


write("deliveries.csv", 200, seed=0)
write("new.csv", 5, seed=1)

# %% [markdown]
# Stage 1, on made tables; then stage 2, on ours:

# %%
nano = ["train", "--recipe", "tabular", "--preset", "nano", "--max_steps"]
relay(*nano, "3", "--output_dir", "runs/notebook-tables")
tune = [*nano, "20", "--stage", "finetune", "--init_from", "runs/notebook-tables", "--data.train", "deliveries.csv"]
relay(*tune, "--data.target", "arrived", "--output_dir", "runs/notebook-deliveries")

# %%
relay("predict", "runs/notebook-deliveries", "--input", "new.csv", "--output", "predicted.csv")
print(Path("predicted.csv").read_text(encoding="utf-8"))
