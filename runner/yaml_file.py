"""Settings in a YAML file, with every value as the text that stands there.

YAML reads `no` as false, `1e-4` as text and `0123` as 83. Relay reads a value of a file like one that was typed after
a flag: the setting says what it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import ConfigError

if TYPE_CHECKING:
    import yaml

Nested = dict[str, "str | None | list[str | None] | Nested"]
"""Names and what they hold: a text, None for an empty place or `null`, a list of texts, or names again."""

MOST_BYTES = 1_000_000
MOST_VALUES = 10_000
MOST_LEVELS = 20
TAGS = {f"tag:yaml.org,2002:{name}" for name in "null bool int float timestamp str seq map merge value".split()}


def read_yaml(path: Path, asked_by: str = "--config") -> Nested:
    """The nested settings in a YAML file. Raises ConfigError where there is none, or where it is no settings file."""
    try:
        # Not by its size: a device has none, and does not end.
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path} has more than {MOST_BYTES:,} bytes: type {asked_by} with a file of settings.")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}: check the path given to {asked_by}.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: type {asked_by} with a file, such as {path / 'config.yaml'}.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split()).rstrip('.')}.") from None
    return yaml_of_text(text, str(path))


def yaml_of_text(text: str, source: str) -> Nested:
    """The nested settings in a text that `source` names. Raises ConfigError where it holds none."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply: settings have at most {MOST_LEVELS} levels.") from None
    except yaml.YAMLError as error:
        summary = " ".join(str(error).split()).rstrip(".")
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            # The snippet that the library shows may hold anything.
            summary = f"{error.problem}, in line {error.problem_mark.line + 1}"
        raise ConfigError(f"{source} cannot be read as YAML: {summary}.") from None
    if root is None:
        return {}
    _check_size(root, source)
    content = _content(root, source, "")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "one value"
        raise ConfigError(f"{source} holds {kind}; wanted: settings as `name: value` lines.")
    return content


def _check_size(root: yaml.Node, path: str) -> None:
    """Raises ConfigError where aliases multiply a small file into a large one, or where it is nested too deeply."""
    import yaml

    # An alias is the same node once more: what it holds is counted each time that it stands somewhere.
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, level: int, trail: frozenset[int]) -> int:
        if level > MOST_LEVELS or id(node) in trail:
            raise ConfigError(f"{path} is nested too deeply: settings have at most {MOST_LEVELS} levels.")
        if id(node) not in sizes:
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = node.value
            sizes[id(node)] = 1 + sum(size(part, level + 1, trail | {id(node)}) for part in parts)
        return sizes[id(node)]

    if size(root, 0, frozenset()) > MOST_VALUES:
        raise ConfigError(f"{path} holds more than {MOST_VALUES:,} values: type a file of settings.")


def _content(node: yaml.Node, path: str, place: str) -> str | None | list[str | None] | Nested:
    """What a node holds. `place` is its name with dots, for messages."""
    import yaml

    where = f"{place or 'the file'} in {path}, line {node.start_mark.line + 1}"
    if node.tag not in TAGS:
        raise ConfigError(f"{where} has the tag {node.tag}: settings have no tags, leave it out.")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise ConfigError(f"{where} is a list of lists or of groups: a setting is one value, or a list of values.")
        return [_scalar(item) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{where} cannot be read: a setting is one value, or a list of values.")
    content: Nested = {}
    merged: Nested = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where} has a name that is no text: settings are `name: value` lines.")
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                found = _content(part, path, place)
                merged = {**found, **merged} if isinstance(found, dict) else merged
            continue
        name = str(key.value).replace("-", "_")
        if name in content:
            raise ConfigError(
                f"{_joined(place, name)} stands twice in {path}, in the lines {lines[name]} and {line}: leave one out."
            )
        content[name], lines[name] = _content(value, path, _joined(place, name)), line
    return merged | content


def _scalar(node: yaml.ScalarNode) -> str | None:
    return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def read_launch_config(path: Path) -> dict[str, object]:
    """The keys of a configuration of accelerate. Raises ConfigError where it is none."""
    import yaml

    try:
        with path.open("rb") as file:
            content = yaml.safe_load(file.read(MOST_BYTES).decode())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no configuration of accelerate: write lines such as num_processes: 2.")
    return content
