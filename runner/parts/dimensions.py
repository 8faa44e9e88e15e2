"""Dimensions of attention that have to divide each other, checked while the settings are read."""

from runner.errors import ConfigError


def check_attention(
    hidden_size: int,
    heads: int,
    key_value_heads: int | None = None,
    rotary: bool = False,
    names: tuple[str, str, str] = ("model.hidden_size", "model.num_attention_heads", "model.num_key_value_heads"),
) -> None:
    """Raise ConfigError unless the heads divide the width, and the key and value heads the query heads.

    `rotary`: rotary position embeddings turn pairs of numbers, so each head needs an even size.
    """
    width_name, heads_name, key_value_name = names
    check_positive({width_name: hidden_size, heads_name: heads, key_value_name: key_value_heads})
    if key_value_heads is not None and heads % key_value_heads:
        fitting = [str(number) for number in range(1, heads + 1) if heads % number == 0]
        raise ConfigError(
            f"{key_value_name} is {key_value_heads}, which does not divide {heads_name} {heads}: "
            f"type --{key_value_name} with one of {', '.join(fitting)}."
        )
    unit = heads * (2 if rotary else 1)
    if hidden_size % unit:
        lower = hidden_size // unit * unit
        nearest = " or ".join(str(size) for size in (lower, lower + unit) if size)
        needs = f"{unit}, twice {heads_name} {heads} (rotary embeddings need heads of an even size)" if rotary else ""
        raise ConfigError(
            f"{width_name} is {hidden_size}, which is not a multiple of {needs or f'{heads_name} {heads}'}: "
            f"type --{width_name} {nearest}, or change --{heads_name}."
        )


def check_experts(per_token: int, experts: int) -> None:
    """Raise ConfigError where a token would be sent to more experts than a layer has."""
    if per_token > experts:
        raise ConfigError(
            f"model.num_experts_per_tok is {per_token}, and model.num_local_experts is {experts}: a token cannot be "
            "sent to more experts than there are."
        )


def check_positive(sizes: dict[str, int | None]) -> None:
    """Raise ConfigError for a size below 1; None is a size that is not given."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ConfigError(f"{name} is {size}: type --{name} with a whole number of at least 1.")
