"""`relay export`: write a trained model as a folder that other tools load."""

import dataclasses
import shutil
import sys
from pathlib import Path

from runner.commands import TrainedSettings
from runner.config import parse_into
from runner.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(TrainedSettings):
    """Settings of an export."""

    output: str
    """Folder to write; it must not be there yet."""


def main(arguments: list[str]) -> None:
    """Write model, tokenizer (or what else was fitted) and model card; adapters are merged into their base."""
    settings = parse_into(ExportSettings, arguments, "relay export", __doc__)
    target = Path(settings.output)
    if target.exists():
        raise ConfigError(f"{target} is there already: type --output with a new folder.")
    from runner.checkpoints.final import describe_weights
    from runner.checkpoints.trained import copy_assets, find_config, load_trained, model_folder

    source = model_folder(settings.folder)
    recipe, model = load_trained(source, find_config(source, settings.recipe_flags).recipe)
    target.mkdir(parents=True)
    copy_assets(source, target)
    for name in ("README.md", "config.yaml", "origin.json"):
        if (source / name).is_file():
            shutil.copy2(source / name, target)
    model = model.cpu()
    merge = getattr(model, "merge_and_unload", None)
    if merge is not None:
        # Adapters: their base model with them merged into it.
        model = merge()
    recipe.export(model, target)
    print(f"model: {describe_weights(source)}", file=sys.stderr, flush=True)
    print(f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}")
