"""Find the parameters, buffers and modules of a model that the patterns of a selection match."""

from __future__ import annotations

from collections.abc import Iterable

from runner.errors import ConfigError, listed
from runner.freezing.names import ModelNames
from runner.freezing.no_match import no_match_message
from runner.freezing.parts import PARTS
from runner.freezing.patterns import HEAD, Pattern, with_parents
from runner.tensors import TensorEntry


class PatternResolver(ModelNames):
    """Finds the parameters, buffers and modules of one model that a pattern matches.

    What is found are names. A tied tensor has several names; if a pattern matches any of them, the first one is found. A
    module is found under all its names, each followed by a `.`, with which no name of a tensor ends. `key` is what messages
    call the place of the pattern, such as a config key. All methods with a `key` raise ConfigError if nothing is found; the
    message suggests similar names.
    """

    def resolve(self, pattern: Pattern, key: str) -> set[str]:
        """Return the names of the parameters that a pattern matches."""
        return self._found(self._matched_by(pattern, self.parameters), pattern, key)

    def declared(self, pattern: Pattern, key: str, with_modules: bool) -> set[str]:
        """Return the names of the parameters and buffers that a pattern declares frozen.

        `with_modules` adds the modules that it matches, and their buffers.
        """
        found = self._matched_by(pattern, self.parameters)
        found |= self._buffers_named_by(pattern, matches_parameters=bool(found))
        return self._found(found | (self._modules_and_buffers(pattern) if with_modules else set()), pattern, key)

    def exempted(self, pattern: Pattern, key: str, with_modules: bool) -> set[str]:
        """Return the names of the parameters and buffers that a pattern of exceptions matches.

        `with_modules` adds the modules that it matches, and their buffers.
        """
        found = self._matched_by(pattern, [*self.parameters, *self.buffers])
        return self._found(found | (self._modules_and_buffers(pattern) if with_modules else set()), pattern, key)

    def head_notes(self, patterns: Iterable[Pattern]) -> Iterable[str]:
        """Yield a note that names the head, if one of the patterns is `@head` and the user does not name it."""
        for pattern in patterns:
            if pattern.text == HEAD and self.evidence.head is None:
                head = listed([each.text for each in self.patterns_of(pattern)], most=4)
                is_guess = self.evidence.trial is None
                yield self.words.guessed_head.format(head) if is_guess else self.words.found_head.format(head)

    def tie_notes(self, patterns: Iterable[Pattern], keep: Iterable[Pattern], kept: set[str]) -> Iterable[str]:
        """Yield a note for each tied tensor that is not frozen because `keep` matches another of its names.

        A tied tensor is one tensor in several modules, so it has several names. If `patterns` matches one name and `keep`
        matches another one, it is not frozen. `kept`: the names of the tensors that both `patterns` and `keep` match.
        """
        freezes, exempts = [self.matcher(p) for p in patterns], [self.matcher(p) for p in keep]
        for entry in self.entries.values():
            if entry.name in kept and entry.aliases:
                exempt = [name for name in entry.names if any(matches(name) for matches in exempts)]
                frozen = [name for name in entry.names if any(matches(name) for matches in freezes) and name not in exempt]
                if frozen and exempt:
                    yield f"{frozen[0]} is not frozen: it is tied to {exempt[0]}, which {self.words.keep} exempts"

    def _found(self, found: set[str], pattern: Pattern, key: str) -> set[str]:
        """Return what was found for a pattern. Raises ConfigError if that is nothing.

        Raises it too if the pattern is a part, which stands for several patterns, and one of them matches nothing.
        """
        if not found and not (pattern.kind == "part" and PARTS[pattern.text].may_be_absent):
            raise ConfigError(no_match_message(self, pattern, key))
        for each in self.patterns_of(pattern) if pattern.kind == "part" else ():
            if self.is_exact(each):
                continue
            if not self._matched_by(each, self.entries.values()) and not self._modules_and_buffers(each):
                raise ConfigError(no_match_message(self, each, self.words.head))
        return found

    def _matched_by(self, pattern: Pattern, entries: Iterable[TensorEntry]) -> set[str]:
        """Return the first names of those entries of which a pattern matches a name."""
        matches = self.matcher(pattern)
        return {entry.name for entry in entries if any(map(matches, entry.names))}

    def _buffers_named_by(self, pattern: Pattern, matches_parameters: bool) -> set[str]:
        """Return the names of the buffers that a pattern declares frozen even where the buffers of modules are live.

        These are the buffers whose whole name the pattern is. If the pattern matches no parameter (`matches_parameters` is
        False), only modules that have none, they are also the buffers of these modules. A regular expression that matches
        parameters too, such as `re:layer1.*`, declares no buffer.
        """
        if matches_parameters and pattern.kind == "regex":
            return set()
        is_name, matches = self.whole_name_matcher(pattern), self.matcher(pattern)
        found = {entry.name for entry in self.buffers if any(map(is_name, entry.names))}
        if not matches_parameters:
            found |= {e.name for e in self.buffers if any(matches(owner_of(name)) and matches(name) for name in e.names)}
        return found

    def _modules_and_buffers(self, pattern: Pattern) -> set[str]:
        """Return the names of the modules that a pattern matches, each followed by a `.`, and the names of their buffers.

        A module that has two names matches if one of them does.
        """
        matches = self.matcher(pattern)
        module_ids = {id(module) for name, module in self.modules.items() if any(map(matches, with_parents(name)))}
        found = {f"{name}." for name, module in self.modules.items() if id(module) in module_ids}
        return found | {entry.name for entry in self.buffers if any(f"{owner_of(name)}." in found for name in entry.names)}


def forced_tie_note(entries: Iterable[TensorEntry], declared: frozenset[str]) -> list[str]:
    """Return a note about tied tensors that are frozen although no pattern matches some of their names, as a list.

    `entries`: the frozen tensors. `declared`: the names that patterns match. The list is empty if there are no such tensors.
    """
    ties, names = [], 0
    for entry in entries:
        others = [name for name in entry.names if name not in declared]
        if others:
            first = next(name for name in entry.names if name in declared)
            ties.append(f"{first} is the same tensor as {listed(others, most=4)}")
            names = max(names, len(others) + 1)
    return [f"{listed(ties, most=4)}: {'both' if len(ties) == 1 and names == 2 else 'all'} are frozen"] if ties else []


def owner_of(name: str) -> str:
    """Return the name of the module that contains a parameter or buffer; "" for the model itself."""
    return name.rpartition(".")[0]
