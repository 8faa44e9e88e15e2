"""A run that goes on: the settings that its checkpoint recorded, but for what the user typed now; and its data."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from runner.checkpoints.bucket import newest_settings
from runner.checkpoints.folders import list_checkpoints
from runner.checkpoints.pointers import resolve_pointer
from runner.checkpoints.state import State
from runner.config import Config, recorded_config
from runner.errors import CheckpointError, ConfigError, RelayError
from runner.hardware import Hardware
from runner.parts.fingerprints import Fingerprint, changes, fingerprint
from runner.recipe import Recipe
from runner.urls import is_url
from runner.yaml_file import read_yaml

OF_THIS_START = frozenset({"output_dir", "resume_from_checkpoint", "dry_run", "debug", "allow_changed_data"})
"""Settings that are never taken from a checkpoint."""
OF_THE_STATE = frozenset({"seed", "batch_size", "gradient_accumulation_steps"})
"""Settings that `with_checkpoint_settings` compares with the state of the checkpoint."""
FIXED = frozenset({"optim", "stage"})
FIXED_GROUPS = ("data", "tokenizer", "model", "lora")
"""Of these groups a run can change what the recipe calls changeable, and in the last two fractions."""
BUCKET = frozenset({"upload_to", "cloud_provider", "cloud_bucket", "cloud_prefix"})
NEW_RUN = "or start a new run from its weights: --init_from CHECKPOINT --output_dir NEW."


def settings_before_the_search(config: Config) -> Config:
    """The settings with which the hardware is opened and the checkpoint is searched for.

    They are those of the run to go on with, from the newest file that is there, unchecked: the checkpoint that is
    found decides in the end. A file that cannot be read is left to that.
    """
    requested = config.run.resume_from_checkpoint
    if not requested:
        return config
    try:
        text, source = _newest_text(config, requested)
        return _merged(config, recorded_config(text, source, config.recipe_name, type(config.recipe)))
    except (RelayError, OSError, ValueError):
        return config


def _newest_text(config: Config, requested: str) -> tuple[str, str]:
    """The newest config.yaml of the run to go on with, and where it is. Raises OSError where there is none."""
    output_dir = Path(config.run.output_dir) if config.run.output_dir else None
    if is_url(requested):
        return newest_settings(requested), requested
    if requested != "auto":
        folders = [resolve_pointer(Path(requested))]
    else:
        folders = [*reversed(list_checkpoints(output_dir)), output_dir] if output_dir else []
    for file in (folder / "config.yaml" for folder in folders):
        if file.is_file():
            return file.read_text(encoding="utf-8"), str(file)
    if requested == "auto" and config.run.upload_to:
        return newest_settings(config.run.upload_to), config.run.upload_to
    raise FileNotFoundError(requested)


def with_recorded_settings(config: Config, folder: Path, state: State) -> tuple[Config, list[str]]:
    """The config with the recorded value of each setting that was not typed, and a line for each that differs.

    `folder` holds the config.yaml. A run that has no step yet may change every setting.
    Raises ConfigError where a setting differs that a run cannot change.
    """
    file, is_start = folder / "config.yaml", not state.batch_size
    if not file.is_file():
        return config, []
    if not is_start:
        _check_recipe(config, file)
    try:
        text = file.read_text(encoding="utf-8")
        recorded = recorded_config(text, str(file), config.recipe_name, type(config.recipe))
    except (ConfigError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        return config, [f"warning: the settings in {file} are not used, because they cannot be read: {reason}"]
    merged = _merged(config, recorded)
    old, new = recorded.values(), merged.values()
    differing = [name for name in old if _differs(old[name], new[name]) and name not in OF_THIS_START | OF_THE_STATE]
    if not is_start:
        _refuse_fixed(merged, differing, old, new)
    lines = [f"changed setting {name}: {shown(old[name])} -> {shown(new[name])}" for name in differing]
    if config.preset not in (None, recorded.preset):
        lines.insert(0, f"changed setting preset: {recorded.preset or 'default'} -> {config.preset}")
    if _best_score_of(recorded) != _best_score_of(merged):
        forgotten = state.forget_best("measured with other settings")
        lines += [f"warning: {forgotten}"] if forgotten else []
    return merged, lines


def _best_score_of(config: Config) -> list[object]:
    """What makes the best score the number that it is."""
    metric = config.run.metric_for_best_model or config.recipe.best_metric
    return [metric, config.run.greater_is_better, config.run.max_eval_examples]


def typed_names(config: Config, recorded: Config) -> frozenset[str]:
    """The settings that the user gave now: by flag, in YAML, or by another preset than that of the run."""
    typed = config.explicit
    if config.preset not in (None, recorded.preset):
        typed |= frozenset(type(config.recipe).presets()[config.preset])
    if typed & BUCKET:
        # They say one thing together.
        typed |= BUCKET
    if config.run.mixed_precision == "auto" and recorded.run.mixed_precision in ("no", "bf16"):
        # The run has chosen, for its life: another machine would choose otherwise.
        typed -= {"mixed_precision"}
    epochs = "num_train_epochs"
    if epochs in typed and config.run.num_train_epochs != recorded.run.num_train_epochs:
        # A new length in epochs replaces the recorded one in steps.
        typed |= {"max_steps"}
    return typed | OF_THIS_START


def shown(value: object) -> str:
    """A value as YAML writes it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _merged(config: Config, recorded: Config) -> Config:
    values, typed = config.values(), typed_names(config, recorded)
    merged = recorded.with_values({name: value for name, value in values.items() if name in typed})
    return dataclasses.replace(config, run=merged.run, recipe=merged.recipe, preset=config.preset or recorded.preset)


def _check_recipe(config: Config, file: Path) -> None:
    """Raises ConfigError where the checkpoint is of another recipe. The path of a recipe's file may differ."""
    name = read_yaml(file).get("recipe")
    if isinstance(name, str) and name != config.recipe_name and not {name[-3:], config.recipe_name[-3:]} & {".py"}:
        raise ConfigError(
            f"{file.parent} is of the recipe {name}, not {config.recipe_name}: type --recipe {name}, or "
            "--output_dir with another folder."
        )


def _differs(old: object, new: object) -> bool:
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return list(old) != list(new)
    return str(old) != str(new) if isinstance(old, Path) or isinstance(new, Path) else old != new


def _refuse_fixed(
    config: Config, differing: Iterable[str], old: Mapping[str, object], new: Mapping[str, object]
) -> None:
    """Raises ConfigError where the run to go on with cannot have one of these settings."""
    fixed = [name for name in differing if _is_fixed(name, config.recipe, old[name], new[name])]
    of_data = [name for name in fixed if name.startswith("data.")]
    if config.run.allow_changed_data:
        fixed = [name for name in fixed if name not in of_data]
    if not fixed:
        return
    listed = " and ".join(
        f"{name} is {shown(new[name])}, but the run to go on with has {shown(old[name])}" for name in fixed[:3]
    )
    way = "leave it out," if len(fixed) == 1 else "leave them out,"
    if fixed == of_data:
        way += " type --allow_changed_data to go on with other data,"
    raise ConfigError(f"{listed}: {way}\n{NEW_RUN}")


def _is_fixed(name: str, recipe: Recipe, old: object, new: object) -> bool:
    group = name.partition(".")[0] if "." in name else ""
    if name in FIXED:
        return True
    if group not in FIXED_GROUPS or name in recipe.changeable_settings:
        return False
    if group == "data":
        # Of a recipe that does not name its files, a path to the same data cannot be told from another setting.
        return type(recipe).data_files is not Recipe.data_files
    return group == "tokenizer" or not (isinstance(old, float) or isinstance(new, float))


def check_data(config: Config, state: State, hardware: Hardware) -> list[str]:
    """Compare the data files with those that the checkpoint recorded, and record them; returns lines about changes.

    Raises CheckpointError where they changed, unless `allow_changed_data` is set.
    """
    before = state.data
    state.data = hardware.on_main(lambda: data_fingerprints(config.recipe))
    if "train" not in before:
        # A new run, or a checkpoint of a version that recorded nothing.
        return []
    changed = {split: changes(_of(before, split), _of(state.data, split)) for split in ("train", "validation")}
    every = list(dict.fromkeys([*changed["train"], *changed["validation"]]))
    if not every:
        return []
    listed = ", ".join(every[:3]) + (f", and {len(every) - 3} more" if len(every) > 3 else "")
    if not config.run.allow_changed_data:
        raise CheckpointError(
            f"The data are not those of the run to go on with: {listed}.\n"
            f"Restore them, type --allow_changed_data to go on with these,\n{NEW_RUN}"
        )
    state.data_changes = [*state.data_changes, (state.step, listed)]
    lines = [f"going on with other data than before, as --allow_changed_data says: {listed}."]
    forgotten = state.forget_best("measured on other data") if changed["validation"] else None
    return [*lines, *([forgotten] if forgotten else [])]


def data_fingerprints(recipe: Recipe) -> dict[str, Fingerprint]:
    """What the data files of each split hold now; "validation" only where its files are others than those of "train".

    Raises DataError where the recipe cannot name them.
    """
    files = {split: [str(file) for file in recipe.data_files(split)] for split in ("train", "validation")}
    if files["validation"] == files["train"]:
        del files["validation"]
    return {split: fingerprint(names) for split, names in files.items()}


def _of(data: Mapping[str, Fingerprint], split: str) -> Fingerprint:
    return data.get(split, data["train"])
