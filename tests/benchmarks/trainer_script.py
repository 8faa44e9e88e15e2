"""A script with transformers.Trainer for each recipe's model and data, as its user would write it.

python tests/benchmarks/trainer_script.py RECIPE INPUT OUTPUT WORDS ...

It prints the number of parameters, and "first step" after it. bench_start.py starts it, and stops it there. For
language_model, INPUT is a folder with stories.txt, tokenizer.json and config.json. For text2sql, it holds
examples.jsonl instead of the stories, with the text of each prompt and its SQL. For the other two, whose data no
library prepares, the script takes data, module and loss from the recipe, whose settings are WORDS, and only the loop is
Trainer's.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

BATCH = 8


class Watch(TrainerCallback):
    """Prints a line after each step."""

    def on_step_end(self, args, state, control, **rest):
        print("first step", flush=True)


def arguments(output: str, **others) -> TrainingArguments:
    """What all four share."""
    return TrainingArguments(
        output_dir=output, max_steps=100, per_device_train_batch_size=BATCH, learning_rate=1e-3, weight_decay=0.1,
        lr_scheduler_type="cosine", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False, optim="adamw_torch_fused", **others,
    )  # fmt: skip


def language_model(source: Path, output: str) -> Trainer:
    """Text, tokenised and grouped into rows of one length with `datasets`."""
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast, default_data_collator

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    config = AutoConfig.from_pretrained(source)
    length = config.max_position_embeddings
    texts = load_dataset("text", data_files=str(source / "stories.txt"), cache_dir=f"{output}/cache")["train"]
    tokens = texts.map(lambda rows: {"ids": tokenizer(rows["text"])["input_ids"]}, batched=True, remove_columns="text")

    def grouped(rows):
        ids = [each for row in rows["ids"] for each in row]
        parts = [ids[at : at + length] for at in range(0, len(ids) - length, length)]
        return {"input_ids": parts, "labels": parts}

    rows = tokens.map(grouped, batched=True, remove_columns="ids")
    model = AutoModelForCausalLM.from_config(config)
    return Trainer(model, arguments(output), default_data_collator, rows)


def text2sql(source: Path, output: str) -> Trainer:
    """Prompts and their SQL, tokenised with `datasets`; only the SQL is scored."""
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))

    def tokenised(rows):
        prompts, targets = (tokenizer(rows[name])["input_ids"] for name in ("prompt", "target"))
        return {
            "input_ids": [prompt + target for prompt, target in zip(prompts, targets, strict=True)],
            "labels": [[-100] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)],
        }

    def collate(rows):
        time = max(len(row["input_ids"]) for row in rows)
        ids, labels = torch.zeros(len(rows), time, dtype=torch.long), torch.full((len(rows), time), -100)
        mask = torch.zeros(len(rows), time, dtype=torch.long)
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[number, :length], mask[number, :length] = torch.tensor(row["input_ids"]), 1
            labels[number, :length] = torch.tensor(row["labels"])
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    texts = load_dataset("json", data_files=str(source / "examples.jsonl"), cache_dir=f"{output}/cache")["train"]
    rows = texts.map(tokenised, batched=True, remove_columns=texts.column_names)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    return Trainer(model, arguments(output), collate, rows)


def of_recipe(name: str, output: str, words: list[str]) -> Trainer:
    """A recipe's data, module and loss."""
    from runner.config import parse

    Path(output).mkdir(parents=True, exist_ok=True)
    recipe = parse(["--recipe", name, *words]).recipe.prepare(Path(output))

    class Own(Trainer):
        def compute_loss(self, model, inputs, *rest, **more):
            batch = inputs["batch"]
            return recipe.loss(model, batch).sum / batch.weight

    rows = recipe.data("train")
    return Own(
        recipe.model(), arguments(output, remove_unused_columns=False),
        lambda examples: {"batch": recipe.collate(examples)}, rows,
    )  # fmt: skip


if __name__ == "__main__":
    name, source, output, *words = sys.argv[1:]
    own = {"language_model": language_model, "text2sql": text2sql}
    trainer = own[name](Path(source), output) if name in own else of_recipe(name, output, words)
    trainer.add_callback(Watch())
    print(f"{sum(each.numel() for each in trainer.model.parameters()):,} parameters", flush=True)
    trainer.train()
