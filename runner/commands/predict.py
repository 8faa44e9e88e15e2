"""`relay predict`: answer one request with a trained model."""

import sys
from pathlib import Path

from runner.commands import TrainedSettings, split_flags
from runner.config import parse_into, wants_help
from runner.errors import ConfigError
from runner.recipe import Recipe

DESCRIPTION = f"""{__doc__}

The recipe's own flags stand beside these: relay predict RUN --help, or relay predict --recipe NAME --help, lists them.
"""


def main(arguments: list[str]) -> None:
    """Load the checkpoint's recipe and model, and print the recipe's answer to the request on the command line."""
    from runner import registry
    from runner.checkpoints.final import describe_weights
    from runner.checkpoints.trained import find_config, find_weights, load_trained
    from runner.commands import check_output_file, check_output_folder

    asks = wants_help(arguments)
    own, request_words = split_flags(TrainedSettings, arguments)
    own = [word for word in own if not wants_help([word])]
    if request_words and not _names_run(own) and Path(request_words[-1]).is_dir():
        # The run may also come last.
        own, request_words = [request_words[-1], *own], request_words[:-1]
    if asks and not _names_run(own):
        name = parse_into(TrainedSettings, [*own, "--checkpoint", "RUN"], "relay predict").recipe
        if name is None:
            parse_into(TrainedSettings, ["--help"], "relay predict", DESCRIPTION)
        else:
            parse_into(_request_of(registry.find(name), name), ["--help"], f"relay predict RUN --recipe {name}")
    settings = parse_into(TrainedSettings, own, "relay predict")
    config = find_config(settings.folder, settings.recipe_flags)
    request_type = _request_of(type(config.recipe), config.recipe_name)
    request_words += ["--help"] if asks else []
    request = parse_into(request_type, request_words, f"relay predict {settings.folder}")
    output = getattr(request, "output", None)
    if output is not None:
        # A name with an ending is a file, and one without is a folder, which the recipe makes.
        check = check_output_file if Path(output).suffix else check_output_folder
        check(Path(output))
    print(f"model: {describe_weights(find_weights(settings.folder))}", file=sys.stderr, flush=True)
    recipe, model = load_trained(settings.folder, config.recipe)
    with recipe.while_evaluating(model):
        print(recipe.answer(model, request))


def _names_run(own: list[str]) -> bool:
    """Whether the words of the verb's own settings name a run."""
    return any(word.startswith("--checkpoint") for word in own) or bool(own) and not own[0].startswith("-")


def _request_of(recipe: type[Recipe], name: str) -> type:
    if recipe.Request is None:
        raise ConfigError(f"The recipe {name} has no Request: it cannot answer from the command line.")
    return recipe.Request
