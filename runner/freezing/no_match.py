"""The message for a pattern that matches nothing in a model, with the names that may have been meant."""

from __future__ import annotations

from difflib import get_close_matches

from runner.errors import did_you_mean, listed
from runner.freezing.names import ModelNames
from runner.freezing.parts import PARTS
from runner.freezing.patterns import HEAD, Pattern, parse

# The first or the last layer of a model, as torchvision, timm and transformers call it in some models but not in others.
LAYERS_OF_SOME_MODELS = ("conv1", "fc", "classifier", "lm_head", "score")


def no_match_message(names: ModelNames, pattern: Pattern, key: str) -> str:
    """Return the error message for a pattern that matches no parameter; `key` is what it calls the place of the pattern."""
    if not names.entries:
        return f"{key}: {pattern.text!r} matches nothing: {type(names.model).__name__} has neither parameters nor buffers"
    matches = names.matcher(pattern)
    matched_modules = [name for name in names.modules if matches(name)]
    problem = f"{key}: {pattern.text!r} matches no parameter"
    if pattern.kind == "type":
        classes = {type(module).__name__ for module in names.modules.values()}
        if matched_modules:
            return f"{problem}: those modules have none; {names.words.without_tensors}"
        hint = did_you_mean(pattern.text[5:], classes) or _norms_hint(names, pattern)
        hint = hint or "; it has " + listed(sorted(classes), most=8)
        return f"{problem}: the model has no such module{hint}"
    if pattern.kind == "part":
        head = ",".join(each.text for each in names.patterns_of(pattern))
        if pattern.text != HEAD or not head:
            return f"{problem}: {PARTS[pattern.text].absent}"
        near = near_names(names, head) or did_you_mean(head, names.words.head_words)
        return f"{problem}: the classifier, {names.words.head}={head}, is not in the model{near}"
    if computed := {name: behind for name, behind in names.computed().items() if matches(name)}:
        behind = listed([parameter for parameters in computed.values() for parameter in parameters])
        subject = f"{key}: {pattern.text!r}" if [*computed] == [pattern.text] else f"{problem}: {next(iter(computed))}"
        return f"{subject} is computed by a parametrization; give the parameters that it is computed from: {behind}"
    if pattern.kind == "regex":
        example = names.parameters[0].name if names.parameters else "(the model has no parameters)"
        return f"{problem}; a regular expression must match a parameter's whole name, such as {example}"
    if any(matches(entry.name) for entry in names.buffers):
        buffers = names.words.frozen_buffers
        return f"{problem}, only buffers; {buffers} freezes the buffers of modules that a pattern matches"
    if matched_modules:
        return f"{problem}: {matched_modules[0]} has none; give a module that has some"
    problem = f"{problem} or module of the model"
    if pattern.text in ("head", "backbone") and names.words.all_but_head:
        return f"{problem}; write @head for its classifier, or {names.words.all_but_head.format(pattern.text)}"
    there = sorted({*map(names.without_wrappers, names.modules)} - {""}) or sorted(names.entries)
    hint = _head_hint(names, pattern, key) + near_names(names, pattern.text)
    return f"{problem}{hint or '; it has ' + listed(there, most=8)}"


def _head_hint(names: ModelNames, pattern: Pattern, key: str) -> str:
    """Return what freezes the head of any model, for a pattern that begins with a layer that other models have."""
    layer, words = pattern.text.partition(".")[0], names.words
    if layer not in LAYERS_OF_SOME_MODELS or layer in map(names.without_wrappers, names.modules) or not words.all_but_head:
        return ""
    return {words.patterns: f"; {words.freeze_head}", words.keep: f"; {words.keep_head}"}.get(key, "; @head is its head")


def _norms_hint(names: ModelNames, pattern: Pattern) -> str:
    """Return that `@norms` are the norm layers of the model, if it has some and the pattern names a class of norms."""
    if "norm" not in pattern.text.lower() or not names.patterns_of(parse("@norms", "")):
        return ""
    return f"; @norms are its norm layers, {names.words.example.format('@norms')}"


def near_names(names: ModelNames, text: str) -> str:
    """Return `; did you mean A or B?` with up to three names in the model that are similar to `text`, or "" if none is.

    Up to three names that end like it come first, as `head.fc` for `fc`. Then come names in the same module: for
    `layer1.0.conv3` the children of `layer1.0`, then what is deeper in it, then all other names. Prefixes of wrappers, such
    as `module.`, are left out, because patterns do not need them.
    """
    text = names.without_wrappers(text)
    parameters = [name for entry in names.parameters for name in entry.names]
    known = [*dict.fromkeys(filter(None, map(names.without_wrappers, [*names.modules, *parameters])))]
    prefix = _existing_part(text, known)
    inside = [name for name in known if name.startswith(prefix)] if prefix else []
    siblings = [name for name in inside if name.count(".") == text.count(".")]
    ending = sorted((name for name in known if name.endswith(f".{text}")), key=lambda name: name.count("."))
    similar = [*_closest(text, siblings, prefix), *_closest(text, inside, prefix), *_closest(text, known)]
    found = dict.fromkeys([*(ending if len(ending) <= 3 else ()), *similar])
    return f"; did you mean {' or '.join([*found][:3])}?" if found else ""


def _existing_part(text: str, known: list[str]) -> str:
    """Return the longest beginning of a dotted name that names a module of the model, with its dot; "" if there is none."""
    parts = text.split(".")
    beginnings = [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    return next((f"{beginning}." for beginning in beginnings if beginning in known), "")


def _closest(text: str, known: list[str], prefix: str = "") -> list[str]:
    """Return up to three of the known names that are similar to `text`; of all of them, `prefix` is not compared."""
    by_lowercase = {name.removeprefix(prefix).lower(): name for name in known}
    similar = get_close_matches(text.removeprefix(prefix).lower(), by_lowercase, n=3, cutoff=0.6)
    return [by_lowercase[name] for name in similar]
