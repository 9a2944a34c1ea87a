"""Every public name with its signature, one a line: ``python -m tests.packaging.public_api`` renews public_api.txt.

Without annotations, which Python and torch print differently from release to release; of classes what this package
defines, since what Transformers gives them is Transformers' to change.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("public_api.txt")


def lines(packages: list[str]) -> list[str]:
    """The public names of ``packages``, each under the first of them that has it."""
    seen: set[int] = set()
    found = []
    for package in packages:
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if is_class(value) or inspect.isroutine(value):
                if id(value) not in seen:
                    found += described(f"{package}.{name}", value)
                seen.add(id(value))
            else:
                found.append(f"{package}.{name}")
    return found


def described(name: str, value: Any) -> Iterator[str]:
    """A function's signature, or a class's and those of its own public members."""
    if not is_class(value):
        yield name + signature(value)
        return
    if dataclasses.is_dataclass(value) or issubclass(value, tuple):
        # Fields of its own, since a config inherits Transformers'.
        yield f"{name}({', '.join(field(value, own) for own in vars(value).get('__annotations__', {}))})"
    else:
        yield name + signature(value.__init__, bound=1)
    for member in sorted(dir(value)):
        owner = next((cls for cls in value.__mro__ if member in vars(cls)), object)
        found = vars(owner).get(member)
        if member.startswith("_") or not is_ours(owner):
            continue
        if isinstance(found, (property, functools.cached_property)):
            yield f"{name}.{member}"
        elif isinstance(found, (classmethod, staticmethod)):
            yield f"{name}.{member}{signature(found.__func__, bound=isinstance(found, classmethod))}"
        elif inspect.isfunction(found):
            yield f"{name}.{member}{signature(found, bound=1)}"


def is_class(value: Any) -> bool:
    """Whether it is one and no alias of one, which Python 3.10 takes for one."""
    return issubclass(type(value), type)


def is_ours(value: Any) -> bool:
    """Whether a class or function is defined in this package, under any decorators."""
    return getattr(value, "__module__", "").startswith("recurrent_gemma")


def field(cls: type, name: str) -> str:
    """A field and its default, if it has one that is no descriptor."""
    default = getattr(cls, "_field_defaults", vars(cls)).get(name, inspect.Parameter.empty)
    if default is inspect.Parameter.empty or inspect.isdatadescriptor(default):
        return name
    return f"{name}={shortened(default)}"


def signature(function: Any, *, bound: int = 0) -> str:
    """The parameters after the first ``bound``, with their kinds and defaults; (...) where they are another's."""
    if not is_ours(inspect.unwrap(function)):
        return "(...)"
    parameters = list(inspect.signature(function).parameters.values())[bound:]
    return str(inspect.Signature([plain(parameter) for parameter in parameters]))


def plain(parameter: inspect.Parameter) -> inspect.Parameter:
    default = parameter.default
    if default is not inspect.Parameter.empty:
        default = Written(shortened(default))
    return parameter.replace(annotation=inspect.Parameter.empty, default=default)


class Written(str):
    """A default that is printed as it stands."""

    __slots__ = ()
    __repr__ = str.__str__


def shortened(default: Any) -> str:
    """The default, if it is short enough to be read."""
    text = repr(default)
    return text if len(text) <= 80 else "..."


if __name__ == "__main__":
    from tests.packaging.test_public_names import PUBLIC_NAMES

    PATH.write_text("\n".join(lines(list(PUBLIC_NAMES))) + "\n", encoding="utf-8")
