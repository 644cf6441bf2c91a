"""Rules for the values of a config's fields, and the check of a config against them."""

import dataclasses
import math
import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from tfvq.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rules:
  """Limits of fields, by their dotted names; `train.*` stands for every stage of `train`.

  Every number in a config must be positive and finite; the numbers of `may_be_zero` may also be zero.

  Attributes:
    choices: The allowed values of a field: a tuple, or a range of integers.
    may_be_zero: Fields that may be zero.
    below: A number must be less than this.
    at_least: A number must be at least this.
  """

  choices: Mapping[str, tuple | range] = dataclasses.field(default_factory=dict)
  may_be_zero: tuple[str, ...] = ()
  below: Mapping[str, float] = dataclasses.field(default_factory=dict)
  at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __or__(self, other: "Rules") -> "Rules":
    return Rules(
      choices={**self.choices, **other.choices},
      may_be_zero=(*self.may_be_zero, *other.may_be_zero),
      below={**self.below, **other.below},
      at_least={**self.at_least, **other.at_least},
    )


def check_fields(config: ConfigDict, rules: Rules, sections: tuple[str, ...] = ()) -> None:
  """Checks every field of a config.

  Args:
    config: The config.
    rules: The rules.
    sections: Prefixes of the names of fields to check, such as "train."; all fields if empty.

  Raises:
    UserError: A field has a value that the rules do not allow; the message names the field.
  """
  for name, value in fields(config):
    if sections and not name.startswith(sections):
      continue
    kind = re.sub(r"^train\.\w+", "train.*", name)
    if kind in rules.choices and value not in rules.choices[kind]:
      raise UserError(f"config.{name} is {value!r}; choose {_one_of(rules.choices[kind])}.")
    for number in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(number, (int, float)) and not isinstance(number, bool):
        problem = _problem(kind, number, rules)
        if problem:
          raise UserError(f"config.{name} is {value}; it must be {problem}.")


def _one_of(choices):
  """The words for one of the choices."""
  if isinstance(choices, range):
    return f"a multiple of {choices.step} from {choices[0]} to {choices[-1]}"
  return f"one of {', '.join(choices)}"


def _problem(kind, number, rules):
  """The requirement that a number violates, as text; None if it is valid."""
  if not number >= 0 or (number == 0 and kind not in rules.may_be_zero):
    return "zero or more" if kind in rules.may_be_zero else "positive"
  if number == math.inf:
    return "finite"
  if number >= rules.below.get(kind, math.inf):
    return f"less than {rules.below[kind]}"
  if number < rules.at_least.get(kind, 0):
    return f"{rules.at_least[kind]} or more"
  return None


def require(config: ConfigDict, *names: str) -> None:
  """Checks that a config has these fields or sections.

  Raises:
    UserError: One is missing; the message names it.
  """
  for name in names:
    section, keys = config, name.split(".")
    for depth, key in enumerate(keys, start=1):
      if key not in section:
        raise UserError(f"config.{'.'.join(keys[:depth])} is missing; add it like the files in tfvq/configs.")
      section = section[key]


def fields(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
  """Pairs (dotted name, value) of all fields of a config."""
  pairs = []
  for key, value in config.items():
    pairs += fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [(f"{prefix}{key}", value)]
  return pairs
