"""`relay export`: write a trained model as a folder that other tools load."""

import dataclasses
import shutil
from pathlib import Path

from runner.config import parse_into
from runner.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an export."""

    checkpoint: str
    """Folder of a run, of a checkpoint or of final."""
    output: str
    """Folder to write; it must not be there yet."""


def main(arguments: list[str]) -> None:
    """Write model, tokenizer (or what else was fitted) and model card; adapters are merged into their base."""
    settings: ExportSettings = parse_into(ExportSettings, arguments, "relay export", __doc__)
    target = Path(settings.output)
    if target.exists():
        raise ConfigError(f"{target} is there already: type --output with a new folder.")
    from runner.checkpoints.trained import find_recipe, load_trained, model_folder

    source = model_folder(Path(settings.checkpoint))
    recipe, model = load_trained(source, find_recipe(source))

    from runner.checkpoints.folders import MANIFEST

    target.mkdir(parents=True)
    assets = source / "assets" if (source / "assets").is_dir() else None
    if assets is not None:
        shutil.copytree(assets, target, dirs_exist_ok=True)
    elif recipe_files := [path for path in source.iterdir() if path.is_file() and path.suffix != ".safetensors"]:
        for path in recipe_files:
            shutil.copy2(path, target)
    (target / MANIFEST).unlink(missing_ok=True)
    model = model.cpu()
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    recipe.export(model, target)
    print(f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}")
